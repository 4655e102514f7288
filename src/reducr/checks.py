"""Checks of what a user gives, each with the message that says what was expected and what came."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def check_num_groups(num_groups: int) -> None:
    """Raise ValueError unless ``num_groups`` is a whole number of at least 1."""
    if isinstance(num_groups, bool) or not isinstance(num_groups, int) or num_groups < 1:
        raise ValueError(f"num_groups must be a whole number of at least 1; got {num_groups!r}.")


def check_gradient_weight(gradient_weight: float) -> None:
    """Raise ValueError unless ``gradient_weight`` is a finite number of at least 1."""
    if not (math.isfinite(gradient_weight) and gradient_weight >= 1):
        raise ValueError(
            f"gradient_weight must be a finite number of at least 1 (1 leaves the plain model); got {gradient_weight}."
        )


def check_range(name: str, values: Tensor, stop: int, *, place: str = "position") -> None:
    """Raise ValueError naming the first of the integers ``values`` (B,) outside [0, stop) by its ``place``."""
    outside = torch.nonzero((values < 0) | (values >= stop)).flatten()
    if len(outside):
        position = int(outside[0])
        raise ValueError(
            f"{name} must be in 0..{stop - 1}; {place} {position} holds {int(values[position])} "
            f"({len(outside)} such in all)."
        )


def check_every_group_has_points(counts: Tensor) -> None:
    """Raise ValueError naming the groups whose count of holdout points in ``counts`` (G,) is zero."""
    empty = torch.nonzero(counts <= 0).flatten().tolist()
    if empty:
        raise ValueError(
            f"every group needs at least one holdout point; group {', '.join(map(str, empty))} of "
            f"{len(counts)} has none. Add holdout points of it, or merge it into another group."
        )


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
