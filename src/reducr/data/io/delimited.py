"""Read and write delimited text files without interpreting the cells."""

from __future__ import annotations

import csv
import gzip
import io
import zlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import IO

from reducr._internal.files import check_regular

_MAX_CELL_CHARACTERS = 2**31 - 1
"""Replaces the csv module's global limit of 131,072."""


def delimited_rows(path: Path, *, delimiter: str, quoting: bool) -> Iterator[list[str]]:
    """Yield the cells of each row of a UTF-8 file, header first. Empty lines are skipped.

    Cells stay strings: "NA" is "NA".

    Args:
        path: the file; gzip-compressed if its name ends in ``.gz``.
        delimiter: one character.
        quoting: whether cells may be quoted with ``"`` and then contain delimiters and line breaks. If False, ``"`` is
            an ordinary character.

    Raises:
        ValueError: if the file is damaged or not UTF-8, or a quote is never closed; names the file and the line.
    """
    try:
        with _opened(path) as file:
            if quoting:
                csv.field_size_limit(_MAX_CELL_CHARACTERS)
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
            f'{path} cannot be parsed with quoting ({error}). Check it for an unpaired ". If " is an ordinary '
            "character in this file, set `datamodule.quoting=false`."
        ) from error


def write_delimited(path: Path, rows: Iterable[Sequence[str]], *, delimiter: str, quoting: bool) -> None:
    """Write rows, header first, so that ``delimited_rows`` with the same arguments reads the same cells."""
    text = io.StringIO()
    if quoting:
        csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    else:
        text.writelines(f"{delimiter.join(row)}\n" for row in rows)
    content = text.getvalue().encode()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def _opened(path: Path) -> IO[str]:
    check_regular(path)
    # only a line feed ends a line, and utf-8-sig drops a byte order mark before the first column name
    if path.suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="\n")
    return path.open(encoding="utf-8-sig", newline="\n")
