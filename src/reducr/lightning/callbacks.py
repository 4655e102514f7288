"""Lightning callbacks of both stages: recording the selection, checkpoints to test and resume from, progress."""

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

_PER_EXAMPLE = ("num_times_selected", "num_times_scored", "score_sum")


class SelectionRecorder(pl.Callback):
    """Record which examples are selected at every step, and how often each example is selected and scored.

    The file holds, for N examples:

    - ``index`` (steps, b) int64: the selected indices of every step; shorter selections are padded with -1.
    - ``num_times_selected`` (N,) int64: how often each example was selected.
    - ``num_times_scored`` (N,) int64: how often each example was a candidate with a finite score.
    - ``score_sum`` (N,) float64: the sum of these scores.

    It is written with every full checkpoint, including the last, and when training stops with an error. If several
    ranks stop with an error, it holds the scores up to the last validation or checkpoint.

    The cost of a step does not depend on N or on the number of steps. Indices and scores stay on the device until the
    next validation, so that no step waits for the accelerator.

    Args:
        path: the file to write, such as ``selected.npz``.
        num_examples: N.
        is_corrupted: (N,) bool, which examples have a corrupted label; None if unknown.

    State:
        index, sizes: the selected indices (n,) int64 of all steps, and their number in each step.
        num_times_scored, score_sum: as in the file, summed over ranks.
    """

    def __init__(self, path: Path, *, num_examples: int, is_corrupted: Tensor | None = None) -> None:
        self.path = path
        self.num_examples = num_examples
        self.is_corrupted = is_corrupted
        self._index_by_step: list[Tensor] = []
        self._index_on_device: list[Tensor] = []
        self._scores_on_device: list[tuple[Tensor, Tensor]] = []
        self.num_times_scored = torch.zeros(num_examples, dtype=torch.int64)
        """(N,) int64, how often each example was scored, up to the last validation."""
        self.score_sum = torch.zeros(num_examples, dtype=torch.float64)
        """(N,) float64, the sum of these scores."""

    @property
    def index_by_step(self) -> list[Tensor]:
        """The selected indices (b,) int64 of every step so far."""
        if self._index_on_device:
            sizes = [len(index) for index in self._index_on_device]
            self._index_by_step += torch.split(torch.cat(self._index_on_device).cpu(), sizes)
            self._index_on_device = []
        return self._index_by_step

    @property
    def num_times_selected(self) -> Tensor:
        """(N,) int64, how often each example was selected."""
        return torch.bincount(self._index(), minlength=self.num_examples)

    @property
    def corrupted_fraction(self) -> float | None:
        """Share of corrupted examples among all selected so far; None if unknown."""
        if self.is_corrupted is None or not self.index_by_step:
            return None
        return float(self.is_corrupted[self._index()].double().mean())

    def on_train_batch_end(
        self, trainer: pl.Trainer, pl_module: Any, outputs: Any, batch: Sequence[Any], batch_idx: int
    ) -> None:
        """Record the selected indices of all ranks, and the scores of this rank's candidates."""
        own = pl_module.selected.index
        self._index_on_device.append(torch.cat(all_gather(own[:0] if pl_module.selection.is_dummy else own)))
        self._scores_on_device.append((Batch(*batch).index, pl_module.selection.scores))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Move indices and scores since the last validation off the device."""
        _ = self.index_by_step
        self._add_scores()

    def on_save_checkpoint(self, trainer: pl.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Write the file together with the checkpoint."""
        self.write()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Write the file without gathering scores: the other ranks may have stopped elsewhere."""
        self.write(sync=False)

    def state_dict(self) -> dict[str, Any]:
        """The record of all steps so far, for a checkpoint to resume from."""
        self._add_scores()
        scores = {"num_times_scored": self.num_times_scored, "score_sum": self.score_sum}
        return {"index": self._index(), "sizes": [len(index) for index in self.index_by_step], **scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state from ``state_dict``."""
        self._index_by_step, self._index_on_device = list(state_dict["index"].split(state_dict["sizes"])), []
        self.num_times_scored, self.score_sum = state_dict["num_times_scored"], state_dict["score_sum"]
        self._scores_on_device = []

    def write(self, *, sync: bool = True) -> None:
        """Write the file atomically; with ``sync``, all ranks must call it."""
        if sync or num_ranks() == 1:
            self._add_scores()
        if not self.index_by_step or not is_main_rank():
            return
        index = torch.nn.utils.rnn.pad_sequence(self.index_by_step, batch_first=True, padding_value=-1)
        per_example = {name: getattr(self, name).numpy() for name in _PER_EXAMPLE}
        with replaced_atomically(self.path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, index=index.numpy(), **per_example)

    def _add_scores(self) -> None:
        """Add the scores on the devices of all ranks to the sums."""
        pairs, self._scores_on_device = self._scores_on_device, []
        index = torch.cat([torch.zeros(0, dtype=torch.int64), *(index.cpu() for index, _ in pairs)])
        scores = torch.cat([torch.zeros(0, dtype=torch.float64), *(scores.double().cpu() for _, scores in pairs)])
        is_scored = scores.isfinite()
        index, scores = (torch.cat(all_gather(values[is_scored])) for values in (index, scores))
        self.num_times_scored += torch.bincount(index, minlength=self.num_examples)
        self.score_sum.index_add_(0, index, scores)  # same order of additions at any interval

    def _index(self) -> Tensor:
        """The selected indices of all steps, concatenated, (n,) int64."""
        return torch.cat([torch.zeros(0, dtype=torch.int64), *self.index_by_step])


class BestCheckpoints(pl.Callback):
    """Save the parameters at the validation where a metric is highest, one file per metric, without the optimiser.

    Like one ModelCheckpoint per metric, but cheaper: ModelCheckpoint has hooks in every step.

    Args:
        path_by_metric: the file for each metric that the module logs.

    State:
        highest: highest value of each metric so far; empty before the first validation.
    """

    def __init__(self, path_by_metric: Mapping[str, Path]) -> None:
        self.path_by_metric = path_by_metric
        self.highest: dict[str, float] = {}

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the parameters for each metric that has a new highest value."""
        for metric, path in self.path_by_metric.items():
            value = float(trainer.callback_metrics[metric])
            if metric not in self.highest or value > self.highest[metric]:
                self.highest[metric] = value
                trainer.save_checkpoint(path, weights_only=True)

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint to resume from."""
        return {"highest": self.highest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state from ``state_dict``."""
        self.highest = dict(state_dict["highest"])


class LastCheckpoint(pl.Callback):
    """Save a checkpoint at the end of training, or when training is interrupted from the keyboard.

    Args:
        path: the file to write.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the state at the end of training."""
        trainer.save_checkpoint(self.path)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save the state at a keyboard interrupt."""
        if isinstance(exception, KeyboardInterrupt):
            trainer.save_checkpoint(self.path)


class ResumeCheckpoint(pl.callbacks.Checkpoint):
    """Write checkpoints from which a killed training resumes. The caller removes the folder once results are saved.

    Lightning runs callbacks of this base class after all others, so the checkpoints hold their final state.

    Args:
        folder: folder of the checkpoints; see ``reducr.training.checkpoints``.
        at_epoch_ends: write at the ends of epochs; otherwise after validations, which refresh the holdout loss.
        seconds: minimum wall-clock time between two checkpoints; 0 writes one at every opportunity.
        last_step: last step of the training, at which no checkpoint is written.
    """

    before_writing: Callable[[int], None] | None = None
    """Called with the step before a checkpoint is written; None for no call."""

    def __init__(self, folder: Path, *, at_epoch_ends: bool, seconds: float, last_step: int) -> None:
        self.checkpoints = Checkpoints(folder)
        self.at_epoch_ends = at_epoch_ends
        self.seconds = seconds
        self.last_step = last_step
        self._written_at = time.perf_counter()

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a checkpoint if one is due."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking and not self.at_epoch_ends:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Write a checkpoint if one is due."""
        if self.at_epoch_ends:
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        step = trainer.global_step
        is_due = step < self.last_step and time.perf_counter() - self._written_at >= self.seconds
        if not trainer.strategy.broadcast(is_due):
            return
        for logger in trainer.loggers:
            logger.save()  # a resumed run does not log the steps up to here again
        if trainer.is_global_zero:
            if self.before_writing is not None:
                self.before_writing(step)
            self.checkpoints.write_with(step, trainer.save_checkpoint)
        else:
            trainer.save_checkpoint(self.checkpoints.folder)  # collective call; writes nothing on this rank
        self._written_at = time.perf_counter()


class RunProgress(pl.Callback):
    """Report the progress of training to a display.

    Args:
        advance: called after every step with the number of steps done and the worst-group holdout accuracy of the last
            validation (None before the first).
        show_weights: called after every validation with the weight of each group; None for no call.
    """

    def __init__(
        self,
        advance: Callable[[int, float | None], None],
        show_weights: Callable[[Sequence[float]], None] | None = None,
    ) -> None:
        self.advance = advance
        self.show_weights = show_weights
        self._worst_group_accuracy: float | None = None

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Remember the accuracy and report the weights."""
        accuracy = trainer.callback_metrics.get("holdout/worst_group_accuracy")
        self._worst_group_accuracy = None if accuracy is None else float(accuracy)
        if self.show_weights is not None:
            self.show_weights(pl_module.selector.group_weights.tolist())

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Report the step."""
        self.advance(trainer.global_step, self._worst_group_accuracy)


class BestMembers(pl.Callback):
    """Keep, for each member of an ensemble, the parameters with the lowest loss on the training part.

    Args:
        ensemble: a model whose parameters and buffers are stacked over members along the first axis.

    State:
        lowest_loss: (G,) lowest loss of each member so far; None before the first validation.
        state: stacked parameters and buffers, each member's from its own best epoch.
    """

    def __init__(self, ensemble: nn.Module) -> None:
        self.ensemble = ensemble
        self.lowest_loss: Tensor | None = None
        self.state: dict[str, Tensor] = {}

    def state_dict(self) -> dict[str, Any]:
        """The state for a checkpoint to resume from."""
        return {"lowest_loss": self.lowest_loss, "state": self.state}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore a state from ``state_dict``."""
        self.lowest_loss, self.state = state_dict["lowest_loss"], state_dict["state"]

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Keep the members whose loss has decreased."""
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
        """Restore each member's best epoch."""
        self.ensemble.load_state_dict(self.state)
