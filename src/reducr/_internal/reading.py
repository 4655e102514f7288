"""Read files that may be damaged, or come from someone else, without running code from them."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from reducr._internal.files import check_regular
from reducr._internal.memory import available_memory, in_units

_NOT_DAMAGE = (FileNotFoundError, PermissionError, IsADirectoryError)


class DamagedFileError(ValueError):
    """A file that does not hold what was written into it. The message names it and says what to do."""


@contextmanager
def reading(path: Path, expected: str) -> Iterator[None]:
    """Turn every error of reading ``path`` into a ``DamagedFileError``, except that the file is not there.

    Args:
        path: the file.
        expected: what it should hold, such as "a checkpoint".

    Raises:
        DamagedFileError: for any error in the block.
    """
    try:
        check_regular(path)
        yield
    except (*_NOT_DAMAGE, DamagedFileError):
        raise
    except Exception as error:  # whatever a parser makes of damaged bytes
        raise DamagedFileError(
            f"{path} is damaged: expected {expected}, but {_reason(error)}. {healing_of(path)}"
        ) from error


def healing_of(path: Path) -> str:
    """What to do about a damaged file: a sentence."""
    run = run_of(path)
    if run is None:
        return "Restore a copy of it, or make it again."
    if path.parent == run and path.name != "results.csv":
        return "Restore a copy of it."
    return f"Restore a copy of it, or make again what it belongs to: `reducr resume {run} --make-again`."


def run_of(path: Path) -> Path | None:
    """The run folder that holds ``path``; None if no folder above it has a ``run.json``."""
    return next((parent for parent in path.parents if (parent / "run.json").is_file()), None)


def read_json(path: Path, expected: str, *, names: Sequence[str] = ()) -> dict[str, Any]:
    """The mapping in a JSON file.

    Args:
        path: the file.
        expected: what it should hold, for messages.
        names: that the mapping must have.

    Raises:
        FileNotFoundError: if there is no file.
        DamagedFileError: if it is no JSON, not a mapping, or lacks a name.
    """
    with reading(path, expected):
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")  # noqa: TRY004  (a fault of the file)
        missing = [name for name in names if name not in content]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
    return content


def read_arrays(path: Path, *, names: Sequence[str] = ()) -> dict[str, NDArray[Any]]:
    """All arrays of an ``.npz`` file, whose checksums are verified.

    Args:
        path: the file.
        names: of arrays that it must have.

    Raises:
        FileNotFoundError: if there is no file.
        DamagedFileError: if it is damaged, holds Python objects, lacks an array, or unpacks to more than the memory.
    """
    # opened here, because numpy leaves a file that it cannot read open
    with reading(path, "arrays"), path.open("rb") as opened:
        _check_unpacked_size(opened)
        opened.seek(0)
        with np.load(opened, allow_pickle=False) as file:
            arrays = dict(file)
        if not all(isinstance(array, np.ndarray) for array in arrays.values()):
            raise ValueError("it holds other files")
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ValueError(f"it lacks the array {', '.join(missing)}")
    return arrays


def read_array(path: Path) -> NDArray[Any]:
    """The array of an ``.npy`` file.

    Raises:
        FileNotFoundError: if there is no file.
        DamagedFileError: if it is damaged or holds Python objects.
    """
    with reading(path, "an array"):
        array = np.load(path, allow_pickle=False)
        if not isinstance(array, np.ndarray):
            raise ValueError("it holds several arrays")  # noqa: TRY004  (a fault of the file)
    return array


def read_checkpoint(path: Path, *, names: Sequence[str] = ()) -> dict[str, Any]:
    """The content of a checkpoint, on the CPU: tensors and plain values.

    ``torch.load`` reads changed weights without an error, so the checksums of the archive are verified first.

    Args:
        path: the file.
        names: that the content must have.

    Raises:
        FileNotFoundError: if there is no file.
        DamagedFileError: if it is damaged, holds anything but tensors and plain values, lacks a name, or unpacks to
            more than the memory.
    """
    with reading(path, "a checkpoint of tensors and plain values"):
        with zipfile.ZipFile(path) as archive:
            _check_size_of(archive)
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} in it does not match")
        content = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__}")  # noqa: TRY004  (a fault of the file)
        missing = [name for name in names if name not in content]
        if missing:
            raise ValueError(f"it lacks {', '.join(missing)}")
    return content


def _reason(error: Exception) -> str:
    """What is wrong with a file, for the middle of a sentence."""
    if isinstance(error, MemoryError):
        return "the size that it states exceeds the memory"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    told = type(error).__module__ in ("builtins", "json.decoder", "zipfile", "zlib", "_csv")
    lines = str(error).strip().splitlines()
    if not told or isinstance(error, KeyError | RuntimeError | AttributeError) or not lines:
        return "it cannot be read as such"  # messages of pickle and torch advise to lift their protection
    return f"it cannot be read ({lines[0].rstrip('.')})" if len(lines[0]) > 60 else lines[0].rstrip(".")


def _check_unpacked_size(opened: Any) -> None:
    with zipfile.ZipFile(opened) as archive:
        _check_size_of(archive)


def _check_size_of(archive: zipfile.ZipFile) -> None:
    size = sum(entry.file_size for entry in archive.infolist())
    available = available_memory()
    if available is not None and size > available:
        raise ValueError(f"it unpacks to {in_units(size)}, and {in_units(available)} of memory are available")
