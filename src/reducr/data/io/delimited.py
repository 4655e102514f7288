"""Rows of delimited text files, cell by cell as they are written."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

# characters; a limit of all CSV files that are read, which Python sets to 131,072
_LARGEST_CELL = 2**31 - 1


def delimited_rows(path: Path, *, delimiter: str, quoting: bool) -> Iterator[list[str]]:
    """The cells of each row of a UTF-8 file, header first; rows without any character are left out.

    Cells are strings, whatever they hold: "NA" is "NA".

    Args:
        path: the file, gzip-compressed if its name ends in ``.gz``.
        delimiter: one character.
        quoting: whether ``"`` quotes a cell, which may then hold delimiters and line ends; or is a character like any.

    Raises:
        ValueError: if the file is damaged or not UTF-8, or if a quote is never closed; names the file and the line.
    """
    try:
        with _opened(path) as file:
            if quoting:
                csv.field_size_limit(_LARGEST_CELL)
                yield from (row for row in csv.reader(file, delimiter=delimiter, strict=True) if row)
            else:
                lines = (line.rstrip("\r\n") for line in file)
                yield from (line.split(delimiter) for line in lines if line)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is truncated or damaged ({error}). Get the file again.") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 ({error}). Save it as UTF-8.") from error
    except csv.Error as error:
        raise ValueError(
            f'{path} cannot be read with quoting ({error}). Is there a single " in it? Where quotes are characters '
            "like any other, give datamodule.quoting=false."
        ) from error


def write_delimited(path: Path, rows: Iterable[Sequence[str]], *, delimiter: str, quoting: bool) -> None:
    """Write rows, header first, so that ``delimited_rows`` reads these cells; arguments as there."""
    text = io.StringIO()
    if quoting:
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    else:
        text.writelines(f"{delimiter.join(row)}\n" for row in rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _opened(path: Path) -> IO[str]:
    # a line ends at a line feed alone, whatever else a cell may hold; a byte order mark is no part of the first name
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return path.open(encoding="utf-8-sig", newline="\n")
