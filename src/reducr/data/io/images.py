"""Image files as inputs: decoded once into memory or onto a disk, or for each batch."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reducr._internal.files import replaced_atomically, write_text_atomically
from reducr._internal.names import unknown_name
from reducr.data.core.inputs import Inputs
from reducr.data.core.module import DataModule, RawData
from reducr.data.core.overlap import without_overlap

if TYPE_CHECKING:
    from PIL import Image

HOLDS = ("memory", "disk", "stream")
_UNREADABLE = ("error", "skip")
# changes when files are decoded to other pixels, so that a cache made before is not used
_DECODING = 1
# files given to the threads at a time, and from how many on there is a progress bar
_CHUNK, _LONG = 512, 5000
# bytes that tell most files of one size apart
_BEGINNING = 4096

Result = TypeVar("Result")
Pixels = NDArray[np.uint8]


class ImageFiles:
    """A pool of P images, decoded for each batch by a thread for each core; nothing is held.

    Args:
        paths: P files.
        image_size: S; see ``decoded_image``.
        resize: see ``decoded_image``.
    """

    def __init__(self, paths: Iterable[Path], *, image_size: int, resize: int) -> None:
        self.paths = [str(path) for path in paths]
        self._image_size = image_size
        self._decode = partial(_attempted, image_size=image_size, resize=resize)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """(B, 3, S, S) uint8, the images at ``positions`` (B,).

        Raises:
            ValueError: for a file that cannot be read (any more), which it names.
        """
        images = np.empty((len(positions), 3, self._image_size, self._image_size), dtype=np.uint8)
        paths = [self.paths[position] for position in positions.tolist()]
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            for row, image in enumerate(threads.map(self._decode, paths)):
                if isinstance(image, str):
                    raise ValueError(  # noqa: TRY004  (a fault of a file, not of a type)
                        f"{paths[row]} cannot be read as an image ({image}), though its header could. Get the file "
                        "again, or leave such images out: datamodule.unreadable=skip with datamodule.cache_dir=DIR, "
                        "with which all images are decoded once before training."
                    )
                images[row] = image
        return torch.from_numpy(images)


class MappedArray:
    """A pool of P inputs, the rows of a ``.npy`` file that is memory-mapped: of it, only what is read is in memory.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self._rows = np.asarray(np.load(path, mmap_mode="r"))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, positions: Tensor) -> Tensor:
        """(B, ...), the rows at ``positions`` (B,)."""
        return torch.from_numpy(self._rows[positions.numpy()])


class ImageDataModule(DataModule):
    """A data set of image files; inputs are RGB, uint8 (3, S, S).

    Args:
        image_size: S, pixels; see ``decoded_image``.
        resize: the shorter side before a square of S is cut out, at least S; null for S.
        hold: ``memory``, ``disk`` or ``stream``; see ``read_images``.
        cache_dir: where ``disk`` keeps the decoded images, and ``stream`` which can be decoded; not for ``memory``.
        unreadable: ``error`` or ``skip``, for files that are missing or damaged.
        options: of ``DataModule``.

    Raises:
        ValueError: for a value out of range, or a ``cache_dir`` that is missing or changes nothing.
    """

    def __init__(
        self,
        *,
        image_size: int,
        resize: int | None = None,
        hold: str = "memory",
        cache_dir: str | Path | None = None,
        unreadable: str = "error",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.image_size = image_size
        self.resize = resize
        self.hold = hold
        self.cache_dir = None if cache_dir is None else Path(cache_dir)
        self.unreadable = unreadable
        _check_options(image_size, resize, hold=hold, cache_dir=self.cache_dir, unreadable=unreadable)

    def image_data(
        self,
        paths: Sequence[Path],
        *,
        target: Tensor,
        parts: Mapping[str, Tensor],
        group: Tensor | None = None,
        content: Tensor | None = None,
        overlap: str = "allow",
        notes: tuple[str, ...] = (),
        **published: Any,
    ) -> RawData:
        """The data set of the readable ones of N images; a note says how many others were left out.

        Args:
            paths: N files.
            target: (N,).
            parts: by name, positions in ``paths``.
            group: (N,); None where groups are the targets.
            content: (N,) integers, the same for the same image; None where that is not known.
            overlap: what is done where parts share images; see ``without_overlap``.
            notes: of the data, beside that on images left out.
            published: other fields of ``RawData``.
        """
        is_kept = torch.ones(len(paths), dtype=torch.bool)
        if content is not None:
            is_kept, overlap_notes = without_overlap(
                content, parts, policy=overlap, unit="image", name=lambda place: str(paths[place])
            )
            notes += overlap_notes
        paths = [paths[place] for place in torch.nonzero(is_kept).flatten()]
        pool, is_readable = read_images(
            paths,
            image_size=self.image_size,
            resize=self.resize,
            hold=self.hold,
            cache_dir=self.cache_dir,
            unreadable=self.unreadable,
        )
        num_left_out = len(paths) - len(pool)
        if num_left_out:
            first = paths[int(torch.nonzero(~is_readable)[0])]
            images = "1 image" if num_left_out == 1 else f"{num_left_out} images"
            notes += (f"{images} of {len(paths)} left out, which cannot be read; the first is {first}.",)
        is_kept[is_kept.clone()] = is_readable
        position = is_kept.cumsum(0) - 1
        return RawData(
            input=pool,
            target=target[is_kept],
            parts={part: position[places[is_kept[places]]] for part, places in parts.items()},
            group=None if group is None else group[is_kept],
            content=None if content is None else content[is_kept],
            place=torch.nonzero(is_kept).flatten(),
            notes=notes,
            **published,
        )


def read_images(
    paths: Sequence[Path],
    *,
    image_size: int,
    resize: int | None = None,
    hold: str = "memory",
    cache_dir: Path | None = None,
    unreadable: str = "error",
) -> tuple[Inputs, Tensor]:
    """A pool of the images in N files.

    Args:
        paths: N files.
        image_size: S, pixels; see ``decoded_image``.
        resize: see ``decoded_image``; None for S.
        hold: ``memory``: all are decoded now, ``3 S^2`` bytes each. ``disk``: all are decoded now into a file in
            ``cache_dir``, which later calls use as long as the names, sizes and modification times of the files, S
            and ``resize`` are the same; otherwise another file is made. ``stream``: each is decoded when it is read.
            Now only its header is; with ``cache_dir`` all are decoded once to see that they can be, which later calls
            remember as they do those of ``disk``.
        cache_dir: for ``disk`` and ``stream``; made if it is not there.
        unreadable: ``error``, or ``skip`` for leaving out files that are missing or cannot be read as images.

    Returns:
        The P readable images in the order of ``paths``, RGB uint8 (P, 3, S, S), and (N,) bool, which these are.

    Raises:
        ValueError: for an option out of range, no files, a file that cannot be read (the first, why, and how many
            more), or if none can.
    """
    _check_options(image_size, resize, hold=hold, cache_dir=cache_dir, unreadable=unreadable)
    if not paths:
        raise ValueError("there are no images: the list of files is empty.")
    resize = image_size if resize is None else resize
    images = _Images(paths, image_size, resize, is_skipping=unreadable == "skip")
    pool: Inputs
    if hold == "stream":
        pool = images.streamed(cache_dir)
    elif cache_dir is not None:
        pool = images.mapped(cache_dir)
    else:
        pool = images.in_memory()
    is_readable = torch.ones(len(paths), dtype=torch.bool)
    is_readable[list(images.faults)] = False
    return pool, is_readable


def same_files(paths: Sequence[Path]) -> Tensor:
    """(N,) int64, the same number for files with the same bytes.

    A file is read in full where another one has its size and begins with the same 4,096 bytes. One that is missing is
    the same as no other.
    """
    number = np.zeros(len(paths), dtype=np.int64)
    for describe in (_size, _beginning, _sha256):
        alike = np.flatnonzero(np.bincount(number)[number] > 1).tolist()
        found = _of_each(describe, [paths[place] for place in alike], verb="comparing")
        keys: list[Any] = [(int(one), None) for one in number]
        for place, description in zip(alike, found, strict=True):
            keys[place] = (int(number[place]), description or f"missing {place}")
        places: dict[Any, int] = {}
        number = np.array([places.setdefault(key, len(places)) for key in keys], dtype=np.int64)
    return torch.from_numpy(number)


def decoded_image(path: Path | str, *, image_size: int, resize: int) -> Pixels:
    """The central square of an image.

    Its shorter side becomes ``resize`` pixels, the other one ``floor(resize * long / short)`` (bilinear, averaged over
    all pixels that fall together), and the ``image_size`` pixels around the middle are cut out. Grey, palette and CMYK
    images become RGB, transparency is dropped, 16 bits become 8, the orientation of EXIF is applied, of several frames
    the first is taken. A JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and 1 of its size that is not too small.

    Args:
        path: the file.
        image_size: S >= 1.
        resize: >= S.

    Returns:
        (3, S, S) uint8.

    Raises:
        Exception: whatever the decoder raises for a file that is missing, damaged or no image.
    """
    from PIL import Image, ImageOps

    with Image.open(path) as image:
        width, height = (resize * side // min(image.size) for side in image.size)
        drafted = image.draft(None, (resize, resize))
        rgb = _rgb(image)
        # where the size of a JPEG is no multiple of the scale, the last pixels lie in part outside the image
        resized = rgb.resize((width, height), Image.Resampling.BILINEAR, box=drafted and drafted[1])
        resized.info = image.info
    ImageOps.exif_transpose(resized, in_place=True)
    left, top = (round((side - image_size) / 2) for side in resized.size)
    square = resized.crop((left, top, left + image_size, top + image_size))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def _rgb(image: Image.Image) -> Image.Image:
    """``image`` as RGB of 8 bits."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise ValueError(f"pixels of mode {image.mode} have no range; save it with 8 or 16 bits")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


class _Images:
    """N files on their way into a pool; ``faults`` says why some are not in it, by position."""

    def __init__(self, paths: Sequence[Path], image_size: int, resize: int, *, is_skipping: bool) -> None:
        self.paths = paths
        self.image_size = image_size
        self.resize = resize
        self.is_skipping = is_skipping
        self.attempted = partial(_attempted, image_size=image_size, resize=resize)
        self.faults: dict[int, str] = {}

    def streamed(self, cache_dir: Path | None) -> ImageFiles:
        if cache_dir is None:
            reasons = enumerate(_of_each(_header_fault, self.paths, verb="checking"))
            self.faults = {position: reason for position, reason in reasons if reason}
        else:
            self.verify(cache_dir)
        self.check_faults()
        readable = (path for position, path in enumerate(self.paths) if position not in self.faults)
        return ImageFiles(readable, image_size=self.image_size, resize=self.resize)

    def verify(self, cache_dir: Path) -> None:
        """Find the ``faults`` by decoding all files once, or read what a call before found."""
        manifest = self.manifest()
        path = cache_dir / f"readable_{manifest['checksum'][:16]}.json"
        faults = self.remembered_faults(path, manifest)
        if faults is not None:
            self.faults = faults
            return
        for _ in self.decoded():
            pass
        self.write_manifest(path, manifest)

    def in_memory(self) -> Tensor:
        rows = np.empty(self.shape(len(self.paths)), dtype=np.uint8)
        for row, image in enumerate(self.decoded()):
            rows[row] = image
        self.check_faults()
        return torch.from_numpy(rows[: len(rows) - len(self.faults)])

    def mapped(self, cache_dir: Path) -> MappedArray:
        """Reads the cache of these files, or makes it: first the array, then the manifest without which it is none."""
        manifest = self.manifest()
        array_path = cache_dir / f"images_{manifest['checksum'][:16]}.npy"
        manifest_path = array_path.with_suffix(".json")
        cached = self.cached(array_path, manifest_path, manifest)
        if cached is not None:
            self.check_faults()
            return cached
        with replaced_atomically(array_path) as temporary, temporary.open("wb") as file:
            self.write_header(file, len(self.paths))
            for image in self.decoded():
                file.write(image.data)
            self.check_faults()
            file.seek(0)
            self.write_header(file, len(self.paths) - len(self.faults))
        self.write_manifest(manifest_path, manifest)
        return MappedArray(array_path)

    def cached(self, array_path: Path, manifest_path: Path, expected: Mapping[str, Any]) -> MappedArray | None:
        """The pool in a cache, and its ``faults``; None where none fits, or a file that it lacks can be read by now."""
        faults = self.remembered_faults(manifest_path, expected)
        try:
            pool = MappedArray(array_path)
        except (OSError, ValueError):
            return None
        if faults is None or len(pool) != len(self.paths) - len(faults):
            return None
        self.faults = faults
        return pool

    def manifest(self) -> dict[str, Any]:
        """What a cache is of."""
        return {"checksum": self.checksum(), "image_size": self.image_size, "resize": self.resize}

    def write_manifest(self, path: Path, manifest: Mapping[str, Any]) -> None:
        write_text_atomically(path, json.dumps({**manifest, "unreadable": list(self.faults.items())}))

    def remembered_faults(self, path: Path, expected: Mapping[str, Any]) -> dict[int, str] | None:
        """The faults in a manifest; None where it is of something else, or one of these files can be read by now."""
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            faults = dict(manifest.pop("unreadable"))
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        is_same = manifest == expected
        return faults if is_same and all(isinstance(self.attempted(self.paths[one]), str) for one in faults) else None

    def decoded(self) -> Iterator[Pixels]:
        """The readable images in order; ``faults`` grows on the way."""
        for position, image in enumerate(_of_each(self.attempted, self.paths, verb="decoding")):
            if isinstance(image, str):
                self.faults[position] = image
            else:
                yield image

    def check_faults(self) -> None:
        """Raise ValueError where a file cannot be read and none may be left out, or where no file can be read."""
        if not self.faults:
            return
        first = min(self.faults)
        more = len(self.faults) - 1
        found = f"{self.paths[first]} cannot be read as an image ({self.faults[first]})"
        found += f", nor can {more} more of {len(self.paths)}" if more else f"; the other {len(self.paths) - 1} can"
        if not self.is_skipping:
            raise ValueError(f"{found}. Get the files again, or leave such images out: datamodule.unreadable=skip.")
        if more == len(self.paths) - 1:
            raise ValueError(f"{found}: no image is left. Is datamodule.data_dir the right folder?")

    def checksum(self) -> str:
        """SHA-256 of what the cached pixels depend on; where the files lie is not part of it."""
        folder = os.path.commonpath([path.parent for path in self.paths])
        checksum = hashlib.sha256(f"{_DECODING} {self.image_size} {self.resize}".encode())
        for line in _of_each(partial(_description, folder=folder), self.paths, verb="listing"):
            checksum.update(line)
        return checksum.hexdigest()

    def shape(self, num_images: int) -> tuple[int, int, int, int]:
        return num_images, 3, self.image_size, self.image_size

    def write_header(self, file: Any, num_images: int) -> None:
        """Of the ``.npy`` format, whose headers leave room for a number of rows that changes."""
        header = {"descr": "|u1", "fortran_order": False, "shape": self.shape(num_images)}
        np.lib.format.write_array_header_1_0(file, header)


def _of_each(work: Callable[[Path], Result], paths: Sequence[Path], *, verb: str) -> Iterator[Result]:
    """``work`` of each file, in order, done by a thread for each core, with a progress bar where there are many."""
    from tqdm import tqdm

    bar = tqdm(total=len(paths), desc=f"{verb} images", leave=False, disable=len(paths) < _LONG or None)
    with bar, ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(paths), _CHUNK):
            chunk = paths[start : start + _CHUNK]
            yield from threads.map(work, chunk)
            bar.update(len(chunk))


def _attempted(path: Path | str, *, image_size: int, resize: int) -> Pixels | str:
    """The image in a file, or why there is none."""
    try:
        return decoded_image(path, image_size=image_size, resize=resize)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make decoders raise almost anything
        return _reason(error)


def _header_fault(path: Path) -> str:
    """Why the header of a file cannot be read; empty where it can."""
    from PIL import Image

    try:
        with Image.open(path):
            return ""
    except Exception as error:
        return _reason(error)


def _size(path: Path) -> str | None:
    try:
        return str(path.stat().st_size)
    except OSError:
        return None


def _beginning(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_BEGINNING)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _description(path: Path, *, folder: str) -> bytes:
    """Name below ``folder``, size and modification time of a file; none of the latter where it is missing."""
    try:
        status = path.stat()
        state = f"{status.st_size} {status.st_mtime_ns}"
    except OSError:
        state = "missing"
    return f"{path.relative_to(folder).as_posix()}\0{state}\0".encode(errors="surrogateescape")


def _check_options(image_size: int, resize: int | None, *, hold: str, cache_dir: Path | None, unreadable: str) -> None:
    if isinstance(image_size, bool) or not isinstance(image_size, int) or image_size < 1:
        raise ValueError(f"datamodule.image_size must be a whole number of pixels, at least 1; got {image_size!r}.")
    if resize is not None and (isinstance(resize, bool) or not isinstance(resize, int) or resize < image_size):
        raise ValueError(
            "datamodule.resize must be null or a whole number of pixels, at least datamodule.image_size="
            f"{image_size}, which is cut out of it; got {resize!r}."
        )
    if hold not in HOLDS:
        raise unknown_name("datamodule.hold", hold, HOLDS)
    if unreadable not in _UNREADABLE:
        raise unknown_name("datamodule.unreadable", unreadable, _UNREADABLE)
    if hold == "disk" and cache_dir is None:
        raise ValueError("datamodule.hold=disk needs datamodule.cache_dir=DIR, a folder for the decoded images.")
    if hold == "memory" and cache_dir is not None:
        raise ValueError(
            f"datamodule.cache_dir={cache_dir} changes nothing with datamodule.hold=memory; give datamodule.hold=disk "
            "or stream, or leave it out."
        )
