"""What tells whether a model has been trained since it was last looked at."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

_NUM_SAMPLES, _SAMPLE_SIZE = 4, 8


class ModelTrace:
    """The versions of a model's parameters and gradients, and a few of its trained values.

    Fused optimizers change values without another version, and gradients may be gone by the time of the comparison.

    Args:
        model: is not changed, and not kept.
    """

    def __init__(self, model: nn.Module) -> None:
        self.versions = _versions(model)
        self.values = [value.clone() for value in _samples(model)]

    @property
    def is_known(self) -> bool:
        """Whether a change would be seen; not of tensors of inference mode, nor without parameters."""
        return bool(self.versions)

    def is_of(self, model: nn.Module) -> bool:
        """Whether ``model`` is as it was, as far as can be seen."""
        if self.versions != _versions(model):
            return False
        values = _samples(model)
        return len(values) == len(self.values) and all(map(_is_equal, values, self.values))


def _versions(model: nn.Module) -> list[Any] | None:
    try:
        return [
            (parameter._version, None if parameter.grad is None else (id(parameter.grad), parameter.grad._version))
            for parameter in model.parameters()
        ]
    except RuntimeError:  # tensors of inference mode have no version
        return None


def _samples(model: nn.Module) -> list[Tensor]:
    """The first values of a few parameters that are trained, the last ones included."""
    trained = [parameter.detach() for parameter in model.parameters() if parameter.requires_grad]
    step = max(1, len(trained) // _NUM_SAMPLES)
    local = [getattr(tensor, "_local_tensor", tensor) for tensor in trained[::-1][::step][:_NUM_SAMPLES]]
    return [tensor.reshape(-1)[:_SAMPLE_SIZE] if tensor.is_contiguous() else tensor[:1] for tensor in local]


def _is_equal(first: Tensor, second: Tensor) -> bool:
    return first.device == second.device and first.dtype == second.dtype and torch.equal(first, second)
