"""Clothing1M from its published lists and images."""

from __future__ import annotations

import gzip
import zlib
from collections import Counter
from collections.abc import Iterable, Mapping
from itertools import combinations
from pathlib import Path
from typing import Any

import torch

from reducr._internal.checks import check_count
from reducr._internal.files import open_regular
from reducr.data.core.raw import RawData
from reducr.data.io.folder_walk import check_inside
from reducr.data.io.images import ImageDataModule

CLASS_NAMES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket", "Downcoat", "Suit",
    "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip
_LABELS = "clean_label_kv.txt", "noisy_label_kv.txt"
_HOW_TO_GET = (
    "Its authors give it out on request, for research (see github.com/Cysu/noisy_label). Put the images into "
    "DIR/images and the lists into DIR, and set `datamodule.data_dir=DIR`."
)


class Clothing1M(ImageDataModule):
    """About 1.06 million photographs of clothing in 14 classes; most labels come from the text around the images.

    The reference models are trained on ``irreducible_size`` images. These are drawn once from the clean training, noisy
    training and clean validation images together, with clean labels for images in a clean list. In the published code
    this draw overlaps with the training part, so that some irreducible losses are training losses. Here the drawn
    images are removed from the training part.

    Card:
        Source: Xiao, Xia, Yang, Huang & Wang 2015, "Learning from massive noisy labeled data for image classification"
            (CVPR), github.com/Cysu/noisy_label.
        Licence: for research only, on request.
        Sizes: 1,000,000 noisy training, 47,570 clean training, 14,313 clean validation and 10,526 clean test images,
            imbalanced; 0.38 of the noisy labels are wrong. Inputs are RGB, uint8 (3, 224, 224): the central square of
            224 pixels after the shorter side is resized to 256.
        Splits: train: noisy training images that are not drawn for the reference models; holdout: clean validation;
            test: clean test. Clean training images serve the reference models only.
        Group: the class.
        Memory: 160 GB for all decoded images, so they are decoded for each batch (``hold=stream``), or once onto a
            large enough disk (``hold=disk``). A stream finds files that are truncated after their header before
            training only with a ``cache_dir``.

    Args:
        data_dir: folder with ``images``, and with the lists (see ``read``) or a folder ``annotations`` of them.
        irreducible_size: number of images to train the reference models on; null for the holdout part.
        irreducible_seed: seed of that draw, which is the same for all seeds of a run.
        image_size: pixels of the central square.
        resize: pixels of the shorter side.
        hold: see ``read_images``.
        options: of ``ImageDataModule`` and ``DataModule``.

    Raises:
        FileNotFoundError: if a list is missing.
        ValueError: if lists have damaged lines, keys that are repeated or in two parts, or keys without a label in
            0..13.
    """

    def __init__(
        self,
        *,
        data_dir: str | Path | None,
        irreducible_size: int | None = 100_000,
        irreducible_seed: int = 0,
        image_size: int = 224,
        resize: int | None = 256,
        hold: str = "stream",
        **options: Any,
    ) -> None:
        super().__init__(image_size=image_size, resize=resize, hold=hold, **options)
        if data_dir is None:
            raise ValueError(
                "Clothing1M needs `datamodule.data_dir=DIR`, the folder that contains images and the published lists "
                f"({_LABELS[0]}, ...). {_HOW_TO_GET}"
            )
        if irreducible_size is not None:
            check_count("datamodule.irreducible_size", irreducible_size)
        elif irreducible_seed:
            raise ValueError(
                f"`datamodule.irreducible_seed={irreducible_seed}` has no effect: nothing is drawn with "
                "`datamodule.irreducible_size=null`. Leave it out."
            )
        self.data_dir = Path(data_dir)
        self.irreducible_size = irreducible_size
        self.irreducible_seed = irreducible_seed

    def read(self) -> RawData:
        """The images and labels of the published lists, which may be gzip-compressed.

        Each line of ``noisy_train_key_list.txt``, ``clean_train_key_list.txt`` (for the reference models only),
        ``clean_val_key_list.txt`` and ``clean_test_key_list.txt`` is a key: the path of an image below ``data_dir``.
        Each line of ``clean_label_kv.txt`` and ``noisy_label_kv.txt`` is a key, a blank and a label. Class names come
        from ``category_names_eng.txt`` if it exists.
        """
        is_drawn = self.irreducible_size is not None
        lists = ("noisy_train", "clean_val", "clean_test", *(["clean_train"] if is_drawn else []))
        path_of = self._list_paths([*_LABELS, *(f"{name}_key_list.txt" for name in lists)])
        keys = {name: _read_keys(path_of[f"{name}_key_list.txt"]) for name in lists}
        _check_disjoint(keys)
        clean_labels, noisy_labels = (_read_labels(path_of[name]) for name in _LABELS)
        noisy = _labelled(keys["noisy_train"], noisy_labels, name="noisy_train", labels_path=path_of[_LABELS[1]])
        clean = {
            name: _labelled(keys[name], clean_labels, name=name, labels_path=path_of[_LABELS[0]])
            for name in lists
            if name != "noisy_train"
        }
        holdout, test = clean["clean_val"], clean["clean_test"]
        if not is_drawn:
            return self._raw_data({"train": noisy, "holdout": holdout, "test": test})
        irreducible = self._irreducible_draw(noisy | clean["clean_train"] | holdout)
        train = {key: label for key, label in noisy.items() if key not in irreducible}
        return self._raw_data({"train": train, "holdout": holdout, "test": test, "irreducible": irreducible})

    def _irreducible_draw(self, labels: Mapping[str, int]) -> dict[str, int]:
        """``irreducible_size`` random keys with their labels, in the order of ``labels``."""
        size = self.irreducible_size
        if size is None or size > len(labels):
            raise ValueError(
                f"`datamodule.irreducible_size` must be at most {len(labels)}, the number of images to draw from; got "
                f"{size}."
            )
        generator = torch.Generator().manual_seed(self.irreducible_seed)
        is_drawn = torch.zeros(len(labels), dtype=torch.bool)
        is_drawn[torch.randperm(len(labels), generator=generator)[:size]] = True
        return {key: label for (key, label), drawn in zip(labels.items(), is_drawn.tolist(), strict=True) if drawn}

    def _raw_data(self, labels: Mapping[str, Mapping[str, int]]) -> RawData:
        """The images of all parts, each once; ``labels`` are by part and key."""
        label_of = {key: label for labels_of_part in labels.values() for key, label in labels_of_part.items()}
        position_of = {key: position for position, key in enumerate(label_of)}
        return self.image_data(
            [self.data_dir / key for key in label_of],
            target=torch.tensor(list(label_of.values())),
            parts={part: torch.tensor([position_of[key] for key in keys]) for part, keys in labels.items()},
            class_names=self._class_names(),
            has_clean_targets=False,
        )

    def _class_names(self) -> tuple[str, ...]:
        path = self._path("category_names_eng.txt")
        if path is None:
            return CLASS_NAMES
        names = tuple(_lines(path))
        if len(names) != len(CLASS_NAMES):
            raise ValueError(f"{path} must have {len(CLASS_NAMES)} lines, one class name each; it has {len(names)}.")
        return names

    def _list_paths(self, names: Iterable[str]) -> dict[str, Path]:
        """The paths of the lists, by name."""
        path_of = {name: self._path(name) for name in names}
        missing = [name for name, path in path_of.items() if path is None]
        if missing:
            raise FileNotFoundError(
                f"Clothing1M has no {', '.join(missing)} (or .gz) in {' or '.join(map(str, self._folders))}. "
                f"{_HOW_TO_GET}"
            )
        return {name: path for name, path in path_of.items() if path is not None}

    def _path(self, name: str) -> Path | None:
        paths = [folder / file for folder in self._folders for file in (name, f"{name}.gz")]
        return next((path for path in paths if path.is_file()), None)

    @property
    def _folders(self) -> tuple[Path, Path]:
        return self.data_dir, self.data_dir / "annotations"


def _lines(path: Path) -> list[str]:
    """The lines of a file that are not blank."""
    try:
        with open_regular(path) as file:
            content = gzip.decompress(file.read()) if path.suffix == ".gz" else file.read()
        lines = content.decode().splitlines()
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}). Get the file again.") from error
    return [line.strip() for line in lines if line.strip()]


def _read_keys(path: Path) -> list[str]:
    """The keys of a list, which must be unique."""
    keys = [_key(line) for line in _lines(path)]
    check_inside(keys, owner=str(path))
    num_repeats = len(keys) - len(set(keys))
    if num_repeats:
        first = next(key for key, count in Counter(keys).items() if count > 1)
        raise ValueError(
            f"{path} repeats keys in {num_repeats} of its {len(keys)} lines; the first is {first}. Get the file again."
        )
    return keys


def _read_labels(path: Path) -> dict[str, int]:
    """The labels of a list, by key."""
    labels: dict[str, int] = {}
    for line in _lines(path):
        text, _, label = line.rpartition(" ")
        if not text or not label.isdecimal() or int(label) >= len(CLASS_NAMES):
            raise ValueError(
                f"{path}: each line must be a key, a blank and a label in 0..{len(CLASS_NAMES) - 1}; got {line!r}."
            )
        key = _key(text)
        if labels.setdefault(key, int(label)) != int(label):
            raise ValueError(f"{path} gives {key} two labels, {labels[key]} and {label}. Get the file again.")
    return labels


def _key(text: str) -> str:
    """The path of an image below the data folder. Some lists begin it with ``./``."""
    return text.strip().removeprefix("./")


def _labelled(keys: list[str], labels: Mapping[str, int], *, name: str, labels_path: Path) -> dict[str, int]:
    """The labels of ``keys``, in their order."""
    missing = [key for key in keys if key not in labels]
    if missing:
        raise ValueError(
            f"{labels_path} lacks labels for {len(missing)} of the {len(keys)} keys of {name}; the first is "
            f"{missing[0]}. Get the file again."
        )
    return {key: labels[key] for key in keys}


def _check_disjoint(keys: Mapping[str, list[str]]) -> None:
    """Raise ValueError if two lists share keys. The training lists may: drawn images leave the training part."""
    for name, other in combinations(keys, 2):
        shared = set(keys[name]).intersection(keys[other])
        if shared and {name, other} != {"noisy_train", "clean_train"}:
            raise ValueError(
                f"The lists {name} and {other} must be disjoint; they share {len(shared)} keys, such as {min(shared)}."
            )
