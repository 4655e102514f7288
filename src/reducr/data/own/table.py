"""The user's tables: texts, numbers and categories, or images, with the target in one column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reducr.data.core.raw import RawData
from reducr.data.io.delimited import write_delimited
from reducr.data.io.identical_files import same_files
from reducr.data.io.images import read_images
from reducr.data.io.parquet_files import opened_parquet
from reducr.data.io.text import OWN
from reducr.data.own.columns import ColumnDataModule, pop_options
from reducr.data.own.features import Features
from reducr.data.own.rows import Rows, Source, check_columns
from reducr.data.own.table_files import PARQUET, TextFormat, check_files, read_table, suffix_of


class Table(ColumnDataModule):
    """Rows of CSV, TSV or parquet files with the target in one column.

    The input is one of: texts (``text_columns``), numbers and categories (``feature_columns``; by default all other
    columns), or image files (``image_column``). Cells are read verbatim: the text "NA" is the text "NA".

    Card:
        Source: your files, recognised by name: ``.csv`` and ``.tsv`` (or with ``.gz``), UTF-8 with a header line, or
            ``.parquet``.
        Licence: that of your data.
        Sizes: yours. Inputs are tokens, int32 (2, L), see ``Tokenization``; features, float32 (F,), see ``Features``;
            or RGB images, uint8 (3, S, S).
        Splits: the files. A part without a file is drawn by seed, stratified and disjoint: 0.2 of the rows for the test
            part and 0.1 of the others for the holdout part. The test part is drawn from the holdout file if only that
            is set.
        Group: ``group_column``, else the class.
        Memory: the text of the files; per row also 8 L bytes of tokens (memory-mapped with ``cache_dir``), 4 F of
            features, or ``3 S^2`` of images.

    Args:
        train_file: one file, or a list of files to concatenate.
        target_column: see ``ColumnDataModule``.
        data_dir: folder that file names are relative to; None for the current folder.
        holdout_file: likewise; None to draw the holdout part from the training part.
        test_file: likewise; None to draw the test part.
        text_columns: the column of the first text, then the columns that are joined with blanks to the second text.
        feature_columns: columns of numbers and categories; None for all columns but target, group and index.
        image_column: column of image paths.
        image_dir: folder that image paths are relative to; None for the folder of the table file.
        options: fields of ``TextFormat``, and options of ``ColumnDataModule`` and ``DataModule``.

    Raises:
        FileNotFoundError: for a file that does not exist.
        ValueError: for inputs of two kinds, or the target among the inputs. See ``ColumnDataModule`` for errors in the
            data.
    """

    image_options = ("image_size", "resize", "hold", "cache_dir", "unreadable")

    def __init__(
        self,
        *,
        train_file: str | Path | Sequence[str | Path] | None,
        target_column: str | None,
        data_dir: str | Path | None = None,
        holdout_file: str | Path | Sequence[str | Path] | None = None,
        test_file: str | Path | Sequence[str | Path] | None = None,
        text_columns: str | Sequence[str] = (),
        feature_columns: str | Sequence[str] | None = None,
        image_column: str | None = None,
        image_dir: str | Path | None = None,
        **options: Any,
    ) -> None:
        if train_file is None or target_column is None:
            raise ValueError(
                "A table needs `datamodule.train_file=FILE` (.csv, .tsv or .parquet) and "
                "`datamodule.target_column=NAME`, the column of the classes."
            )
        self.format = pop_options(TextFormat, options)
        files = {"train": train_file, "holdout": holdout_file, "test": test_file}
        folder = Path() if data_dir is None else Path(data_dir)
        self.files = {
            part: [folder / name for name in as_names(value)] for part, value in files.items() if value is not None
        }
        super().__init__(target_column=target_column, **options)
        check_files(self.files)
        columns = {"text": text_columns, "features": feature_columns, "image": image_column}
        self.kind, self.input_columns = _inputs({kind: as_names(value) for kind, value in columns.items()})
        if self.target_column in self.input_columns:
            raise ValueError(f"Column {self.target_column!r} is the target and cannot be an input. Leave it out there.")
        if image_dir is not None and self.kind != "image":
            raise ValueError(f"`datamodule.image_dir={image_dir}` has no effect without `datamodule.image_column`.")
        self.image_dir = None if image_dir is None else Path(image_dir)
        self.set_input_kind(self.kind)
        if self.download and (self.tokenization is None or self.tokenization.tokenizer == OWN):
            raise ValueError("`datamodule.download=true` has no effect without a published `datamodule.tokenizer`.")
        self.format.check_is_used(path for paths in self.files.values() for path in paths)

    def rows(self) -> Rows:
        """The rows of all files, with the columns in use."""
        sources = []
        inputs = self.input_columns
        for part, paths in self.files.items():
            for path in paths:
                frame = read_table(path, self.format)
                inputs = inputs or tuple(column for column in frame.columns if column not in self.other_columns)
                columns = list(dict.fromkeys([*self.other_columns, *inputs]))
                check_columns(columns, list(frame.columns), owner=path.name)
                frame = frame[columns]
                if self.kind == "image":
                    folder = path.parent if self.image_dir is None else self.image_dir
                    frame = frame.assign(**{inputs[0]: [str(folder / str(cell)) for cell in frame[inputs[0]]]})
                sources.append(Source(path.name, part, frame))
        if not inputs:
            raise ValueError(
                f"{sources[0].name} has no input column: its only columns are {', '.join(self.other_columns)}."
            )
        return Rows.of(sources, kind=self.kind, input_columns=inputs)

    def content(self, rows: Rows) -> Tensor:
        """(N,) int64, equal for rows with the same input. Image files are compared byte for byte."""
        return same_files(_image_paths(rows)) if rows.kind == "image" else super().content(rows)

    def inputs(self, rows: Rows) -> tuple[Any, Tensor]:
        """Texts, features or images."""
        is_readable = torch.ones(len(rows), dtype=torch.bool)
        if rows.kind == "text":
            return rows.texts(), is_readable
        if rows.kind == "features":
            return Features.of(rows.frame, rows.input_columns), is_readable
        return read_images(_image_paths(rows), **self.input_options)

    def write_parts(self, places: Mapping[str, Tensor], folder: Path, *, is_linked: bool) -> dict[str, Any]:
        """Write rows in the format and with all columns of their files; see ``WritesParts``.

        Image paths become absolute, so that they stay valid. Rows from several files go into several files:
        ``train.csv``, ``train_2.csv``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        names: dict[str, list[str]] = {part: [] for part in places}
        start = 0
        for path in (path for paths in self.files.values() for path in paths):
            size = len(read_table(path, self.format))
            for part, of_part in places.items():
                rows = of_part[(start <= of_part) & (of_part < start + size)] - start
                if len(rows):
                    number = f"_{len(names[part]) + 1}" if names[part] else ""
                    names[part].append(f"{part}{number}{suffix_of(path)}")
                    self._write_rows(path, rows.tolist(), folder / names[part][-1])
            start += size
        return {"data_dir": "."} | {f"{part}_file": names_of_part for part, names_of_part in names.items()}

    def _write_rows(self, path: Path, rows: list[int], out: Path) -> None:
        """Copy some rows of a file, with all columns, into a new file of the same format."""
        column = self.input_columns[0] if self.kind == "image" else None
        folder = (path.parent if self.image_dir is None else self.image_dir).resolve()
        if path.suffix == PARQUET:
            import pyarrow as pa
            from pyarrow import parquet

            with opened_parquet(path) as file:
                table = parquet.read_table(file).take(rows)
            if column is not None:
                paths = pa.array([str(folder / str(cell)) for cell in table[column].to_pylist()])
                table = table.set_column(table.column_names.index(column), column, paths)
            with out.open("wb") as file:  # pyarrow takes no names that are not UTF-8
                parquet.write_table(table, file)
            return
        frame = read_table(path, self.format).iloc[rows]
        if column is not None:
            frame = frame.assign(**{column: [str(folder / cell) for cell in frame[column]]})
        cells = [list(frame.columns), *frame.to_numpy().tolist()]
        write_delimited(out, cells, delimiter=self.format.delimiter_of(path), quoting=self.format.quoting)

    def encoded(self, raw: RawData, train_source: Tensor) -> RawData:
        """``raw`` with texts replaced by tokens, or features by standardised numbers."""
        if isinstance(raw.input, Features):
            return replace(raw, input=raw.input.encoded(train_source))
        return super().encoded(raw, train_source)


def as_names(value: str | Path | Iterable[str | Path] | None) -> tuple[str, ...]:
    """One name, several or None as a tuple of names."""
    if value is None:
        return ()
    return (str(value),) if isinstance(value, str | Path) else tuple(map(str, value))


def _inputs(columns: Mapping[str, tuple[str, ...]]) -> tuple[str, tuple[str, ...]]:
    """The one kind of input that has ``columns``, and these; all features by default."""
    kinds = [kind for kind, names in columns.items() if names]
    if len(kinds) > 1:
        raise ValueError(
            "Set only one of `datamodule.text_columns`, `feature_columns` and `image_column`; got "
            f"{' and '.join(kinds)} columns."
        )
    kind = kinds[0] if kinds else "features"
    return kind, columns[kind]


def _image_paths(rows: Rows) -> list[Path]:
    return [Path(path) for path in rows.frame[rows.input_columns[0]]]
