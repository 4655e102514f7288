"""Target training as a LightningModule: the loop of ``integrations.loop`` with metrics, logs and checkpoints."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr.batch import Batch, Selection
from reducr.functional import point_cross_entropy
from reducr.holdout import GroupHoldoutLoss
from reducr.metrics import ClassificationReport, summary
from reducr.selectors import Selector
from reducr.step import IrreducibleLookup, num_selected_of, pick, update_holdout_loss


class TargetModule(pl.LightningModule):
    """Trains a model on the selected part of every large batch.

    The Trainer's validation loop over the holdout set is the refresh of the group-holdout loss; before step 0 the
    module evaluates the holdout set itself. The selector is a submodule, so its state is in every checkpoint.

    Args:
        model: gives (B, C) logits.
        selector: the rule.
        irreducible: losses for the rules that need them.
        optimizer: makes the optimiser from the model's parameters.
        holdout: batches of the clean holdout set; must be what the Trainer validates on.
        num_classes: C.
        fraction: share of every large batch to train on, in (0, 1].
        scoring_mode: see ``step.pick``.
        holdout_decay: None to refresh the holdout loss at each validation; in (0, 1) to follow it with one holdout
            mini-batch per step as a moving average.
        seed: of the selector's draws.

    Raises:
        ValueError: if ``fraction`` is outside (0, 1] or ``holdout_decay`` outside (0, 1).
    """

    def __init__(
        self,
        model: nn.Module,
        selector: Selector,
        irreducible: IrreducibleLookup | None,
        *,
        optimizer: Callable[[Iterable[nn.Parameter]], Optimizer],
        holdout: Iterable[Batch],
        num_classes: int,
        fraction: float = 0.1,
        scoring_mode: str = "train",
        holdout_decay: float | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        num_selected_of(fraction, 1)
        if holdout_decay is not None and not 0 < holdout_decay < 1:
            raise ValueError(
                f"holdout_decay must be in (0, 1), or null to refresh at each validation; got {holdout_decay}."
            )
        self.model = model
        self.selector = selector
        self.irreducible = irreducible
        self.make_optimizer = optimizer
        self.holdout = holdout
        self.fraction = fraction
        self.scoring_mode = scoring_mode
        self.generator = torch.Generator().manual_seed(seed)
        self.holdout_loss = GroupHoldoutLoss(selector.num_groups)
        self.moving_holdout_loss = (
            None if holdout_decay is None else GroupHoldoutLoss(selector.num_groups, decay=holdout_decay)
        )
        self.holdout_report = ClassificationReport(num_classes=num_classes, num_groups=selector.num_groups)
        self.selection: Selection | None = None
        self.selected: Batch | None = None
        self.num_candidates_seen = 0
        self.num_selected_seen = 0
        self.selection_seconds = 0.0
        self.training_seconds = 0.0
        self._holdout_stream: Iterator[Batch] = iter(())
        self._training_from = 0.0

    def configure_optimizers(self) -> Optimizer:
        """The optimiser of the model's parameters."""
        return self.make_optimizer(self.model.parameters())

    def on_train_start(self) -> None:
        """Evaluate the holdout set before step 0; a resumed run has its holdout loss in the checkpoint."""
        if int(self.selector.step) == 0:
            update_holdout_loss(self.model, self._on_device(self.holdout), self.selector, self.holdout_loss)
            if self.moving_holdout_loss is not None:
                self.moving_holdout_loss.load_state_dict(self.holdout_loss.state_dict())
                self.moving_holdout_loss.rescale(len(next(iter(self.holdout)).target))
        self._holdout_stream = itertools.chain.from_iterable(itertools.repeat(self.holdout))

    def on_train_epoch_start(self) -> None:
        """Tell the sampler's schedules the epoch."""
        self.selector.set_epoch(self.current_epoch)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Pick the best part of the batch and return the model's mean loss on it."""
        started = time.perf_counter()
        batch = Batch(*batch)
        self.selected, self.selection = pick(
            self.model,
            batch,
            self.selector,
            self.irreducible,
            num_selected=num_selected_of(self.fraction, len(batch.target)),
            scoring_mode=self.scoring_mode,
            generator=self.generator,
        )
        self.num_candidates_seen += len(batch.target)
        self.num_selected_seen += len(self.selected.target)
        self._training_from = time.perf_counter()
        self.selection_seconds += self._training_from - started
        return F.cross_entropy(self.model(self.selected.input), self.selected.target)

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Update the selector after the gradient step, and log it."""
        self.training_seconds += time.perf_counter() - self._training_from
        selection, selected = self.selection, self.selected
        if selection is None or selected is None:
            return
        self.selector.update(selection)
        if self.moving_holdout_loss is not None:
            mini_batch = self._on_device([next(self._holdout_stream)])
            update_holdout_loss(self.model, mini_batch, self.selector, self.moving_holdout_loss)
        self._log_step(outputs["loss"], selection, selected)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a holdout batch to the group-holdout losses and accuracies."""
        batch = Batch(*batch)
        logits = self.model(batch.input)
        self.holdout_loss.update(point_cross_entropy(logits, batch.target), batch.group)
        self.holdout_report.update(logits, batch.target, batch.group)

    def on_validation_epoch_start(self) -> None:
        """Begin a pass over the holdout set."""
        self.holdout_loss.reset()
        self.holdout_report.reset()

    def on_validation_epoch_end(self) -> None:
        """Put the new group-holdout loss in force, and log accuracies on the holdout set."""
        if self.trainer.sanity_checking:
            return
        group_holdout_loss = self.holdout_loss.mean()
        if self.moving_holdout_loss is None:
            self.selector.set_group_holdout_loss(group_holdout_loss)
        report = self.holdout_report.compute()
        # monitored by the checkpoint callbacks
        self.log_dict({f"holdout/{name}": value for name, value in summary(report).items()}, logger=False, batch_size=1)
        self._log(
            {f"holdout/{name}": value for name, value in summary(report).items()}
            | _by_group("holdout/group_loss", group_holdout_loss)
            | _by_group("holdout/group_accuracy", report["group_accuracy"])
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add the state of the selector's draws."""
        checkpoint["reducr_generator"] = self.generator.get_state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the selector's draws."""
        if "reducr_generator" in checkpoint:
            self.generator.set_state(checkpoint["reducr_generator"])

    def _on_device(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        return (Batch(*batch).to(self.device) for batch in batches)

    def _log_step(self, loss: Tensor, selection: Selection, selected: Batch) -> None:
        metrics: dict[str, Any] = {
            "train/loss": loss,
            "train/epoch": self.current_epoch,
            "select/fraction": len(selection.positions) / len(selection.scores),
            "select/num_non_finite": self.selector.num_non_finite,
            "select/mean_score": selection.scores[selection.positions].mean(),
            "time/selection_seconds": self.selection_seconds,
            "time/training_seconds": self.training_seconds,
        }
        counts = torch.bincount(selected.group, minlength=self.selector.num_groups)
        self._log(
            metrics
            | _by_group("select/group_count", counts)
            | _by_group("group_weight", self.selector.group_weights)
            | _by_group("cumulative_payoff", self.selector.cumulative_payoff)
        )

    def _log(self, metrics: dict[str, Any]) -> None:
        values = {name: value.item() if isinstance(value, Tensor) else value for name, value in metrics.items()}
        for logger in self.trainer.loggers:
            logger.log_metrics(values, step=self.trainer.global_step)


def _by_group(name: str, values: Tensor) -> dict[str, float]:
    return {f"{name}/{group}": value for group, value in enumerate(values.tolist())}
