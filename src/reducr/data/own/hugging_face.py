"""Data sets of the Hugging Face hub, or of local folders that the library ``datasets`` reads."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from reducr._internal.checks import check_count
from reducr._internal.names import unknown_name
from reducr.data.own.columns import ColumnDataModule
from reducr.data.own.hugging_face_cells import arrays, images, stored_arrays, stored_images
from reducr.data.own.rows import Rows, Source, check_columns
from reducr.data.own.table import as_names

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset

_UNREADABLE = ("error", "skip")


class HuggingFace(ColumnDataModule):
    """A data set of the library ``datasets``: texts, images or arrays of numbers, with the target in one column.

    Card:
        Source: the Hugging Face hub, a folder written by ``save_to_disk``, or a folder of csv, json, parquet or image
            files.
        Licence: that of the data set.
        Sizes: those of the data set. Inputs are tokens, int32 (2, L), see ``Tokenization``; RGB images, uint8
            (3, S, S), see ``decoded_image``; or arrays, float32.
        Splits: those named. Any other part is drawn by seed, stratified and disjoint: 0.2 of the rows for the test part
            and 0.1 of the others for the holdout part. The test part is drawn from the holdout split if only that is
            named.
        Group: ``group_column``, else the class.
        Memory: the columns in use; per row also 8 L bytes of tokens (memory-mapped with ``cache_dir``), ``3 S^2`` of
            images, or 4 per number of arrays.

    Args:
        path: the folder, or the name on the hub.
        name: configuration of the data set; None for its only or default one.
        input_column: column of strings, images, or arrays of one shape; a list of two columns of strings for pairs.
        target_column: see ``ColumnDataModule``; the values of a ``ClassLabel`` have their names as class names.
        train_split: split of the training part.
        holdout_split: split of the holdout part; None to draw it from the training part.
        test_split: split of the test part; None to draw it.
        download: whether to download a data set or tokenizer from the hub.
        options: of ``ColumnDataModule`` (except ``hold`` and ``resize``) and ``DataModule``.

    Raises:
        FileNotFoundError: if the folder does not exist and nothing may be downloaded.
        ValueError: for a missing column or split, a column of an unsupported type, or arrays of different shapes. See
            ``ColumnDataModule`` for other errors in the data.
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
                "A Hugging Face data set needs `datamodule.path=DIR` (or its name on the hub), "
                "`datamodule.input_column=NAME` and `datamodule.target_column=NAME`, the column of the classes."
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
        self.input_columns = as_names(input_column)
        if not self.input_columns or self.target_column in self.input_columns:
            raise ValueError(
                "`datamodule.input_column` must name one column, or two columns of texts, other than the target; got "
                f"{input_column}."
            )
        if not Path(self.path).is_dir() and not download:
            raise FileNotFoundError(
                f"There is no folder {self.path}. Set `datamodule.path` to a folder written by save_to_disk or a "
                "folder of csv, json or parquet files. Or set it to a name on the Hugging Face hub, with "
                "`datamodule.download=true`."
            )
        if not Path(self.path).is_dir() and self.path in _reader_names():
            raise ValueError(
                f"`datamodule.path={self.path}` is the name of a file format of the library datasets. Set it to a "
                "folder with the files, or to a name on the Hugging Face hub."
            )

    def rows(self) -> Rows:
        """The rows of all splits, with the columns in use."""
        splits = self._loaded()
        for split in self.splits_of_parts.values():
            if split not in splits:
                raise unknown_name("split", split, splits, of=str(self.path))
        columns = [*self.input_columns, *self.other_columns]
        for split in self.splits_of_parts.values():
            check_columns(columns, splits[split].column_names, owner=f"split {split!r} of {self.path}")
        features = splits[self.splits_of_parts["train"]].features
        kind = _input_kind([features[column] for column in self.input_columns], self.input_columns)
        self.set_input_kind(kind)
        sources = [
            Source(f"split {split!r}", part, self._frame(splits[split], kind))
            for part, split in self.splits_of_parts.items()
        ]
        value_names = self._value_names(splits)
        return Rows.of(sources, kind=kind, input_columns=self.input_columns, value_names=value_names)

    def _value_names(self, splits: Mapping[str, Dataset]) -> dict[str, Sequence[str]]:
        """Names of the values of each ``ClassLabel`` column in use.

        Raises:
            ValueError: if a split has other names than the training split.
        """
        train = splits[self.splits_of_parts["train"]].features
        names = {column: getattr(train[column], "names", None) for column in self.other_columns}
        for split in self.splits_of_parts.values():
            for column, expected in names.items():
                actual = getattr(splits[split].features[column], "names", None)
                if actual != expected:
                    raise ValueError(
                        f"Column {column!r} must have the same class names in every split; the training split has "
                        f"{expected}, split {split!r} has {actual}. Cast one to the other's feature."
                    )
        return {column: values for column, values in names.items() if values is not None}

    def inputs(self, rows: Rows) -> tuple[Any, Tensor]:
        """Texts, images or arrays."""
        is_readable = torch.ones(len(rows), dtype=torch.bool)
        if rows.kind == "text":
            return rows.texts(), is_readable
        cells = rows.frame[self.input_columns[0]].tolist()
        if rows.kind == "array":
            return arrays(rows, cells), is_readable
        pixels, faults = images(cells, image_size=self.input_options["image_size"])
        if faults:
            is_readable[list(faults)] = False
            if self.unreadable == "error" or not bool(is_readable.any()):
                raise ValueError(
                    f"{len(faults)} of {len(rows)} images cannot be read; the first is {rows.place(min(faults))} "
                    f"({faults[min(faults)]}). Set `datamodule.unreadable=skip` to skip them if others can be read."
                )
        return pixels[is_readable], is_readable

    def write_parts(self, places: Mapping[str, Tensor], folder: Path, *, is_linked: bool) -> dict[str, Any]:
        """Write the parts with ``save_to_disk``, with all columns and features; see ``WritesParts``."""
        from datasets import DatasetDict, concatenate_datasets

        splits = self._loaded()
        sources = [splits[split] for split in self.splits_of_parts.values()]
        stops = np.cumsum([0, *map(len, sources)]).tolist()
        data_of_part = {}
        for part, of_part in places.items():
            rows = [of_part[(start <= of_part) & (of_part < stop)] - start for start, stop in pairwise(stops)]
            chosen = [data.select(own.tolist()) for data, own in zip(sources, rows, strict=True) if len(own)]
            data_of_part[part] = concatenate_datasets(chosen)
        DatasetDict(data_of_part).save_to_disk(str(folder))
        return {"path": ".", "name": None} | {f"{part}_split": part for part in places}

    def _loaded(self) -> Mapping[str, Dataset]:
        """The splits by name."""
        from datasets import DatasetDict, load_dataset, load_from_disk

        folder = Path(self.path)
        is_saved = any((folder / mark).is_file() for mark in ("dataset_dict.json", "state.json"))
        if is_saved and self.name is not None:
            raise ValueError(f"`datamodule.name={self.name}` has no effect: {folder} holds one data set. Leave it out.")
        # a bare name such as `pandas` is that of a reader, which in some versions unpickles files of the current folder
        place = str(folder.absolute()) if folder.is_dir() else self.path
        data = load_from_disk(self.path) if is_saved else load_dataset(place, self.name)
        return data if isinstance(data, DatasetDict) else {"train": data}

    def _frame(self, data: Dataset, kind: str) -> pd.DataFrame:
        """The columns in use. Images and arrays are stored as ``stored_images`` and ``stored_arrays`` say."""
        column = self.input_columns[0]
        data = data.with_format(None)
        plain = dict.fromkeys([*(self.input_columns if kind == "text" else ()), *self.other_columns])
        frame: pd.DataFrame = data.select_columns(list(plain)).to_pandas()
        for other in self.other_columns:
            if hasattr(data.features[other], "names"):  # -1 marks an unknown label
                frame[other] = frame[other].astype("Int64").mask(frame[other] == -1)
        if kind == "image":
            frame[column] = stored_images(data, column)
        if kind == "array":
            frame[column] = stored_arrays(data, column)
        return frame


def _reader_names() -> Collection[str]:
    """Names that ``load_dataset`` takes for a reader of files, rather than for a data set."""
    from datasets import packaged_modules

    return list(packaged_modules._PACKAGED_DATASETS_MODULES)


def _input_kind(features: Sequence[Any], columns: Sequence[str]) -> str:
    """The kind of input in columns with these ``features``.

    Raises:
        ValueError: for an unsupported feature, or for several columns that are not all texts.
    """
    kinds = [_feature_kind(feature) for feature in features]
    if kinds != ["text"] * len(kinds) and (len(kinds) > 1 or kinds[0] is None):
        actual = ", ".join(f"{column!r} holds {feature}" for column, feature in zip(columns, features, strict=True))
        raise ValueError(
            "`datamodule.input_column` must be one column of strings, images or arrays of numbers, or several columns "
            f"of strings; {actual}."
        )
    return str(kinds[0])


def _feature_kind(feature: Any) -> str | None:
    from datasets import Image, Value

    if isinstance(feature, Image):
        return "image"
    if isinstance(feature, Value):
        return "text" if feature.dtype in {"string", "large_string"} else None
    while hasattr(feature, "feature"):  # nested lists
        feature = feature.feature
    is_number = str(getattr(feature, "dtype", "")).startswith(("int", "uint", "float", "bool"))
    return "array" if is_number and not hasattr(feature, "names") else None
