"""Decode image files to square RGB arrays."""

from __future__ import annotations

from io import BufferedReader, BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from reducr._internal.files import open_regular

if TYPE_CHECKING:
    from PIL import Image

Pixels = NDArray[np.uint8]
IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "PPM", "JPEG2000", "TGA")
"""Formats that Pillow decodes itself, whatever a file is called. It leaves others, such as EPS, to a program."""


def decoded_image(path: Path | str | BytesIO, *, image_size: int, resize: int) -> Pixels:
    """The central square of an image.

    The shorter side is resized to ``resize`` pixels and the longer side to ``floor(resize * long / short)`` (bilinear,
    antialiased). Then the central ``image_size`` x ``image_size`` pixels are cropped. Grey, palette and CMYK images are
    converted to RGB, transparency is dropped, 16 bits are reduced to 8, the EXIF orientation is applied, and only the
    first frame of an animation is read. A JPEG is decoded at the smallest of 1/8, 1/4, 1/2 and 1 of its size that is
    still large enough.

    Args:
        path: a regular file, or its content.
        image_size: S >= 1.
        resize: >= S.

    Returns:
        (3, S, S) uint8.

    Raises:
        Exception: whatever the decoder raises if the file is missing, damaged or not an image.
    """
    from PIL import Image, ImageOps

    with _opened(path) as file, Image.open(file, formats=IMAGE_FORMATS) as image:
        width, height = (resize * side // min(image.size) for side in image.size)
        drafted = image.draft(None, (resize, resize))
        rgb = _rgb(image)
        # if the size of a JPEG is not a multiple of the scale, its last row and column are partly padding
        resized = rgb.resize((width, height), Image.Resampling.BILINEAR, box=drafted and drafted[1])
        resized.info = image.info
    ImageOps.exif_transpose(resized, in_place=True)
    left, top = (round((side - image_size) / 2) for side in resized.size)
    square = resized.crop((left, top, left + image_size, top + image_size))
    return np.ascontiguousarray(np.asarray(square).transpose(2, 0, 1))


def decoded_image_or_fault(path: Path | str, *, image_size: int, resize: int) -> Pixels | str:
    """``decoded_image``, or a message that says why the file cannot be decoded."""
    try:
        return decoded_image(path, image_size=image_size, resize=resize)
    except MemoryError:
        raise
    except Exception as error:  # damaged files make decoders raise almost anything
        return _message(error)


def header_fault(path: Path) -> str:
    """A message that says why the header of an image file cannot be read; empty if it can."""
    from PIL import Image

    try:
        with open_regular(path) as file, Image.open(file, formats=IMAGE_FORMATS):
            return ""
    except Exception as error:
        return _message(error)


def _opened(path: Path | str | BytesIO) -> BufferedReader | BytesIO:
    return path if isinstance(path, BytesIO) else open_regular(path)


def _rgb(image: Image.Image) -> Image.Image:
    """``image`` as 8-bit RGB."""
    from PIL import Image

    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in {"I", "F"}:
        raise ValueError(f"pixels of mode {image.mode} have no defined range; save the image with 8 or 16 bits")
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _message(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
