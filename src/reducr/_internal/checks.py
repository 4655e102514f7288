"""Checks of arguments. Each error says what was expected and what came."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor


def is_finite_number(value: Any) -> bool:
    """Whether ``value`` is a single number that is neither NaN nor infinite.

    Example:
        >>> is_finite_number(0.1), is_finite_number(float("nan")), is_finite_number("0.1"), is_finite_number(None)
        (True, False, False, False)
    """
    try:
        return math.isfinite(value)
    except (TypeError, ValueError, OverflowError, RuntimeError):
        return False


def check_count(name: str, value: Any, *, least: int = 1) -> None:
    """Raise ValueError unless ``value`` is a whole number in [least, 2^63)."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value < 2**63:
        raise ValueError(f"{name} must be a whole number of at least {least}; got {value!r}.")


def check_flag(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` is True or False."""
    if not isinstance(value, bool):
        raise ValueError(f"{name} must be True or False; got {value!r}.")  # noqa: TRY004  (a configuration error)


def check_state_keys(kind: str, state: Any, keys: Iterable[str], optional: Iterable[str] = ()) -> None:
    """Raise ValueError unless ``state``, the state of ``kind``, is a dict with exactly these ``keys``.

    An earlier version may have saved none of the ``optional`` ones.
    """
    if not isinstance(state, Mapping) or set(state) | set(optional) != set(keys):
        content = ", ".join(sorted(map(str, state))) if isinstance(state, Mapping) else type(state).__name__
        raise ValueError(f"the state of {kind} must hold {', '.join(sorted(keys))}; got {content or 'nothing'}.")


def check_num_groups(num_groups: int) -> None:
    """Raise ValueError unless ``num_groups`` is a whole number of at least 1."""
    check_count("num_groups", num_groups)


def check_gradient_weight(gradient_weight: float) -> None:
    """Raise ValueError unless ``gradient_weight`` is in [1, 1e30]: products with larger ones overflow float32."""
    if not (is_finite_number(gradient_weight) and 1 <= gradient_weight <= 1e30):
        raise ValueError(
            "gradient_weight must be a finite number of at least 1 (1 means no weighting) and at most 1e30; got "
            f"{gradient_weight}."
        )


def check_range(name: str, values: Tensor, stop: int, *, place: str = "position", advice: str = "") -> None:
    """Raise ValueError naming the first of the integers ``values`` (B,) that is outside [0, stop).

    Args:
        name: of the values.
        values: (B,) integers.
        stop: upper bound, exclusive.
        place: what a position in ``values`` is called.
        advice: what to do, appended to the message.
    """
    if not values.numel():
        return
    values = values.long()  # narrow integers overflow in a comparison with a large stop
    least, largest = torch.aminmax(values)
    if least.item() >= 0 and largest.item() < stop:
        return
    outside = torch.nonzero((values < 0) | (values >= stop)).flatten()
    position = int(outside[0])
    raise ValueError(
        f"{name} must be in 0..{stop - 1}; {place} {position} holds {int(values[position])} "
        f"({len(outside)} such in all).{advice and ' '}{advice}"
    )


def check_every_group_has_examples(
    counts: Tensor, *, kind: str = "group", names: Sequence[str] | None = None, examples: str = "holdout example"
) -> None:
    """Raise ValueError naming the groups without an example.

    Args:
        counts: (G,) number of examples.
        kind: what a group is called, ``group`` or ``class``.
        names: (G,) names of the groups; None for their numbers.
        examples: what is counted, in the singular.
    """
    empty = torch.nonzero(counts <= 0).flatten().tolist()
    if empty:
        listed = f"{kind} {', '.join(map(str, empty))}" if names is None else ", ".join(repr(names[i]) for i in empty)
        raise ValueError(
            f"every {kind} needs at least one {examples}; {listed} of {len(counts)} has none. Add examples of it, or "
            f"merge it into another {kind}."
        )


def group_vector(values: Tensor | list[float] | None, num_groups: int, name: str) -> Tensor:
    """A new (G,) float64 tensor of ``values``; zeros for None.

    Raises:
        ValueError: unless there are G finite real numbers.
    """
    if values is None:
        return torch.zeros(num_groups, dtype=torch.float64)
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name} must hold one number for each of the {num_groups} groups; got {values!r}.") from error
    if tensor.is_complex():
        raise ValueError(f"{name} must hold real numbers; got {tensor.dtype}.")
    # from `values` again: a list read as float32 first would be rounded
    vector = torch.as_tensor(values, dtype=torch.float64).detach().clone()
    if vector.shape != (num_groups,):
        raise ValueError(
            f"{name} must hold one value for each of the {num_groups} groups; got shape {tuple(vector.shape)}."
        )
    if not bool(torch.isfinite(vector).all()):
        raise ValueError(f"{name} must be finite; got {vector.tolist()}.")
    return vector
