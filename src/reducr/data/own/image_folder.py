"""The user's images, in one folder per class."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from reducr.data.core.overlap import check_policy
from reducr.data.core.raw import RawData
from reducr.data.io.folder_walk import FolderWalk, check_links
from reducr.data.io.identical_files import same_files
from reducr.data.io.images import ImageDataModule

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
_PART_OF_FOLDER = {"train": "train", "holdout": "holdout", "valid": "holdout", "val": "holdout", "test": "test"}


class ImageFolder(ImageDataModule):
    """Images in one folder per class, with or without given parts.

    Either ``DIR/CLASS/*.png``, or ``DIR/train/CLASS/*.png`` with ``DIR/holdout`` (or ``valid`` or ``val``),
    ``DIR/test`` or both. Files may be nested in further folders below ``CLASS``. Classes are numbered by name. Hidden
    files and folders, and files without an image suffix, are ignored. DIR may be a symbolic link, and so may the folder
    of a part or a class. Other links are what ``links`` says.

    Card:
        Source: your folder; png, jpg, jpeg, webp, bmp, tif, tiff and gif files.
        Licence: that of your images.
        Sizes: yours; inputs are RGB, uint8 (3, S, S).
        Splits: the folders. A part without a folder is drawn by seed, stratified and disjoint: 0.2 of the images for
            the test part and 0.1 of the others for the holdout part.
        Group: the class.
        Memory: ``3 S^2`` bytes per image with ``hold=memory``; almost none with ``disk`` and ``stream``. A stream finds
            files that are truncated after their header before training only with a ``cache_dir``.

    Args:
        data_dir: DIR.
        image_size: S, pixels.
        overlap: policy for files of one part that another part has too, byte for byte: ``error``; ``drop``, which drops
            them from the training part, and test files from the holdout part; or ``allow``.
        links: policy for symbolic links below the folder of a class that lead out of DIR, and for links to folders of
            DIR: ``error``; ``skip``, which leaves them out; or ``follow``, which follows the links that lead out.
        options: of ``ImageDataModule`` and ``DataModule``.

    Raises:
        FileNotFoundError: if the folder does not exist or has no folders.
        ValueError: for images outside the class folders, a class without images, fewer than two classes, part folders
            next to class folders, parts without ``train``, or parts with different classes.
    """

    drawn_sizes: ClassVar[Mapping[str, float]] = {"holdout": 0.1, "test": 0.2}

    def __init__(
        self,
        *,
        data_dir: str | Path | None,
        image_size: int = 32,
        overlap: str = "error",
        links: str = "error",
        **options: Any,
    ) -> None:
        super().__init__(image_size=image_size, **options)
        check_policy(overlap)
        check_links(links)
        self.overlap = overlap
        self.links = links
        if data_dir is None:
            raise ValueError("An image folder needs `datamodule.data_dir=DIR`, which contains one folder per class.")
        self.data_dir = Path(data_dir)

    def read(self) -> RawData:
        """All images, ordered by part, class and path."""
        walk = self._walk()
        is_split = bool(_part_folders(self.data_dir, walk))
        files = self._files(walk)
        paths, target, parts = in_order(files)
        return self.image_data(
            paths,
            target=target,
            parts=parts if is_split else {},
            content=same_files(paths),
            overlap=self.overlap,
            class_names=tuple(files["train"]),
            has_clean_targets=False,
            notes=walk.notes(),
        )

    def write_parts(self, places: Mapping[str, Tensor], folder: Path, *, is_linked: bool) -> dict[str, Any]:
        """Write copies of the images, or symbolic links, to ``folder/PART/CLASS/*``; see ``WritesParts``."""
        walk = self._walk()
        folders, files = _part_folders(self.data_dir, walk) or {"train": self.data_dir}, self._files(walk)
        paths, _, parts = in_order(files)
        root_of_place = {place: folders[part] for part, of_part in parts.items() for place in of_part.tolist()}
        for part, of_part in places.items():
            for place in of_part.tolist():
                copy = folder / part / paths[place].relative_to(root_of_place[place])
                copy.parent.mkdir(parents=True, exist_ok=True)
                if is_linked:
                    copy.symlink_to(paths[place].resolve())
                else:
                    shutil.copy2(paths[place], copy)
        return {"data_dir": "."} | ({"links": "follow"} if is_linked else {})

    def _walk(self) -> FolderWalk:
        return FolderWalk(self.data_dir, links=self.links)

    def _files(self, walk: FolderWalk) -> dict[str, dict[str, list[Path]]]:
        """All images by part and class; a single training part if there are no part folders."""
        folder_of_part = _part_folders(self.data_dir, walk) or {"train": self.data_dir}
        return {part: class_files(folder, walk) for part, folder in folder_of_part.items()}


def class_files(folder: Path, walk: FolderWalk) -> dict[str, list[Path]]:
    """The image files below each class folder in ``folder``; classes and paths in alphabetical order.

    Args:
        folder: of one part.
        walk: over the whole data set.

    Raises:
        FileNotFoundError: if ``folder`` does not exist or has no folders.
        ValueError: for images outside the class folders, or a class folder without images.
    """
    folders = _folders_in(folder, walk)
    unsorted = sorted(path.name for path in folder.iterdir() if _is_image(path.name) and path.is_file())
    if unsorted:
        raise ValueError(
            f"{folder} has image files outside its class folders ({len(unsorted)}, the first is {unsorted[0]}). Move "
            "every image into the folder of its class."
        )
    if not folders:
        raise FileNotFoundError(f"{folder} has no folders. Expected one per class, such as {folder / 'cat'}.")
    files = {name: sorted(walk.files_below(folder / name, _is_image), key=Path.as_posix) for name in folders}
    empty = [name for name, paths in files.items() if not paths]
    if empty:
        raise ValueError(
            f"Class {' and '.join(map(repr, empty))} has no images: {folder / empty[0]} has no file that ends in "
            f"{', '.join(SUFFIXES)}. Add some, or remove the folder."
        )
    return files


def in_order(files: Mapping[str, Mapping[str, list[Path]]]) -> tuple[list[Path], Tensor, dict[str, Tensor]]:
    """All files of all parts as one list.

    Args:
        files: paths by part and class; one part is ``train``, whose order numbers the classes.

    Returns:
        N paths; (N,) int64 classes; and the positions of each part.

    Raises:
        ValueError: for fewer than two classes, or parts with different classes.
    """
    class_names = list(files["train"])
    if len(class_names) < 2:
        raise ValueError(
            f"A data set needs at least two classes; the only class folder is {class_names[0]!r}. "
            "`datamodule.data_dir` must be the folder that contains one folder per class."
        )
    for part, files_of_class in files.items():
        missing = sorted(set(class_names) - set(files_of_class))
        unknown = sorted(set(files_of_class) - set(class_names))
        if missing or unknown:
            name, owner, other = (missing[0], "train", part) if missing else (unknown[0], part, "train")
            raise ValueError(
                f"All parts must have the same classes; {name!r} is in the {owner} part but not in the {other} part."
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


def _part_folders(folder: Path, walk: FolderWalk) -> dict[str, Path]:
    """The folder of each part, training part first; empty if ``folder`` contains class folders."""
    names = _folders_in(folder, walk)
    part_names = [name for name in _PART_OF_FOLDER if name in names]
    class_names = [name for name in names if name not in _PART_OF_FOLDER]
    if not part_names:
        return {}
    if class_names:
        raise ValueError(
            f"{folder} contains the part folder {part_names[0]} next to {', '.join(class_names)}. Move all class "
            f"folders into {folder / 'train'}, where one may be called {part_names[0]!r} too, or remove "
            f"{part_names[0]}."
        )
    folder_of_part = {_PART_OF_FOLDER[name]: folder / name for name in part_names}
    if "train" not in folder_of_part:
        raise ValueError(f"{folder} contains {', '.join(part_names)} but no train, the folder of the training part.")
    if len(folder_of_part) < len(part_names):
        raise ValueError(f"{folder} has more than one folder for the holdout part: {', '.join(part_names)}. Keep one.")
    return folder_of_part


def _folders_in(folder: Path, walk: FolderWalk) -> list[str]:
    if not folder.is_dir():
        raise FileNotFoundError(f"There is no folder {folder}. Check `datamodule.data_dir`.")
    return walk.folders_in(folder)


def _is_image(name: str) -> bool:
    return name.lower().endswith(SUFFIXES) and not name.startswith(".")
