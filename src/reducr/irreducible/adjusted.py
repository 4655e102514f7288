"""Losses from the logits of ONE irreducible model: its own, or every group's in closed form."""

from __future__ import annotations

from dataclasses import dataclass
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
from reducr.irreducible.reference import target_logits
from reducr.irreducible.table import IrreducibleTable, TableLogits, TableLoss


class LogitSource(Protocol):
    """Where the logits of the plain irreducible model come from: a table, or the live model."""

    def logits(self, batch: Batch) -> Tensor:
        """(B, C), or (B, C, G) for a joint model."""


class PlainIrreducibleLoss:
    """The irreducible loss of RHO-LOSS: the cross-entropy of the plain irreducible model.

    Args:
        source: of (B, C) logits; (B, C, G) logits of a joint model are summed over the groups.
    """

    def __init__(self, source: LogitSource) -> None:
        self.source = source

    def lookup(self, batch: Batch) -> Tensor:
        """(B,) nats."""
        return per_example_cross_entropy(target_logits(self.source.logits(batch)), batch.target)

    def tabulated(self, targets: Tensor) -> TableLoss:
        """The losses of all N points of a table of logits, computed once, so that a step only looks them up.

        Args:
            targets: (N,), in the order of the index; they must be those of the batches to come.

        Raises:
            ValueError: if the source is no table, or has another number of points.
        """
        return TableLoss(_tabulated(self, targets, kind="loss"))


class AdjustedIrreducibleLoss:
    """Every group-irreducible loss in closed form from one model (see ``functional.adjusted_irreducible_loss``).

    C times cheaper to train, to evaluate and to store than one trained model per group.

    Args:
        source: of (B, C) logits where groups follow from targets, or (B, C, G) logits of a joint model where they
            do not.
        gradient_weight: g >= 1, the weight that a group's own irreducible model would have been trained with.
        group_of_target: (C,) the group of each target; None where groups are the targets, and for joint logits.

    Raises:
        ValueError: if ``gradient_weight`` is below 1, or ``group_of_target`` is not one group for each class.

    Source: docs/method.md section 4; deviation from arXiv 2312.00486 explained in docs/deviations.md.
    """

    def __init__(
        self, source: LogitSource, *, gradient_weight: float = 10.0, group_of_target: Tensor | None = None
    ) -> None:
        check_gradient_weight(gradient_weight)
        if group_of_target is not None:
            _check_group_of_target(group_of_target)
        self.source = source
        self.gradient_weight = gradient_weight
        self.group_of_target = group_of_target

    def lookup(self, batch: Batch) -> Tensor:
        """(B, G) nats."""
        return self.lazy(batch).rows(slice(None))

    def tabulated(self, targets: Tensor) -> TableLoss:
        """As ``PlainIrreducibleLoss.tabulated``: (N, G) numbers, held in memory."""
        return TableLoss(_tabulated(self, targets, kind="group_loss"))

    def lazy(self, batch: Batch) -> AdjustedGroupLoss:
        """(B, G) nats, computed some rows at a time where they are wanted."""
        logits = self.source.logits(batch)
        return AdjustedGroupLoss(logits, batch.target, self.gradient_weight, self.group_of_target)


@dataclass(frozen=True)
class AdjustedGroupLoss:
    """Every group-irreducible loss (B, G) in closed form, without ever holding B x G numbers: a ``LazyGroupLoss``.

    Args:
        logits: (B, C) of the plain irreducible model, or (B, C, G) of a joint one.
        targets: (B,) integers in [0, C).
        gradient_weight: as for ``AdjustedIrreducibleLoss``.
        group_of_target: likewise.

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

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, G)."""
        size, *_, num_groups = self.logits.shape
        return size, num_groups if self.group_of_target is None else int(self.group_of_target.max()) + 1

    @property
    def device(self) -> torch.device:
        """That of the logits."""
        return self.logits.device

    @property
    def dtype(self) -> torch.dtype:
        """float64 for logits in float64, else float32."""
        return selection_dtype(self.logits)

    def rows(self, positions: Tensor | slice) -> Tensor:
        """(n, G) losses in nats of the points at ``positions``."""
        logits, targets = self.logits[positions], self.targets[positions]
        if logits.ndim == 3:
            return adjusted_joint_irreducible_loss(logits, targets, gradient_weight=self.gradient_weight)
        return adjusted_irreducible_loss(
            logits, targets, gradient_weight=self.gradient_weight, group_of_target=self.group_of_target
        )


def _tabulated(
    losses: PlainIrreducibleLoss | AdjustedIrreducibleLoss, targets: Tensor, *, kind: str
) -> IrreducibleTable:
    source = losses.source
    if not isinstance(source, TableLogits) or targets.shape != (len(source.table),):
        found = f"a table of {len(source.table)}" if isinstance(source, TableLogits) else type(source).__name__
        raise ValueError(
            "losses are tabulated from a table of logits of the points whose targets are given, "
            f"{tuple(targets.shape)}; got {found}. Give TableLogits and one target for each of its rows, or look the "
            "losses up as they are needed."
        )
    parts = []
    for index in torch.arange(len(targets)).split(_TABULATED_AT_ONCE):  # type: ignore[no-untyped-call]
        target = targets[index]
        parts.append(losses.lookup(Batch(index, None, target, target)))
    return IrreducibleTable(torch.cat(parts).numpy(), kind=kind)


_TABULATED_AT_ONCE = 2**14


def _check_group_of_target(groups: Tensor) -> None:
    is_integer = not (groups.is_floating_point() or groups.is_complex())
    if not is_integer or groups.ndim != 1 or not len(groups) or bool((groups.long() < 0).any()):
        raise ValueError(
            f"group_of_target must hold one integer of at least 0 for each class, (C,); got {groups.dtype} "
            f"{groups.tolist()}."
        )
