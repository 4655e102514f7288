"""Call a model as it scores: compiled, in another precision, on images at a lower resolution."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducr.scoring.options import Scoring


class ScoringForward:
    """Call a model the way it scores. Parameters, buffers and modes are the model's.

    Args:
        model: the model to score with.
        scoring: options, of which this uses ``mode``, ``autocast``, ``compile`` and ``resolution``.

    Raises:
        ValueError: for a lower resolution that would change the statistics of batch norms, or a missing compiler; when
            called, for inputs without images, or a model that does not take smaller ones.
    """

    def __init__(self, model: nn.Module, scoring: Scoring) -> None:
        if scoring.resolution is not None:
            _check_batch_norms(model, scoring)
        if scoring.compile:
            _check_compiler()
        self.model = model
        self.autocast = scoring.autocast
        self.resolution = scoring.resolution
        self._called: Callable[..., Any] = torch.compile(model) if scoring.compile else model

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """Return the model's output."""
        if self.resolution is None:
            return self._in_precision(arguments, named)
        inputs = [*arguments, *named.values()]
        images = [value for value in inputs if _is_images(value)]
        if not images:
            kinds = (str(tuple(value.shape)) if isinstance(value, Tensor) else type(value).__name__ for value in inputs)
            raise ValueError(
                f"A scoring resolution of {self.resolution:g} needs images (B, K, H, W) as inputs; got "
                f"{', '.join(kinds)}. Leave `resolution` out."
            )
        small = [shrunk(value, self.resolution) if _is_images(value) else value for value in inputs]
        try:
            return self._in_precision(small[: len(arguments)], dict(zip(named, small[len(arguments) :], strict=True)))
        except RuntimeError as error:
            (height, width), (new_height, new_width) = (
                images[0].shape[2:],
                shrunk(images[0][:1], self.resolution).shape[2:],
            )
            raise ValueError(
                f"The model cannot score images of {new_height} x {new_width} in place of {height} x {width} "
                f"(resolution {self.resolution:g}): {error}. Use a model that takes images of any size, such as one "
                "that ends in a global average (reducr.models.ResNet), or leave `resolution` out."
            ) from error

    def _in_precision(self, arguments: Sequence[Any], named: Mapping[str, Any]) -> Any:
        if self.autocast is None:
            return self._called(*arguments, **named)
        device = next((tensor.device for tensor in self.model.parameters()), torch.device("cpu"))
        # the cache would hand weights that were cast without gradients to the training step
        with torch.autocast(device.type, dtype=self.autocast, cache_enabled=False):
            return self._called(*arguments, **named)


def shrunk(images: Tensor, resolution: float) -> Tensor:
    """Shrink images (B, K, H, W) to ``resolution`` times their height and width; pixels are means of those they cover.

    Integer pixels are rounded and keep their dtype.

    Example:
        >>> shrunk(torch.tensor([[[[0, 4], [8, 8]]]], dtype=torch.uint8), 0.5)
        tensor([[[[5]]]], dtype=torch.uint8)
    """
    height, width = (max(1, round(resolution * side)) for side in images.shape[2:])
    if images.is_floating_point():
        return F.adaptive_avg_pool2d(images, (height, width))
    return F.adaptive_avg_pool2d(images.float(), (height, width)).round().to(images.dtype)


def _is_images(value: Any) -> bool:
    return isinstance(value, Tensor) and value.ndim == 4


def _check_batch_norms(model: nn.Module, scoring: Scoring) -> None:
    norms = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.track_running_stats
    ]
    if norms and scoring.mode == "train":
        raise ValueError(
            f"Scoring in mode 'train' would update the running statistics of {norms[0]!r} with images at a resolution "
            f"of {scoring.resolution:g}, on which the model is neither trained nor tested. Use "
            "`mode='train_frozen_statistics'` or `mode='eval'`."
        )


def _check_compiler() -> None:
    names = (os.environ.get("CXX"), "g++", "clang++")
    if not any(shutil.which(name) for name in names if name):
        raise ValueError(
            "Compiling the scoring pass needs a C++ compiler: neither $CXX nor g++ nor clang++ exists here. Install "
            "g++, or leave `compile` out."
        )
