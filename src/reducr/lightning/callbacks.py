"""Callbacks of both stages: what was selected, checkpoints to test and to go on from, progress."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn

from reducr._internal.distributed import all_gather, is_main_rank, num_ranks
from reducr._internal.files import replaced_atomically
from reducr.batch import Batch
from reducr.training.checkpoints import Checkpoints

_OF_POINTS = ("num_times_selected", "num_times_scored", "score_sum")


class SelectionRecorder(pl.Callback):
    """Writes which points were selected at every step, how often each was, and how each was scored.

    ``selected.npz`` holds ``index`` (steps, b) int64, rows of a shorter selection filled up with -1, and of each point
    ``num_times_selected`` (N,) int64, ``num_times_scored`` (N,) int64 (how often it was a candidate with a finite
    score) and ``score_sum`` (N,) float64, the sum of these scores. It is written with every whole checkpoint, which one
    at the end is, and when training stops on an error. Of several ranks that stop on an error, the scores are those up
    to the last validation or checkpoint.

    A step costs the same however many points and steps there are, and waits for no accelerator: indices and scores stay
    on the device until the next validation.

    Args:
        path: of the file.
        num_examples: N.
        is_corrupted: (N,) bool, which points have a corrupted label; None where that is not known.
    """

    def __init__(self, path: Path, *, num_examples: int, is_corrupted: Tensor | None = None) -> None:
        self.path = path
        self.num_examples = num_examples
        self.is_corrupted = is_corrupted
        self._index_by_step: list[Tensor] = []
        self._on_device: list[Tensor] = []
        self._scored_on_device: list[tuple[Tensor, Tensor]] = []
        self.num_times_scored = torch.zeros(num_examples, dtype=torch.int64)
        """(N,), how often each point was scored, up to the last validation."""
        self.score_sum = torch.zeros(num_examples, dtype=torch.float64)
        """(N,), the sum of these scores."""

    @property
    def index_by_step(self) -> list[Tensor]:
        """(b,) int64, the indices selected at every step so far."""
        if self._on_device:
            sizes = [len(index) for index in self._on_device]
            self._index_by_step += torch.split(torch.cat(self._on_device).cpu(), sizes)
            self._on_device = []
        return self._index_by_step

    @property
    def num_times_selected(self) -> Tensor:
        """(N,) int64, how often each point was selected."""
        return torch.bincount(self._index(), minlength=self.num_examples)

    @property
    def corrupted_fraction(self) -> float | None:
        """Share of corrupted points among all selected so far; None where that is not known."""
        if self.is_corrupted is None or not self.index_by_step:
            return None
        return float(self.is_corrupted[self._index()].double().mean())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Sequence[Any], batch_idx: int
    ) -> None:
        """Note the selected indices, of all ranks one after another, and the scores of this rank's candidates."""
        own = pl_module.selected.index
        self._on_device.append(torch.cat(all_gather(own[:0] if pl_module.selection.is_dummy else own)))
        self._scored_on_device.append((Batch(*batch).index, pl_module.selection.scores))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take what was selected and scored since the last one off the device."""
        _ = self.index_by_step
        self._add_scores()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Write what the checkpoint goes on from."""
        self.write()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Write what there is; ranks that may have parted do not ask each other for scores."""
        self.write(sync=False)

    def state_dict(self) -> dict[str, Any]:
        """All steps so far, for the checkpoint that a run goes on from."""
        self._add_scores()
        scores = {"num_times_scored": self.num_times_scored, "score_sum": self.score_sum}
        return {"index": self._index(), "sizes": [len(index) for index in self.index_by_step], **scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        self._index_by_step, self._on_device = list(state_dict["index"].split(state_dict["sizes"])), []
        self.num_times_scored, self.score_sum = state_dict["num_times_scored"], state_dict["score_sum"]
        self._scored_on_device = []

    def write(self, *, sync: bool = True) -> None:
        """Write the file, whole or not at all; with ``sync`` all ranks call it."""
        if sync or num_ranks() == 1:
            self._add_scores()
        if not self.index_by_step or not is_main_rank():
            return
        index = torch.nn.utils.rnn.pad_sequence(self.index_by_step, batch_first=True, padding_value=-1)
        of_points = {name: getattr(self, name).numpy() for name in _OF_POINTS}
        with replaced_atomically(self.path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, index=index.numpy(), **of_points)

    def _add_scores(self) -> None:
        """Add the scores that are on the device, of all ranks, to the sums."""
        noted, self._scored_on_device = self._scored_on_device, []
        index = torch.cat([torch.zeros(0, dtype=torch.int64), *(index.cpu() for index, _ in noted)])
        scores = torch.cat([torch.zeros(0, dtype=torch.float64), *(scores.double().cpu() for _, scores in noted)])
        is_scored = scores.isfinite()
        index, scores = (torch.cat(all_gather(values[is_scored])) for values in (index, scores))
        self.num_times_scored += torch.bincount(index, minlength=self.num_examples)
        self.score_sum.index_add_(0, index, scores)  # one after another, whenever that is done

    def _index(self) -> Tensor:
        """Those of all steps, one after another."""
        return torch.cat([torch.zeros(0, dtype=torch.int64), *self.index_by_step])


class BestCheckpoints(pl.Callback):
    """Keeps the parameters of the validations at which some metrics were highest, without the optimiser.

    It is what a ModelCheckpoint for each metric would do, in a part of the time: those have hooks in every step.

    State:
        highest: value of each metric so far; none before the first validation.

    Args:
        path_by_metric: the file for each metric that the module logs.
    """

    def __init__(self, path_by_metric: Mapping[str, Path]) -> None:
        self.path_by_metric = path_by_metric
        self.highest: dict[str, float] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save where a metric has risen."""
        for metric, path in self.path_by_metric.items():
            value = float(trainer.callback_metrics[metric])
            if metric not in self.highest or value > self.highest[metric]:
                self.highest[metric] = value
                trainer.save_checkpoint(path, weights_only=True)

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint that a run goes on from."""
        return {"highest": self.highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        self.highest = dict(state_dict["highest"])


class LastCheckpoint(pl.Callback):
    """Keeps the state at the end of training in a file, or that at which it was interrupted.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the final state."""
        trainer.save_checkpoint(self.path)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save what an interrupted run had reached."""
        if isinstance(exception, KeyboardInterrupt):
            trainer.save_checkpoint(self.path)


class ResumeCheckpoint(pl.callbacks.Checkpoint):
    """Writes what a killed training goes on from; whoever has kept what came of it removes the folder.

    Like every callback of its base class it comes after all others, so that its files hold what those have noted.

    Args:
        folder: of the files; see ``reducr.training.checkpoints``.
        at_epoch_ends: write at the ends of epochs; if not, after validations, which refresh the holdout loss.
        seconds: least wall-clock between two files; 0 for one at every end or validation.
        last_step: of the training, which needs no file.
    """

    def __init__(self, folder: Path, *, at_epoch_ends: bool, seconds: float, last_step: int) -> None:
        self.checkpoints = Checkpoints(folder)
        self.at_epoch_ends = at_epoch_ends
        self.seconds = seconds
        self.last_step = last_step
        self._written_at = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write one, if it is time."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not self.at_epoch_ends:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write one, if it is time."""
        if self.at_epoch_ends:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        is_due = step < self.last_step and time.perf_counter() - self._written_at >= self.seconds
        if not trainer.strategy.broadcast(is_due):
            return
        for logger in trainer.loggers:
            logger.save()  # lines up to here are not written again
        if trainer.is_global_zero:
            self.checkpoints.write_with(step, trainer.save_checkpoint)
        else:
            trainer.save_checkpoint(self.checkpoints.folder)  # takes part, and writes nothing
        self._written_at = time.perf_counter()


class RunProgress(pl.Callback):
    """Tells a progress display how far training is.

    Args:
        advance: called after every step with the number of steps done and the worst-group holdout accuracy so far
            (None before the first validation).
        show_weights: called after every validation with the weight of each group; None for nothing.
    """

    def __init__(
        self,
        advance: Callable[[int, float | None], None],
        show_weights: Callable[[Sequence[float]], None] | None = None,
    ) -> None:
        self.advance = advance
        self.show_weights = show_weights
        self._worst: float | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Note the accuracy, and tell the weights."""
        worst = trainer.callback_metrics.get("holdout/worst_group_accuracy")
        self._worst = None if worst is None else float(worst)
        if self.show_weights is not None:
            self.show_weights(pl_module.selector.group_weights.tolist())

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Report the step."""
        self.advance(trainer.global_step, self._worst)


class BestMembers(pl.Callback):
    """Remembers for each member of an ensemble the parameters with the lowest loss on the training part.

    State:
        lowest_loss: (H,) float, of every member; None before the first validation.
        state: the stacked parameters and buffers, of every member's own best epoch.

    Args:
        ensemble: its members are stacked along the first axis of all parameters and buffers.
    """

    def __init__(self, ensemble: nn.Module) -> None:
        self.ensemble = ensemble
        self.lowest_loss: Tensor | None = None
        self.state: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """For the checkpoint that a run goes on from."""
        return {"lowest_loss": self.lowest_loss, "state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave."""
        self.lowest_loss, self.state = state_dict["lowest_loss"], state_dict["state"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Take over the members that have become better."""
        loss = pl_module.loss_on_training_part
        state = {name: value.detach().clone() for name, value in self.ensemble.state_dict().items()}
        if self.lowest_loss is None:
            self.lowest_loss, self.state = loss, state
            return
        is_better = loss < self.lowest_loss
        self.lowest_loss = torch.where(is_better, loss, self.lowest_loss)
        for name, value in state.items():
            self.state[name][is_better] = value[is_better]

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Leave every member with the parameters of its best epoch."""
        self.ensemble.load_state_dict(self.state)
