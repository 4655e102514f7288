"""``data.npz`` of a seed: which original examples are in which part, and which labels were corrupted."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from reducr._internal.distributed import is_main_rank
from reducr._internal.files import file_checksum, replaced_atomically
from reducr._internal.manifest import Manifest, record_files
from reducr._internal.reading import read_arrays
from reducr.data import Splits
from reducr.pipeline.progress import RunDisplay
from reducr.reports import print_line


def record_data(splits: Splits, folder: Path, display: RunDisplay) -> None:
    """Print the notes of the data and write ``data.npz`` into ``folder``; compare with it if it exists.

    Raises:
        ValueError: if the data differs from an existing ``data.npz``.
    """
    for note in splits.notes:
        print_line(note, display.console)
    arrays = recorded_arrays(splits)
    path = folder / "data.npz"
    if path.is_file():
        check_same_data(path, arrays)
    elif is_main_rank():
        with replaced_atomically(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)
        _check_made_again(path)
        record_files(folder.parent, path)


def recorded_arrays(splits: Splits) -> dict[str, Any]:
    """The arrays of ``data.npz``; docs/metrics.md explains them."""
    arrays: dict[str, Any] = {"class_names": np.array(splits.class_names), "notes": np.array(splits.notes, dtype=str)}
    if splits.group_names is not None:
        arrays["group_names"] = np.array(splits.group_names)
    for part, examples in splits.by_name().items():
        arrays |= {f"{part}_{name}": getattr(examples, name).numpy() for name in ("source", "target", "group")}
        if examples.is_corrupted is not None:
            arrays[f"{part}_is_corrupted"] = examples.is_corrupted.numpy()
    return arrays


def check_same_data(path: Path, arrays: Mapping[str, Any]) -> None:
    """Raise ValueError, with the first array that differs, unless ``data.npz`` at ``path`` holds ``arrays``."""
    recorded = read_arrays(path)
    for name in sorted(recorded.keys() | arrays.keys()):
        is_same = name in recorded and name in arrays and np.array_equal(recorded[name], arrays[name])
        if not is_same and name != "notes":
            raise _changed(name, path)


def _check_made_again(path: Path) -> None:
    """Raise ValueError if a ``data.npz`` that was removed as damaged was another one."""
    folder = path.parents[1]
    manifest = Manifest.read(folder)
    entry = None if manifest is None else manifest.entries.get(path.relative_to(folder).as_posix())
    if entry is not None and entry["sha256"] != file_checksum(path):
        path.unlink()
        raise _changed("what was read", path)


def _changed(what: str, path: Path) -> ValueError:
    return ValueError(
        f"The data has changed since the run: {what} differs from {path}. Restore the files that the run started with, "
        "or start a new run."
    )
