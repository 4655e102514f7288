"""CINIC-10 from its image folders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from reducr.data.core.raw import RawData
from reducr.data.io.download import fetch, unpack
from reducr.data.io.folder_walk import FolderWalk, check_links
from reducr.data.io.images import ImageDataModule
from reducr.data.own.image_folder import class_files, in_order

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_FOLDER_OF_PART = {"train": "train", "holdout": "valid", "test": "test"}
_SIZE_OF_PART = 90_000
_ARCHIVE = "CINIC-10.tar.gz"
_URL = f"https://datashare.ed.ac.uk/bitstream/handle/10283/3192/{_ARCHIVE}"
_MD5 = "6ee4d0c996905fe93221de577967a372"


class CINIC10(ImageDataModule):
    """270,000 small colour images from CIFAR-10 and ImageNet, in the ten classes of CIFAR-10.

    Card:
        Source: Darlow, Crowley, Antoniou & Storkey 2018 (arXiv 1810.03505), datashare.ed.ac.uk/handle/10283/3192.
        Licence: CC BY 4.0; the terms of CIFAR-10 and ImageNet also apply to their images.
        Sizes: 90,000 images of 32 x 32 in each part, 9,000 per class; inputs are uint8 (3, 32, 32).
        Splits: the published ones; ``valid`` is the holdout part.
        Group: the class.
        Memory: 830 MB for all images, decoded at the start of every run, with ``hold=memory``; almost none with
            ``hold=disk``, which decodes them once.

    Args:
        data_dir: folder with ``train``, ``valid`` and ``test``, or with a folder ``CINIC-10`` that contains these.
        download: whether to download the data (650 MB) into ``data_dir`` if it is missing.
        links: policy for symbolic links, as in ``ImageFolder``.
        options: of ``ImageDataModule`` (except ``image_size`` and ``resize``) and ``DataModule``.

    Raises:
        FileNotFoundError: if a folder is missing.
        ValueError: if a part has other classes, or a class without images.
    """

    def __init__(
        self, *, data_dir: str | Path | None, download: bool = False, links: str = "error", **options: Any
    ) -> None:
        super().__init__(image_size=32, **options)
        check_links(links)
        if data_dir is None:
            raise ValueError(
                "CINIC-10 needs `datamodule.data_dir=DIR`, the folder that contains train, valid and test. Add "
                "`datamodule.download=true` to download the data into DIR."
            )
        self.data_dir = Path(data_dir)
        self.download = download
        self.links = links

    def read(self) -> RawData:
        """The three published parts."""
        folder = self._folder()
        walk = FolderWalk(folder, links=self.links)
        files = {part: class_files(folder / name, walk) for part, name in _FOLDER_OF_PART.items()}
        if tuple(files["train"]) != CLASS_NAMES:
            raise ValueError(
                f"{folder / 'train'} must contain the folders {', '.join(CLASS_NAMES)}; it contains "
                f"{', '.join(files['train'])}."
            )
        paths, target, parts = in_order(files)
        notes = walk.notes() + tuple(
            f"The {part} part has {len(positions)} images; the published one has {_SIZE_OF_PART}."
            for part, positions in parts.items()
            if len(positions) != _SIZE_OF_PART
        )
        return self.image_data(paths, target=target, parts=parts, class_names=CLASS_NAMES, notes=notes)

    def _folder(self) -> Path:
        """The folder that contains all three parts, downloaded if allowed."""
        folders = [self.data_dir, self.data_dir / "CINIC-10"]
        missing = [[name for name in _FOLDER_OF_PART.values() if not (folder / name).is_dir()] for folder in folders]
        if [] in missing:
            return folders[missing.index([])]
        archive = self.data_dir / _ARCHIVE
        if self.download:
            fetch(_URL, archive, md5=_MD5)
            unpack(archive, folders[1])
            return folders[1]
        names = sorted(missing, key=len)[0]
        raise FileNotFoundError(
            f"CINIC-10 has no folder {' or '.join(names)} in {' or '.join(map(str, folders))}. Set "
            f"`datamodule.download=true`, or unpack {_URL} into DIR/CINIC-10 and set `datamodule.data_dir=DIR`."
        )
