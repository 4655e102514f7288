"""What irreducible models are trained to minimise."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from reducr._internal.checks import check_gradient_weight
from reducr.batch import Batch
from reducr.batch.model_output import model_output
from reducr.functional import per_example_cross_entropy

WEIGHT_NORMALISATIONS = ("weights", "points")


class IrreducibleObjective:
    """The weighted cross-entropy of an irreducible model, or of one head for every group.

    With ``omega_ic`` = gradient_weight for the points of group c and 1 for all others, the loss of head c on a batch
    is ``sum_i omega_ic l_ic / sum_i omega_ic``; the plain model has no weights.

    Args:
        outcome: the outcome (B,) that each point of a batch is trained on; its target, or its (target, group) pair.
        weighted_groups: the group of each head of the model, or of its only one; None for the plain model.
        gradient_weight: g >= 1.
        weight_normalisation: ``weights`` divides by the sum of the batch's weights (as the published runs did),
            ``points`` by its number of points (the paper's plain sum, up to the batch size).

    Raises:
        ValueError: if ``gradient_weight`` is below 1, or ``weight_normalisation`` is unknown.

    Source: REDUCR (arXiv 2312.00486), section 4.3.
    """

    def __init__(
        self,
        outcome: Callable[[Batch], Tensor],
        *,
        weighted_groups: Sequence[int] | None = None,
        gradient_weight: float = 10.0,
        weight_normalisation: str = "weights",
    ) -> None:
        check_gradient_weight(gradient_weight)
        if weight_normalisation not in WEIGHT_NORMALISATIONS:
            raise ValueError(
                f"weight_normalisation must be one of {', '.join(WEIGHT_NORMALISATIONS)}; got {weight_normalisation!r}."
            )
        self.outcome = outcome
        self.weighted_groups = None if weighted_groups is None else torch.tensor(list(weighted_groups))
        self.gradient_weight = gradient_weight
        self.weight_normalisation = weight_normalisation

    def sums(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """The weighted sum of the losses on ``batch``, and what it is to be divided by, each () or (H,) for H heads."""
        logits, outcome = model_output(model, batch.input), self.outcome(batch)
        if logits.ndim == 2:
            loss = per_example_cross_entropy(logits, outcome)
        else:
            size, num_heads = logits.shape[:2]
            loss = per_example_cross_entropy(logits.flatten(0, 1), outcome.repeat_interleave(num_heads)).reshape(
                size, -1
            )
        if self.weighted_groups is None:
            return loss.sum(), len(loss)
        groups = self.weighted_groups.to(batch.group.device)
        is_weighted = batch.group.unsqueeze(1) == groups if loss.ndim == 2 else batch.group == groups
        weights = 1 + (self.gradient_weight - 1) * is_weighted.to(loss.dtype)
        normaliser = weights.sum(dim=0) if self.weight_normalisation == "weights" else len(loss)
        return (weights * loss).sum(dim=0), normaliser

    def __call__(self, model: nn.Module, batch: Batch) -> Tensor:
        """The loss on ``batch``, summed over the heads: each then learns as it would alone."""
        weighted_sum, normaliser = self.sums(model, batch)
        return weighted_sum.div(normaliser).sum()
