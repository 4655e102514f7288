"""Readers for the published files of CIFAR-10, CIFAR-100 and CIFAR-N."""

from __future__ import annotations

import codecs
import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

_IMAGE_SHAPE = (3, 32, 32)


@dataclass(frozen=True)
class Release:
    """All images of a data set, training images first.

    Args:
        pixels: (N, 3, 32, 32) uint8.
        labels: the target and, if there is one, the superclass; each (N,) int64.
        num_train: number of training images.
        names: class names for each entry of ``labels``.
        notes: see ``RawData``.
    """

    pixels: Tensor
    labels: tuple[Tensor, ...]
    num_train: int
    names: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, files: Sequence[tuple[Tensor, ...]], names: Sequence[Sequence[str]] | None) -> Release:
        """Join the pixels and labels of all files. The last file holds the test images; without names, number them."""
        pixels, *labels = (torch.cat(columns) for columns in zip(*files, strict=True))
        num_train = len(pixels) - len(files[-1][0])
        notes = () if names else ("The files do not name their classes, so the classes are numbered.",)
        names = names or [[str(label) for label in range(int(column.max()) + 1)] for column in labels]
        return cls(pixels, tuple(labels), num_train, tuple(map(tuple, names)), notes)


@dataclass(frozen=True)
class Layout:
    """One published file layout.

    Args:
        folder: the folder's usual name.
        images: image files in order; the last one holds the test images.
        labels: columns of the target and, if there is one, of the superclass.
        read: reads a folder that contains all files of the layout.
        names: file with the class names, if they have a file of their own.
    """

    folder: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    read: Callable[[Path, Layout], Release]
    names: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files."""
        return self.images if self.names is None else (*self.images, self.names)


def read_pickles(folder: Path, layout: Layout) -> Release:
    """Read the original Python files: pixels as rows of 3,072 bytes, labels as lists."""
    files = []
    for name in layout.images:
        with naming_file(folder / name):
            contents = _unpickled(folder / name)
            pixels = np.reshape(entry(contents, "data"), (-1, *_IMAGE_SHAPE))
            files.append(_checked_images(pixels, *(entry(contents, column) for column in layout.labels)))
    path = folder / str(layout.names)
    with naming_file(path):
        contents = _unpickled(path)
        # the names of "fine_labels" are in "fine_label_names"
        names = [entry(contents, f"{column.removesuffix('s')}_names") for column in layout.labels]
    return Release.of(files, names)


def read_parquet(folder: Path, layout: Layout) -> Release:
    """Read the Hugging Face hub's files: one encoded image per row, class names in the schema if anywhere."""
    from PIL import Image
    from pyarrow import parquet

    files = []
    names: list[Any] = []
    for name in layout.images:
        with naming_file(folder / name):
            table = parquet.read_table(folder / name)
            contents = {column: table[column].to_pylist() for column in table.column_names}
            images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in entry(contents, "img")]
            pixels = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
            files.append(_checked_images(pixels, *(entry(contents, column) for column in layout.labels)))
            schema = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
            features = schema.get("info", {}).get("features", {})
            names = [features.get(column, {}).get("names") for column in layout.labels]
    return Release.of(files, names if all(names) else None)


def read_human_labels(path: Path) -> Any:
    """Read a CIFAR-N file, normally a dict of label arrays: ``.pt`` as published, or the same arrays as ``.npz``."""
    return read_npz(path) if path.suffix == ".npz" else _read_torch(path)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file."""
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is not an .npz file")
        file.seek(0)
        return dict(np.load(file))


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Turn any exception into a ValueError about the file ``path``; every format fails in its own way."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is damaged or not what its name says ({error}). Get the file again.") from error


def entry(contents: Any, key: str) -> Any:
    """``contents[key]``, or a ValueError if ``contents`` is not a dict with that key."""
    if not isinstance(contents, Mapping) or key not in contents:
        raise ValueError(f"it has no {key!r}")
    return contents[key]


def _checked_images(pixels: np.ndarray, *labels: Any) -> tuple[Tensor, ...]:
    """Pixels (N, 3, 32, 32) and each column of labels (N,), as tensors."""
    if pixels.dtype != np.uint8 or pixels.shape[1:] != _IMAGE_SHAPE:
        raise ValueError(f"images must be (N, 3, 32, 32) of uint8; got {pixels.shape} of {pixels.dtype}")
    columns = [torch.tensor(np.asarray(column, dtype=np.int64)) for column in labels]
    for column in columns:
        if column.shape != (len(pixels),):
            raise ValueError(f"it has {len(column)} labels for {len(pixels)} images")
    return torch.from_numpy(np.ascontiguousarray(pixels)), *columns


def _dtype(name: str, align: int = 0, copy: int = 0) -> np.dtype:
    # Python 2 pickled these flags as integers, which NumPy 2.4 deprecates
    return np.dtype(name, align=bool(align), copy=bool(copy))


# The only calls that unpickling an array needs, under their names in Python 2 and 3 and in NumPy 1 and 2.
_ARRAY_CALLS: Mapping[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": np.ndarray(0).__reduce__()[0],  # type: ignore[dict-item]
    "numpy._core.multiarray._reconstruct": np.ndarray(0).__reduce__()[0],  # type: ignore[dict-item]
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _dtype,
    "_codecs.encode": codecs.encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickle arrays and plain containers; refuse every other callable."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ARRAY_CALLS:
            raise pickle.UnpicklingError(f"it calls {module}.{name}, which no array needs")
        return _ARRAY_CALLS[f"{module}.{name}"]


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


def _read_torch(path: Path) -> Any:
    """Load a ``torch.save`` file that contains only arrays and plain containers."""
    allowed: list[Any] = [np.dtypes.Int64DType, *((call, name) for name, call in _ARRAY_CALLS.items())]
    with torch.serialization.safe_globals(allowed):
        try:
            return torch.load(path, weights_only=True)
        except (pickle.UnpicklingError, EOFError) as error:
            raise ValueError("it is truncated, or contains more than arrays of labels") from error
