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

from reducr.data.core.raw import RawData
from reducr.data.io.images import ImageDataModule

CLASS_NAMES = (
    "T-Shirt", "Shirt", "Knitwear", "Chiffon", "Sweater", "Hoodie", "Windbreaker", "Jacket", "Downcoat", "Suit",
    "Shawl", "Dress", "Vest", "Underwear",
)  # fmt: skip


_LABELS = "clean_label_kv.txt", "noisy_label_kv.txt"
_HOW_TO_GET = (
    "Clothing1M is given for research on request: ask its authors (github.com/Cysu/noisy_label says how), put the "
    "images into DIR/images and the lists into DIR, and give datamodule.data_dir=DIR."
)


class Clothing1M(ImageDataModule):
    """About 1.06 million photographs of clothing in 14 classes, most with labels from the text around them.

    Irreducible models are trained on ``irreducible_size`` points, drawn once from the clean training, the noisy
    training and the clean validation images together, with clean labels where these are in a clean list. The draw of
    the published code overlaps with the training part, whose irreducible losses are then those of points the models
    were trained on. Here the drawn points are taken out of the training part.

    Card:
        Source: Xiao, Xia, Yang, Huang & Wang 2015, "Learning from massive noisy labeled data for image classification"
            (CVPR), github.com/Cysu/noisy_label.
        Licence: for research only, given on request.
        Sizes: 1,000,000 noisy training, 47,570 clean training, 14,313 clean validation and 10,526 clean test images,
            imbalanced; 0.38 of the noisy labels are wrong. Inputs are RGB, uint8 (3, 224, 224): the shorter side
            resized to 256 pixels, then the central square of 224.
        Splits: train: the noisy training images that are not drawn for the irreducible models; holdout: clean
            validation; test: clean test. Clean training images are for the irreducible models alone.
        Group: the class.
        Memory: decoded, all images take 160 GB, so they are decoded for each batch (``hold=stream``), or once onto a
            disk with that much room (``hold=disk``). A stream finds files that break off after their header before
            training only where it has a ``cache_dir``.

    Args:
        data_dir: the folder that holds ``images``, and the lists (see ``read``) or a folder ``annotations`` with them.
        irreducible_size: points the irreducible models are trained on; null for the holdout part.
        irreducible_seed: of the draw, which is the same for all seeds of a run.
        image_size: pixels of the central square.
        resize: pixels of the shorter side before it is cut out.
        hold: see ``read_images``.
        options: of ``ImageDataModule`` and ``DataModule``.

    Raises:
        FileNotFoundError: if a list is missing; says which, where it looked and how to get it.
        ValueError: if lists have damaged lines, keys that come twice or are in two parts, or keys without a label or
            with one outside 0..13; names the first and says how many.
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
                "Clothing1M needs datamodule.data_dir=DIR, the folder that holds images and the published lists "
                f"({_LABELS[0]}, ...). {_HOW_TO_GET}"
            )
        size = irreducible_size
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            raise ValueError(
                f"datamodule.irreducible_size must be null or a whole number of points, at least 1; got {size!r}."
            )
        if size is None and irreducible_seed:
            raise ValueError(
                f"datamodule.irreducible_seed={irreducible_seed} changes nothing: with "
                "datamodule.irreducible_size=null nothing is drawn. Leave it out."
            )
        self.data_dir = Path(data_dir)
        self.irreducible_size = irreducible_size
        self.irreducible_seed = irreducible_seed

    def read(self) -> RawData:
        """What the lists say, each of them gzip-compressed or not.

        ``clean_label_kv.txt`` and ``noisy_label_kv.txt`` hold a key and a label in each line, the lists
        ``noisy_train_key_list.txt``, ``clean_train_key_list.txt`` (for irreducible models alone),
        ``clean_val_key_list.txt`` and ``clean_test_key_list.txt`` a key, which is the path of an image below
        ``data_dir``. Class names are those of ``category_names_eng.txt`` where it is there.
        """
        is_drawn = self.irreducible_size is not None
        lists = ("noisy_train", "clean_val", "clean_test", *(["clean_train"] if is_drawn else []))
        found = self._found([*_LABELS, *(f"{name}_key_list.txt" for name in lists)])
        keys = {name: _read_keys(found[f"{name}_key_list.txt"]) for name in lists}
        _check_disjoint(keys)
        clean_labels, noisy_labels = (_read_labels(found[name]) for name in _LABELS)
        noisy = _labelled(keys["noisy_train"], noisy_labels, name="noisy_train", labels_path=found[_LABELS[1]])
        clean = {
            name: _labelled(keys[name], clean_labels, name=name, labels_path=found[_LABELS[0]])
            for name in lists
            if name != "noisy_train"
        }
        holdout, test = clean["clean_val"], clean["clean_test"]
        if not is_drawn:
            return self._of_labels({"train": noisy, "holdout": holdout, "test": test})
        irreducible = self._irreducible(noisy | clean["clean_train"] | holdout)
        train = {key: label for key, label in noisy.items() if key not in irreducible}
        return self._of_labels({"train": train, "holdout": holdout, "test": test, "irreducible": irreducible})

    def _irreducible(self, labels: Mapping[str, int]) -> dict[str, int]:
        """``irreducible_size`` keys with their labels, in their order."""
        size = self.irreducible_size
        if size is None or size > len(labels):
            raise ValueError(
                f"datamodule.irreducible_size must be at most {len(labels)}, the points it is drawn from; got {size}."
            )
        generator = torch.Generator().manual_seed(self.irreducible_seed)
        is_drawn = torch.zeros(len(labels), dtype=torch.bool)
        is_drawn[torch.randperm(len(labels), generator=generator)[:size]] = True
        return {key: label for (key, label), drawn in zip(labels.items(), is_drawn.tolist(), strict=True) if drawn}

    def _of_labels(self, labels: Mapping[str, Mapping[str, int]]) -> RawData:
        """The pool of all keys of all parts, each once; ``labels`` are by part and key."""
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
            raise ValueError(f"{path} must hold the names of {len(CLASS_NAMES)} classes; it has {len(names)} lines.")
        return names

    def _found(self, names: Iterable[str]) -> dict[str, Path]:
        """Where the lists are, by name."""
        found = {name: self._path(name) for name in names}
        missing = [name for name, path in found.items() if path is None]
        if missing:
            raise FileNotFoundError(
                f"Clothing1M lacks {', '.join(missing)} (with or without .gz at its end); looked in "
                f"{' and '.join(map(str, self._folders))}. {_HOW_TO_GET}"
            )
        return {name: path for name, path in found.items() if path is not None}

    def _path(self, name: str) -> Path | None:
        paths = [folder / file for folder in self._folders for file in (name, f"{name}.gz")]
        return next((path for path in paths if path.is_file()), None)

    @property
    def _folders(self) -> tuple[Path, Path]:
        return self.data_dir, self.data_dir / "annotations"


def _lines(path: Path) -> list[str]:
    """The lines that are not blank."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        lines = content.decode().splitlines()
    except (EOFError, zlib.error, gzip.BadGzipFile, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}). Get the file again.") from error
    return [line.strip() for line in lines if line.strip()]


def _read_keys(path: Path) -> list[str]:
    """The keys of a list, each of which must come once."""
    keys = [_key(line) for line in _lines(path)]
    num_again = len(keys) - len(set(keys))
    if num_again:
        first = next(key for key, times in Counter(keys).items() if times > 1)
        raise ValueError(
            f"{path} has {len(keys)} lines, {num_again} of them with a key that came before; the first is {first}. Get "
            "the file again."
        )
    return keys


def _read_labels(path: Path) -> dict[str, int]:
    """Labels by key."""
    labels: dict[str, int] = {}
    for line in _lines(path):
        text, _, label = line.rpartition(" ")
        if not text or not label.isdecimal() or int(label) >= len(CLASS_NAMES):
            raise ValueError(
                f"{path}: each line must hold a key, a blank and a label in 0..{len(CLASS_NAMES) - 1}; got {line!r}."
            )
        key = _key(text)
        if labels.setdefault(key, int(label)) != int(label):
            raise ValueError(f"{path} gives {key} two labels, {labels[key]} and {label}. Get the file again.")
    return labels


def _key(text: str) -> str:
    """The path of an image below the data's folder; lists may or may not begin theirs with ``./``."""
    return text.strip().removeprefix("./")


def _labelled(keys: list[str], labels: Mapping[str, int], *, name: str, labels_path: Path) -> dict[str, int]:
    """The labels of ``keys``, in their order."""
    missing = [key for key in keys if key not in labels]
    if missing:
        raise ValueError(
            f"{labels_path} has no label for {len(missing)} of the {len(keys)} keys of {name}; the first is "
            f"{missing[0]}."
        )
    return {key: labels[key] for key in keys}


def _check_disjoint(keys: Mapping[str, list[str]]) -> None:
    """Lists of different parts may share no key; the two training lists may, whose keys are drawn alike."""
    for one, other in combinations(keys, 2):
        shared = set(keys[one]).intersection(keys[other])
        if shared and {one, other} != {"noisy_train", "clean_train"}:
            raise ValueError(
                f"the lists {one} and {other} share {len(shared)} keys, such as {min(shared)}; they must be disjoint."
            )
