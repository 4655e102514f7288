"""Losses from the logits of ONE irreducible model: its own, or every group's in closed form."""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

from reducr.batch import Batch
from reducr.checks import check_gradient_weight
from reducr.functional import (
    adjusted_irreducible_loss,
    adjusted_joint_irreducible_loss,
    point_cross_entropy,
)


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
        logits = self.source.logits(batch)
        return point_cross_entropy(logits if logits.ndim == 2 else logits.logsumexp(dim=2), batch.target)


class AdjustedIrreducibleLoss:
    """Every group-irreducible loss in closed form from one model (see ``functional.adjusted_irreducible_loss``).

    C times cheaper to train, to evaluate and to store than one trained model per group.

    Args:
        source: of (B, C) logits where groups follow from targets, or (B, C, G) logits of a joint model where they
            do not.
        gradient_weight: g >= 1, the weight that a group's own irreducible model would have been trained with.
        group_of_target: (C,) the group of each target; None where groups are the targets, and for joint logits.

    Raises:
        ValueError: if ``gradient_weight`` is below 1.

    Source: docs/method.md section 4; deviation from arXiv 2312.00486 explained in docs/deviations.md.
    """

    def __init__(
        self, source: LogitSource, *, gradient_weight: float = 10.0, group_of_target: Tensor | None = None
    ) -> None:
        check_gradient_weight(gradient_weight)
        self.source = source
        self.gradient_weight = gradient_weight
        self.group_of_target = group_of_target

    def lookup(self, batch: Batch) -> Tensor:
        """(B, G) nats."""
        logits = self.source.logits(batch)
        if logits.ndim == 3:
            return adjusted_joint_irreducible_loss(logits, batch.target, gradient_weight=self.gradient_weight)
        return adjusted_irreducible_loss(
            logits, batch.target, gradient_weight=self.gradient_weight, group_of_target=self.group_of_target
        )
