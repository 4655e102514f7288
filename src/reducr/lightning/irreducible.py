"""LightningModule that trains reference models (the paper's irreducible models)."""

from __future__ import annotations

import time
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr._internal.rng import random_state, set_random_state
from reducr.auxiliary import MakeOptimizer
from reducr.batch import Batch
from reducr.irreducible import IrreducibleObjective


class IrreducibleModule(pl.LightningModule):
    """Train one reference model, or one head per group at once, on clean data.

    Validation runs on the target model's training part with the same weights, because the published rule keeps the
    checkpoint with the lowest loss there.

    Args:
        model: returns (B, K) logits for K labels, or (B, H, K) logits of H heads.
        objective: the loss to minimise.
        optimizer: builds the optimiser from the model's parameters.
        augment: random augmentation of training inputs; None for none.
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
        """() or (H,) loss of the last validation, in nats; None before the first."""
        self.earlier_seconds = 0.0
        """Wall-clock seconds of this training before it was interrupted."""
        self._started = time.perf_counter()
        self._random_state: dict[str, Any] | None = None
        self._validation_sums: tuple[Tensor | float, Tensor | float] = (0.0, 0.0)

    def configure_optimizers(self) -> Optimizer:
        """Build the optimiser of the model's parameters."""
        return self.make_optimizer(self.model.parameters())

    def on_train_start(self) -> None:
        """Restore the random states of a resumed training."""
        if self._random_state is not None:
            set_random_state(self._random_state)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add random states and seconds for a resumed training."""
        seconds = self.earlier_seconds + time.perf_counter() - self._started
        checkpoint["reducr"] = {"random": random_state(), "seconds": seconds}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Read random states and seconds of a resumed training."""
        self._random_state = checkpoint["reducr"]["random"]
        self.earlier_seconds = checkpoint["reducr"]["seconds"]

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The weighted mean loss of a batch, in nats."""
        batch = Batch(*batch)
        if self.augment is not None:
            batch = batch._replace(input=self.augment(batch.input))
        return self.objective(self.model, batch)

    def on_validation_epoch_start(self) -> None:
        """Reset the sums over the training part."""
        self._validation_sums = (0.0, 0.0)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a batch of the training part to the sums."""
        sums = self.objective.sums(self.model, Batch(*batch))
        weighted_sum, normaliser = (
            total + (value.double() if isinstance(value, Tensor) else value)
            for total, value in zip(self._validation_sums, sums, strict=True)
        )
        self._validation_sums = (weighted_sum, normaliser)

    def on_validation_epoch_end(self) -> None:
        """Log the weighted loss on the training part, by which the checkpoint is chosen; keep the loss of each head."""
        weighted_sum, normaliser = self._validation_sums
        self.loss_on_training_part = torch.as_tensor(weighted_sum / normaliser).cpu()
        self.log("irreducible/loss_on_training_part", self.loss_on_training_part.mean().float(), batch_size=1)
