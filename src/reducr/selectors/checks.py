"""Checks of candidates, holdout losses and numbers before a selection, and of finite values."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reducr._internal.buffers import MAX_EXAMPLES
from reducr._internal.checks import check_range
from reducr.batch import Candidates

_LARGEST = torch.finfo(torch.float32).max


def check_num_selected(num_selected: int, num_candidates: int, *, where: str = "") -> None:
    """Raise TypeError or ValueError unless ``num_selected`` is a whole number in [1, num_candidates]."""
    if isinstance(num_selected, bool) or not isinstance(num_selected, int):
        raise TypeError(f"num_selected must be a whole number; got {num_selected!r}.")
    if not 1 <= num_selected <= num_candidates:
        raise ValueError(
            f"num_selected must be between 1 and the number of candidates{where}, {num_candidates}; got {num_selected}."
        )


def check_rule_of_state(name: str, state: Any) -> None:
    """Raise ValueError unless ``state``, the bytes of a rule's name, is ``name``."""
    is_bytes = isinstance(state, Tensor) and state.dtype == torch.uint8
    saved = bytes(state.tolist()).decode(errors="replace") if is_bytes else repr(state)
    if saved != name:
        raise ValueError(
            f"The state is that of the rule {saved!r}, and this is {name!r}. Resume with the rule of the saved run."
        )


def check_fields(candidates: Candidates, needs: frozenset[str], *, rule: str, num_groups: int) -> None:
    """Raise an error unless ``candidates`` have the fields ``needs`` of a rule, in range.

    Raises:
        TypeError: for anything but Candidates.
        ValueError: for a missing field, irreducible losses of another number of groups, or targets, groups or indices
            out of range.
    """
    if not isinstance(candidates, Candidates):
        raise TypeError(
            f"a selector takes candidates such as reducr.Candidates(model_loss=...); got {type(candidates).__name__}."
        )
    fields = candidates.given()
    if missing := sorted(needs - fields.keys()):
        raise ValueError(f"{rule!r} needs Candidates.{', Candidates.'.join(missing)}; got {sorted(fields)}.")
    if "group_irreducible_loss" in needs and fields["group_irreducible_loss"].shape[1] != num_groups:
        raise ValueError(
            f"group_irreducible_loss must have one column for each of the {num_groups} groups; "
            f"got shape {tuple(fields['group_irreducible_loss'].shape)}."
        )
    if {"targets", "logits"} <= needs:
        check_range("targets", fields["targets"], fields["logits"].shape[-1])
    if "groups" in needs:
        check_range("groups", fields["groups"], num_groups)
    if "index" in needs:
        check_range("index", fields["index"], MAX_EXAMPLES)


def check_single_pass(candidates: Candidates, rule: str) -> None:
    """Raise ValueError unless the logits are (B, C), from one forward pass."""
    logits = candidates.logits
    if logits is not None and logits.ndim != 2:
        raise ValueError(f"{rule!r} needs logits (B, C) of one forward pass; got shape {tuple(logits.shape)}.")


def checked_holdout_loss(group_holdout_loss: Any, num_groups: int) -> Tensor:
    """``group_holdout_loss`` as a tensor (G,) without gradients.

    Raises:
        ValueError: unless there are G finite real numbers.
    """
    try:
        loss = torch.as_tensor(group_holdout_loss).detach()
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"group_holdout_loss must be a tensor of one value for each of the {num_groups} groups; got "
            f"{type(group_holdout_loss).__name__}."
        ) from error
    if loss.is_complex() or loss.dtype == torch.bool:
        raise ValueError(f"group_holdout_loss must hold real numbers; got {loss.dtype}.")
    if loss.shape != (num_groups,):
        raise ValueError(
            f"group_holdout_loss must hold one value for each of the {num_groups} groups; "
            f"got shape {tuple(loss.shape)}."
        )
    nonfinite = torch.nonzero(~is_finite(loss)).flatten().tolist()
    if nonfinite:
        raise ValueError(
            f"group_holdout_loss must be finite; group {', '.join(map(str, nonfinite))} is not. "
            "A group without holdout examples has no mean: add some."
        )
    return loss


def is_finite(values: Tensor) -> Tensor:
    """Bool mask of the ``values`` that are finite in float32, whatever their dtype."""
    return torch.isfinite(values.float())


def are_finite(values: Tensor) -> bool:
    """Whether all ``values`` are finite in float32."""
    if not values.numel():
        return True
    smallest, largest = torch.aminmax(values)  # both are NaN if a value is
    return smallest.item() >= -_LARGEST and largest.item() <= _LARGEST


def num_nonfinite(valid_scores: Tensor) -> int:
    """Number of ``valid_scores`` (B,) that are minus infinity."""
    return 0 if valid_scores.min().item() > -torch.inf else int((valid_scores == -torch.inf).sum())
