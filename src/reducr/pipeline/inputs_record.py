"""``inputs.npz`` of a run: checksums of all inputs and of the files they come from, to see whether they have changed.

Inputs in memory are compared in full, and so is a file of decoded images of up to 1 GiB; of a larger one, evenly
spaced rows. Images that are decoded for each batch are compared by file: its size, its time and a checksum, of the
whole file if all together have up to 2 GiB, else of three blocks of 4 KiB. Beyond 20,000 files, one whose size and time
are the same is not read again, except for an evenly spaced sample of a thousand.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from reducr._internal.distributed import is_main_rank
from reducr._internal.files import open_regular, replaced_atomically
from reducr._internal.manifest import record_files
from reducr._internal.reading import read_arrays
from reducr.data.core.inputs import inputs_at
from reducr.data.io.image_pool import ImageFiles, MappedArray
from reducr.data.io.text import Texts
from reducr.data.own.features import Features
from reducr.irreducible.fingerprint import row_checksums

NAME = "inputs.npz"
_NUM_NAMED = 3
_LARGEST_ROWS = 2**30  # bytes
_LARGEST_WHOLE = 2**31
_NUM_READ_AGAIN = 1000
_MOST_EXPLAINED = 20_000
_LARGEST_EXPLAINED = 2**28
_BLOCK = 4096
_CHUNK = 4096  # rows
_PATH_OPTIONS = ("path", "train_file", "holdout_file", "test_file", "image_dir")


@dataclass(frozen=True)
class Files:
    """Facts of F files.

    Args:
        names: paths, relative to the directory of the run if they are below it.
        sizes: (F,) bytes, -1 for a missing file.
        times: (F,) modification times, nanoseconds.
        checksums: (F,) CRC-32.
        is_whole: whether a checksum covers the whole file; otherwise three blocks.
    """

    names: Sequence[str]
    sizes: NDArray[np.int64]
    times: NDArray[np.int64]
    checksums: NDArray[np.uint32]
    is_whole: bool

    @classmethod
    def of(cls, names: Sequence[str], *, largest: int = _LARGEST_WHOLE) -> Files:
        """Read the files ``names``, whole ones if all together have at most ``largest`` bytes."""
        sizes, times = _sizes_and_times(names)
        is_whole = int(np.maximum(sizes, 0).sum()) <= largest
        return cls(names, sizes, times, _checksums(names, is_whole=is_whole), is_whole)

    def changed(self, *, reads_all: bool) -> list[str]:
        """The names of the files that differ from this record now.

        Args:
            reads_all: whether to read files whose size and time are the same; otherwise a sample of them.
        """
        sizes, times = _sizes_and_times(self.names)
        is_suspect = (sizes != self.sizes) | (times != self.times)
        if reads_all:
            is_suspect[:] = True
        is_suspect[np.linspace(0, len(sizes) - 1, min(len(sizes), _NUM_READ_AGAIN)).astype(np.int64)] = True
        positions = np.flatnonzero(is_suspect)
        now = _checksums([self.names[position] for position in positions.tolist()], is_whole=self.is_whole)
        is_other = (now != self.checksums[positions]) | (sizes[positions] != self.sizes[positions])
        return [self.names[position] for position in positions[is_other].tolist()]


@dataclass(frozen=True)
class InputsRecord:
    """Checksums of the inputs of a run.

    Args:
        num_inputs: P, inputs of all parts.
        positions: (M,) those with a checksum in ``rows``; all of them in memory, none if they are files.
        rows: (M,) CRC-32.
        files: the files of inputs that are decoded for each batch, else those that the options of the data name.
    """

    num_inputs: int
    positions: NDArray[np.int64]
    rows: NDArray[np.uint32]
    files: Files

    @classmethod
    def of(cls, inputs: Any, options: DictConfig) -> InputsRecord:
        """The record of ``RawData.input`` as it is now.

        Args:
            inputs: the inputs of all parts, as read.
            options: of the data module, which name its files.
        """
        positions = _positions(inputs)
        if len(positions):
            files = Files.of(list(_input_files(options)), largest=_LARGEST_EXPLAINED)
        else:
            files = Files.of(
                [_relative(path) for path in inputs.paths] if _is_files(inputs) else [*_input_files(options)]
            )
        return cls(len(inputs), positions, _row_checksums(inputs, positions), files)

    @classmethod
    def read(cls, path: Path) -> InputsRecord:
        """Read the file."""
        names = ("num_inputs", "positions", "rows", "names", "sizes", "times", "checksums", "is_whole")
        arrays = read_arrays(path, names=names)
        text = arrays["names"].tobytes().decode("utf-8", "surrogateescape")
        files = Files(
            text.split("\0") if text else [],
            arrays["sizes"],
            arrays["times"],
            arrays["checksums"],
            bool(arrays["is_whole"]),
        )
        return cls(int(arrays["num_inputs"]), arrays["positions"], arrays["rows"], files)

    def write(self, path: Path) -> None:
        """Write the file."""
        text = "\0".join(self.files.names).encode("utf-8", "surrogateescape")
        arrays: dict[str, Any] = {
            "num_inputs": np.array(self.num_inputs),
            "positions": self.positions,
            "rows": self.rows,
            "names": np.frombuffer(text, dtype=np.uint8),
            "sizes": self.files.sizes,
            "times": self.files.times,
            "checksums": self.files.checksums,
            "is_whole": np.array(self.files.is_whole),
        }
        with replaced_atomically(path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **arrays)


def record_inputs(folder: Path, inputs: Any, options: DictConfig, *, writes: bool) -> None:
    """Compare the inputs with ``inputs.npz`` of the run, or write it.

    Args:
        folder: the run folder.
        inputs: ``RawData.input``, the inputs of all parts as read.
        options: of the data module.
        writes: whether to write the file if there is none: not for the run of an earlier version.

    Raises:
        ValueError: if inputs have changed; names their files.
    """
    if (folder / NAME).is_file():
        check_same_inputs(folder, inputs)
    elif writes and is_main_rank():
        InputsRecord.of(inputs, options).write(folder / NAME)
        record_files(folder, folder / NAME)


def check_same_inputs(folder: Path, inputs: Any) -> None:
    """Raise ValueError if ``RawData.input`` differs from ``inputs.npz`` of the run. A run without it passes.

    Call it in the directory that relative paths count from.
    """
    path = folder / NAME
    if not path.is_file():
        return
    record, num_changed = InputsRecord.read(path), 0
    if _is_files(inputs):
        record = _with_names(record, [_relative(name) for name in inputs.paths])
    if len(inputs) == record.num_inputs and len(record.positions):
        num_changed = int((_row_checksums(inputs, record.positions) != record.rows).sum())
        if not num_changed:
            return
    changed = record.files.changed(reads_all=len(record.files.names) <= _MOST_EXPLAINED)
    if len(inputs) != record.num_inputs or num_changed or changed:
        raise _fault(num_changed or len(changed), record.num_inputs, len(inputs), changed, path)


def _fault(num_changed: int, num_inputs: int, num_now: int, files: Sequence[str], path: Path) -> ValueError:
    what = f"there are {num_now} inputs instead of {num_inputs}"
    if num_now == num_inputs:
        what = f"{num_changed} of {num_inputs} inputs differ from {path}"
    named = ""
    if files:
        others = f" and {len(files) - _NUM_NAMED} more" if len(files) > _NUM_NAMED else ""
        named = f" Changed files: {', '.join(files[:_NUM_NAMED])}{others}."
    return ValueError(
        f"The data has changed since the run: {what}.{named} Restore the files that the run started with, or start a "
        "new run."
    )


def _with_names(record: InputsRecord, names: Sequence[str]) -> InputsRecord:
    """The record with the names that the same files have now, if the data has moved."""
    if len(names) != len(record.files.names):
        return record
    files = Files(names, record.files.sizes, record.files.times, record.files.checksums, record.files.is_whole)
    return InputsRecord(record.num_inputs, record.positions, record.rows, files)


def _is_files(inputs: Any) -> bool:
    """Whether inputs are decoded for each batch."""
    return isinstance(inputs, ImageFiles)


def _positions(inputs: Any) -> NDArray[np.int64]:
    """The rows to compare: all of them, evenly spaced ones of a large file, or none if their files are compared."""
    if isinstance(inputs, Tensor | Features | Texts):
        return np.arange(len(inputs))
    if not isinstance(inputs, MappedArray):
        return np.zeros(0, dtype=np.int64)
    row = inputs_at(inputs, torch.tensor([0]))
    most = max(1, _LARGEST_ROWS // (row.numel() * row.element_size()))
    return np.unique(np.linspace(0, len(inputs) - 1, min(len(inputs), most)).astype(np.int64))


def _row_checksums(inputs: Any, positions: NDArray[np.int64]) -> NDArray[np.uint32]:
    if isinstance(inputs, Tensor):
        return row_checksums(inputs)[positions]
    if isinstance(inputs, Features):
        return row_checksums(inputs.numbers)[positions] ^ row_checksums(inputs.categories)[positions]
    if isinstance(inputs, Texts):
        pairs = zip(inputs.first, inputs.second or [""] * len(inputs), strict=True)
        return np.array([zlib.crc32(f"{one}\0{two}".encode(errors="surrogatepass")) for one, two in pairs], np.uint32)
    chunks = [row_checksums(inputs_at(inputs, chunk)) for chunk in torch.split(torch.from_numpy(positions), _CHUNK)]
    return np.concatenate([np.zeros(0, dtype=np.uint32), *(chunks if len(positions) else ())])


def _input_files(options: DictConfig) -> Iterator[str]:
    """The files that the options of a data module name, and those below the folders they name, but for caches."""
    values: Mapping[Any, Any] = OmegaConf.to_container(options, resolve=True)  # type: ignore[assignment]
    folder = Path(str(values.get("data_dir") or "."))
    named: list[Path] = []
    for option in _PATH_OPTIONS:
        value = values.get(option)
        names = value if isinstance(value, list) else [value]
        named += [folder / name for name in names if isinstance(name, str) and (folder / name).exists()]
    if not named and values.get("data_dir") is not None:
        named.append(folder)
    paths = (file for path in named for file in (_files_below(path) if path.is_dir() else [path]))
    for number, path in enumerate(paths):
        if number == _MOST_EXPLAINED:  # these only explain a change of inputs
            return
        yield _relative(str(path))


def _files_below(folder: Path) -> Iterator[Path]:
    for parent, folders, names in os.walk(folder):
        folders.sort()
        for name in sorted(names):
            path = Path(parent, name)
            if path.is_file():
                yield path


def _relative(path: str) -> str:
    """``path`` from the working directory if it is below it, so that a folder with the run and its data may move."""
    here = os.path.join(os.getcwd(), "")  # noqa: PTH109, PTH118  (a million times)
    return path.removeprefix(here)


def _sizes_and_times(names: Sequence[str]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    facts = np.array([_size_and_time(name) for name in names], dtype=np.int64).reshape(-1, 2)
    return facts[:, 0].copy(), facts[:, 1].copy()


def _size_and_time(name: str) -> tuple[int, int]:
    try:
        status = os.stat(name)  # noqa: PTH116  (a million times)
    except OSError:
        return -1, -1
    return status.st_size, status.st_mtime_ns


def _checksums(names: Sequence[str], *, is_whole: bool) -> NDArray[np.uint32]:
    read = _whole_checksum if is_whole else _block_checksum
    chunks = (names[start : start + _CHUNK] for start in range(0, len(names), _CHUNK))
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        checksums = [checksum for part in threads.map(lambda chunk: [*map(read, chunk)], chunks) for checksum in part]
    return np.array(checksums, dtype=np.uint32)


def _whole_checksum(name: str) -> int:
    checksum = 0
    try:
        with open_regular(name) as file:
            while block := file.read(2**20):
                checksum = zlib.crc32(block, checksum)
    except OSError:
        return 0
    return checksum


def _block_checksum(name: str) -> int:
    """The checksum of the first, the middle and the last block of a file."""
    checksum = 0
    try:
        with open_regular(name) as file:
            size = file.seek(0, os.SEEK_END)
            for start in (0, max(0, size // 2 - _BLOCK // 2), max(0, size - _BLOCK)):
                file.seek(start)
                checksum = zlib.crc32(file.read(_BLOCK), checksum)
    except OSError:
        return 0
    return checksum
