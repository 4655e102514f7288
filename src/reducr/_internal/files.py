"""Atomic writes: a file or folder is written under a temporary name, then renamed."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

DISK_IS_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a write for which there is no room: the disk, a quota, the limit of a process."""
_TORCH_WRITER = ("PytorchStreamWriter", "unexpected pos", "file write failed", "basic_ios::clear")


class FullDiskError(OSError):
    """A file could not be written, because there is no room for it.

    ``run`` is the run folder, once that is known.
    """

    run: Path | None = None

    def __str__(self) -> str:
        advice = "" if self.run is None else f" Free some, and `reducr resume {self.run}` goes on."
        return f"There is no room to write {self.filename} ({self.strerror}).{advice}"


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Raise the error of a full disk with the name of the file that is written in the block.

    Raises:
        FullDiskError: in place of an ``OSError`` of a write, which has no name, and of the error of ``torch.save``.
    """
    try:
        yield
    except FullDiskError as error:
        error.filename = str(path)  # rather than the temporary file that is to become it
        raise
    except OSError as error:
        if error.errno not in DISK_IS_FULL:
            raise
        raise FullDiskError(error.errno, os.strerror(error.errno), str(path)) from error
    except RuntimeError as error:
        if not any(mark in str(error) for mark in _TORCH_WRITER):
            raise
        raise FullDiskError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path)) from error


@contextmanager
def replaced_atomically(path: Path) -> Iterator[Path]:
    """A temporary path in the same folder, renamed to ``path`` when the block ends without an exception.

    A crash while writing leaves the old file at ``path``.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        with naming_file(path):
            yield temporary
            with temporary.open("rb") as file:
                os.fsync(file.fileno())
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def open_regular(path: Path | str) -> BufferedReader:
    """Open a regular file for reading. Opening a pipe would wait for ever, and a device may have no end.

    Raises:
        OSError: if it is missing, or not a regular file.
    """
    file = os.open(path, os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0))
    if not stat.S_ISREG(os.fstat(file).st_mode):
        os.close(file)
        raise _not_regular(path)
    return os.fdopen(file, "rb")


def check_regular(path: Path) -> None:
    """Raise OSError if ``path`` is a pipe, a socket or a device, which a library that opens it may wait for.

    A missing file and a folder pass: opening them is an error at once, which says so.
    """
    try:
        mode = path.stat().st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        raise _not_regular(path)


def read_regular_text(path: Path) -> str:
    """The text of a regular file in UTF-8.

    Raises:
        OSError: if it is missing, or not a regular file.
        UnicodeDecodeError: if it is not UTF-8.
    """
    with open_regular(path) as file:
        return file.read().decode("utf-8")


def _not_regular(path: Path | str) -> OSError:
    return OSError(errno.EINVAL, "it is not a regular file", str(path))


def remove_partial_files(folder: Path) -> None:
    """Remove the temporary files that killed processes left in ``folder``. No process may be writing there."""
    for path in list(folder.rglob(".*.partial")):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


@contextmanager
def new_folder_atomically(folder: Path) -> Iterator[Path]:
    """A temporary folder beside ``folder``, renamed to it when the block ends without an exception, else removed.

    Raises:
        OSError: if ``folder`` exists by then and is not empty.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = folder.with_name(f".{folder.name}.{os.getpid()}.partial")
    temporary.mkdir()
    try:
        yield temporary
        temporary.replace(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_text_atomically(path: Path, text: str) -> None:
    """Write ``text`` to ``path``. Readers see the old file or the new one, never a part.

    Names of files that are not UTF-8 keep their bytes.
    """
    with replaced_atomically(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
