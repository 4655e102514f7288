"""Data sets of image files, decoded once into memory or a file on disk, or for each batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from reducr._internal.checks import check_count
from reducr._internal.names import unknown_name
from reducr.data.core.inputs import Inputs
from reducr.data.core.module import DataModule
from reducr.data.core.overlap import without_overlap
from reducr.data.core.raw import RawData
from reducr.data.io.image_pool import ImagePoolBuilder

HOLDS = ("memory", "disk", "stream")
_UNREADABLE = ("error", "skip")


class ImageDataModule(DataModule):
    """A data set of image files. Inputs are RGB, uint8 (3, S, S).

    Args:
        image_size: S, pixels; see ``decoded_image``.
        resize: length of the shorter side before the central square is cropped, at least S; null for S.
        hold: ``memory``, ``disk`` or ``stream``; see ``read_images``.
        cache_dir: folder of the decoded images (``disk``) or of the list of readable files (``stream``).
        unreadable: ``error`` or ``skip``, for files that are missing or damaged.
        options: those of ``DataModule``.

    Raises:
        ValueError: if a value is out of range, or ``cache_dir`` is missing or has no effect.
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
        """The data set of the readable images. A note says how many images were skipped.

        Args:
            paths: N files.
            target: (N,).
            parts: positions in ``paths``, by name of the part.
            group: (N,); None if groups are the targets.
            content: (N,) integers, equal for identical images; None if unknown.
            overlap: what to do if parts share images; see ``without_overlap``.
            notes: further notes for the user.
            published: other fields of ``RawData``.
        """
        is_kept = torch.ones(len(paths), dtype=torch.bool)
        if content is not None:
            is_kept, overlap_notes = without_overlap(
                content, parts, policy=overlap, unit="image", name=lambda position: str(paths[position])
            )
            notes += overlap_notes
        paths = [paths[position] for position in torch.nonzero(is_kept).flatten()]
        pool, is_readable = read_images(
            paths,
            image_size=self.image_size,
            resize=self.resize,
            hold=self.hold,
            cache_dir=self.cache_dir,
            unreadable=self.unreadable,
        )
        num_skipped = len(paths) - len(pool)
        if num_skipped:
            first = paths[int(torch.nonzero(~is_readable)[0])]
            notes += (f"Skipped {num_skipped} of {len(paths)} images that cannot be read; the first is {first}.",)
        is_kept[is_kept.clone()] = is_readable
        new_position = is_kept.cumsum(0) - 1
        return RawData(
            input=pool,
            target=target[is_kept],
            parts={part: new_position[positions[is_kept[positions]]] for part, positions in parts.items()},
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
        hold: where the decoded images are kept.
            ``memory``: all images are decoded now and take ``3 S^2`` bytes each.
            ``disk``: all images are decoded now into a file in ``cache_dir``. Later calls reuse it as long as S,
            ``resize`` and the names, sizes and modification times of the files are the same.
            ``stream``: an image is decoded each time it is read. Only its header is read now. With ``cache_dir`` every
            image is decoded once to check it, and the result is cached like the images of ``disk``.
        cache_dir: folder of the cache, which is created; for ``disk`` and ``stream``.
        unreadable: ``error``, or ``skip`` to leave out files that are missing or cannot be read as images.

    Returns:
        The P readable images in the order of ``paths``, RGB uint8 (P, 3, S, S); and (N,) bool, whether each file is
        readable.

    Raises:
        ValueError: if an option is out of range, there are no files, a file cannot be read (names the first one, the
            reason, and how many there are), or no file can be read.
    """
    _check_options(image_size, resize, hold=hold, cache_dir=cache_dir, unreadable=unreadable)
    if not paths:
        raise ValueError("The list of image files is empty.")
    builder = ImagePoolBuilder(
        paths,
        image_size=image_size,
        resize=image_size if resize is None else resize,
        skips_unreadable=unreadable == "skip",
    )
    pool: Inputs
    if hold == "stream":
        pool = builder.streamed(cache_dir)
    elif cache_dir is not None:
        pool = builder.on_disk(cache_dir)
    else:
        pool = builder.in_memory()
    is_readable = torch.ones(len(paths), dtype=torch.bool)
    is_readable[list(builder.faults)] = False
    return pool, is_readable


def _check_options(image_size: int, resize: int | None, *, hold: str, cache_dir: Path | None, unreadable: str) -> None:
    check_count("datamodule.image_size", image_size)
    if resize is not None and (isinstance(resize, bool) or not isinstance(resize, int) or resize < image_size):
        raise ValueError(
            f"datamodule.resize must be null or a whole number of at least datamodule.image_size={image_size}; "
            f"got {resize!r}."
        )
    if hold not in HOLDS:
        raise unknown_name("datamodule.hold", hold, HOLDS)
    if unreadable not in _UNREADABLE:
        raise unknown_name("datamodule.unreadable", unreadable, _UNREADABLE)
    if hold == "disk" and cache_dir is None:
        raise ValueError("`datamodule.hold=disk` needs `datamodule.cache_dir=DIR`, a folder for the decoded images.")
    if hold == "memory" and cache_dir is not None:
        raise ValueError(
            f"`datamodule.cache_dir={cache_dir}` has no effect with `datamodule.hold=memory`. Set `datamodule.hold` to "
            "`disk` or `stream`, or remove `cache_dir`."
        )
