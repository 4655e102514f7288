"""Pools of images: in memory, in a file on disk, or decoded for each batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from reducr._internal.files import check_regular, read_regular_text, replaced_atomically, write_text_atomically
from reducr.data.io.image_decoding import Pixels, decoded_image_or_fault, header_fault
from reducr.data.io.parallel import map_files

_DECODER_VERSION = 1
"""Part of every cache key. Increase it when files decode to different pixels."""


class ImageFiles:
    """A pool of P image files that are decoded for each batch, with one thread for each core.

    Args:
        paths: P files.
        image_size: S; see ``decoded_image``.
        resize: see ``decoded_image``.
    """

    def __init__(self, paths: Iterable[Path], *, image_size: int, resize: int) -> None:
        self.paths = [str(path) for path in paths]
        self._image_size = image_size
        self._decode = partial(decoded_image_or_fault, image_size=image_size, resize=resize)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """(B, 3, S, S) uint8, the images at ``positions`` (B,).

        Raises:
            ValueError: if a file can no longer be decoded; names it.
        """
        images = np.empty((len(positions), 3, self._image_size, self._image_size), dtype=np.uint8)
        paths = [self.paths[position] for position in positions.tolist()]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for row, image in enumerate(threads.map(self._decode, paths)):
                if isinstance(image, str):
                    raise ValueError(  # noqa: TRY004  (a fault of a file, not of a type)
                        f"{paths[row]} cannot be read as an image ({image}), although its header can. Get the file "
                        "again. Or set `datamodule.unreadable=skip` and `datamodule.cache_dir=DIR` to check all images "
                        "before training and skip the unreadable ones."
                    )
                images[row] = image
        return torch.from_numpy(images)


class MappedArray:
    """A pool of P inputs, the rows of a memory-mapped ``.npy`` file. Only the rows that are read use memory.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        check_regular(path)
        self._rows = np.asarray(np.load(path, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """(B, ...), the rows at ``positions`` (B,)."""
        return torch.from_numpy(self._rows[positions.numpy()])


class ImagePoolBuilder:
    """Builds a pool from N image files.

    ``faults`` maps the positions of files that are not in the pool to the reason. It is filled by ``in_memory``,
    ``on_disk`` and ``streamed``.

    Args:
        paths: N files.
        image_size: S; see ``decoded_image``.
        resize: see ``decoded_image``.
        skips_unreadable: whether unreadable files are left out rather than an error.
    """

    def __init__(self, paths: Sequence[Path], *, image_size: int, resize: int, skips_unreadable: bool) -> None:
        self.faults: dict[int, str] = {}
        self._paths = paths
        self._image_size = image_size
        self._resize = resize
        self._skips_unreadable = skips_unreadable
        self._decode = partial(decoded_image_or_fault, image_size=image_size, resize=resize)

    def in_memory(self) -> Tensor:
        """All images, decoded now."""
        rows = np.empty(self._shape(len(self._paths)), dtype=np.uint8)
        for row, image in enumerate(self._decoded_images()):
            rows[row] = image
        self._check_faults()
        return torch.from_numpy(rows[: len(rows) - len(self.faults)])

    def on_disk(self, cache_dir: Path) -> MappedArray:
        """All images in a file in ``cache_dir``, which is written unless it exists.

        The manifest is written after the array. Without its manifest, an array is not used.
        """
        manifest = self._manifest()
        array_path = cache_dir / f"images_{manifest['checksum'][:16]}.npy"
        manifest_path = array_path.with_suffix(".json")
        cached = self._cached(array_path, manifest_path, manifest)
        if cached is not None:
            self._check_faults()
            return cached
        with replaced_atomically(array_path) as temporary, temporary.open("wb") as file:
            self._write_header(file, len(self._paths))
            for image in self._decoded_images():
                file.write(image.data)
            self._check_faults()
            file.seek(0)
            self._write_header(file, len(self._paths) - len(self.faults))
        self._write_manifest(manifest_path, manifest)
        return MappedArray(array_path)

    def streamed(self, cache_dir: Path | None) -> ImageFiles:
        """The readable files. Their headers are read now, or with ``cache_dir`` every file is decoded once."""
        if cache_dir is None:
            faults = enumerate(map_files(header_fault, self._paths, verb="checking"))
            self.faults = {position: fault for position, fault in faults if fault}
        else:
            self._find_faults(cache_dir)
        self._check_faults()
        readable = (path for position, path in enumerate(self._paths) if position not in self.faults)
        return ImageFiles(readable, image_size=self._image_size, resize=self._resize)

    def _find_faults(self, cache_dir: Path) -> None:
        """Set ``faults`` from the manifest in ``cache_dir``, or decode all files once and write it."""
        manifest = self._manifest()
        path = cache_dir / f"readable_{manifest['checksum'][:16]}.json"
        faults = self._cached_faults(path, manifest)
        if faults is not None:
            self.faults = faults
            return
        for _ in self._decoded_images():
            pass
        self._write_manifest(path, manifest)

    def _decoded_images(self) -> Iterator[Pixels]:
        """Yield the readable images in order and add the others to ``faults``."""
        for position, image in enumerate(map_files(self._decode, self._paths, verb="decoding")):
            if isinstance(image, str):
                self.faults[position] = image
            else:
                yield image

    def _check_faults(self) -> None:
        """Raise ValueError if no file is readable, or if one is not and unreadable files are not skipped."""
        if not self.faults:
            return
        num_faults, total, first = len(self.faults), len(self._paths), min(self.faults)
        details = f"cannot be read; the first is {self._paths[first]} ({self.faults[first]})."
        if not self._skips_unreadable:
            raise ValueError(
                f"{num_faults} of {total} images {details} Get the files again, or set `datamodule.unreadable=skip`."
            )
        if num_faults == total:
            raise ValueError(f"All {total} images {details} Is `datamodule.data_dir` the right folder?")

    def _cached(self, array_path: Path, manifest_path: Path, expected: Mapping[str, Any]) -> MappedArray | None:
        """The cached pool, which sets ``faults``; None if there is none for these files or it lacks a readable one."""
        faults = self._cached_faults(manifest_path, expected)
        try:
            pool = MappedArray(array_path)
        except (OSError, ValueError):
            return None
        if faults is None or len(pool) != len(self._paths) - len(faults):
            return None
        self.faults = faults
        return pool

    def _cached_faults(self, path: Path, expected: Mapping[str, Any]) -> dict[int, str] | None:
        """The faults in a manifest; None if it is for other files or if one of the faulty files is readable by now."""
        try:
            manifest = json.loads(read_regular_text(path))
            faults = dict(manifest.pop("unreadable"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        if manifest != expected:
            return None
        are_still_faulty = all(isinstance(self._decode(self._paths[position]), str) for position in faults)
        return faults if are_still_faulty else None

    def _manifest(self) -> dict[str, Any]:
        """What identifies the content of a cache."""
        return {"checksum": self._checksum(), "image_size": self._image_size, "resize": self._resize}

    def _write_manifest(self, path: Path, manifest: Mapping[str, Any]) -> None:
        write_text_atomically(path, json.dumps({**manifest, "unreadable": list(self.faults.items())}))

    def _checksum(self) -> str:
        """SHA-256 of everything that the pixels depend on, but not of the folder, so that the files may move."""
        folder = os.path.commonpath([path.parent for path in self._paths])
        checksum = hashlib.sha256(f"{_DECODER_VERSION} {self._image_size} {self._resize}".encode())
        for line in map_files(partial(_description, folder=folder), self._paths, verb="listing"):
            checksum.update(line)
        return checksum.hexdigest()

    def _shape(self, num_images: int) -> tuple[int, int, int, int]:
        return num_images, 3, self._image_size, self._image_size

    def _write_header(self, file: Any, num_images: int) -> None:
        """Write a ``.npy`` header. Its length does not depend on ``num_images``, so it can be overwritten."""
        header = {"descr": "|u1", "fortran_order": False, "shape": self._shape(num_images)}
        np.lib.format.write_array_header_1_0(file, header)


def _description(path: Path, *, folder: str) -> bytes:
    """The name below ``folder``, size and modification time of a file; ``missing`` in place of the last two."""
    try:
        status = path.stat()
        state = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        state = "missing"
    return f"{path.relative_to(folder).as_posix()}\0{state}\0".encode(errors="surrogateescape")
