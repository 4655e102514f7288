"""Fashion-MNIST from its original idx files."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import IO, Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from reducr._internal.files import open_regular
from reducr.data.core.module import DataModule
from reducr.data.core.raw import RawData
from reducr.data.io.download import fetch

CLASS_NAMES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
# of the 60,000 training images, with pixels in [0, 1]
_MEAN, _STANDARD_DEVIATION = 0.2860, 0.3530
_IDX_UINT8 = 0x08
_MAX_AXES = 8
_MAX_VALUES = 2**31
_CHUNK_BYTES = 2**20


class FashionMNIST(DataModule):
    """70,000 grey images of clothing in ten classes, from the four idx files of the original release.

    Card:
        Source: Xiao, Rasul & Vollgraf 2017 (arXiv 1708.07747), github.com/zalandoresearch/fashion-mnist.
        Licence: MIT.
        Sizes: 60,000 training and 10,000 test images of 28 x 28, balanced; inputs are (1, 28, 28) floats,
            standardised.
        Splits: the published test part; the holdout part is drawn from the training images by seed, stratified.
        Group: the class.
        Memory: 220 MB for all images as floats.

    Args:
        data_dir: folder with ``FashionMNIST/raw``, or with the four files, gzip-compressed or not.
        download: whether to download missing files into ``data_dir/FashionMNIST/raw``.
        options: of ``DataModule``.

    Raises:
        FileNotFoundError: if a file is missing.
    """

    url: ClassVar[str] = "https://github.com/zalandoresearch/fashion-mnist/raw/master/data/fashion"
    md5: ClassVar[Mapping[str, str]] = {
        "train-images-idx3-ubyte": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
        "train-labels-idx1-ubyte": "25c81989df183df01b3e8a0aad5dffbe",
        "t10k-images-idx3-ubyte": "bef4ecab320f06d8554ea6380940ec79",
        "t10k-labels-idx1-ubyte": "bb300cfdad3c16e7a12a480ee83cd310",
    }

    def __init__(self, *, data_dir: str | Path | None, download: bool = False, **options: Any) -> None:
        super().__init__(**options)
        if data_dir is None:
            raise ValueError(
                "Fashion-MNIST needs `datamodule.data_dir=DIR`, the folder that contains FashionMNIST/raw with "
                "train-images-idx3-ubyte.gz and the other idx files. Add `datamodule.download=true` to download them "
                "into DIR."
            )
        self.data_dir = Path(data_dir)
        self.download = download

    def read(self) -> RawData:
        """The two published parts."""
        train_target, test_target = self._labels("train-labels-idx1-ubyte"), self._labels("t10k-labels-idx1-ubyte")
        target = torch.cat([train_target, test_target])
        return RawData(
            input=torch.cat([self._images("train-images-idx3-ubyte"), self._images("t10k-images-idx3-ubyte")]),
            target=target,
            class_names=CLASS_NAMES,
            parts={"test": torch.arange(len(train_target), len(target))},
        )

    def _images(self, name: str) -> Tensor:
        pixels = torch.from_numpy(read_idx(self._find(name))).float().div_(255)
        return pixels.sub_(_MEAN).div_(_STANDARD_DEVIATION).unsqueeze(1)

    def _labels(self, name: str) -> Tensor:
        return torch.from_numpy(read_idx(self._find(name))).long()

    def _find(self, name: str) -> Path:
        folders = [self.data_dir / "FashionMNIST" / "raw", self.data_dir]
        for folder in folders:
            for path in (folder / name, folder / f"{name}.gz"):
                if path.is_file():
                    return path
        if self.download:
            path = folders[0] / f"{name}.gz"
            fetch(f"{self.url}/{name}.gz", path, md5=self.md5[name])
            return path
        raise FileNotFoundError(
            f"Fashion-MNIST has no {name} (or .gz) in {' or '.join(map(str, folders))}. Set "
            "`datamodule.download=true`, or put the four idx files of github.com/zalandoresearch/fashion-mnist into "
            "DIR/FashionMNIST/raw and set `datamodule.data_dir=DIR`."
        )


def read_idx(path: Path) -> np.ndarray:
    """The uint8 array in an idx file, which is gzip-compressed if its name ends in ``.gz``.

    Format: two zero bytes, one byte for the type, one byte for the number of axes, the size of each axis as a
    big-endian 32-bit integer, then the values.

    Raises:
        ValueError: if the file is truncated, damaged or not an idx file of unsigned bytes.
    """
    try:
        with open_regular(path) as file, gzip.open(file) if path.suffix == ".gz" else nullcontext(file) as content:
            start = content.read(4)
            if len(start) < 4 or start[:2] != b"\0\0" or start[2] != _IDX_UINT8:
                raise ValueError(f"{path} is not an idx file of unsigned bytes: it starts with {start.hex()}.")
            sizes = content.read(4 * start[3])
            if len(sizes) < 4 * start[3]:
                raise ValueError(f"{path} is truncated or damaged: its header is incomplete. Get the file again.")
            shape = tuple(np.frombuffer(sizes, dtype=">u4").tolist())
            num_values, header = math.prod(shape), 4 + len(sizes)
            # a small file may unpack to terabytes
            values = _read_at_most(content, min(num_values, _MAX_VALUES) + _CHUNK_BYTES)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}). Get the file again.") from error
    if len(shape) > _MAX_AXES or len(values) != num_values:
        or_more = " or more" if len(values) >= num_values + _CHUNK_BYTES else ""
        raise ValueError(
            f"{path} is truncated or damaged: its header says {shape}, {header + num_values} bytes in all; it has "
            f"{header + len(values)}{or_more}. Get the file again."
        )
    return np.frombuffer(values, dtype=np.uint8).reshape(shape).copy()


def _read_at_most(file: IO[bytes] | gzip.GzipFile, num_bytes: int) -> bytes:
    """Up to ``num_bytes``, without reserving memory for more than the file has."""
    chunks = []
    while num_bytes > 0 and (chunk := file.read(min(num_bytes, _CHUNK_BYTES))):
        chunks.append(chunk)
        num_bytes -= len(chunk)
    return b"".join(chunks)
