"""Open parquet files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from reducr._internal.files import open_regular


@contextmanager
def opened_parquet(path: Path) -> Iterator[BufferedReader]:
    """A file to be read as parquet in the block; pyarrow takes no names that are not UTF-8.

    Raises:
        OSError: if it is missing, or not a regular file.
        ValueError: in place of any ``ValueError`` or ``OSError`` of pyarrow; names the file.
    """
    with open_regular(path) as file:
        try:
            yield file
        except (ValueError, OSError) as error:
            raise ValueError(f"{path} is damaged or not a parquet file ({error}). Get the file again.") from error
