"""State that outlives a step: buffers that keep their precision."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn


class ExactState(nn.Module):
    """A module whose buffers follow the model across devices but never change dtype.

    ``model.half()`` or a half-precision trainer casts every floating buffer it finds; a running sum over a hundred
    thousand steps must not be among them.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExactState:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)
        return self


def group_vector(values: Tensor | list[float] | None, num_groups: int, name: str) -> Tensor:
    """``values`` as a new (G,) float64 tensor; zeros for None.

    Raises:
        ValueError: if there are not G values or one is not finite.
    """
    if values is None:
        return torch.zeros(num_groups, dtype=torch.float64)
    vector = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    if vector.shape != (num_groups,):
        raise ValueError(
            f"{name} must hold one value for each of the {num_groups} groups; got shape {tuple(vector.shape)}."
        )
    if not bool(torch.isfinite(vector).all()):
        raise ValueError(f"{name} must be finite; got {vector.tolist()}.")
    return vector


def check_num_groups(num_groups: int) -> None:
    """Raise ValueError unless ``num_groups`` is a whole number of at least 1."""
    if isinstance(num_groups, bool) or not isinstance(num_groups, int) or num_groups < 1:
        raise ValueError(f"num_groups must be a whole number of at least 1; got {num_groups!r}.")
