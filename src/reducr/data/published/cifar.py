"""CIFAR-10 and CIFAR-100, with their published labels or the human ones of CIFAR-N."""

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
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from reducr._internal.checks import check_range
from reducr._internal.names import unknown_name
from reducr.data.core.module import DataModule, RawData
from reducr.data.io.download import fetch, unpack

_IMAGE = (3, 32, 32)
_PARQUET = ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet")


class _CIFAR(DataModule):
    """What the two data sets share."""

    title: ClassVar[str]
    layouts: ClassVar[tuple[_Layout, ...]]
    archive_url: ClassVar[str]
    archive_md5: ClassVar[str]
    human_files: ClassVar[tuple[str, str]]
    human_labels: ClassVar[Mapping[str, str]]
    human_url: ClassVar[str]
    human_sha256: ClassVar[str]

    def __init__(
        self,
        *,
        data_dir: str | Path | None,
        download: bool = False,
        labels: str = "clean",
        split: str | None = "even_odd",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if data_dir is None:
            raise ValueError(
                f"{self.title} needs datamodule.data_dir=DIR, the folder that holds "
                f"{' or '.join(layout.folder for layout in self.layouts)}, or that will with datamodule.download=true."
            )
        if labels not in ("clean", *self.human_labels):
            raise unknown_name("datamodule.labels", labels, ["clean", *self.human_labels])
        if split not in ("even_odd", None):
            raise unknown_name("datamodule.split", split, ["even_odd", "null"])
        if split is None and self.holdout_size is None:
            raise ValueError("datamodule.split=null needs datamodule.holdout_size, the training images to hold out.")
        self.data_dir = Path(data_dir)
        self.download = download
        self.labels = labels
        self.split = split

    def read(self) -> RawData:
        """Training images, then test images; the position of a training image is its original index."""
        folder, layout = self._found()
        release = layout.read(folder, layout)
        for kind, labels, names in zip(("target", "superclass"), release.labels, release.names, strict=False):
            check_range(f"{folder}: {kind}", labels, len(names), place="image")
        index = torch.arange(release.num_train)
        parts = {"train": index[::2], "holdout": index[1::2]} if self.split == "even_odd" else {}
        return RawData(
            input=release.pixels,
            target=release.labels[0],
            class_names=release.names[0],
            parts=parts | {"test": torch.arange(release.num_train, len(release.pixels))},
            noisy_target=None if self.labels == "clean" else self._noisy_target(release, folder),
            notes=release.notes,
            **self._groups(release),
        )

    def _groups(self, release: _Release) -> dict[str, Any]:
        """What ``RawData`` must know of groups; nothing where they are the targets."""
        return {}

    def _found(self) -> tuple[Path, _Layout]:
        """The first folder that has all files of a layout."""
        places = [
            (folder, layout) for layout in self.layouts for folder in (self.data_dir / layout.folder, self.data_dir)
        ]
        missing = [[name for name in layout.files if not (folder / name).is_file()] for folder, layout in places]
        if [] in missing:
            return places[missing.index([])]
        if self.download:
            archive = self.data_dir / self.archive_url.rsplit("/", 1)[1]
            fetch(self.archive_url, archive, md5=self.archive_md5)
            unpack(archive, self.data_dir)
            return self.data_dir / self.layouts[0].folder, self.layouts[0]
        partial = [
            f" {folder} has no {', '.join(names)}."
            for (folder, layout), names in zip(places, missing, strict=True)
            if len(names) < len(layout.files)
        ]
        known = "; or ".join(f"{layout.folder} ({', '.join(layout.files)})" for layout in self.layouts)
        raise FileNotFoundError(
            f"{self.title} is missing; looked in {self.data_dir} for {known}; and in {self.data_dir} itself for the "
            f"same files.{''.join(partial)} Give datamodule.download=true, or unpack {self.archive_url} into DIR and "
            "give datamodule.data_dir=DIR."
        )

    def _noisy_target(self, release: _Release, folder: Path) -> Tensor:
        """(N,) the human labels of the training images, and the clean ones of the test images."""
        path, key = self._human_path(folder), self.human_labels[self.labels]
        clean = release.labels[0][: release.num_train]
        with _naming(path):
            contents = _npz(path) if path.suffix == ".npz" else _torch_arrays(path)
            human_clean, human = (
                torch.tensor(np.asarray(_entry(contents, name), dtype=np.int64)) for name in ("clean_label", key)
            )
            if not human_clean.shape == human.shape == clean.shape:
                raise ValueError(f"it has {len(human)} labels for the {len(clean)} training images in {folder}")
            check_range(key, human, len(release.names[0]), place="image")
        num_different = int((human_clean != clean).sum())
        if num_different:
            raise ValueError(
                f"datamodule.labels={self.labels} would give images each other's labels: the clean labels in {path} "
                f"differ from those in {folder} at {num_different:,} of {len(clean):,} training images, so these are "
                f"not in their original order. Use the files of {self.archive_url}."
            )
        return torch.cat([human, release.labels[0][release.num_train :]])

    def _human_path(self, images: Path) -> Path:
        folders = [self.data_dir, self.data_dir / "cifar_n", self.data_dir / "CIFAR-N", images.parent / "cifar_n"]
        folders = list(dict.fromkeys(folders))
        for folder in folders:
            for name in self.human_files:
                if (folder / name).is_file():
                    return folder / name
        if self.download:
            fetch(self.human_url, self.data_dir / self.human_files[0], sha256=self.human_sha256)
            return self.data_dir / self.human_files[0]
        raise FileNotFoundError(
            f"datamodule.labels={self.labels} needs {' or '.join(self.human_files)}; looked in "
            f"{', '.join(map(str, folders))}. Give datamodule.download=true, or put {self.human_url} into DIR and give "
            "datamodule.data_dir=DIR."
        )


@dataclass(frozen=True)
class _Release:
    """All images, training ones first.

    Args:
        pixels: (N, 3, 32, 32) uint8.
        labels: (N,) int64 of each kind: the target and, if there is one, the superclass.
        num_train: training images.
        names: what the labels of each kind are called.
        notes: see ``RawData``.
    """

    pixels: Tensor
    labels: tuple[Tensor, ...]
    num_train: int
    names: tuple[tuple[str, ...], ...]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, files: Sequence[tuple[Tensor, ...]], names: Sequence[Sequence[str]] | None) -> _Release:
        """The pixels and labels of all files, the last of which has the test images."""
        pixels, *labels = (torch.cat(columns) for columns in zip(*files, strict=True))
        num_train = len(pixels) - len(files[-1][0])
        notes = () if names else ("The files do not say what the classes are called, so they are numbered.",)
        names = names or [[str(label) for label in range(int(column.max()) + 1)] for column in labels]
        return cls(pixels, tuple(labels), num_train, tuple(map(tuple, names)), notes)


@dataclass(frozen=True)
class _Layout:
    """A way in which the files of a release are kept.

    Args:
        folder: the usual name of their folder.
        images: names of the files with images: training images in original order, then, in the last one, test images.
        labels: what the files call each kind of label: the target and, if there is one, the superclass.
        read: makes a release of a folder that has all the files.
        names: name of the file that says what labels are called, where that is a file of its own.
    """

    folder: str
    images: tuple[str, ...]
    labels: tuple[str, ...]
    read: Callable[[Path, _Layout], _Release]
    names: str | None = None

    @property
    def files(self) -> tuple[str, ...]:
        """Names of all files."""
        return self.images if self.names is None else (*self.images, self.names)


def _read_pickles(folder: Path, layout: _Layout) -> _Release:
    """The original python files: pixels in rows of 3,072, labels in lists."""
    files = []
    for name in layout.images:
        with _naming(folder / name):
            contents = _unpickled(folder / name)
            pixels = np.reshape(_entry(contents, "data"), (-1, *_IMAGE))
            files.append(_images(pixels, *(_entry(contents, column) for column in layout.labels)))
    path = folder / str(layout.names)
    with _naming(path):
        contents = _unpickled(path)
        # fine_labels are named in fine_label_names
        names = [_entry(contents, f"{column.removesuffix('s')}_names") for column in layout.labels]
    return _Release.of(files, names)


def _read_parquet(folder: Path, layout: _Layout) -> _Release:
    """The files of the Hugging Face hub: images encoded one by one; the schema says what labels are called."""
    from PIL import Image
    from pyarrow import parquet

    files = []
    names: list[Any] = []
    for name in layout.images:
        with _naming(folder / name):
            table = parquet.read_table(folder / name)
            contents = {column: table[column].to_pylist() for column in table.column_names}
            images = [Image.open(io.BytesIO(image["bytes"])).convert("RGB") for image in _entry(contents, "img")]
            pixels = np.stack([np.asarray(image) for image in images]).transpose(0, 3, 1, 2)
            files.append(_images(pixels, *(_entry(contents, column) for column in layout.labels)))
            schema = json.loads((table.schema.metadata or {}).get(b"huggingface", b"{}"))
            features = schema.get("info", {}).get("features", {})
            names = [features.get(column, {}).get("names") for column in layout.labels]
    return _Release.of(files, names if all(names) else None)


def _read_sheets(folder: Path, layout: _Layout) -> _Release:
    """Lossless pictures of many images, filled row by row; all labels and their names are in one more file."""
    from PIL import Image

    sheets = []
    for name in layout.images:
        with _naming(folder / name):
            with Image.open(folder / name) as picture:
                sheet = np.asarray(picture.convert("RGB"))
            grid = sheet.reshape(sheet.shape[0] // 32, 32, sheet.shape[1] // 32, 32, 3)
            sheets.append(grid.transpose(0, 2, 4, 1, 3).reshape(-1, *_IMAGE))
    path = folder / str(layout.names)
    with _naming(path):
        contents = _npz(path)
        labels = np.concatenate([_entry(contents, column) for column in ("train_label", "test_label")])
        bounds = np.cumsum([len(sheet) for sheet in sheets])[:-1]
        files = [_images(*pair) for pair in zip(sheets, np.split(labels, bounds), strict=True)]
        names = [name.decode() for name in _entry(contents, "class_names").tolist()]
    return _Release.of(files, [names])


def _images(pixels: np.ndarray, *labels: Any) -> tuple[Tensor, ...]:
    """Pixels (N, 3, 32, 32) and labels (N,) of each kind, checked."""
    if pixels.dtype != np.uint8 or pixels.shape[1:] != _IMAGE:
        raise ValueError(f"images must be (N, 3, 32, 32) of uint8; got {pixels.shape} of {pixels.dtype}")
    columns = [torch.tensor(np.asarray(column, dtype=np.int64)) for column in labels]
    for column in columns:
        if column.shape != (len(pixels),):
            raise ValueError(f"it has {len(column)} labels for {len(pixels)} images")
    return torch.from_numpy(np.ascontiguousarray(pixels)), *columns


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Tell whatever goes wrong as a fault of the file ``path``: each format has its own ways to fail."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is damaged or not what its name says ({error}). Get the file again.") from error


def _entry(contents: Any, key: str) -> Any:
    if not isinstance(contents, Mapping) or key not in contents:
        raise ValueError(f"it has no {key!r}")
    return contents[key]


def _npz(path: Path) -> dict[str, np.ndarray]:
    with path.open("rb") as file:
        if not zipfile.is_zipfile(file):
            raise ValueError("it is no .npz file")
        file.seek(0)
        return dict(np.load(file))


def _dtype(name: str, align: int = 0, copy: int = 0) -> np.dtype:
    # Python 2 pickled the flags as numbers, of which NumPy 2.4 warns
    return np.dtype(name, align=bool(align), copy=bool(copy))


# all that the pickle of an array may call, under the names of Python 2 and 3 and of NumPy 1 and 2
_ARRAY_CALLS: Mapping[str, Callable[..., Any]] = {
    "numpy.core.multiarray._reconstruct": np.ndarray(0).__reduce__()[0],  # type: ignore[dict-item]
    "numpy._core.multiarray._reconstruct": np.ndarray(0).__reduce__()[0],  # type: ignore[dict-item]
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _dtype,
    "_codecs.encode": codecs.encode,
}


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickles arrays and plain containers, and calls nothing else that a file may name."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module}.{name}" not in _ARRAY_CALLS:
            raise pickle.UnpicklingError(f"it wants to call {module}.{name}, which no array needs")
        return _ARRAY_CALLS[f"{module}.{name}"]


def _unpickled(path: Path) -> Any:
    with path.open("rb") as file:
        return _ArrayUnpickler(file, encoding="latin1").load()


def _torch_arrays(path: Path) -> Any:
    """What ``torch.save`` wrote, of arrays and plain containers alone."""
    allowed: list[Any] = [np.dtypes.Int64DType, *((call, name) for name, call in _ARRAY_CALLS.items())]
    with torch.serialization.safe_globals(allowed):
        try:
            return torch.load(path, weights_only=True)
        except (pickle.UnpicklingError, EOFError) as error:
            raise ValueError("it is truncated, or holds more than arrays of labels") from error


class CIFAR10(_CIFAR):
    """60,000 colour images in ten classes; its training labels can be those that people gave (CIFAR-10N).

    Card:
        Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
            www.cs.toronto.edu/~kriz/cifar.html; CIFAR-10N: Wei et al. 2022 (arXiv 2110.12088),
            github.com/UCSC-REAL/cifar-10-100n.
        Licence: none stated; CIFAR-10N: CC BY-NC 4.0.
        Sizes: 50,000 training and 10,000 test images of (3, 32, 32) uint8, balanced. Human labels are wrong for 0.09
            (aggre), 0.17, 0.18, 0.18 (random1 to random3) or 0.40 (worse) of the training images.
        Splits: training images of even index train and those of odd index hold out, as in Bankes et al. 2024 (arXiv
            2312.00486), or holdout is drawn by seed; the published test part. Human labels are shown in the training
            part alone.
        Group: the class.
        Memory: 184 MB for all images.

    Args:
        data_dir: the folder that holds ``cifar-10-batches-py`` (the python version), ``plain_text`` (the Hugging Face
            parquet files) or ``cifar10`` (lossless WebP sheets with ``labels.npz``), or their files themselves.
        download: get what is missing, into ``data_dir``.
        labels: the targets that the training part shows: ``clean``, ``aggre``, ``random1``, ``random2``, ``random3``
            or ``worse``.
        split: ``even_odd``, or null to draw the holdout part from all training images.
        options: of ``DataModule``.

    Raises:
        ValueError: for an unknown option; when read, for damaged files, or human labels of images in another order.
        FileNotFoundError: when read, if files are missing; says where it looked and how to get them.
    """

    title = "CIFAR-10"
    _train_names = tuple(f"data_batch_{number}" for number in range(1, 6))
    layouts = (
        _Layout("cifar-10-batches-py", (*_train_names, "test_batch"), ("labels",), _read_pickles, "batches.meta"),
        _Layout("plain_text", _PARQUET, ("label",), _read_parquet),
        _Layout(
            "cifar10", tuple(f"{n}.webp" for n in (*_train_names, "test_batch")), ("label",), _read_sheets, "labels.npz"
        ),
    )
    archive_url = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
    archive_md5 = "c58f30108f718f92721af3b95e74349a"
    human_files = ("CIFAR-10_human.pt", "cifar10n_labels.npz")
    human_labels: ClassVar[Mapping[str, str]] = {
        "aggre": "aggre_label",
        "random1": "random_label1",
        "random2": "random_label2",
        "random3": "random_label3",
        "worse": "worse_label",
    }
    human_url = "https://github.com/UCSC-REAL/cifar-10-100n/raw/main/data/CIFAR-10_human.pt"
    human_sha256 = "873e69c39cb9b5e97fb6bae2d60bb59b38a5cbc31d2b868f7903dcb2b9dd2310"


class CIFAR100(_CIFAR):
    """60,000 colour images in 100 classes and 20 superclasses; its training labels can be those that people gave.

    Card:
        Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
            www.cs.toronto.edu/~kriz/cifar.html; CIFAR-100N: Wei et al. 2022 (arXiv 2110.12088),
            github.com/UCSC-REAL/cifar-10-100n.
        Licence: none stated; CIFAR-100N: CC BY-NC 4.0.
        Sizes: 50,000 training and 10,000 test images of (3, 32, 32) uint8, balanced. Human labels are wrong for 0.40
            of the training images.
        Splits: as those of CIFAR-10.
        Group: the superclass of the shown target, five classes each; or the class.
        Memory: 184 MB for all images.

    Args:
        data_dir: the folder that holds ``cifar-100-python`` (the python version) or ``cifar100`` (the Hugging Face
            parquet files), or their files themselves.
        download: get what is missing, into ``data_dir``.
        labels: the targets that the training part shows: ``clean`` or ``noisy``.
        split: ``even_odd``, or null to draw the holdout part from all training images.
        groups: ``superclass`` or ``class``.
        options: of ``DataModule``.

    Raises:
        ValueError: for an unknown option; when read, for damaged files, or human labels of images in another order.
        FileNotFoundError: when read, if files are missing; says where it looked and how to get them.
    """

    title = "CIFAR-100"
    layouts = (
        _Layout("cifar-100-python", ("train", "test"), ("fine_labels", "coarse_labels"), _read_pickles, "meta"),
        _Layout("cifar100", _PARQUET, ("fine_label", "coarse_label"), _read_parquet),
    )
    archive_url = "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz"
    archive_md5 = "eb9058c3a382ffc7106e4002c42a8d85"
    human_files = ("CIFAR-100_human.pt", "cifar100n_labels.npz")
    human_labels: ClassVar[Mapping[str, str]] = {"noisy": "noisy_label"}
    human_url = "https://github.com/UCSC-REAL/cifar-10-100n/raw/main/data/CIFAR-100_human.pt"
    human_sha256 = "bd2d80409754d420292d622e15e25248ba21e37d27429efac49c8da723f44394"

    def __init__(self, *, groups: str = "superclass", **options: Any) -> None:
        super().__init__(**options)
        if groups not in ("superclass", "class"):
            raise unknown_name("datamodule.groups", groups, ["superclass", "class"])
        self.groups = groups

    def _groups(self, release: _Release) -> dict[str, Any]:
        if self.groups == "class":
            return {}
        target, superclass = release.labels
        group_of_target = torch.zeros(len(release.names[0]), dtype=torch.int64)
        group_of_target[target] = superclass
        differs = torch.nonzero(group_of_target[target] != superclass).flatten()
        if len(differs):
            other = int(target[differs[0]])
            raise ValueError(
                f"{self.data_dir}: class {release.names[0][other]!r} has images in more than one superclass; image "
                f"{int(differs[0])} is in {release.names[1][int(superclass[differs[0]])]!r}. Get the files again."
            )
        return {
            "group_of_target": group_of_target,
            "num_groups": len(release.names[1]),
            "group_names": release.names[1],
        }
