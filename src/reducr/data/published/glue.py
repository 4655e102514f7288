"""Sentence pairs of the GLUE benchmark, read from any of their published file formats."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

from reducr.data.io.delimited import delimited_rows
from reducr.data.io.parquet_files import opened_parquet
from reducr.data.io.text import TextDataModule, Texts

_HUB_NAME = "nyu-mll/glue"
_NO_LABEL = frozenset({"-1", "-"})


class Pairs(NamedTuple):
    """Pairs of texts with the class number of each."""

    first: list[str]
    second: list[str]
    target: list[int]


class GlueDataModule(TextDataModule):
    """A GLUE task whose examples are sentence pairs.

    A subclass names the task, its classes, its labelled splits and its columns.

    Args:
        data_dir: folder with the task's folder, or with its files, in one of three formats: the parquet files of the
            hub's ``nyu-mll/glue``, tab-separated files with the same columns, or GLUE's own tab-separated files.
            Tab-separated files are read without quoting and may be gzip-compressed.
        download: whether to download missing data and the tokenizer from the Hugging Face hub.
        tokenizer: see ``Tokenization``.
        max_length: see ``Tokenization``.
        options: of ``TextDataModule`` and ``DataModule``.

    Raises:
        FileNotFoundError: if a file is missing.
        ValueError: for a file with other columns, or an unknown label.
    """

    task: ClassVar[str]
    class_names: ClassVar[tuple[str, ...]]
    # the hub's names, in the order in which the splits are concatenated
    published_splits: ClassVar[tuple[str, ...]]
    # first text, second text and label: on the hub, then in GLUE's own files
    columns: ClassVar[tuple[tuple[str, str, str], tuple[str, str, str]]]

    def __init__(
        self,
        *,
        data_dir: str | Path | None,
        download: bool = False,
        tokenizer: str = "google-bert/bert-base-uncased",
        max_length: int = 128,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer=tokenizer, max_length=max_length, download=download, **options)
        if data_dir is None and not download:
            raise ValueError(f"{self.task.upper()} has no data. {self._how_to_get_it()}")
        self.data_dir = None if data_dir is None else Path(data_dir)
        self.download = download

    def read_splits(self) -> tuple[Texts, Tensor, list[int], tuple[str, ...]]:
        """Concatenate the pairs of all published splits.

        Returns:
            N pairs; (N,) int64 targets; the number of pairs of each split; and notes about skipped rows.
        """
        files = [self._find(split) for split in self.published_splits]
        missing = [split for split, path in zip(self.published_splits, files, strict=True) if path is None]
        if missing and not self.download:
            raise FileNotFoundError(
                f"{self.task.upper()} has no file of its split {missing[0]} ({', '.join(_file_names(missing[0]))}) in "
                f"{' or '.join(map(str, self._folders()))}. {self._how_to_get_it()}"
            )
        local = [(path.name, self._rows(path)) for path in files if path is not None]
        pairs, sizes, notes = Pairs([], [], []), [], []
        for name, rows in self._downloaded() if missing else local:
            num_before = len(pairs.target)
            num_skipped = self._append(pairs, rows, name=name)
            sizes.append(len(pairs.target) - num_before)
            if num_skipped:
                notes.append(
                    f"Skipped {num_skipped} of {sizes[-1] + num_skipped} rows of {name} without label or text."
                )
        return Texts(pairs.first, pairs.second), torch.tensor(pairs.target), sizes, tuple(notes)

    def _append(self, pairs: Pairs, rows: Iterable[tuple[str, str, str] | None], *, name: str) -> int:
        """Append the labelled rows to ``pairs`` and return the number of skipped rows."""
        class_of_label = {str(number): number for number in range(len(self.class_names))}
        class_of_label |= {label: number for number, label in enumerate(self.class_names)}
        num_skipped = 0
        for place, row in enumerate(rows, start=1):
            if row is None or row[2] in _NO_LABEL:
                num_skipped += 1
            elif row[2] not in class_of_label:
                raise ValueError(
                    f"Row {place} of {name} has the label {row[2]!r}; expected {', '.join(class_of_label)}, or -1 for "
                    "no label."
                )
            else:
                pairs.first.append(row[0])
                pairs.second.append(row[1])
                pairs.target.append(class_of_label[row[2]])
        return num_skipped

    def _rows(self, path: Path) -> Iterator[tuple[str, str, str] | None]:
        """First text, second text and label of each row of a file; None for an incomplete row."""
        if path.suffix == ".parquet":
            import pandas as pd

            with opened_parquet(path) as file:
                frame = pd.read_parquet(file)
            frame = frame[list(self._columns_in(list(frame.columns), path))].astype("object")
            yield from _complete_rows(frame.where(frame.notna(), None).itertuples(index=False, name=None))
            return
        rows = delimited_rows(path, delimiter="\t", quoting=False)
        header = next(rows, [])
        places = [header.index(column) for column in self._columns_in(header, path)]
        for row in rows:
            yield (row[places[0]], row[places[1]], row[places[2]]) if len(row) == len(header) else None

    def _columns_in(self, header: list[str], path: Path) -> tuple[str, str, str]:
        for columns in self.columns:
            if set(columns) <= set(header):
                return columns
        expected = " or ".join(", ".join(columns) for columns in self.columns)
        raise ValueError(f"{path} must have the columns {expected}; it has {', '.join(map(str, header)) or 'none'}.")

    def _find(self, split: str) -> Path | None:
        places = (folder / name for folder in self._folders() for name in _file_names(split))
        return next((path for path in places if path.is_file()), None)

    def _folders(self) -> list[Path]:
        if self.data_dir is None:
            return []
        return [self.data_dir / self.task, self.data_dir / self.task.upper(), self.data_dir]

    def _downloaded(self) -> list[tuple[str, Iterator[tuple[str, str, str] | None]]]:
        """Name and rows of each split, downloaded through the hub's own cache."""
        from datasets import load_dataset

        hub = load_dataset(_HUB_NAME, self.task)
        return [
            (split, _complete_rows(zip(*(hub[split][column] for column in self.columns[0]), strict=True)))
            for split in self.published_splits
        ]

    def _how_to_get_it(self) -> str:
        return (
            f"Set `datamodule.data_dir=DIR`, the folder that contains {self.task}/ of "
            f"huggingface.co/datasets/{_HUB_NAME} or {self.task.upper()}/ of gluebenchmark.com. Or set "
            "`datamodule.download=true` to download the former."
        )


def _complete_rows(rows: Iterable[tuple[Any, ...]]) -> Iterator[tuple[str, str, str] | None]:
    for first, second, label in rows:
        yield None if first is None or second is None else (str(first), str(second), str(label))


def _file_names(split: str) -> list[str]:
    """Possible file names of a split: on the hub, then with the hub's columns, then in GLUE."""
    stems = dict.fromkeys([split, split.replace("validation", "dev")])
    return [f"{split}-00000-of-00001.parquet", *(f"{stem}.tsv{end}" for stem in stems for end in ("", ".gz"))]
