"""Target training as a LightningModule: the loop of ``training.loop`` with metrics, logs and checkpoints."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr._internal.distributed import all_reduce_sum, check_mode, check_mode_name, num_ranks
from reducr._internal.rng import random_state, set_random_state
from reducr.batch import Batch, Selection
from reducr.metrics import ClassificationReport, summary
from reducr.scoring.budget import ScoringBudget, ScoringForward, check_budget, check_compiled
from reducr.scoring.holdout import GroupHoldoutLoss
from reducr.scoring.scorer import IrreducibleLookup, holdout_losses, num_selected_of, pick, update_holdout_loss
from reducr.selectors import Selector
from reducr.training.auxiliary import (
    AuxiliaryModel,
    ExtraBatches,
    MakeOptimizer,
    joint_optimizer,
    selected_loss,
    total_loss,
)

_COUNTERS = (
    "num_candidates_seen",
    "num_selected_seen",
    "selection_seconds",
    "training_seconds",
    "_num_mini_batches",
)


class TargetModule(pl.LightningModule):
    """Trains a model on the selected part of every large batch.

    The Trainer's validation loop over the holdout set is the refresh of the group-holdout loss; before step 0 the
    module evaluates the holdout set itself. The selector is a submodule, so its state is in every checkpoint.

    Args:
        model: gives (B, C) logits.
        selector: the rule.
        irreducible: losses for the rules that need them.
        optimizer: makes the optimiser from the parameters.
        holdout: batches of the clean holdout set; must be what the Trainer validates on.
        num_classes: C.
        fraction: share of every large batch to train on, in (0, 1].
        scoring_mode: see ``step.pick``.
        autocast: bfloat16 or float16, in which candidates are scored; None for the Trainer's precision.
        scoring_compile: candidates are scored through ``torch.compile``.
        scoring_resolution: share of an image's height and width that is left for scoring, in (0, 1).
        scoring_budget: scores only the part of the candidates that could be selected; its memory is in checkpoints.
        holdout_decay: None to refresh the holdout loss at each validation; in (0, 1) to follow it with one holdout
            mini-batch per step as a moving average.
        augment: random changes of the candidates' inputs, on the device, before they are scored.
        proxy: scores in the place of ``model``; one of the auxiliary_models.
        auxiliary_models: models that learn from the same selected points.
        extra_batches: batches of other points, such as holdout points, one of which joins the selected points in every
            gradient step; iterated again at its end.
        distributed: on several ranks ``global`` or ``local``; see docs/loops.md. ``holdout`` is then this
            rank's part of the holdout set, and ``test`` of the test part.
        test: batches of the test part, on which accuracies are logged at every validation; None for not at all. What it
            takes is not counted in any seconds.
        seed: of the selector's draws; the same on all ranks.

    Raises:
        ValueError: if ``fraction`` is outside (0, 1] or ``holdout_decay`` outside (0, 1), or ``extra_batches`` is given
            on several ranks.
    """

    def __init__(
        self,
        model: nn.Module,
        selector: Selector,
        irreducible: IrreducibleLookup | None,
        *,
        optimizer: MakeOptimizer,
        holdout: Iterable[Batch],
        num_classes: int,
        fraction: float = 0.1,
        scoring_mode: str = "train",
        autocast: torch.dtype | None = None,
        scoring_compile: bool = False,
        scoring_resolution: float | None = None,
        scoring_budget: ScoringBudget | None = None,
        holdout_decay: float | None = None,
        augment: nn.Module | None = None,
        proxy: nn.Module | None = None,
        auxiliary_models: Sequence[AuxiliaryModel] = (),
        extra_batches: Iterable[Batch] | None = None,
        distributed: str | None = None,
        test: Iterable[Batch] | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        num_selected_of(fraction, 1)
        check_mode_name(distributed)
        check_budget(scoring_budget, selector, fraction=fraction, distributed=distributed)
        check_compiled(selector, scoring_compile)
        if extra_batches is not None and distributed is not None:
            raise ValueError(
                "points beside the selected ones (holdout_fraction) are for one process in this version: leave "
                f"distributed={distributed!r} out, or those points."
            )
        if holdout_decay is not None and not 0 < holdout_decay < 1:
            raise ValueError(
                f"holdout_decay must be in (0, 1), or null to refresh at each validation; got {holdout_decay}."
            )
        self.model = model
        self.selector = selector
        self.irreducible = irreducible
        self.make_optimizer = optimizer
        self.augment = augment
        self._forward = ScoringForward(
            model if proxy is None else proxy,
            scoring_mode=scoring_mode,
            autocast=autocast,
            is_compiled=scoring_compile,
            resolution=scoring_resolution,
        )
        self.scoring_budget = scoring_budget
        self.auxiliary_models = tuple(auxiliary_models)
        self.auxiliary_modules = nn.ModuleList(auxiliary_model.model for auxiliary_model in auxiliary_models)
        self.holdout = holdout
        self.extra_batches = extra_batches
        self.fraction = fraction
        self.scoring_mode = scoring_mode
        self.distributed = distributed
        self.generator = torch.Generator().manual_seed(seed)
        self.holdout_loss = GroupHoldoutLoss(selector.num_groups)
        self.moving_holdout_loss = (
            None if holdout_decay is None else GroupHoldoutLoss(selector.num_groups, decay=holdout_decay)
        )
        self.holdout_report = ClassificationReport(num_classes=num_classes, num_groups=selector.num_groups)
        self.test = test
        self._test_report = ClassificationReport(num_classes=num_classes, num_groups=selector.num_groups)
        self.selection: Selection | None = None
        self.selected: Batch | None = None
        self.loss = torch.tensor(torch.nan)
        self.num_candidates_seen = 0
        self.num_selected_seen = 0
        self.selection_seconds = 0.0
        self.training_seconds = 0.0
        self.earlier_seconds = 0.0
        """Wall-clock of the parts of this training before interruptions."""
        self.test_seconds = 0.0
        """Wall-clock of tests since the last interruption, which no other seconds have in them."""
        self._num_mini_batches = 0
        # DistributedDataParallel would put those of rank 0 into all others, whose sums are their own
        own_state = ("selector", "holdout_loss", "moving_holdout_loss")
        self._ddp_params_and_buffers_to_ignore = [
            name for name, _ in self.named_buffers() if name.startswith(own_state)
        ]
        self._holdout_stream: Iterator[Batch] = iter(())
        self._others: ExtraBatches | None = None
        self._training_from = 0.0
        self._started = time.perf_counter()
        self._random_state: dict[str, Any] | None = None

    def configure_optimizers(self) -> Optimizer:
        """One optimiser of the model and all auxiliary_models."""
        return joint_optimizer(self.make_optimizer, self.model, self.auxiliary_models)

    def on_train_start(self) -> None:
        """Evaluate the holdout set before step 0; a resumed run has its holdout loss in the checkpoint."""
        check_mode(self.distributed)
        if int(self.selector.step) == 0:
            self._update_holdout_loss(self.holdout, self.holdout_loss)
            if self.moving_holdout_loss is not None:
                self.moving_holdout_loss.load_state_dict(self.holdout_loss.state_dict())
                self.moving_holdout_loss.rescale(len(next(iter(self.holdout)).target), sync=self._sync)
        stream = itertools.chain.from_iterable(itertools.repeat(self.holdout))
        self._holdout_stream = itertools.islice(stream, self._num_mini_batches, None)
        if self.extra_batches is not None:
            first_step = int(self.selector.step)
            self._others = ExtraBatches(self.extra_batches, augment=self.augment, first_step=first_step)
        if self._random_state is not None:
            set_random_state(self._random_state)

    @property
    def epoch(self) -> int:
        """Of the step at hand. Lightning's own count is one too high after a resume at the end of an epoch."""
        return int(self.trainer.global_step // self.trainer.num_training_batches)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Pick the best part of the batch and return the model's mean loss on it."""
        started = time.perf_counter()
        self.selector.set_epoch(self.epoch)
        batch = Batch(*batch)
        if self.augment is not None:
            batch = batch._replace(input=self.augment(batch.input))
        self.selected, self.selection = pick(
            self._forward.model,
            batch,
            self.selector,
            self.irreducible,
            num_selected=partial(num_selected_of, self.fraction),
            scoring_mode=self.scoring_mode,
            forward=self._forward,
            budget=self.scoring_budget,
            generator=self.generator,
            distributed=self.distributed,
        )
        self._training_from = time.perf_counter()
        self.selection_seconds += self._training_from - started
        trained_on = self.selected if self._others is None else self._others.append_to(self.selected)
        loss = selected_loss(self.model, trained_on, self.selection.example_weights)
        self.loss = loss.detach()
        return total_loss(loss, self.auxiliary_models, trained_on) * self.selection.loss_weight

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Update the selector after the gradient step, and log it."""
        self.training_seconds += time.perf_counter() - self._training_from
        selection, selected = self.selection, self.selected
        if selection is None or selected is None:
            return
        self.selector.update(selection)
        if self.moving_holdout_loss is not None:
            self._num_mini_batches += 1
            self._update_holdout_loss([next(self._holdout_stream)], self.moving_holdout_loss)
        counts = [0 if selection.is_dummy else len(selection.positions), len(selection.scores)]
        num_selected, num_candidates = counts if num_ranks() == 1 else all_reduce_sum(torch.tensor(counts)).tolist()
        self.num_selected_seen += num_selected
        self.num_candidates_seen += num_candidates
        every: int = self.trainer.log_every_n_steps  # type: ignore[attr-defined]  # set by a part of the Trainer
        if self.trainer.loggers and every and self.trainer.global_step % every == 0:
            self._log_step(selection, selected, fraction=num_selected / num_candidates)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Add a holdout batch to the group-holdout losses and accuracies."""
        batch = Batch(*batch)
        logits = self.model(batch.input)
        self.holdout_loss.update(holdout_losses(self.selector, logits, batch.target), batch.group)
        self.holdout_report.update(logits, batch.target, batch.group)

    def on_validation_epoch_start(self) -> None:
        """Begin a pass over the holdout set."""
        self.holdout_loss.reset()
        self.holdout_report.reset()

    def on_validation_epoch_end(self) -> None:
        """Put the new group-holdout loss in force, and log accuracies on the holdout set."""
        if self.trainer.sanity_checking:
            return
        group_holdout_loss = self.holdout_loss.mean(sync=self._sync)
        if self.moving_holdout_loss is None:
            self.selector.set_group_holdout_loss(group_holdout_loss)
        report = self.holdout_report.compute()
        # monitored by the checkpoint callbacks
        self.log_dict(
            {f"holdout/{name}": value for name, value in summary(report).items()},
            logger=False,
            batch_size=1,
            sync_dist=self._sync,
        )
        self._log(
            {f"holdout/{name}": value for name, value in summary(report).items()}
            | _by_group("holdout/group_loss", group_holdout_loss)
            | _by_group("holdout/group_accuracy", report["group_accuracy"])
            | self._tested()
            | {"time/target_seconds": self._seconds}
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add all that a resumed training needs beside parameters, buffers and the optimiser."""
        checkpoint["reducr"] = {
            "generator": self.generator.get_state(),
            "random": random_state(),
            "seconds": self._seconds,
        } | {name: getattr(self, name) for name in _COUNTERS}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there: counters and draws now, global random states when the first step begins."""
        state = checkpoint["reducr"]
        self.generator.set_state(state["generator"])
        self.earlier_seconds = state["seconds"]
        self._random_state = state["random"]
        for name in _COUNTERS:
            setattr(self, name, state[name])

    @property
    def _sync(self) -> bool:
        return self.distributed is not None

    @property
    def _seconds(self) -> float:
        """Wall-clock of this training so far."""
        return self.earlier_seconds + time.perf_counter() - self._started - self.test_seconds

    def _tested(self) -> dict[str, float]:
        """Accuracies on the test part, if they are wanted; the model is in eval mode, as in all of a validation."""
        if self.test is None:
            return {}
        started = time.perf_counter()
        self._test_report.reset()
        for batch in self._on_device(self.test):
            self._test_report.update(self.model(batch.input), batch.target, batch.group)
        tested = {f"test/{name}": value for name, value in summary(self._test_report.compute()).items()}
        self.test_seconds += time.perf_counter() - started
        return tested

    def _update_holdout_loss(self, batches: Iterable[Batch], holdout_loss: GroupHoldoutLoss) -> None:
        on_device = self._on_device(batches)
        update_holdout_loss(self.model, on_device, self.selector, holdout_loss, sync=self._sync)

    def _on_device(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        return (Batch(*batch).to(self.device) for batch in batches)

    def _log_step(self, selection: Selection, selected: Batch, *, fraction: float) -> None:
        own = selected.group[:0] if selection.is_dummy else selected.group
        counts = all_reduce_sum(torch.bincount(own, minlength=self.selector.num_groups))
        self._log(
            {
                "train/loss": self.loss.item(),
                "train/epoch": (self.trainer.global_step - 1) // self.trainer.num_training_batches,
                "select/fraction": fraction,
                "select/num_non_finite": self.selector.num_non_finite.item(),
                "select/mean_score": selection.scores[selection.positions].mean().item(),
                "time/selection_seconds": self.selection_seconds,
                "time/training_seconds": self.training_seconds,
            }
            | _by_group("select/group_count", counts)
            | _by_group("group_weight", self.selector.group_weights)
            | _by_group("cumulative_payoff", self.selector.cumulative_payoff)
        )

    def _log(self, metrics: dict[str, float]) -> None:
        for logger in self.trainer.loggers:
            logger.log_metrics(metrics, step=self.trainer.global_step)


def _by_group(name: str, values: Tensor) -> dict[str, float]:
    return {f"{name}/{group}": value for group, value in enumerate(values.tolist())}
