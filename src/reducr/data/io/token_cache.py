"""Keep tokens on disk, memory-mapped, with the tokenizer that made them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from reducr._internal.files import file_checksum, read_regular_text, replaced_atomically, write_text_atomically

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def cached_tokens(folder: Path, key: str) -> tuple[Tensor, dict[str, int]] | None:
    """The tokens stored under ``key``, memory-mapped, and their facts; None if a file is missing or damaged."""
    array_path, manifest_path, tokenizer_path = _paths(folder, key)
    try:
        manifest = json.loads(read_regular_text(manifest_path))
        is_valid = manifest["key"] == key and manifest["checksum"] == file_checksum(array_path)
        return (_mapped(array_path), manifest["facts"]) if is_valid and tokenizer_path.is_file() else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def write_tokens(folder: Path, key: str, tokens: Tensor, *, facts: Mapping[str, int], tokenizer: Tokenizer) -> Tensor:
    """Store tokens under ``key`` and return them memory-mapped.

    The manifest is written last. Without it the other files are not used.
    """
    array_path, manifest_path, tokenizer_path = _paths(folder, key)
    with replaced_atomically(array_path) as temporary, temporary.open("wb") as file:
        np.save(file, tokens.numpy())
    write_text_atomically(tokenizer_path, tokenizer.to_str(pretty=True))
    manifest = {"key": key, "checksum": file_checksum(array_path), "facts": facts}
    write_text_atomically(manifest_path, json.dumps(manifest))
    return _mapped(array_path)


def _mapped(array_path: Path) -> Tensor:
    # copy-on-write: torch needs a writable array, and the file must not change
    return torch.from_numpy(np.load(array_path, mmap_mode="c"))


def _paths(folder: Path, key: str) -> tuple[Path, Path, Path]:
    """Of the array, the manifest and the tokenizer."""
    name = key[:16]
    return folder / f"tokens_{name}.npy", folder / f"tokens_{name}.json", folder / f"tokenizer_{name}.json"
