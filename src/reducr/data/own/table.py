"""Anyone's tables: text, numbers and categories, or images, with a target in a column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from reducr._internal.names import unknown_name
from reducr.data.core.raw import RawData
from reducr.data.io.delimited import delimited_rows, write_delimited
from reducr.data.io.identical_files import same_files
from reducr.data.io.images import read_images
from reducr.data.io.text import OWN
from reducr.data.own.columns import ColumnDataModule, Rows, Source, check_columns
from reducr.data.own.features import Features

if TYPE_CHECKING:
    import pandas as pd

_DELIMITER_OF_SUFFIX = {".csv": ",", ".tsv": "\t"}
_PARQUET = ".parquet"
SUFFIXES = (*_DELIMITER_OF_SUFFIX, *(f"{suffix}.gz" for suffix in _DELIMITER_OF_SUFFIX), _PARQUET)


class Table(ColumnDataModule):
    """Rows of CSV, TSV or parquet files with a target in a column.

    The input is one of: texts (``text_columns``), numbers and categories (``feature_columns``; every other column if
    nothing is named), or an image file (``image_column``). Cells are what the file holds: a text "NA" is that text.

    Card:
        Source: your files, by their names ``.csv``, ``.tsv`` (``.gz``), UTF-8 with a header line, or ``.parquet``.
        Licence: that of your data.
        Sizes: yours. Inputs are tokens, int32 (2, L), see ``Tokenization``; features, (F,) floats, see ``Features``; or
            RGB images, uint8 (3, S, S).
        Splits: those of the files; a part without a file is drawn by seed, stratified and disjoint: 0.2 of the rows
            test and 0.1 of the others hold out. Where a holdout file is given and no test file, the test part is drawn
            from the holdout file.
        Group: ``group_column``, else the class.
        Memory: the text of the files; then 8 L bytes a row for tokens (memory-mapped with ``cache_dir``), 4 F for
            features, ``3 S^2`` for images.

    Args:
        train_file: a file, or a list of files of one part.
        target_column: see ``ColumnDataModule``.
        data_dir: the folder that names of files begin in; None for the current one.
        holdout_file: as ``train_file``; None for rows drawn from the training part.
        test_file: likewise.
        text_columns: the first text of a row, and those that make up its second one, joined by blanks.
        feature_columns: numbers and categories; None for every column but target, group and index, if neither texts nor
            images are named.
        image_column: paths of images.
        image_dir: the folder that these begin in; None for the folder of the file.
        delimiter: between the cells of a text file; None for a comma in ``.csv`` and a tab in ``.tsv``.
        quoting: whether a cell may be quoted by ``"``; see ``delimited_rows``.
        options: of ``ColumnDataModule`` and ``DataModule``.

    Raises:
        FileNotFoundError: for a file that is not there.
        ValueError: for inputs of two kinds, or a target among them; see ``ColumnDataModule`` for faults of the data.
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
        delimiter: str | None = None,
        quoting: bool = True,
        **options: Any,
    ) -> None:
        if train_file is None or target_column is None:
            raise ValueError(
                "a table needs datamodule.train_file=FILE (.csv, .tsv or .parquet) and datamodule.target_column=NAME, "
                "the column of the classes."
            )
        files = {"train": train_file, "holdout": holdout_file, "test": test_file}
        folder = Path() if data_dir is None else Path(data_dir)
        self.files = {
            part: [folder / name for name in names(given)] for part, given in files.items() if given is not None
        }
        super().__init__(target_column=target_column, **options)
        _check_files(self.files)
        if delimiter is not None and len(delimiter) != 1:
            raise ValueError(f"datamodule.delimiter must be one character; got {delimiter!r}.")
        self.delimiter = delimiter
        self.quoting = quoting
        columns = {"text": names(text_columns), "features": names(feature_columns), "image": names(image_column)}
        given_kinds = [kind for kind, named in columns.items() if named]
        if len(given_kinds) > 1:
            raise ValueError(
                "name inputs of one kind: datamodule.text_columns, feature_columns or image_column; got "
                f"{' and '.join(given_kinds)}."
            )
        self.kind = given_kinds[0] if given_kinds else "features"
        self.input_columns = columns[self.kind]
        if self.target_column in self.input_columns:
            raise ValueError(
                f"column {self.target_column!r} is the target, so it cannot be an input. Leave it out of these."
            )
        if image_dir is not None and self.kind != "image":
            raise ValueError(f"datamodule.image_dir={image_dir} changes nothing without datamodule.image_column.")
        self.image_dir = None if image_dir is None else Path(image_dir)
        self.use(self.kind)
        if self.download and (self.tokenization is None or self.tokenization.tokenizer == OWN):
            raise ValueError("datamodule.download=true changes nothing without a published datamodule.tokenizer.")
        paths = [path for paths_of_part in self.files.values() for path in paths_of_part]
        given_formats = ["delimiter"] * (delimiter is not None) + ["quoting"] * (not quoting)
        if given_formats and all(path.suffix == _PARQUET for path in paths):
            raise ValueError(f"datamodule.{given_formats[0]} changes nothing for parquet files. Leave it out.")

    def rows(self) -> Rows:
        """The rows of all files, with the columns in use."""
        sources = []
        inputs = self.input_columns
        for part, paths in self.files.items():
            for path in paths:
                frame = read_table(path, delimiter=self.delimiter, quoting=self.quoting)
                inputs = inputs or tuple(column for column in frame.columns if column not in self.other_columns)
                wanted = [*self.other_columns, *(column for column in inputs if column not in self.other_columns)]
                check_columns(wanted, list(frame.columns), name=path.name)
                frame = frame[wanted]
                if self.kind == "image":
                    folder = path.parent if self.image_dir is None else self.image_dir
                    frame = frame.assign(**{inputs[0]: [str(folder / str(cell)) for cell in frame[inputs[0]]]})
                sources.append(Source(path.name, part, frame))
        if not inputs:
            raise ValueError(
                f"{sources[0].name} has no column beside {', '.join(self.other_columns)}: no input is left."
            )
        return Rows.of(sources, kind=self.kind, input_columns=inputs)

    def content(self, rows: Rows) -> Tensor:
        """(N,) int64, the same for rows with the same input; of images, for files with the same bytes."""
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
        """Write rows into files of the format and columns of those that they were read from; see ``WritesParts``.

        Paths of images are written as absolute ones, so that they are found from the new place. Rows of several files
        are written into as many: ``train.csv``, ``train_2.csv``.
        """
        folder.mkdir(parents=True, exist_ok=True)
        written: dict[str, list[str]] = {part: [] for part in places}
        start = 0
        for path in (path for paths in self.files.values() for path in paths):
            size = len(read_table(path, delimiter=self.delimiter, quoting=self.quoting))
            for part, of_part in places.items():
                rows = of_part[(start <= of_part) & (of_part < start + size)] - start
                if len(rows):
                    number = f"_{len(written[part]) + 1}" if written[part] else ""
                    written[part].append(f"{part}{number}{_suffix(path)}")
                    self._write_rows(path, rows.tolist(), folder / written[part][-1])
            start += size
        return {"data_dir": "."} | {f"{part}_file": names for part, names in written.items()}

    def _write_rows(self, path: Path, rows: list[int], out: Path) -> None:
        """Some rows of a file, with all its columns, into a new one of the same format."""
        column = self.input_columns[0] if self.kind == "image" else None
        folder = (path.parent if self.image_dir is None else self.image_dir).resolve()
        if path.suffix == _PARQUET:
            import pyarrow as pa
            from pyarrow import parquet

            table = parquet.read_table(path).take(rows)
            if column is not None:
                paths = pa.array([str(folder / str(cell)) for cell in table[column].to_pylist()])
                table = table.set_column(table.column_names.index(column), column, paths)
            parquet.write_table(table, out)
            return
        frame = read_table(path, delimiter=self.delimiter, quoting=self.quoting).iloc[rows]
        if column is not None:
            frame = frame.assign(**{column: [str(folder / cell) for cell in frame[column]]})
        cells = [list(frame.columns), *frame.to_numpy().tolist()]
        write_delimited(out, cells, delimiter=self.delimiter or delimiter_of(path), quoting=self.quoting)

    def encoded(self, raw: RawData, train_source: Tensor) -> RawData:
        """``raw`` with tokens in place of texts, or standardised features."""
        if isinstance(raw.input, Features):
            return replace(raw, input=raw.input.encoded(train_source))
        return super().encoded(raw, train_source)


def read_table(path: Path, *, delimiter: str | None, quoting: bool) -> pd.DataFrame:
    """The table in a file; that of a text file has strings alone.

    Raises:
        ValueError: for a column name that comes twice, or a row with more or fewer cells than the header; see
            ``delimited_rows`` for other faults of text files.
    """
    import pandas as pd

    if path.suffix == _PARQUET:
        return pd.read_parquet(path)
    rows = delimited_rows(path, delimiter=delimiter or delimiter_of(path), quoting=quoting)
    header = next(rows, [])
    double = next((column for column in header if header.count(column) > 1), None)
    if double is not None:
        raise ValueError(f"{path} has two columns {double!r}. Rename one.")
    cells = list(rows)
    for number, row in enumerate(cells, start=1):
        if len(row) != len(header):
            raise ValueError(
                f"row {number} of {path} has {len(row)} cells; its header has {len(header)}: {', '.join(header)}. Is "
                "datamodule.delimiter right, and datamodule.quoting?"
            )
    return pd.DataFrame(cells, columns=header, dtype="str")


def delimiter_of(path: Path) -> str:
    """Between the cells of a text file of this name."""
    return _DELIMITER_OF_SUFFIX[Path(path.stem).suffix if path.suffix == ".gz" else path.suffix]


def names(given: str | Path | Iterable[str | Path] | None) -> tuple[str, ...]:
    """One name or several, or none, as a tuple."""
    if given is None:
        return ()
    return (str(given),) if isinstance(given, str | Path) else tuple(map(str, given))


def _suffix(path: Path) -> str:
    return next(suffix for suffix in SUFFIXES if path.name.endswith(suffix))


def _image_paths(rows: Rows) -> list[Path]:
    return [Path(path) for path in rows.frame[rows.input_columns[0]]]


def _check_files(files: dict[str, list[Path]]) -> None:
    for part, paths in files.items():
        if not paths:
            raise ValueError(f"datamodule.{part}_file must name a file; got none.")
        for path in paths:
            if not path.name.endswith(SUFFIXES):
                raise unknown_name(f"kind of file of datamodule.{part}_file={path}:", "".join(path.suffixes), SUFFIXES)
            if not path.is_file():
                raise FileNotFoundError(
                    f"there is no file {path}; datamodule.{part}_file must be a file that is there."
                )
