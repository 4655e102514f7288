"""Download and unpack files. A file is complete and verified, or it does not exist."""

from __future__ import annotations

import gzip
import hashlib
import http.client
import tarfile
import zipfile
import zlib
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from reducr._internal.files import open_regular, replaced_atomically

_CHUNK_BYTES = 1 << 20
_TIMEOUT_SECONDS = 60


def fetch(url: str, path: Path, *, sha256: str | None = None, md5: str | None = None) -> None:
    """Download ``url`` to ``path``, with a progress bar on stderr.

    An existing file at ``path`` is kept if its checksum matches. If the download fails, no file is left behind.

    Args:
        url: what to download.
        path: where to store it; missing folders are created.
        sha256: expected SHA-256, hexadecimal; None for no check.
        md5: expected MD5, likewise.

    Raises:
        OSError: if the server cannot be reached, refuses, or stops halfway; says what to do.
        ValueError: if a checksum does not match; names both values.
    """
    expected = {name: digest for name, digest in (("sha256", sha256), ("md5", md5)) if digest is not None}
    if path.exists():
        _verify(path, expected, fault=f"{path} is not the expected content of {url}. Remove it to download it again")
        return
    with replaced_atomically(path) as temporary:
        try:
            _download(url, temporary, title=path.name)
        except (OSError, http.client.HTTPException) as error:
            if isinstance(error, HTTPError):
                error.close()
            raise OSError(
                f"Could not download {url} ({error}). Try again, or download it yourself and save it as {path}."
            ) from error
        fault = f"{url} returned an unexpected file. Try again, or save the right file as {path}"
        _verify(temporary, expected, fault=fault)


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a ``.tar.gz``, ``.tgz`` or ``.zip`` file into ``folder``. Existing files of the same name are replaced.

    The archive is unpacked into a temporary folder first, so that no partial file appears in ``folder``.

    Raises:
        ValueError: if the archive is of another kind, is damaged, or has a member outside ``folder``.
    """
    is_tar = archive.name.endswith((".tar.gz", ".tgz"))
    if not is_tar and archive.suffix != ".zip":
        raise ValueError(f"Only .tar.gz, .tgz and .zip files can be unpacked; got {archive}.")
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=f".{archive.name}.") as name:
        temporary = Path(name)
        try:
            _unpack_tar(archive, temporary) if is_tar else _unpack_zip(archive, temporary)
        except (tarfile.TarError, gzip.BadGzipFile, zipfile.BadZipFile, zlib.error, EOFError) as error:
            raise ValueError(f"{archive} is truncated or damaged ({error}). Get the file again.") from error
        for source in sorted(path for path in temporary.rglob("*") if path.is_file()):
            path = folder / source.relative_to(temporary)
            path.parent.mkdir(parents=True, exist_ok=True)
            source.replace(path)


def _download(url: str, path: Path, *, title: str) -> None:
    from tqdm import tqdm

    request = Request(url, headers={"User-Agent": "reducr"})
    with urlopen(request, timeout=_TIMEOUT_SECONDS) as response, path.open("wb") as file:
        length = response.headers.get("Content-Length")
        total = None if length is None else int(length)
        with tqdm(total=total, unit="B", unit_scale=True, desc=title) as progress:
            while chunk := response.read(_CHUNK_BYTES):
                file.write(chunk)
                progress.update(len(chunk))
            if total is not None and progress.n != total:
                raise OSError(f"the connection closed after {progress.n} of {total} bytes")


def _verify(path: Path, expected: dict[str, str], *, fault: str) -> None:
    for name, digest in expected.items():
        with open_regular(path) as file:
            actual = hashlib.file_digest(file, name).hexdigest()
        if actual != digest:
            raise ValueError(f"{fault}: its {name} is {actual}; expected {digest}.")


def _unpack_tar(archive: Path, folder: Path) -> None:
    with gzip.open(archive) as content:
        with tarfile.open(fileobj=content, mode="r|") as file:
            file.extractall(folder, filter="data")
        # tarfile stops before the checksum at the end, which gzip verifies when it is read
        while content.read(_CHUNK_BYTES):
            pass


def _unpack_zip(archive: Path, folder: Path) -> None:
    with zipfile.ZipFile(archive) as file:
        for name in file.namelist():
            if not (folder / name).resolve().is_relative_to(folder.resolve()):
                raise zipfile.BadZipFile(f"{name!r} lies outside the folder")
        file.extractall(folder)
