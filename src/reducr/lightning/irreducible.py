"""Training of irreducible models as a LightningModule."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr._internal.rng import random_state, set_random_state
from reducr.batch import Batch
from reducr.irreducible import IrreducibleObjective
from reducr.training.auxiliary import MakeOptimizer


class IrreducibleModule(pl.LightningModule):
    """Trains one irreducible model, or one head for every group at once, on clean data.

    Validation runs on the training part of the target model, with the same weights: the published rule keeps the
    checkpoint whose loss there is lowest.

    Args:
        model: gives (B, K) logits, one for each outcome, or (B, H, K) of H heads.
        objective: what it minimises.
        optimizer: makes the optimiser from the model's parameters.
        augment: random changes of the inputs trained on; None for none.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        objective: IrreducibleObjective,
        optimizer: MakeOptimizer,
        augment: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.objective = objective
        self.make_optimizer = optimizer
        self.augment = augment
        self.loss_on_training_part: Tensor | None = None
        self.earlier_seconds = 0.0
        """Wall-clock of the parts of this training before interruptions."""
        self._started = time.perf_counter()
        self._random_state: dict[str, Any] | None = None
        self._validation_sums: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)

    def configure_optimizers(self) -> Optimizer:
        """The optimiser of the model's parameters."""
        return self.make_optimizer(self.model.parameters())

    def on_train_start(self) -> None:
        """Go on with the random states that a resumed training had."""
        if self._random_state is not None:
            set_random_state(self._random_state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what a resumed training needs beside parameters and the optimiser."""
        seconds = self.earlier_seconds + time.perf_counter() - self._started
        checkpoint["reducr"] = {"random": random_state(), "seconds": seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there."""
        self._random_state = checkpoint["reducr"]["random"]
        self.earlier_seconds = checkpoint["reducr"]["seconds"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted mean loss of a batch."""
        batch = Batch(*batch)
        if self.augment is not None:
            batch = batch._replace(input=self.augment(batch.input))
        return self.objective(self.model, batch)

    def on_validation_epoch_start(self) -> None:
        """Begin a pass over the training part."""
        self._validation_sums = (0.0, 0.0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the training part."""
        sums = self.objective.sums(self.model, Batch(*batch))
        first, second = (
            total + (value.double() if isinstance(value, Tensor) else value)
            for total, value in zip(self._validation_sums, sums, strict=True)
        )
        self._validation_sums = (first, second)

    def on_validation_epoch_end(self) -> None:
        """Log the weighted loss on the training part, which decides on the checkpoint; heads are kept apart too."""
        weighted_sum, normaliser = self._validation_sums
        self.loss_on_training_part = torch.as_tensor(weighted_sum / normaliser).cpu()
        self.log("irreducible/loss_on_training_part", self.loss_on_training_part.mean().float(), batch_size=1)
