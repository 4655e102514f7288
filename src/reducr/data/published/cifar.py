"""CIFAR-10 and CIFAR-100, with their published labels or the human labels of CIFAR-N."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from reducr._internal.checks import check_range
from reducr._internal.names import unknown_name
from reducr.data.core.module import DataModule
from reducr.data.core.raw import RawData
from reducr.data.io.download import fetch, unpack
from reducr.data.published.cifar_files import (
    Layout,
    Release,
    entry,
    naming_file,
    read_human_labels,
    read_parquet,
    read_pickles,
    whole_numbers,
)

_PARQUET = ("train-00000-of-00001.parquet", "test-00000-of-00001.parquet")


class _CIFAR(DataModule):
    """Base class of the two data sets."""

    title: ClassVar[str]
    layouts: ClassVar[tuple[Layout, ...]]
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
                f"{self.title} needs `datamodule.data_dir=DIR`, the folder that contains "
                f"{' or '.join(layout.folder for layout in self.layouts)}. Add `datamodule.download=true` to download "
                "the data into DIR."
            )
        if labels not in ("clean", *self.human_labels):
            raise unknown_name("datamodule.labels", labels, ["clean", *self.human_labels])
        if split not in ("even_odd", None):
            raise unknown_name("datamodule.split", split, ["even_odd", "null"])
        if split is None and self.holdout_size is None:
            raise ValueError(
                "`datamodule.split=null` needs `datamodule.holdout_size`, the number of training images to hold out."
            )
        self.data_dir = Path(data_dir)
        self.download = download
        self.labels = labels
        self.split = split

    def read(self) -> RawData:
        """Training images in their original order, then test images."""
        folder, layout = self._locate()
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

    def _groups(self, release: Release) -> dict[str, Any]:
        """Arguments of ``RawData`` that describe groups; none if the groups are the targets."""
        return {}

    def _locate(self) -> tuple[Path, Layout]:
        """The first folder that contains all files of a layout, downloaded if allowed."""
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
        expected = [f"  {layout.folder}: {', '.join(layout.files)}" for layout in self.layouts]
        partial = [
            f"{folder} lacks {', '.join(names)}."
            for (folder, layout), names in zip(places, missing, strict=True)
            if len(names) < len(layout.files)
        ]
        lines = [
            f"{self.title} was not found in {self.data_dir}. Expected one of these folders, or its files:",
            *expected,
            *partial,
            f"Set `datamodule.download=true`, or unpack {self.archive_url} into DIR and set `datamodule.data_dir=DIR`.",
        ]
        raise FileNotFoundError("\n".join(lines))

    def _noisy_target(self, release: Release, folder: Path) -> Tensor:
        """(N,) human labels of the training images and clean labels of the test images."""
        path, key = self._locate_human_labels(folder), self.human_labels[self.labels]
        clean = release.labels[0][: release.num_train]
        with naming_file(path):
            contents = read_human_labels(path)
            human_clean, human = (whole_numbers(entry(contents, name)) for name in ("clean_label", key))
            if not human_clean.shape == human.shape == clean.shape:
                raise ValueError(f"it has {len(human)} labels for the {len(clean)} training images in {folder}")
            check_range(key, human, len(release.names[0]), place="image")
        num_different = int((human_clean != clean).sum())
        if num_different:
            raise ValueError(
                f"The images in {folder} are not in the order that `datamodule.labels={self.labels}` needs: their "
                f"labels differ from the clean labels in {path} at {num_different:,} of {len(clean):,} training "
                f"images. Use the files of {self.archive_url}."
            )
        return torch.cat([human, release.labels[0][release.num_train :]])

    def _locate_human_labels(self, images: Path) -> Path:
        """The file of CIFAR-N, downloaded if allowed."""
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
            f"`datamodule.labels={self.labels}` needs {' or '.join(self.human_files)}, which is not in "
            f"{', '.join(map(str, folders))}. Set `datamodule.download=true`, or put {self.human_url} into DIR and set "
            "`datamodule.data_dir=DIR`."
        )


class CIFAR10(_CIFAR):
    """60,000 colour images in ten classes. Training labels may be the human ones of CIFAR-10N.

    Card:
        Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
            www.cs.toronto.edu/~kriz/cifar.html; CIFAR-10N: Wei et al. 2022 (arXiv 2110.12088),
            github.com/UCSC-REAL/cifar-10-100n.
        Licence: none stated; CIFAR-10N: CC BY-NC 4.0.
        Sizes: 50,000 training and 10,000 test images of (3, 32, 32) uint8, balanced. Human labels are wrong for 0.09
            (aggre), 0.17, 0.18, 0.18 (random1 to random3) or 0.40 (worse) of the training images.
        Splits: even training indices train and odd ones hold out, as in Bankes et al. 2024 (arXiv 2312.00486), or the
            holdout part is drawn by seed; the published test part. Only the training part shows human labels.
        Group: the class.
        Memory: 184 MB for all images.

    Args:
        data_dir: folder with ``cifar-10-batches-py`` (the Python version) or ``plain_text`` (the Hugging Face parquet
            files), or with their files.
        download: whether to download missing files into ``data_dir``.
        labels: targets of the training part: ``clean``, ``aggre``, ``random1``, ``random2``, ``random3`` or ``worse``.
        split: ``even_odd``, or null to draw the holdout part from all training images.
        options: see ``DataModule``.

    Raises:
        ValueError: for an unknown option; in ``read``, for damaged files, or images in another order than the human
            labels.
        FileNotFoundError: in ``read``, if files are missing.
    """

    title = "CIFAR-10"
    layouts = (
        Layout(
            "cifar-10-batches-py",
            (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"),
            ("labels",),
            read_pickles,
            "batches.meta",
        ),
        Layout("plain_text", _PARQUET, ("label",), read_parquet),
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
    """60,000 colour images in 100 classes and 20 superclasses. Training labels may be the human ones of CIFAR-100N.

    Card:
        Source: A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009,
            www.cs.toronto.edu/~kriz/cifar.html; CIFAR-100N: Wei et al. 2022 (arXiv 2110.12088),
            github.com/UCSC-REAL/cifar-10-100n.
        Licence: none stated; CIFAR-100N: CC BY-NC 4.0.
        Sizes: 50,000 training and 10,000 test images of (3, 32, 32) uint8, balanced. Human labels are wrong for 0.40
            of the training images.
        Splits: as for CIFAR-10.
        Group: the superclass of the shown target, each of five classes; or the class.
        Memory: 184 MB for all images.

    Args:
        data_dir: folder with ``cifar-100-python`` (the Python version) or ``cifar100`` (the Hugging Face parquet
            files), or with their files.
        download: whether to download missing files into ``data_dir``.
        labels: targets of the training part: ``clean`` or ``noisy``.
        split: ``even_odd``, or null to draw the holdout part from all training images.
        groups: ``superclass`` or ``class``.
        options: see ``DataModule``.

    Raises:
        ValueError: for an unknown option; in ``read``, for damaged files, or images in another order than the human
            labels.
        FileNotFoundError: in ``read``, if files are missing.
    """

    title = "CIFAR-100"
    layouts = (
        Layout("cifar-100-python", ("train", "test"), ("fine_labels", "coarse_labels"), read_pickles, "meta"),
        Layout("cifar100", _PARQUET, ("fine_label", "coarse_label"), read_parquet),
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

    def _groups(self, release: Release) -> dict[str, Any]:
        if self.groups == "class":
            return {}
        target, superclass = release.labels
        group_of_target = torch.zeros(len(release.names[0]), dtype=torch.int64)
        group_of_target[target] = superclass
        conflicts = torch.nonzero(group_of_target[target] != superclass).flatten()
        if len(conflicts):
            image = int(conflicts[0])
            class_name, superclass_name = (
                names[int(labels[image])] for names, labels in zip(release.names, release.labels, strict=True)
            )
            raise ValueError(
                f"{self.data_dir}: class {class_name!r} has images in more than one superclass; image {image} is in "
                f"{superclass_name!r}. Get the files again."
            )
        return {
            "group_of_target": group_of_target,
            "num_groups": len(release.names[1]),
            "group_names": release.names[1],
        }
