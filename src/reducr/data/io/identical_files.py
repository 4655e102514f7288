"""Find files with identical content."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reducr._internal.files import file_checksum, open_regular
from reducr.data.io.parallel import map_files

_PREFIX_BYTES = 4096


def same_files(paths: Sequence[Path]) -> Tensor:
    """Number the files so that two files have the same number exactly if they have the same bytes.

    A file is read in full only if another file has the same size and the same first 4,096 bytes. A missing file gets a
    number of its own, and so does anything but a regular file.

    Args:
        paths: N files.

    Returns:
        (N,) int64.
    """
    numbers = np.zeros(len(paths), dtype=np.int64)
    for describe in (_size, _prefix, file_checksum):
        candidates = np.flatnonzero(np.bincount(numbers)[numbers] > 1).tolist()
        descriptions = map_files(describe, [paths[position] for position in candidates], verb="comparing")
        keys: list[Any] = [(int(number), None) for number in numbers]
        for position, description in zip(candidates, descriptions, strict=True):
            keys[position] = (int(numbers[position]), description or f"missing {position}")
        number_of: dict[Any, int] = {}
        numbers = np.array([number_of.setdefault(key, len(number_of)) for key in keys], dtype=np.int64)
    return torch.from_numpy(numbers)


def _size(path: Path) -> str | None:
    """The size in bytes; None if the file is missing, or not a regular file."""
    try:
        status = path.stat()
    except OSError:
        return None
    return str(status.st_size) if stat.S_ISREG(status.st_mode) else None


def _prefix(path: Path) -> bytes:
    with open_regular(path) as file:
        return file.read(_PREFIX_BYTES)
