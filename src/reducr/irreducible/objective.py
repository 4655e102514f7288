"""Training objective of reference models."""

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
    """Weighted cross-entropy of a reference model (the paper's irreducible model) with one head per weighted group.

    The loss of head c on a batch is ``sum_i omega_ic l_ic / sum_i omega_ic``, where ``omega_ic`` is ``gradient_weight``
    for examples of group c and 1 for all others. The plain model has no weights.

    Args:
        labels: gives the (B,) int64 labels of a batch, such as its targets; see ``JointLabels.labels``.
        weighted_groups: the group of each head, or of the only one; None for the plain model.
        gradient_weight: g >= 1.
        weight_normalisation: ``weights`` divides by the sum of the batch's weights (as the published runs did),
            ``points`` by its number of examples (the paper's plain sum, up to the batch size).

    Raises:
        ValueError: if ``gradient_weight`` is below 1, or ``weight_normalisation`` is unknown.

    Source: REDUCR (arXiv 2312.00486), section 4.3.
    """

    def __init__(
        self,
        labels: Callable[[Batch], Tensor],
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
        self.labels = labels
        self.weighted_groups = None if weighted_groups is None else torch.tensor(list(weighted_groups))
        self.gradient_weight = gradient_weight
        self.weight_normalisation = weight_normalisation

    def sums(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor | int]:
        """The weighted sum of the losses on ``batch`` and its normaliser, each () or, for H heads, (H,)."""
        logits, labels = model_output(model, batch.input), self.labels(batch)
        if logits.ndim == 2:
            loss = per_example_cross_entropy(logits, labels)
        else:
            size, num_heads = logits.shape[:2]
            loss = per_example_cross_entropy(logits.flatten(0, 1), labels.repeat_interleave(num_heads)).reshape(
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
        """The loss on ``batch``, summed over the heads; the gradient of each head is that of its own loss."""
        weighted_sum, normaliser = self.sums(model, batch)
        return weighted_sum.div(normaliser).sum()
