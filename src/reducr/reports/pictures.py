"""Show a training example: its image as a data URI, or its text."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping
from io import BytesIO
from typing import Any

import matplotlib.image
import numpy as np
import torch
from numpy.typing import NDArray

from reducr.data import RawData
from reducr.data.core.inputs import inputs_at
from reducr.data.io.text import Texts
from reducr.reports.run_reader import Training

_MAX_TEXT_LENGTH = 280
_IMAGE_AXES = 4  # (N, channels, height, width)

Picture = tuple[str | None, str | None]
"""An image as data URI, or a text; the other one is None."""


def picture_reader(raw: RawData, training: Training) -> Callable[[int], Picture] | None:
    """A function from the index of a training example to its picture; None if inputs are neither images nor texts.

    Raises:
        ValueError: if the data has changed since the run.
    """
    source = training.data["train_source"]
    _check_unchanged(raw, training.data)
    if isinstance(raw.input, Texts):
        texts = raw.input

        def text_of(index: int) -> Picture:
            parts = [part[source[index]] for part in (texts.first, texts.second) if part is not None]
            return None, " ⏵ ".join(
                part if len(part) <= _MAX_TEXT_LENGTH else f"{part[:_MAX_TEXT_LENGTH]}…" for part in parts
            )

        return text_of
    is_indexable = isinstance(raw.input, torch.Tensor) or hasattr(raw.input, "__getitem__")
    first = inputs_at(raw.input, torch.from_numpy(source[:1])) if is_indexable else None
    if not isinstance(first, torch.Tensor) or not (first.ndim == _IMAGE_AXES or raw.image_shape is not None):
        return None

    def image_of(index: int) -> Picture:
        image = inputs_at(raw.input, torch.from_numpy(source[index : index + 1]))[0]
        if raw.image_shape is not None:
            image = image.reshape(1, *raw.image_shape)
        return _data_uri(image.numpy()), None

    return image_of


def _check_unchanged(raw: RawData, data: Mapping[str, NDArray[Any]]) -> None:
    """Raise ValueError if ``raw`` cannot be the data that ``data.npz`` was written for."""
    source, target = data["train_source"], data["train_target"]
    change = None
    if tuple(raw.class_names) != tuple(map(str, data["class_names"])):
        change = "its classes have other names"
    elif source.max() >= len(raw.target):
        change = f"it has {len(raw.target)} examples, and the run used example {source.max()}"
    elif raw.noisy_target is None and "train_is_corrupted" in data:
        is_clean = ~data["train_is_corrupted"]
        num_changed = int((raw.target.numpy()[source[is_clean]] != target[is_clean]).sum())
        change = f"{num_changed} examples have other labels" if num_changed else None
    if change is not None:
        raise ValueError(f"The data has changed since the run: {change}.")


def _data_uri(image: NDArray[Any]) -> str:
    """A (channels, height, width) image as PNG in a data URI; floats are scaled from their range to 0..255."""
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = ((image - low) / (high - low or 1.0) * 255).astype(np.uint8)
    image = image.transpose(1, 2, 0)
    if image.shape[2] not in (3, 4):
        image = np.repeat(image[:, :, :1], 3, axis=2)
    content = BytesIO()
    matplotlib.image.imsave(content, np.ascontiguousarray(image), format="png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
