"""Target training as a LightningModule: the plain loop with metrics, logs and checkpoints."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr._internal.rng import random_state, set_random_state
from reducr.auxiliary import MakeOptimizer, selected_loss
from reducr.batch import Batch, Selection
from reducr.batch.report import by_group
from reducr.downsampler import Downsampler
from reducr.metrics import ClassificationReport, summary
from reducr.selectors import Selector


class TargetModule(pl.LightningModule):
    """Train a model on the selected part of every large batch.

    The Trainer's validation loop over the holdout set is the refresh of the group-holdout loss; before step 0 the
    module evaluates the holdout set itself. The selector is a submodule, so its state is in every checkpoint.

    Args:
        model: returns logits (B, C).
        downsampler: the selection. Its holdout set must be what the Trainer validates on, whose validations take the
            place of its refreshes.
        optimizer: makes the optimizer from the model's parameters.
        num_classes: C.
        augment: random changes of the candidates' inputs, on the device, before they are scored.
        test: batches of the test part, on which accuracies are logged at every validation; None for no such logs. No
            seconds count this.
    """

    selector: Selector

    def __init__(
        self,
        model: nn.Module,
        downsampler: Downsampler,
        *,
        optimizer: MakeOptimizer,
        num_classes: int,
        augment: nn.Module | None = None,
        test: Iterable[Batch] | None = None,
    ) -> None:
        super().__init__()
        self.model = model
        self.downsampler = downsampler
        downsampler.holdout.is_refreshed_by_validation = True
        for name, module in downsampler.stateful_modules().items():
            self.add_module(name, module)
        self.auxiliary_modules = nn.ModuleList(auxiliary.model for auxiliary in downsampler.auxiliary.models)
        # DistributedDataParallel would copy those of rank 0 to all others, whose sums are their own
        own_state = (*downsampler.stateful_modules(), "auxiliary_modules")
        tensors = [*self.named_buffers(), *self.named_parameters()]
        self._ddp_params_and_buffers_to_ignore = [name for name, _ in tensors if name.startswith(own_state)]
        self.make_optimizer = optimizer
        self.augment = augment
        self.test = test
        num_groups = downsampler.selector.num_groups
        self.holdout_report = ClassificationReport(num_classes=num_classes, num_groups=num_groups)
        self._test_report = ClassificationReport(num_classes=num_classes, num_groups=num_groups)
        self.loss = torch.tensor(torch.nan)
        self.training_seconds = 0.0
        self.earlier_seconds = 0.0
        """Wall-clock seconds of the parts of this training before interruptions."""
        self.test_seconds = 0.0
        """Wall-clock seconds of tests since the last interruption, which no other seconds include."""
        self._training_from = 0.0
        self._started = time.perf_counter()
        self._random_state: dict[str, Any] | None = None

    def configure_optimizers(self) -> Optimizer:
        """The optimizer of the target model."""
        return self.make_optimizer(self.model.parameters())

    def on_fit_start(self) -> None:
        """Start the clock of the training, which its caller measures too."""
        self._started = time.perf_counter()

    def on_train_start(self) -> None:
        """Evaluate the holdout set before step 0; a resumed run has its holdout loss in the checkpoint."""
        with self.trainer.precision_plugin.forward_context():
            self.downsampler.prepare(self.model)
        if self._random_state is not None:
            set_random_state(self._random_state)

    @property
    def holdout_batches(self) -> Iterable[Batch]:
        """What the Trainer validates on."""
        return self.downsampler.holdout.batches

    @property
    def selection(self) -> Selection | None:
        """The last selection."""
        return self.downsampler.selection

    @property
    def selected(self) -> Batch | None:
        """The selected examples of the last batch, without extra ones."""
        return self.downsampler.selected

    @property
    def epoch(self) -> int:
        """Epoch of the current step. Lightning's own count is one too high after a resume at the end of an epoch."""
        return int(self.trainer.global_step // self.trainer.num_training_batches)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Select the best part of the batch and return the model's mean loss on it."""
        started = time.perf_counter()
        self.downsampler.selector.set_epoch(self.epoch)
        batch = Batch(*batch)
        if self.augment is not None:
            batch = batch._replace(input=self.augment(batch.input))
            self.downsampler.seconds["selection_seconds"] += time.perf_counter() - started
        selected = self.downsampler.select(batch, self.model)
        self._training_from = time.perf_counter()
        loss = selected_loss(self.model, selected, self.downsampler.example_weights)
        self.loss = loss.detach()
        return loss * self.downsampler.loss_weight

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Update the selector after the gradient step, and log it."""
        self.training_seconds += time.perf_counter() - self._training_from
        with self.trainer.precision_plugin.forward_context():
            self.downsampler.step(self.model)
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a part of the Trainer
        if self.trainer.loggers and every and self.trainer.global_step % every == 0:
            self._log(
                {
                    "train/loss": self.loss.item(),
                    "train/epoch": (self.trainer.global_step - 1) // self.trainer.num_training_batches,
                    "time/training_seconds": self.training_seconds,
                }
                | self.downsampler.metrics()
            )

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a holdout batch to the group-holdout losses and accuracies."""
        batch = Batch(*batch)
        logits = self.model(batch.input)
        self.downsampler.holdout.add(logits, batch)
        self.holdout_report.update(logits, batch.target, batch.group)

    def on_validation_epoch_start(self) -> None:
        """Begin a pass over the holdout set."""
        self.downsampler.holdout.loss.reset()
        self.holdout_report.reset()

    def on_validation_epoch_end(self) -> None:
        """Put the new group-holdout loss in force, and log accuracies on the holdout set."""
        if self.trainer.sanity_checking:
            return
        group_holdout_loss = self.downsampler.holdout.end_pass()
        report = self.holdout_report.compute()
        accuracies = {f"holdout/{name}": value for name, value in summary(report).items()}
        # the checkpoint callbacks monitor them
        self.log_dict(accuracies, logger=False, batch_size=1, sync_dist=self.downsampler.distributed is not None)
        self._log(
            accuracies
            | by_group("holdout/group_loss", group_holdout_loss)
            | by_group("holdout/group_accuracy", report["group_accuracy"])
            | self._test_accuracies()
            | {"time/target_seconds": self._seconds}
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add everything that a resumed training needs beside parameters, buffers and the optimizer."""
        checkpoint["reducr"] = self.downsampler.progress() | {
            "random": random_state(),
            "target_seconds": self._seconds,
            "training_seconds": self.training_seconds,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore counters and generators now, and global random states when the first step begins."""
        state = checkpoint["reducr"]
        if "counts" not in state:
            state = _current_progress(state, num_steps=checkpoint["global_step"], num_groups=self.selector.num_groups)
        self.downsampler.load_progress(state)
        self.earlier_seconds, self.training_seconds = state["target_seconds"], state["training_seconds"]
        self._random_state = state["random"]

    @property
    def _seconds(self) -> float:
        """Wall-clock seconds of this training so far."""
        return self.earlier_seconds + time.perf_counter() - self._started - self.test_seconds

    def _test_accuracies(self) -> dict[str, float]:
        """Accuracies on the test part, if they are wanted; the model is in eval mode, as in all of a validation."""
        if self.test is None:
            return {}
        started = time.perf_counter()
        self._test_report.reset()
        for batch in self.test:
            own = Batch(*batch).to(self.device)
            self._test_report.update(self.model(own.input), own.target, own.group)
        accuracies = {f"test/{name}": value for name, value in summary(self._test_report.compute()).items()}
        self.test_seconds += time.perf_counter() - started
        return accuracies

    def _log(self, metrics: dict[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)


def _current_progress(state: dict[str, Any], *, num_steps: int, num_groups: int) -> dict[str, Any]:
    """The progress in a checkpoint of the time before ``Downsampler`` kept it."""
    seen = {"num_candidates": state["num_candidates_seen"], "num_selected": state["num_selected_seen"]}
    return {
        "generator": state["generator"],
        "waiting": [],
        "counts": {"num_steps": num_steps, "num_batches": num_steps} | seen,
        "seconds": {"selection_seconds": state["selection_seconds"], "holdout_seconds": 0.0},
        "group_counts": torch.zeros(num_groups, dtype=torch.int64),
        "step_counts": torch.zeros(num_groups, dtype=torch.int64),
        "random": state["random"],
        "target_seconds": state["seconds"],
        "training_seconds": state["training_seconds"],
    }
