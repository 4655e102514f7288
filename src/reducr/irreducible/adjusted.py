"""Irreducible losses from the logits of one reference model: plain, or for every group in closed form."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from reducr._internal.checks import check_gradient_weight
from reducr.batch import Batch
from reducr.functional import (
    adjusted_irreducible_loss,
    adjusted_joint_irreducible_loss,
    per_example_cross_entropy,
    selection_dtype,
)
from reducr.functional.losses import check_targets
from reducr.irreducible.group_check import GroupsOfTargets
from reducr.irreducible.live import target_logits
from reducr.irreducible.table import IrreducibleTable, TableLogits, TableLoss

_CHUNK_ROWS = 2**14


class LogitSource(Protocol):
    """Source of the logits of the plain reference model (the paper's irreducible model): a table or a live model."""

    def logits(self, batch: Batch) -> Tensor:
        """Logits of shape (B, C), or (B, C, G) for a joint model."""


class PlainIrreducibleLoss:
    """The irreducible loss of RHO-LOSS: the cross-entropy of the plain reference model.

    Args:
        source: gives (B, C) logits, or (B, C, G) logits of a joint model, which are summed over the groups.

    Source: Mindermann et al. 2022 (arXiv 2206.07137).
    """

    def __init__(self, source: LogitSource) -> None:
        self.source = source

    def lookup(self, batch: Batch) -> Tensor:
        """(B,) nats."""
        return per_example_cross_entropy(target_logits(self.source.logits(batch)), batch.target)

    def tabulate(self, targets: Tensor) -> TableLoss:
        """Compute the losses of all N examples of a table of logits once, so that each step only looks them up.

        Args:
            targets: (N,) int64, in the order of the index; must equal the targets of the batches.

        Returns:
            Losses of shape (N,), held in memory.

        Raises:
            ValueError: if the source is not a table, or has another number of examples.
        """
        return TableLoss(_loss_table(self, targets, kind="loss"))


class AdjustedIrreducibleLoss:
    """The irreducible loss of every group, in closed form from one model.

    G times cheaper to train, evaluate and store than one trained model per group. See
    ``functional.adjusted_irreducible_loss`` for the formula.

    Args:
        source: gives (B, C) logits if groups follow from targets, else (B, C, G) logits of a joint model.
        gradient_weight: g >= 1, the weight that a trained model of a group would give to the examples of that group.
        group_of_target: (C,) int64, the group of each target; None if groups equal targets, or for joint logits.
        checks_groups: see that the groups of every batch follow from its targets. False where they followed from the
            targets before some of these were corrupted.

    Raises:
        ValueError: if ``gradient_weight`` is below 1, or ``group_of_target`` does not hold one group per class; at a
            batch whose groups do not follow from its targets, unless the logits are joint.

    Source: docs/method.md, section 4; docs/deviations.md explains the deviation from arXiv 2312.00486.
    """

    def __init__(
        self,
        source: LogitSource,
        *,
        gradient_weight: float = 10.0,
        group_of_target: Tensor | None = None,
        checks_groups: bool = True,
    ) -> None:
        check_gradient_weight(gradient_weight)
        if group_of_target is not None:
            check_group_of_target(group_of_target)
        self.source = source
        self.gradient_weight = gradient_weight
        self.group_of_target = group_of_target
        self.groups = GroupsOfTargets(group_of_target)
        self.checks_groups = checks_groups

    def lookup(self, batch: Batch) -> Tensor:
        """(B, G) nats."""
        return self.lazy(batch).rows(slice(None))

    def tabulate(self, targets: Tensor) -> TableLoss:
        """As ``PlainIrreducibleLoss.tabulate``, with losses of shape (N, G)."""
        table = _loss_table(self, targets, kind="group_loss")
        is_joint = isinstance(self.source, TableLogits) and self.source.table.kind == "joint_logits"
        is_checked = self.checks_groups and not is_joint
        return TableLoss(table, groups=GroupsOfTargets(self.group_of_target) if is_checked else None)

    def lazy(self, batch: Batch) -> AdjustedGroupLoss:
        """(B, G) nats, computed only for the rows that are read."""
        losses = AdjustedGroupLoss(self.source.logits(batch), batch.target, self.gradient_weight, self.group_of_target)
        if losses.logits.ndim == 2 and self.checks_groups:
            self.groups.check(batch)
        return losses


@dataclass(frozen=True)
class AdjustedGroupLoss:
    """A ``LazyGroupLoss``: computes rows of the (B, G) group irreducible losses in closed form, never all at once.

    Args:
        logits: (B, C) of the plain reference model, or (B, C, G) of a joint model.
        targets: (B,) int64 in [0, C).
        gradient_weight: as for ``AdjustedIrreducibleLoss``.
        group_of_target: as for ``AdjustedIrreducibleLoss``.

    Raises:
        ValueError: unless there is one integer target for each row of the logits.

    Example:
        >>> from reducr.batch import Candidates
        >>> losses = AdjustedGroupLoss(torch.zeros(3, 2), torch.tensor([0, 1, 1]))
        >>> candidates = Candidates(model_loss=torch.ones(3), group_irreducible_loss=losses)
        >>> candidates.take(torch.tensor([2])).group_irreducible_loss
        tensor([[2.3979, 0.0953]])
    """

    logits: Tensor
    targets: Tensor
    gradient_weight: float = 10.0
    group_of_target: Tensor | None = None

    def __post_init__(self) -> None:
        check_targets(self.logits, self.targets)

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, G)."""
        size, *_, num_groups = self.logits.shape
        return size, num_groups if self.group_of_target is None else int(self.group_of_target.max()) + 1

    @property
    def device(self) -> torch.device:
        """Device of the logits."""
        return self.logits.device

    @property
    def dtype(self) -> torch.dtype:
        """float64 for logits in float64, else float32."""
        return selection_dtype(self.logits)

    @classmethod
    def concatenated(cls, parts: Sequence[AdjustedGroupLoss]) -> AdjustedGroupLoss:
        """Join the losses of consecutive chunks of one batch."""
        logits, targets = torch.cat([part.logits for part in parts]), torch.cat([part.targets for part in parts])
        return replace(parts[0], logits=logits, targets=targets)

    def rows(self, positions: Tensor | slice) -> Tensor:
        """Losses of the examples at ``positions``, (n, G) nats."""
        logits, targets = self.logits[positions], self.targets[positions]
        if logits.ndim == 3:
            return adjusted_joint_irreducible_loss(logits, targets, gradient_weight=self.gradient_weight)
        return adjusted_irreducible_loss(
            logits, targets, gradient_weight=self.gradient_weight, group_of_target=self.group_of_target
        )


def _loss_table(
    losses: PlainIrreducibleLoss | AdjustedIrreducibleLoss, targets: Tensor, *, kind: str
) -> IrreducibleTable:
    source = losses.source
    if not isinstance(source, TableLogits) or targets.shape != (len(source.table),):
        name = f"a table of {len(source.table)} rows" if isinstance(source, TableLogits) else type(source).__name__
        raise ValueError(
            f"tabulate() needs TableLogits and one target per row; got {name} and targets of shape "
            f"{tuple(targets.shape)}. For any other source, call lookup(batch)."
        )
    chunks = []
    for index in torch.arange(len(targets)).split(_CHUNK_ROWS):  # type: ignore[no-untyped-call]
        target = targets[index]
        group = losses.groups.of(target) if isinstance(losses, AdjustedIrreducibleLoss) else target
        chunks.append(losses.lookup(Batch(index, None, target, group)))
    return IrreducibleTable(torch.cat(chunks).numpy(), kind=kind)


def check_group_of_target(groups: Tensor) -> None:
    """Raise ValueError unless ``groups`` holds one non-negative integer per class."""
    is_integer = not (groups.is_floating_point() or groups.is_complex())
    if not is_integer or groups.ndim != 1 or not len(groups) or bool((groups.long() < 0).any()):
        raise ValueError(
            f"group_of_target must hold one non-negative integer per class, (C,); got {groups.dtype} {groups.tolist()}."
        )
