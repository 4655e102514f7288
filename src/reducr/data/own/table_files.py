"""Reading the files of a table."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from reducr._internal.names import unknown_name
from reducr.data.io.delimited import delimited_rows
from reducr.data.io.parquet_files import opened_parquet

if TYPE_CHECKING:
    import pandas as pd

PARQUET = ".parquet"
_DELIMITER_OF_SUFFIX = {".csv": ",", ".tsv": "\t"}
_SUFFIXES = (*_DELIMITER_OF_SUFFIX, *(f"{suffix}.gz" for suffix in _DELIMITER_OF_SUFFIX), PARQUET)


@dataclass(frozen=True)
class TextFormat:
    """Format of the text files.

    Args:
        delimiter: character between cells; None for a comma in ``.csv`` and a tab in ``.tsv``.
        quoting: whether ``"`` may quote a cell; see ``delimited_rows``.

    Raises:
        ValueError: for a delimiter that is not one character.
    """

    delimiter: str | None = None
    quoting: bool = True

    def __post_init__(self) -> None:
        if self.delimiter is not None and len(self.delimiter) != 1:
            raise ValueError(f"`datamodule.delimiter` must be one character; got {self.delimiter!r}.")

    def delimiter_of(self, path: Path) -> str:
        """The delimiter of the text file ``path``."""
        suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
        return self.delimiter or _DELIMITER_OF_SUFFIX[suffix]

    def check_is_used(self, paths: Iterable[Path]) -> None:
        """Raise ValueError if an option is set and none of ``paths`` is a text file."""
        options = [name for name, is_set in (("delimiter", self.delimiter), ("quoting", not self.quoting)) if is_set]
        if options and all(path.suffix == PARQUET for path in paths):
            raise ValueError(f"`datamodule.{options[0]}` has no effect on parquet files. Leave it out.")


def read_table(path: Path, text_format: TextFormat) -> pd.DataFrame:
    """The table in a file. All cells of a text file are strings.

    Raises:
        ValueError: for a repeated column name, or a row with more or fewer cells than the header. See
            ``delimited_rows`` for other errors in text files.
    """
    import pandas as pd

    if path.suffix == PARQUET:
        with opened_parquet(path) as file:
            return pd.read_parquet(file)
    rows = delimited_rows(path, delimiter=text_format.delimiter_of(path), quoting=text_format.quoting)
    header = next(rows, [])
    repeated = next((column for column in header if header.count(column) > 1), None)
    if repeated is not None:
        raise ValueError(f"{path} has two columns {repeated!r}. Rename one.")
    cells = list(rows)
    for number, row in enumerate(cells, start=1):
        if len(row) != len(header):
            raise ValueError(
                f"Row {number} of {path} has {len(row)} cells; its header has {len(header)}: {', '.join(header)}. "
                "Check `datamodule.delimiter` and `datamodule.quoting`."
            )
    return pd.DataFrame(cells, columns=header, dtype="str")


def suffix_of(path: Path) -> str:
    """The suffix of a table file, such as ``.csv.gz``."""
    return next(suffix for suffix in _SUFFIXES if path.name.endswith(suffix))


def check_files(files: Mapping[str, Sequence[Path]]) -> None:
    """Raise an error for a part without files, and for a file that does not exist or has an unknown format."""
    for part, paths in files.items():
        if not paths:
            raise ValueError(f"`datamodule.{part}_file` must name at least one file; got none.")
        for path in paths:
            if not path.name.endswith(_SUFFIXES):
                owner = f"`datamodule.{part}_file={path}`"
                raise unknown_name("file format", "".join(path.suffixes), _SUFFIXES, of=owner)
            if not path.is_file():
                raise FileNotFoundError(f"There is no file {path}. Check `datamodule.{part}_file` and `data_dir`.")
