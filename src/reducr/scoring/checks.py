"""Checks of what a selection is made of: the rule, the irreducible losses, and every batch of candidates."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from reducr._internal.checks import check_range
from reducr.batch import Batch, PerExampleLoss
from reducr.irreducible.bound import BoundReference
from reducr.selectors import Selector


def check_parts(selector: Any, irreducible: Any) -> None:
    """See that the rule is a selector, and that it gets the irreducible losses that it needs.

    Raises:
        TypeError: for a selector or irreducible of another kind.
        ValueError: if the rule needs irreducible losses and ``irreducible`` is None.
    """
    if not isinstance(selector, Selector):
        advice = f" Use reducr.make_selector({selector!r}, num_groups=...)." if isinstance(selector, str) else ""
        raise TypeError(f"`selector` must come from reducr.make_selector; got {type(selector).__name__}.{advice}")
    if irreducible is None and any("irreducible_loss" in need for need in selector.needs):
        raise missing_irreducible(selector)
    if irreducible is not None and not hasattr(irreducible, "lookup"):
        raise TypeError(
            f"`irreducible` must have lookup(batch) -> Tensor; got {type(irreducible).__name__}. For a model, pass "
            "reducr.Reference(model)."
        )


def bind_irreducible(irreducible: Any, selector: Selector, loss: PerExampleLoss | None) -> Any:
    """Return what ``selector`` reads of ``irreducible``: a ``Reference`` or ``Belief`` bound to the rule and the loss.

    Anything else with ``lookup(batch)`` is returned as it is.

    Raises:
        ValueError: if the groups of a reference are not those of the rule, or the rule does not draw by belief.
    """
    return irreducible.bind(selector, loss=loss) if hasattr(irreducible, "bind") else irreducible


def check_apart(irreducible: Any, model: nn.Module) -> None:
    """Raise ValueError if the reference model is the target model, or shares parameters with it."""
    if isinstance(irreducible, BoundReference) and irreducible.shares_parameters_with(model):
        raise ValueError(
            "The reference model shares parameters with the model that is trained. Give it its own: "
            "reducr.Reference(reducr.fit_reference(copy.deepcopy(model), clean))."
        )


def check_options(options: dict[str, tuple[Any, type]]) -> None:
    """Raise TypeError for an option that is neither None nor of its type; names both."""
    for name, (value, kind) in options.items():
        if value is not None and not isinstance(value, kind):
            raise TypeError(f"`{name}` must be a reducr.{kind.__name__}; got {type(value).__name__}.")


def missing_irreducible(selector: Selector) -> ValueError:
    """Return the error for a rule that gets no irreducible losses."""
    return ValueError(
        f"{selector.name!r} needs irreducible losses; got irreducible=None. Pass anything with lookup(batch), such as "
        "reducr.Reference(model) of a model trained on clean holdout data, which reducr.fit_reference(model, clean) "
        "gives."
    )


def check_candidates(candidates: Batch, num_groups: int) -> None:
    """See that a batch has examples, each in a group in [0, ``num_groups``).

    Raises:
        ValueError: for an empty batch, or groups that are not integers in range.
    """
    if candidates.target.shape[0] == 0:
        raise ValueError("The batch has no examples: there is nothing to select from.")
    group: Tensor = candidates.group
    if group.is_floating_point() or group.is_complex() or group.ndim != 1:
        raise ValueError(
            f"A batch's group (its target, if there is none) must hold one integer per example; got {group.dtype} "
            f"{tuple(group.shape)}. Pass integers, or say where the group is with `spec=BatchSpec(group=...)`."
        )
    check_range(
        "a batch's group",
        group,
        num_groups,
        advice=f"The rule has num_groups={num_groups}, counted from the holdout set if it was not given. Pass "
        "`num_groups=` and holdout examples of every group, or say where the groups are with "
        "`spec=BatchSpec(group=...)`.",
    )
