"""CINIC-10 from its folders of images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reducr.data.core.raw import RawData
from reducr.data.io.download import fetch, unpack
from reducr.data.io.images import ImageDataModule
from reducr.data.own.image_folder import class_files, in_order

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FOLDER_OF_PART = {"train": "train", "holdout": "valid", "test": "test"}
_SIZE_OF_PART = 90_000
_ARCHIVE = "CINIC-10.tar.gz"
_URL = f"https://datashare.ed.ac.uk/bitstream/handle/10283/3192/{_ARCHIVE}"
_MD5 = "6ee4d0c996905fe93221de577967a372"


class CINIC10(ImageDataModule):
    """270,000 small colour images in the ten classes of CIFAR-10, from CIFAR-10 and ImageNet.

    Card:
        Source: Darlow, Crowley, Antoniou & Storkey 2018 (arXiv 1810.03505), datashare.ed.ac.uk/handle/10283/3192.
        Licence: CC BY 4.0; the images are those of CIFAR-10 and ImageNet, whose terms hold too.
        Sizes: 90,000 images of 32 x 32 in each part, 9,000 of each class; inputs are uint8 (3, 32, 32).
        Splits: the published ones; ``valid`` is the holdout part.
        Group: the class.
        Memory: 830 MB for all images, decoded whenever a run starts (``hold=memory``); with ``hold=disk`` they are
            decoded once, and next to none are in memory.

    Args:
        data_dir: the folder that holds ``train``, ``valid`` and ``test``, or a folder ``CINIC-10`` that does.
        download: whether to download them into ``data_dir`` (650 MB) if they are not there.
        options: of ``ImageDataModule`` (but ``image_size`` and ``resize``) and ``DataModule``.

    Raises:
        FileNotFoundError: if a folder is missing; says which, where it looked and how to get it.
        ValueError: if a part has other classes, or one without images (named).
    """

    def __init__(self, *, data_dir: str | Path | None, download: bool = False, **options: Any) -> None:
        super().__init__(image_size=32, **options)
        if data_dir is None:
            raise ValueError(
                "CINIC-10 needs datamodule.data_dir=DIR, the folder that holds its folders train, valid and test; with "
                "datamodule.download=true they are downloaded into it."
            )
        self.data_dir = Path(data_dir)
        self.download = download

    def read(self) -> RawData:
        """All three parts."""
        folder = self._folder()
        files = {part: class_files(folder / name) for part, name in _FOLDER_OF_PART.items()}
        if tuple(files["train"]) != CLASS_NAMES:
            raise ValueError(
                f"{folder / 'train'} must hold the folders {', '.join(CLASS_NAMES)}; it holds "
                f"{', '.join(files['train'])}."
            )
        paths, target, parts = in_order(files)
        notes = tuple(
            f"the {part} part has {len(positions)} images; published are {_SIZE_OF_PART}."
            for part, positions in parts.items()
            if len(positions) != _SIZE_OF_PART
        )
        return self.image_data(paths, target=target, parts=parts, class_names=CLASS_NAMES, notes=notes)

    def _folder(self) -> Path:
        """The folder that holds all three parts, downloaded if need be."""
        folders = [self.data_dir, self.data_dir / "CINIC-10"]
        names = _FOLDER_OF_PART.values()
        folder, missing = min(
            ((folder, [name for name in names if not (folder / name).is_dir()]) for folder in folders),
            key=lambda found: len(found[1]),
        )
        if not missing:
            return folder
        archive = self.data_dir / _ARCHIVE
        if self.download:
            fetch(_URL, archive, md5=_MD5)
            unpack(archive, folders[1])
            return folders[1]
        raise FileNotFoundError(
            f"CINIC-10 lacks its folders {', '.join(missing)}; looked in {' and '.join(map(str, folders))}. Give "
            f"datamodule.data_dir=DIR, the folder that holds train, valid and test; to get them, unpack {_URL} into "
            "DIR/CINIC-10, or let datamodule.download=true do that."
        )
