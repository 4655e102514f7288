"""Transforms of a batch of images on its device: preprocessing for every model, augmentation for training."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Preprocess(nn.Module):
    """Scales images to [0, 1], resizes and crops them, then standardises: ``(x - mean) / standard_deviation``.

    Args:
        mean: (K,) for each channel, of pixels in [0, 1].
        standard_deviation: (K,) for each channel, > 0.
        resize: length of the shorter side in pixels; the aspect ratio is kept. Bilinear, antialiased.
        center_crop: side of the central square that is cropped, in pixels.

    Raises:
        ValueError: if the statistics differ in length or are out of range, a size is below 1, or the crop is larger
            than ``resize``.

    State:
        mean, standard_deviation: (K, 1, 1), the statistics. Images are converted to their dtype.

    Example:
        >>> Preprocess([0.5], [0.5])(torch.tensor([[[[0, 255]]]], dtype=torch.uint8))
        tensor([[[[-1.,  1.]]]])
    """

    mean: Tensor
    standard_deviation: Tensor

    def __init__(
        self,
        mean: Sequence[float],
        standard_deviation: Sequence[float],
        *,
        resize: int | None = None,
        center_crop: int | None = None,
    ) -> None:
        super().__init__()
        if len(mean) != len(standard_deviation) or not len(mean):
            raise ValueError(
                "mean and standard_deviation must have one value for each channel; got "
                f"{len(mean)} and {len(standard_deviation)} values."
            )
        if not all(math.isfinite(value) for value in mean):
            raise ValueError(f"mean must be finite; got {list(mean)}.")
        if not all(math.isfinite(value) and value > 0 for value in standard_deviation):
            raise ValueError(f"standard_deviation must be finite and above 0; got {list(standard_deviation)}.")
        _check_pixels("resize", resize)
        _check_pixels("center_crop", center_crop)
        if resize is not None and center_crop is not None and center_crop > resize:
            raise ValueError(f"center_crop must be at most resize={resize}; got {center_crop}.")
        self.resize = resize
        self.center_crop = center_crop
        self.register_buffer("mean", torch.tensor(list(mean), dtype=torch.float32).view(-1, 1, 1))
        deviations = torch.tensor(list(standard_deviation), dtype=torch.float32)
        self.register_buffer("standard_deviation", deviations.view(-1, 1, 1))

    def forward(self, images: Tensor) -> Tensor:
        """(B, K, H, W), uint8 in 0..255 or floats in [0, 1], to (B, K, H', W').

        Raises:
            ValueError: if the shape, number of channels or dtype is another, or the images are smaller than the crop.
        """
        _check_images(images)
        if images.shape[1] != len(self.mean):
            raise ValueError(
                f"mean has {len(self.mean)} values, one for each channel; got images with {images.shape[1]} channels."
            )
        scaled = images.to(self.mean.dtype)
        if images.dtype == torch.uint8:
            scaled = scaled / 255
        if self.resize is not None:
            scaled = _resized(scaled, self.resize)
        if self.center_crop is not None:
            scaled = _center_cropped(scaled, self.center_crop)
        return (scaled - self.mean) / self.standard_deviation


class Augment(nn.Module):
    """Randomly crops and flips each image, with torch's global generator of the images' device.

    Pixels are moved but never interpolated, so values and dtype stay.

    Args:
        crop_padding: P, pixels of zero padding on each side. A window of the original size is cropped from the padded
            image, at one of ``(2P + 1)^2`` equally likely positions. None for no crop.
        flip: whether to mirror each image left to right with probability 1/2.

    Raises:
        ValueError: if neither is set, or the padding is below 1.
    """

    def __init__(self, *, crop_padding: int | None = None, flip: bool = False) -> None:
        super().__init__()
        _check_pixels("crop_padding", crop_padding)
        if crop_padding is None and not flip:
            raise ValueError("Augment has no effect. Set `crop_padding`, `flip=true` or both, or remove it.")
        self.crop_padding = crop_padding
        self.flip = flip

    def forward(self, images: Tensor) -> Tensor:
        """(B, K, H, W), uint8 or floats, to new images of the same shape and dtype.

        Raises:
            ValueError: if the shape or dtype is another.
        """
        _check_images(images)
        size, device = len(images), images.device
        height, width = images.shape[2:]
        rows = torch.arange(height, device=device).expand(size, -1)
        columns = torch.arange(width, device=device).expand(size, -1)
        left = top = torch.zeros(size, 1, dtype=torch.int64, device=device)
        if self.crop_padding is not None:
            left, top = ((torch.rand(size, 1, device=device) * (2 * self.crop_padding + 1)).long() for _ in range(2))
            images = F.pad(images, (self.crop_padding,) * 4)
        if self.flip:
            is_mirrored = torch.bernoulli(torch.full((size, 1), 0.5, device=device)).bool()
            columns = torch.where(is_mirrored, columns.flip(1), columns)
        # one gather crops and flips in a single pass over the pixels; the channels share their indices
        indices = ((rows + top) * images.shape[3]).unsqueeze(2) + (columns + left).unsqueeze(1)
        indices = indices.flatten(1).unsqueeze(1).expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, indices).reshape(size, images.shape[1], height, width)


def _check_pixels(option: str, pixels: int | None) -> None:
    if pixels is not None and (isinstance(pixels, bool) or not isinstance(pixels, int) or pixels < 1):
        raise ValueError(f"{option} must be a whole number of pixels, at least 1, or null; got {pixels!r}.")


def _check_images(images: Tensor) -> None:
    if images.ndim != 4 or not (images.dtype == torch.uint8 or images.is_floating_point()):
        raise ValueError(
            "images must be (B, K, H, W), uint8 in 0..255 or floats in [0, 1]; got shape "
            f"{tuple(images.shape)}, {str(images.dtype).removeprefix('torch.')}."
        )


def _resized(images: Tensor, shorter: int) -> Tensor:
    """The images with a shorter side of ``shorter`` pixels; the longer side is in proportion, rounded down."""
    height, width = images.shape[2:]
    size = [side * shorter // min(height, width) for side in (height, width)]
    return F.interpolate(images, size=size, mode="bilinear", antialias=True)


def _center_cropped(images: Tensor, side: int) -> Tensor:
    """The middle ``side`` x ``side`` pixels."""
    height, width = images.shape[2:]
    if min(height, width) < side:
        raise ValueError(
            f"center_crop={side} is larger than the images, {height} x {width}. Reduce it, or set `resize` too."
        )
    top, left = (height - side) // 2, (width - side) // 2
    return images[:, :, top : top + side, left : left + side]
