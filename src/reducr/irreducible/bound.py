"""What one rule reads of a reference: the losses of each example, or of each example and group."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

import torch
from torch import Tensor

from reducr._internal.checks import check_range
from reducr.batch import Batch, PerExampleLoss
from reducr.functional import selection_dtype
from reducr.functional.outputs import checked_logits, per_example_losses
from reducr.functional.sequences import example_loss, row_groups
from reducr.irreducible.adjusted import AdjustedGroupLoss
from reducr.irreducible.chance import ChanceWatch
from reducr.irreducible.group_check import GroupsOfTargets
from reducr.irreducible.live import joint_logits, target_logits
from reducr.irreducible.sources import TableRows

if TYPE_CHECKING:
    from reducr.irreducible.reference import Reference

OWNER = "The reference model"
_SOFT_TOLERANCE = 1e-2


class Rule(Protocol):
    """What a reference needs to know of a selector."""

    name: ClassVar[str]
    needs: frozenset[str]
    num_groups: int


class BoundReference:
    """A reference as one rule in one loop reads it. The reference itself is not changed.

    Args:
        reference: the models or tables.
        rule: the selector.
        loss: of (output, target); None for the cross-entropy.

    Raises:
        ValueError: if the groups of the reference are not those of the rule.
    """

    def __init__(self, reference: Reference, rule: Rule, loss: PerExampleLoss | None) -> None:
        self.reference = reference
        self.rule = rule
        self.loss = loss
        self._watch = ChanceWatch()
        self._groups = GroupsOfTargets(reference.group_of_target)
        self._has_soft_labels = False
        if any("irreducible_loss" in need for need in rule.needs):
            _check_groups(reference, rule)

    @property
    def field(self) -> str:
        """The field of ``Candidates`` that ``lookup`` gives: the one that the rule needs."""
        return "group_irreducible_loss" if "group_irreducible_loss" in self.rule.needs else "irreducible_loss"

    @property
    def needs_targets(self) -> bool:
        """Whether losses are computed from a batch's targets; a table of losses is read by the index alone."""
        return not has_losses(self.reference)

    def view(self, field: str) -> PlainView | GroupView:
        """Return what gives ``field`` of ``Candidates``, for rules that need several."""
        if field == "irreducible_loss":
            return PlainView(self)
        return LazyGroupView(self) if self._has_closed_form else GroupView(self)

    def lookup(self, batch: Batch) -> Tensor:
        """Return the losses (B,), or (B, G) for a rule that needs them by group, in nats."""
        return self.view(self.field).lookup(batch)

    def shares_parameters_with(self, model: Any) -> bool:
        """Whether a parameter of ``model`` is one of the reference's."""
        return self.reference.shares_parameters_with(model)

    # ---- the losses

    @torch.no_grad()
    def plain_losses(self, batch: Batch) -> Tensor:
        """(B,) nats; of the model of each example's own group where there is one for each group."""
        return own_losses(self._all_losses(self.reference.source.outputs(batch), batch), batch, self.loss)

    @torch.no_grad()
    def group_losses(self, batch: Batch) -> Tensor | AdjustedGroupLoss:
        """(B, G) nats; lazy where the closed form of the cross-entropy gives them."""
        reference = self.reference
        outputs = reference.source.outputs(batch)
        if reference.is_per_group:
            return self._all_losses(outputs, batch)
        if reference.gradient_weight == 1:
            return self._all_losses(outputs, batch).expand(-1, self.rule.num_groups)
        if has_losses(reference):
            raise self._no_closed_form("a table of losses", batch.target)
        self._look_at(outputs, batch)
        return self._from_one_model(outputs[0], batch)

    def _all_losses(self, outputs: list[Any], batch: Batch) -> Tensor:
        self._look_at(outputs, batch)
        return all_losses(self.reference, outputs, batch.target, self.loss)

    def _from_one_model(self, output: Any, batch: Batch) -> Tensor | AdjustedGroupLoss:
        reference, target = self.reference, batch.target
        joint = reference.num_joint_groups
        if joint is not None:
            logits = joint_logits(output, joint) if output.ndim == 2 else output
        else:
            classes = self._classes(target)
            if classes is None or not isinstance(output, Tensor) or output.ndim != 2:
                raise self._no_closed_form(output, target)
            logits = checked_logits(output, target.shape[0], owner=OWNER)
            self._check_columns(logits)
            self._groups.check(batch, classes)
        if self.loss is None:
            return AdjustedGroupLoss(logits, target, reference.gradient_weight, reference.group_of_target)
        logits = logits.to(selection_dtype(logits))
        columns = [self._losses_of_group(logits, group, target) for group in range(self.rule.num_groups)]
        return torch.stack(columns, dim=1)

    def _classes(self, target: Tensor) -> Tensor | None:
        """(B,) class of each example: its integer target, or the argmax of its soft label; None for other targets."""
        if target.ndim == 1 and not target.is_floating_point() and not target.is_complex():
            return target
        if target.ndim != 2 or not target.is_floating_point() or target.shape[1] < 2:
            return None
        if not self._has_soft_labels:  # read at the first batch only, which may have to be waited for
            sums = target.sum(dim=1)
            self._has_soft_labels = bool((sums - 1).abs().max() < _SOFT_TOLERANCE) and bool(target.min() >= 0)
        return target.argmax(dim=1) if self._has_soft_labels else None

    def _losses_of_group(self, logits: Tensor, group: int, target: Tensor) -> Tensor:
        """(B,) losses of the model of ``group``, whose logits are those of the plain model, shifted."""
        reference, shift = self.reference, math.log(self.reference.gradient_weight)
        if reference.num_joint_groups is not None:
            bonus = logits.new_zeros(reference.num_joint_groups)
            bonus[group] = shift
            return per_example_losses(target_logits(logits + bonus), target, self.loss, owner=OWNER)
        bonus = logits.new_zeros(logits.shape[1])
        if reference.group_of_target is None:
            bonus[group] = shift
        else:
            bonus[reference.group_of_target.to(logits.device) == group] = shift
        return per_example_losses(logits + bonus, target, self.loss, owner=OWNER)

    def _look_at(self, outputs: list[Any], batch: Batch) -> None:
        """Watch for a model near chance."""
        reference = self.reference
        if self._watch.is_done or has_losses(reference):
            return

        loss = example_loss(self.loss)

        def losses_at(target: Tensor) -> Tensor:
            return all_losses(reference, outputs[:1], target, loss)[:, 0]

        logits = target_outputs(reference, outputs[0]) if self.loss is None else None
        self._watch.add(losses_at(batch.target), batch.target, losses_at, logits=logits)

    # ---- refusals

    @property
    def _has_closed_form(self) -> bool:
        """Whether the group losses may be computed a few rows at a time."""
        reference = self.reference
        is_one_model = not (has_losses(reference) or reference.is_per_group)
        return is_one_model and self.loss is None and reference.gradient_weight > 1

    def _check_columns(self, logits: Tensor) -> None:
        groups, num_groups = self.reference.group_of_target, self.rule.num_groups
        if groups is not None and len(groups) != logits.shape[1]:
            raise ValueError(
                f"`group_of_target` holds the groups of {len(groups)} classes, and the reference model returns "
                f"{logits.shape[1]} logits. Give the group of each class."
            )
        if groups is None and logits.shape[1] != num_groups:
            raise ValueError(
                f"The reference model returns {logits.shape[1]} logits and {self.rule.name!r} has {num_groups} groups. "
                "Without `group_of_target` the groups are the targets, one logit for each. "
                "Pass `group_of_target=`, (C,), if each class belongs to one group; `num_joint_groups=` if the model "
                "predicts (target, group) pairs; or one reference model per group, "
                "reducr.Reference([model_0, model_1, ...])."
            )

    def _no_closed_form(self, output: Any, target: Tensor) -> ValueError:
        kind = f"output {tuple(output.shape)}" if isinstance(output, Tensor) else f"{output}"
        if not isinstance(output, Tensor | str):
            kind = f"output of type {type(output).__name__}"
        return ValueError(
            f"{self.rule.name!r} needs the loss of each example under the reference model of each group, (B, G). One "
            f"model gives these only if it returns logits (B, C) and the groups follow from the classes; got {kind} "
            f"and targets {target.dtype} {tuple(target.shape)}. Pass one model per group, reducr.Reference([model_0, "
            "...]), each from reducr.fit_reference(..., group_weights=[...]); or choose a rule that needs one loss per "
            "example, such as 'priority_sampling', which takes any groups, or 'rho_loss'."
        )


class PlainView:
    """Gives (B,) losses of a bound reference."""

    def __init__(self, bound: BoundReference) -> None:
        self.bound = bound

    def lookup(self, batch: Batch) -> Tensor:
        """(B,) nats."""
        return self.bound.plain_losses(batch)


class GroupView(PlainView):
    """Gives (B, G) losses of a bound reference."""

    def lookup(self, batch: Batch) -> Tensor:
        """(B, G) nats."""
        losses = self.bound.group_losses(batch)
        return losses if isinstance(losses, Tensor) else losses.rows(slice(None))


class LazyGroupView(GroupView):
    """Gives (B, G) losses of a bound reference, also a few rows at a time."""

    def lazy(self, batch: Batch) -> Tensor | AdjustedGroupLoss:
        """(B, G) nats, computed only for the rows that are read."""
        return self.bound.group_losses(batch)


def has_losses(reference: Reference) -> bool:
    """Whether ``reference`` reads a table of losses, so that there are no outputs."""
    return isinstance(reference.source, TableRows) and reference.source.has_losses


def all_losses(reference: Reference, outputs: list[Any], target: Tensor, loss: PerExampleLoss | None) -> Tensor:
    """Return the plain losses of each model of ``reference``, (B, 1) or (B, G).

    Args:
        reference: whose models these are.
        outputs: of each model.
        target: (B, ...).
        loss: of (output, target); None for the cross-entropy.
    """
    if has_losses(reference):
        losses: Tensor = outputs[0]
        return losses
    columns = [per_example_losses(target_outputs(reference, output), target, loss, owner=OWNER) for output in outputs]
    return columns[0].unsqueeze(1) if len(columns) == 1 else torch.stack(columns, dim=1)


def target_outputs(reference: Reference, output: Any) -> Any:
    """Return what predicts targets: the ``output`` itself, or (B, C) logits of a joint model, summed over groups."""
    joint = reference.num_joint_groups
    if joint is None:
        return output
    return target_logits(joint_logits(output, joint) if output.ndim == 2 else output)


def own_losses(losses: Tensor, batch: Batch, loss: PerExampleLoss | None) -> Tensor:
    """Return the only column of ``losses`` (B, M), or each example's loss in the column of its group.

    Args:
        losses: one row for each value of ``loss``.
        batch: the examples.
        loss: with a ``TokenLoss``, rows are tokens.
    """
    if losses.shape[1] == 1:
        return losses[:, 0]
    groups = row_groups(batch.group, batch.target, loss)
    if groups.device.type == "cpu":
        check_range("a batch's group", groups, losses.shape[1])
    return losses.gather(1, groups.long().unsqueeze(1)).squeeze(1)


def _check_groups(reference: Reference, rule: Rule) -> None:
    """Raise ValueError unless the groups of the reference, where it names some, are those of the rule."""
    needs_groups = "group_irreducible_loss" in rule.needs
    num_models = reference.source.num_models
    if reference.is_per_group and num_models != rule.num_groups:
        raise ValueError(
            f"This reference has {num_models} models, one per group, and {rule.name!r} has {rule.num_groups} "
            "groups. Pass one model for each group, or one model alone: reducr.Reference(model)."
        )
    joint = reference.num_joint_groups
    if needs_groups and joint is not None and joint != rule.num_groups:
        raise ValueError(
            f"This reference has num_joint_groups={joint}, and {rule.name!r} has {rule.num_groups} groups. They must "
            "agree."
        )
    groups = reference.group_of_target
    if needs_groups and groups is not None and int(groups.max()) + 1 != rule.num_groups:
        raise ValueError(
            f"`group_of_target` names groups up to {int(groups.max())}, and {rule.name!r} has num_groups="
            f"{rule.num_groups}. Pass num_groups={int(groups.max()) + 1} to the rule, or correct the groups."
        )
