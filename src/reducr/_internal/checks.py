"""Checks of what a user gives, each with the message that says what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def is_finite_number(value: Any) -> bool:
    """Whether ``value`` is one number, and neither NaN nor infinite.

    Example:
        >>> is_finite_number(0.1), is_finite_number(float("nan")), is_finite_number("0.1"), is_finite_number(None)
        (True, False, False, False)
    """
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """Raise ValueError unless ``value`` is a whole number of at least ``least`` that a tensor can hold."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}.")


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; got {value!r}.")  # noqa: TRY004  (a fault of the configuration)


def check_state_keys(kind: str, state: Any, keys: Iterable[str]) -> None:
    """Raise ValueError unless ``state`` is a dict of just these ``keys``, that of ``kind``."""
    if not isinstance(state, Mapping) or set(state) != set(keys):
        found = ", ".join(sorted(map(str, state))) if isinstance(state, Mapping) else f"a {type(state).__name__}"
        raise ValueError(f"the state of {kind} holds {', '.join(sorted(keys))}; got {found or 'nothing'}.")


def check_num_groups(num_groups: int) -> None:
    """Raise ValueError unless ``num_groups`` is a whole number of at least 1."""
    check_count("num_groups", num_groups)


def check_gradient_weight(gradient_weight: float) -> None:
    """Raise ValueError unless ``gradient_weight`` is a number in [1, 1e30], which float32 can multiply with."""
    if not (is_finite_number(gradient_weight) and 1 <= gradient_weight <= 1e30):
        raise ValueError(
            f"gradient_weight must be a finite number of at least 1 (1 leaves the plain model), and at most 1e30; got "
            f"{gradient_weight}."
        )


def check_range(name: str, values: Tensor, stop: int, *, place: str = "position") -> None:
    """Raise ValueError naming the first of the integers ``values`` (B,) outside [0, stop) by its ``place``."""
    if not values.numel():
        return
    values = values.long()  # narrow integers cannot be compared with any stop
    least, largest = torch.aminmax(values)
    if least.item() >= 0 and largest.item() < stop:
        return
    outside = torch.nonzero((values < 0) | (values >= stop)).flatten()
    position = int(outside[0])
    raise ValueError(
        f"{name} must be in 0..{stop - 1}; {place} {position} holds {int(values[position])} "
        f"({len(outside)} such in all)."
    )


def check_every_group_has_examples(
    counts: Tensor, *, kind: str = "group", names: Sequence[str] | None = None, points: str = "holdout point"
) -> None:
    """Raise ValueError naming the groups whose count of holdout points in ``counts`` (G,) is zero.

    Args:
        counts: (G,).
        kind: what they are called, ``group`` or ``class``.
        names: (G,); None for their numbers.
        points: what is counted.
    """
    empty = torch.nonzero(counts <= 0).flatten().tolist()
    if empty:
        listed = f"{kind} {', '.join(map(str, empty))}" if names is None else ", ".join(repr(names[i]) for i in empty)
        raise ValueError(
            f"every {kind} needs at least one {points}; {listed} of {len(counts)} has none. Add points of it, or "
            f"merge it into another {kind}."
        )


def group_vector(values: Tensor | list[float] | None, num_groups: int, name: str) -> Tensor:
    """``values`` as a new (G,) float64 tensor; zeros for None.

    Raises:
        ValueError: if there are not G real numbers or one is not finite.
    """
    if values is None:
        return torch.zeros(num_groups, dtype=torch.float64)
    try:
        given = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must hold one number for each of the {num_groups} groups; got {values!r}.") from error
    if given.is_complex():
        raise ValueError(f"{name} must hold real numbers; got {given.dtype}.")
    # lists are read in float64 at once, so that no number is rounded on the way
    vector = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    if vector.shape != (num_groups,):
        raise ValueError(
            f"{name} must hold one value for each of the {num_groups} groups; got shape {tuple(vector.shape)}."
        )
    if not bool(torch.isfinite(vector).all()):
        raise ValueError(f"{name} must be finite; got {vector.tolist()}.")
    return vector
