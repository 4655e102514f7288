"""Training of irreducible models as a LightningModule."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import lightning.pytorch as pl
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr.batch import Batch
from reducr.checks import check_gradient_weight
from reducr.functional import point_cross_entropy

WEIGHT_NORMALISATIONS = ("weights", "points")


class IrreducibleModule(pl.LightningModule):
    """Trains one irreducible model on the holdout set, by a weighted cross-entropy.

    With ``omega_i`` = gradient_weight for the points of ``gradient_weighted_class`` and 1 for all others, the loss of
    a batch is ``sum_i omega_i l_i / sum_i omega_i``. Validation runs on the training part of the target model,
    with the same weights: the published rule keeps the checkpoint whose loss there is lowest.

    Args:
        model: gives (B, K) logits, one for each outcome.
        optimizer: makes the optimiser from the model's parameters.
        outcome: the outcome (B,) that each point of a batch is trained on; its target, or its (target, group) pair.
        gradient_weighted_class: the group whose points weigh more; None for the plain model.
        gradient_weight: g >= 1.
        weight_normalisation: ``weights`` divides by the sum of the batch's weights (as the published runs did),
            ``points`` by its number of points (the paper's plain sum, up to the batch size).

    Raises:
        ValueError: if ``gradient_weight`` is below 1, or ``weight_normalisation`` is unknown.

    Source: REDUCR (arXiv 2312.00486), section 4.3.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        outcome: Callable[[Batch], Tensor],
        gradient_weighted_class: int | None = None,
        gradient_weight: float = 10.0,
        weight_normalisation: str = "weights",
    ) -> None:
        super().__init__()
        check_gradient_weight(gradient_weight)
        if weight_normalisation not in WEIGHT_NORMALISATIONS:
            raise ValueError(
                f"weight_normalisation must be one of {', '.join(WEIGHT_NORMALISATIONS)}; got {weight_normalisation!r}."
            )
        self.model = model
        self.make_optimizer = optimizer
        self.outcome = outcome
        self.gradient_weighted_class = gradient_weighted_class
        self.gradient_weight = gradient_weight
        self.weight_normalisation = weight_normalisation
        self._validation_sums = [0.0, 0.0]

    def configure_optimizers(self) -> Optimizer:
        """The optimiser of the model's parameters."""
        return self.make_optimizer(self.model.parameters())

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted mean loss of a holdout batch."""
        weighted_sum, normaliser = self._weighted_sum(Batch(*batch))
        return weighted_sum.div(normaliser)

    def on_validation_epoch_start(self) -> None:
        """Begin a pass over the training part."""
        self._validation_sums = [0.0, 0.0]

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the training part."""
        for place, value in enumerate(self._weighted_sum(Batch(*batch))):
            self._validation_sums[place] += float(value)

    def on_validation_epoch_end(self) -> None:
        """Log the weighted loss on the training part, which decides on the checkpoint."""
        weighted_sum, normaliser = self._validation_sums
        self.log("irreducible/loss_on_training_part", weighted_sum / normaliser, batch_size=1)

    def _weighted_sum(self, batch: Batch) -> tuple[Tensor, Tensor | int]:
        loss = point_cross_entropy(self.model(batch.input), self.outcome(batch))
        if self.gradient_weighted_class is None:
            return loss.sum(), len(loss)
        is_weighted = batch.group == self.gradient_weighted_class
        weights = 1 + (self.gradient_weight - 1) * is_weighted.to(loss.dtype)
        normaliser = weights.sum() if self.weight_normalisation == "weights" else len(loss)
        return (weights * loss).sum(), normaliser
