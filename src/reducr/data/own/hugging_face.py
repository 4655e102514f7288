"""Any data set of the Hugging Face hub, or in a local folder that its library reads."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reducr._internal.checks import check_count
from reducr._internal.names import unknown_name
from reducr.data.io.image_decoding import decoded_image
from reducr.data.own.columns import ColumnDataModule, Rows, Source, check_columns, counted
from reducr.data.own.table import names

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

_UNREADABLE = ("error", "skip")
# rows read at a time
_BATCH = 1000


class HuggingFace(ColumnDataModule):
    """A data set of the Hugging Face library ``datasets``: texts, images or arrays of numbers, with a target column.

    Card:
        Source: the hub, a folder written by ``save_to_disk``, or a folder of csv, json, parquet or image files.
        Licence: that of the data set.
        Sizes: those of the data set. Inputs are tokens, int32 (2, L), see ``Tokenization``; RGB images, uint8
            (3, S, S), see ``decoded_image``; or arrays, float32.
        Splits: those named; a part that is not is drawn by seed, stratified and disjoint: 0.2 of the rows test and 0.1
            of the others hold out. Where a holdout split is named and no test split, the test part is drawn from it.
        Group: ``group_column``, else the class.
        Memory: the columns in use; then 8 L bytes a row for tokens (memory-mapped with ``cache_dir``), ``3 S^2`` for
            images, 4 for each number.

    Args:
        path: the folder, or the name on the hub.
        name: of one of the data set's configurations; None for its only or default one.
        input_column: of strings, images, or arrays of numbers of one shape; a list of two columns of strings is pairs.
        target_column: see ``ColumnDataModule``; a ``ClassLabel`` brings the names of its classes.
        train_split: of the training part.
        holdout_split: None for rows drawn from the training part.
        test_split: likewise.
        download: whether a data set, or tokenizer, may be got from the hub.
        options: of ``ColumnDataModule`` (but ``hold`` and ``resize``) and ``DataModule``.

    Raises:
        FileNotFoundError: if there is no such folder, and the hub may not be asked.
        ValueError: for a column or split that is missing, arrays of different shapes, or a column of another kind; see
            ``ColumnDataModule`` for other faults of the data.
    """

    image_options = ("image_size", "unreadable")

    def __init__(
        self,
        *,
        path: str | Path | None,
        input_column: str | Sequence[str] | None,
        target_column: str | None,
        name: str | None = None,
        train_split: str = "train",
        holdout_split: str | None = None,
        test_split: str | None = None,
        download: bool = False,
        **options: Any,
    ) -> None:
        if path is None or input_column is None or target_column is None:
            raise ValueError(
                "a Hugging Face data set needs datamodule.path=DIR (or its name on the hub), "
                "datamodule.input_column=NAME and datamodule.target_column=NAME, the column of the classes."
            )
        splits = {"train": train_split, "holdout": holdout_split, "test": test_split}
        self.splits_of_parts = {part: split for part, split in splits.items() if split is not None}
        super().__init__(target_column=target_column, download=download, **options)
        self.path = str(path)
        self.name = name
        self.unreadable = options.get("unreadable") or "error"
        if self.unreadable not in _UNREADABLE:
            raise unknown_name("datamodule.unreadable", self.unreadable, _UNREADABLE)
        check_count("datamodule.image_size", options.get("image_size") or 1)
        self.input_columns = names(input_column)
        if not self.input_columns or self.target_column in self.input_columns:
            raise ValueError(
                "datamodule.input_column must name one column, or two of texts, and not the target; got "
                f"{input_column}."
            )
        if not Path(self.path).is_dir() and not download:
            raise FileNotFoundError(
                f"there is no folder {self.path}. Give datamodule.path=DIR, a folder with a data set that save_to_disk "
                "wrote or with csv, json or parquet files; or the data set's name and datamodule.download=true to get "
                "it from the Hugging Face hub."
            )

    def rows(self) -> Rows:
        """The rows of all splits, with the columns in use."""
        splits = self._loaded()
        for split in self.splits_of_parts.values():
            if split not in splits:
                raise unknown_name("split", split, splits, of=str(self.path))
        wanted = [*self.input_columns, *self.other_columns]
        for split in self.splits_of_parts.values():
            check_columns(wanted, splits[split].column_names, name=f"split {split!r} of {self.path}")
        features = splits[self.splits_of_parts["train"]].features
        kind = _kind([features[column] for column in self.input_columns], self.input_columns)
        self.use(kind)
        sources = [
            Source(f"split {split!r}", part, self._frame(splits[split], kind))
            for part, split in self.splits_of_parts.items()
        ]
        labels = {column: getattr(features[column], "names", None) for column in self.other_columns}
        value_names = {column: label_names for column, label_names in labels.items() if label_names is not None}
        for split in self.splits_of_parts.values():
            for column, label_names in labels.items():
                found = getattr(splits[split].features[column], "names", None)
                if found != label_names:
                    raise ValueError(
                        f"column {column!r} must have the same class names in every split; the training split has "
                        f"{label_names}, split {split!r} has {found}. Cast one to the other's feature."
                    )
        return Rows.of(sources, kind=kind, input_columns=self.input_columns, value_names=value_names)

    def inputs(self, rows: Rows) -> tuple[Any, Tensor]:
        """Texts, images or arrays."""
        is_readable = torch.ones(len(rows), dtype=torch.bool)
        if rows.kind == "text":
            return rows.texts(), is_readable
        cells = rows.frame[self.input_columns[0]].tolist()
        if rows.kind == "array":
            return _arrays(rows, cells), is_readable
        images, faults = _images(cells, image_size=self.input_options["image_size"])
        if faults:
            is_readable[list(faults)] = False
            first = min(faults)
            if self.unreadable == "error" or not bool(is_readable.any()):
                raise ValueError(
                    f"{counted(~is_readable.numpy())} of {len(rows)} with an image that cannot be read; the first is "
                    f"{rows.first(~is_readable.numpy())} ({faults[first]}). Where others can be, leave such rows out: "
                    "datamodule.unreadable=skip."
                )
        return images[is_readable], is_readable

    def write_parts(self, places: Mapping[str, Tensor], folder: Path, *, is_linked: bool) -> dict[str, Any]:
        """Write a data set of these parts by ``save_to_disk``, with all columns and features; see ``WritesParts``."""
        from datasets import DatasetDict, concatenate_datasets

        splits = self._loaded()
        sources = [splits[split] for split in self.splits_of_parts.values()]
        stops = np.cumsum([0, *map(len, sources)]).tolist()
        written = {}
        for part, of_part in places.items():
            rows = [of_part[(start <= of_part) & (of_part < stop)] - start for start, stop in pairwise(stops)]
            parts = [data.select(own.tolist()) for data, own in zip(sources, rows, strict=True) if len(own)]
            written[part] = concatenate_datasets(parts)
        DatasetDict(written).save_to_disk(str(folder))
        return {"path": ".", "name": None} | {f"{part}_split": part for part in places}

    def _loaded(self) -> Mapping[str, Dataset]:
        """The splits by name."""
        from datasets import DatasetDict, load_dataset, load_from_disk

        folder = Path(self.path)
        is_saved = any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
        if is_saved and self.name is not None:
            raise ValueError(f"datamodule.name={self.name} changes nothing: {folder} holds one data set. Leave it out.")
        data = load_from_disk(self.path) if is_saved else load_dataset(self.path, self.name)
        return data if isinstance(data, DatasetDict) else {"train": data}

    def _frame(self, data: Dataset, kind: str) -> pd.DataFrame:
        """The columns in use; of an image what it is stored in, of an array its shape and its bytes."""
        column = self.input_columns[0]
        data = data.with_format(None)
        plain = dict.fromkeys([*(self.input_columns if kind == "text" else ()), *self.other_columns])
        frame: pd.DataFrame = data.select_columns(list(plain)).to_pandas()
        for other in self.other_columns:
            if hasattr(data.features[other], "names"):  # -1 is the label that is not known
                frame[other] = frame[other].astype("Int64").mask(frame[other] == -1)
        if kind == "image":
            frame[column] = _objects(_stored_image(cell) for cell in _undecoded(data, column))
        if kind == "array":
            batches = data.select_columns([column]).with_format("numpy").iter(batch_size=_BATCH)
            frame[column] = _objects(_stored_array(cell) for batch in batches for cell in batch[column])
        return frame


def _kind(features: Sequence[Any], columns: Sequence[str]) -> str:
    """The kind of input that columns with these ``features`` are.

    Raises:
        ValueError: for any other feature, and for several that are not all texts.
    """
    kinds = [_kind_of_one(feature) for feature in features]
    if kinds != ["text"] * len(kinds) and (len(kinds) > 1 or kinds[0] is None):
        found = ", ".join(f"{column!r} holds {feature}" for column, feature in zip(columns, features, strict=True))
        raise ValueError(
            "datamodule.input_column must be a column of strings, images, or arrays of numbers, or several columns of "
            f"strings; {found}."
        )
    return str(kinds[0])


def _kind_of_one(feature: Any) -> str | None:
    from datasets import Image, Value

    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, Value):
        return "text" if feature.dtype in {"string", "large_string"} else None
    while hasattr(feature, "feature"):  # a list of lists of ...
        feature = feature.feature
    is_number = str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float", "bool"))
    return "array" if is_number and not hasattr(feature, "names") else None


def _undecoded(data: Dataset, column: str) -> Iterator[Any]:
    from datasets import Image

    for batch in data.select_columns([column]).cast_column(column, Image(decode=False)).iter(batch_size=_BATCH):
        yield from batch[column]


def _stored_image(cell: Mapping[str, Any] | None) -> bytes | str | None:
    """The bytes of an image file, or its path; None where there is no image."""
    if cell is None:
        return None
    stored: bytes | str | None = cell["path"] if cell["bytes"] is None else cell["bytes"]
    return stored


def _stored_array(cell: Any) -> tuple[tuple[int, ...], bytes] | None:
    """The shape of an array and its bytes as float32; None where it is missing, or of no shape."""
    try:
        array = np.asarray(cell, dtype=np.float32)
    except (TypeError, ValueError):
        return None
    return array.shape, array.tobytes()


def _arrays(rows: Rows, cells: Sequence[tuple[tuple[int, ...], bytes] | None]) -> Tensor:
    """(N, ...) float32."""
    shape = next((cell[0] for cell in cells if cell is not None), ())
    is_other = np.array([cell is None or cell[0] != shape for cell in cells])
    if is_other.any():
        raise ValueError(
            f"datamodule.input_column must hold arrays of one shape: {counted(is_other)} with another than {shape}, or "
            f"none; the first is {rows.first(is_other)}."
        )
    numbers = np.frombuffer(b"".join(cell[1] for cell in cells if cell is not None), dtype=np.float32)
    arrays = torch.from_numpy(numbers.reshape(len(cells), *shape).copy())
    is_broken = ~arrays.flatten(1).isfinite().all(dim=1).numpy()
    if is_broken.any():
        raise ValueError(
            f"datamodule.input_column must hold finite numbers: {counted(is_broken)} with a missing or infinite one; "
            f"the first is {rows.first(is_broken)}."
        )
    return arrays


def _images(cells: Sequence[bytes | str | None], *, image_size: int) -> tuple[Tensor, dict[int, str]]:
    """(N, 3, S, S) uint8, and why there is no image at some of the N positions."""
    images = np.zeros((len(cells), 3, image_size, image_size), dtype=np.uint8)
    faults = {}
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for position, image in enumerate(threads.map(partial(_decoded, image_size=image_size), cells)):
            if isinstance(image, str):
                faults[position] = image
            else:
                images[position] = image
    return torch.from_numpy(images), faults


def _decoded(cell: bytes | str | None, *, image_size: int) -> NDArray[np.uint8] | str:
    """The image, or why there is none."""
    if cell is None:
        return "there is none"
    file: Any = BytesIO(cell) if isinstance(cell, bytes) else cell
    try:
        return decoded_image(file, image_size=image_size, resize=image_size)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make decoders raise almost anything
        return f"{type(error).__name__}: {error}"


def _objects(cells: Iterable[Any]) -> pd.Series[Any]:
    import pandas as pd

    return pd.Series(list(cells), dtype="object")
