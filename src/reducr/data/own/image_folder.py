"""Anyone's images: a folder for each class."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from reducr.data.core.overlap import check_policy
from reducr.data.core.raw import RawData
from reducr.data.io.identical_files import same_files
from reducr.data.io.images import ImageDataModule

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_PART_OF_FOLDER = {"train": "train", "holdout": "holdout", "valid": "holdout", "val": "holdout", "test": "test"}


class ImageFolder(ImageDataModule):
    """Images in a folder for each class, already split or not.

    ``DIR/CLASS/*.png``, or ``DIR/train/CLASS/*.png`` with ``DIR/holdout`` (or ``valid``, or ``val``) and ``DIR/test``
    of the same kind, or one of the two. Files may lie in further folders below ``CLASS``. Classes are numbered in the
    order of their names. Hidden files and folders are left alone, and so are files that are no images by their names.

    Card:
        Source: your folder; png, jpg, jpeg, webp, bmp, tif, tiff and gif files.
        Licence: that of your images.
        Sizes: yours; inputs are RGB, uint8 (3, S, S).
        Splits: those of the folder; a part without a folder is drawn by seed, stratified and disjoint: 0.2 of the
            images test and 0.1 of the others hold out.
        Group: the class.
        Memory: ``3 S^2`` bytes an image with ``hold=memory``; next to none with ``disk`` and ``stream``. A stream finds
            files that break off after their header before training only where it has a ``cache_dir``.

    Args:
        data_dir: DIR.
        image_size: S, pixels.
        overlap: what is done with files of one part that another part has too, byte for byte: ``error``; ``drop``,
            which leaves them out of the training part, and those of the holdout part that test; or ``allow``.
        options: of ``ImageDataModule`` and ``DataModule``.

    Raises:
        FileNotFoundError: if the folder is not there, or holds no folders.
        ValueError: for images beside the class folders, a class without images, fewer than two classes, parts beside
            folders that are none, parts without ``train``, or parts of different classes; names what is wrong.
    """

    drawn_sizes: ClassVar[Mapping[str, float]] = {"holdout": 0.1, "test": 0.2}

    def __init__(
        self, *, data_dir: str | Path | None, image_size: int = 32, overlap: str = "error", **options: Any
    ) -> None:
        super().__init__(image_size=image_size, **options)
        check_policy(overlap)
        self.overlap = overlap
        if data_dir is None:
            raise ValueError("a folder of images needs datamodule.data_dir=DIR, which holds a folder for each class.")
        self.data_dir = Path(data_dir)

    def read(self) -> RawData:
        """All images, in the order of parts, classes and paths."""
        is_split = bool(_part_folders(self.data_dir))
        files = self._files()
        paths, target, parts = in_order(files)
        return self.image_data(
            paths,
            target=target,
            parts=parts if is_split else {},
            content=same_files(paths),
            overlap=self.overlap,
            class_names=tuple(files["train"]),
            has_clean_targets=False,
        )

    def write_parts(self, places: Mapping[str, Tensor], folder: Path, *, is_linked: bool) -> dict[str, Any]:
        """Write ``folder/PART/CLASS/*``, copies of the images or symbolic links to them; see ``WritesParts``."""
        folders, files = _part_folders(self.data_dir) or {"train": self.data_dir}, self._files()
        paths, _, parts = in_order(files)
        read_from = {place: folders[part] for part, of_part in parts.items() for place in of_part.tolist()}
        for part, of_part in places.items():
            for place in of_part.tolist():
                copy = folder / part / paths[place].relative_to(read_from[place])
                copy.parent.mkdir(parents=True, exist_ok=True)
                if is_linked:
                    copy.symlink_to(paths[place].resolve())
                else:
                    shutil.copy2(paths[place], copy)
        return {"data_dir": "."}

    def _files(self) -> dict[str, dict[str, list[Path]]]:
        """By part and class, all images; one part where none are given."""
        folder_of_part = _part_folders(self.data_dir) or {"train": self.data_dir}
        return {part: class_files(folder) for part, folder in folder_of_part.items()}


def class_files(folder: Path) -> dict[str, list[Path]]:
    """The image files below each class folder in ``folder``, classes and paths in alphabetical order.

    Raises:
        FileNotFoundError: if ``folder`` is not there or holds no folders.
        ValueError: for images beside the class folders, or a class folder without images, which it names.
    """
    folders = _folders_in(folder)
    loose = sorted(path.name for path in folder.iterdir() if _is_image(path.name) and path.is_file())
    if loose:
        raise ValueError(
            f"{folder} holds image files beside its folders ({len(loose)}, the first is {loose[0]}). Put every image "
            "into the folder of its class."
        )
    if not folders:
        raise FileNotFoundError(f"{folder} holds no folders: expected one for each class, such as {folder / 'cat'}.")
    files = {name: sorted(_images_below(folder / name), key=Path.as_posix) for name in folders}
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise ValueError(
            f"class {' and '.join(map(repr, empty))} has no images: {folder / empty[0]} holds no file that ends in "
            f"{', '.join(SUFFIXES)}. Add some, or remove the folder."
        )
    return files


def in_order(files: Mapping[str, Mapping[str, list[Path]]]) -> tuple[list[Path], Tensor, dict[str, Tensor]]:
    """All files of all parts in one order.

    Args:
        files: paths by part and class; one part is ``train``.

    Returns:
        N paths; (N,) int64, the class of each, its place in the training part; the positions of each part.

    Raises:
        ValueError: for fewer than two classes, or if those of another part are not those of the training part.
    """
    class_names = list(files["train"])
    if len(class_names) < 2:
        raise ValueError(
            f"a data set needs two classes at least; the only class folder is {class_names[0]!r}. Is "
            "datamodule.data_dir=DIR the folder that holds a folder for each class?"
        )
    for part, files_of_class in files.items():
        missing = sorted(set(class_names) - set(files_of_class))
        unknown = sorted(set(files_of_class) - set(class_names))
        if missing or unknown:
            name, has, has_not = (missing[0], "train", part) if missing else (unknown[0], part, "train")
            raise ValueError(
                f"all parts must have the same classes; {name!r} is in the {has} part and not in the {has_not} part."
            )
    paths: list[Path] = []
    target: list[int] = []
    parts = {}
    for part, files_of_class in files.items():
        start = len(paths)
        for number, name in enumerate(class_names):
            paths += files_of_class[name]
            target += [number] * len(files_of_class[name])
        parts[part] = torch.arange(start, len(paths))
    return paths, torch.tensor(target), parts


def _part_folders(folder: Path) -> dict[str, Path]:
    """The folder of each part, training part first; empty if the folders in ``folder`` are those of classes."""
    names = _folders_in(folder)
    named = [name for name in _PART_OF_FOLDER if name in names]
    others = [name for name in names if name not in _PART_OF_FOLDER]
    if not named:
        return {}
    if others:
        raise ValueError(
            f"{folder} holds {named[0]}, the folder of a part, beside {', '.join(others)}. Put the folders of all "
            f"classes into {folder / 'train'}, where one may be called {named[0]!r} too, or take {named[0]} away."
        )
    folder_of_part = {_PART_OF_FOLDER[name]: folder / name for name in named}
    if "train" not in folder_of_part:
        raise ValueError(f"{folder} holds {', '.join(named)} and no train, the folder of the training part.")
    if len(folder_of_part) < len(named):
        raise ValueError(f"{folder} holds more than one folder of the holdout part: {', '.join(named)}. Keep one.")
    return folder_of_part


def _folders_in(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}. Give datamodule.data_dir=DIR, a folder that is there.")
    return sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))


def _images_below(folder: Path) -> list[Path]:
    """Image files in ``folder`` and the folders in it, links followed."""
    images = []
    for place, folders, names in os.walk(folder, followlinks=True):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images += [Path(place, name) for name in names if _is_image(name)]
    return images


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
