"""Callbacks of target training: what was selected, the last checkpoint, progress."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor

from reducr.files import replaced_atomically


class SelectionRecorder(pl.Callback):
    """Writes which points were selected at every step, and how often each was.

    ``selected.npz`` holds ``index`` (steps, b) int64, rows of a shorter selection filled up with -1, and
    ``num_times_selected`` (N,) int64. It is written at every validation, at the end and at an interruption.

    Args:
        path: of the file.
        num_points: N.
        is_corrupted: (N,) bool, which points have a corrupted label; None where that is not known.
    """

    def __init__(self, path: Path, *, num_points: int, is_corrupted: Tensor | None = None) -> None:
        self.path = path
        self.num_times_selected = torch.zeros(num_points, dtype=torch.int64)
        self.is_corrupted = is_corrupted
        self.index_by_step: list[Tensor] = []

    @property
    def corrupted_fraction(self) -> float | None:
        """Share of corrupted points among all selected so far; None where that is not known."""
        if self.is_corrupted is None or not self.index_by_step:
            return None
        return float(self.is_corrupted[torch.cat(self.index_by_step)].double().mean())

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: Any, *_: Any) -> None:
        """Note the selected indices."""
        index = pl_module.selected.index.cpu()
        self.index_by_step.append(index)
        self.num_times_selected += torch.bincount(index, minlength=len(self.num_times_selected))

    def on_validation_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write what there is."""
        self.write()

    def on_train_end(self, trainer: pl.Trainer, pl_module: Any) -> None:
        """Write everything."""
        self.write()

    def on_exception(self, trainer: pl.Trainer, pl_module: Any, exception: BaseException) -> None:
        """Write what there is."""
        self.write()

    def write(self) -> None:
        """Write the file, whole or not at all."""
        if not self.index_by_step:
            return
        index = torch.nn.utils.rnn.pad_sequence(self.index_by_step, batch_first=True, padding_value=-1)
        with replaced_atomically(self.path) as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, index=index.numpy(), num_times_selected=self.num_times_selected.numpy())


class LastCheckpoint(pl.Callback):
    """Keeps the newest state in one file: written at every validation, at the end and at an interruption.

    Args:
        path: of the checkpoint.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save during training only."""
        if trainer.state.fn == "fit" and not trainer.sanity_checking:
            self._save(trainer)

    def on_train_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Save the final state."""
        self._save(trainer)

    def on_exception(self, trainer: pl.Trainer, pl_module: pl.LightningModule, exception: BaseException) -> None:
        """Save what an interrupted run had reached."""
        if isinstance(exception, KeyboardInterrupt):
            self._save(trainer)

    def _save(self, trainer: pl.Trainer) -> None:
        trainer.save_checkpoint(self.path)


class RunProgress(pl.Callback):
    """Tells a progress display how far training is.

    Args:
        advance: called after every step with the number of steps done and the worst-group holdout accuracy so far
            (None before the first validation).
    """

    def __init__(self, advance: Callable[[int, float | None], None]) -> None:
        self.advance = advance

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        """Report the step."""
        worst = trainer.callback_metrics.get("holdout/worst_group_accuracy")
        self.advance(trainer.global_step, None if worst is None else float(worst))
