"""Readers for the published files of CIFAR-10, CIFAR-100 and CIFAR-N."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from reducr._internal.files import open_regular
from reducr.data.io.array_pickles import read_array_pickle
from reducr.data.io.image_decoding import IMAGE_FORMATS

_IMAGE_SHAPE = (3, 32, 32)
_NUM_TORCH_HEADERS = 3  # pickles before the content in the old format of torch.save
_MAX_LABEL_BYTES = 2**28


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
        if names is None and any(int(column.min()) < 0 or int(column.max()) >= len(pixels) for column in labels):
            raise ValueError("The files do not name their classes, and labels are missing. Get them again.")
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
        names = [_names(entry(contents, f"{column.removesuffix('s')}_names")) for column in layout.labels]
    return Release.of(files, names)


def read_parquet(folder: Path, layout: Layout) -> Release:
    """Read the Hugging Face hub's files: one encoded image per row, class names in the schema if anywhere."""
    from pyarrow import parquet

    files = []
    names: list[Any] = []
    for name in layout.images:
        with naming_file(folder / name):
            with open_regular(folder / name) as file:  # pyarrow takes no names that are not UTF-8
                table = parquet.read_table(file)
            contents = {column: table[column].to_pylist() for column in table.column_names}
            images = [_decoded(image["bytes"]) for image in entry(contents, "img")]
            pixels = np.stack(images).transpose(0, 3, 1, 2)
            files.append(_checked_images(pixels, *(entry(contents, column) for column in layout.labels)))
            schema = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
            features = schema.get("info", {}).get("features", {})
            names = [features.get(column, {}).get("names") for column in layout.labels]
            names = [None if of_column is None else _names(of_column) for of_column in names]
    return Release.of(files, names if all(names) else None)


def read_human_labels(path: Path) -> Any:
    """Read a CIFAR-N file, normally a dict of label arrays: ``.pt`` as published, or the same arrays as ``.npz``."""
    return read_npz(path) if path.suffix == ".npz" else _read_torch(path)


def read_npz(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an ``.npz`` file."""
    with open_regular(path) as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is not an .npz file")
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            _check_unpacked_size(archive.infolist())
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
    columns = [whole_numbers(column) for column in labels]
    for column in columns:
        if column.shape != (len(pixels),):
            raise ValueError(f"it has {len(column)} labels for {len(pixels)} images")
    return torch.from_numpy(np.array(pixels, order="C")), *columns


def whole_numbers(column: Any) -> Tensor:
    """A list or an array of N whole numbers as (N,) int64."""
    is_array = isinstance(column, np.ndarray) and column.ndim == 1 and column.dtype.kind in "iu"
    is_list = isinstance(column, list) and all(type(value) is int for value in column)
    if not is_array and not is_list:
        raise ValueError("its labels are not a list of whole numbers")
    return torch.tensor(np.asarray(column, dtype=np.int64))


def _names(names: Any) -> list[str]:
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("its class names are not a list of texts")
    return names


def _decoded(content: bytes) -> np.ndarray:
    """(32, 32, 3) uint8."""
    from PIL import Image

    with Image.open(io.BytesIO(content), formats=IMAGE_FORMATS) as image:
        if image.size != _IMAGE_SHAPE[1:]:  # before the pixels are decoded
            raise ValueError(f"images must be 32 x 32; got {image.size[0]} x {image.size[1]}")
        return np.asarray(image.convert("RGB"))


def _unpickled(path: Path) -> Any:
    with open_regular(path) as file:
        return read_array_pickle(io.BytesIO(file.read()))


def _read_torch(path: Path) -> Any:
    """Read a file of ``torch.save`` that holds only arrays and plain containers, in its old format or its new one."""
    try:
        with open_regular(path) as opened:
            if zipfile.is_zipfile(opened):
                return read_array_pickle(io.BytesIO(_pickle_of_archive(opened)))
            opened.seek(0)
            file = io.BytesIO(opened.read())
        for _ in range(_NUM_TORCH_HEADERS):
            read_array_pickle(file)
        return read_array_pickle(file)
    except pickle.UnpicklingError as error:
        raise ValueError(f"it is truncated, or contains more than arrays of labels: {error}") from error


def _pickle_of_archive(file: BinaryIO) -> bytes:
    with zipfile.ZipFile(file) as archive:
        member = next((member for member in archive.infolist() if member.filename.endswith("/data.pkl")), None)
        if member is None:
            raise ValueError("it is not a file of torch.save")
        _check_unpacked_size([member])
        return archive.read(member)


def _check_unpacked_size(members: Sequence[zipfile.ZipInfo]) -> None:
    size = sum(member.file_size for member in members)
    if size > _MAX_LABEL_BYTES:
        raise ValueError(f"it unpacks to {size:,} bytes, far more than labels need")
