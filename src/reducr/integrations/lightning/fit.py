"""Fitting both modules: the Trainer, its callbacks, and the files they leave."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from torch import Tensor

from reducr.batch import Batch
from reducr.integrations.lightning.callbacks import LastCheckpoint, RunProgress, SelectionRecorder
from reducr.integrations.lightning.irreducible import IrreducibleModule
from reducr.integrations.lightning.target import TargetModule

Advance = Callable[[int, float | None], None]
_DEFAULTS = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
}


def fit_target(
    module: TargetModule,
    candidates: Iterable[Batch],
    *,
    num_steps: int,
    refresh_steps: int,
    folder: Path,
    recorder: SelectionRecorder,
    loggers: Sequence[Logger],
    advance: Advance,
    trainer_options: Mapping[str, Any],
) -> int:
    """Train a target model; validation over ``module.holdout`` every ``refresh_steps`` is its refresh.

    Args:
        module: trained in place.
        candidates: large batches.
        num_steps: gradient steps.
        refresh_steps: steps between two passes over the holdout set.
        folder: gets ``last.ckpt``, ``best_worst_group.ckpt`` and ``best_mean.ckpt``.
        recorder: of the selected points.
        loggers: get every metric of every step.
        advance: called after every step with its number and the worst-group holdout accuracy so far.
        trainer_options: of the Trainer.

    Returns:
        Gradient steps taken.
    """
    best = {"best_worst_group": "holdout/worst_group_accuracy", "best_mean": "holdout/mean_accuracy"}
    keep_best = [
        ModelCheckpoint(
            dirpath=folder,
            filename=rule,
            monitor=metric,
            mode="max",
            save_weights_only=True,
            enable_version_counter=False,
        )
        for rule, metric in best.items()
    ]
    trainer = pl.Trainer(
        **_trainer_options(trainer_options),
        max_steps=num_steps,
        val_check_interval=min(refresh_steps, num_steps),
        check_val_every_n_epoch=None,
        logger=list(loggers),
        callbacks=[*keep_best, LastCheckpoint(folder / "last.ckpt"), recorder, RunProgress(advance)],
        default_root_dir=folder,
    )
    trainer.fit(module, train_dataloaders=candidates, val_dataloaders=module.holdout)
    for logger in loggers:
        # a tracker that has one run per process, such as wandb, must end this one before the next method's
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if callable(finish):
            finish()
    return int(trainer.global_step)


def fit_irreducible(
    module: IrreducibleModule,
    holdout: Iterable[Batch],
    *,
    training_part: Iterable[Batch],
    num_epochs: int,
    keeps_lowest_loss: bool,
    checkpoint: Path,
    advance: Advance,
    trainer_options: Mapping[str, Any],
) -> int:
    """Train an irreducible model and leave it with the parameters of the chosen checkpoint.

    Args:
        module: trained in place.
        holdout: shuffled batches of the holdout set, what it learns from.
        training_part: batches of the target model's training points, on which the checkpoint may be chosen.
        num_epochs: over the holdout set.
        keeps_lowest_loss: keep the epoch whose loss on ``training_part`` is lowest (as published) rather than the last.
        checkpoint: file to write.
        advance: called after every step with its number and None.
        trainer_options: of the Trainer.

    Returns:
        Gradient steps taken.
    """
    keep = ModelCheckpoint(
        dirpath=checkpoint.parent,
        filename=checkpoint.stem,
        monitor="irreducible/loss_on_training_part" if keeps_lowest_loss else None,
        save_weights_only=True,
        enable_version_counter=False,
    )
    trainer = pl.Trainer(
        **_trainer_options(trainer_options),
        max_epochs=num_epochs,
        limit_val_batches=1.0 if keeps_lowest_loss else 0,
        callbacks=[keep, RunProgress(advance)],
        logger=False,
        default_root_dir=checkpoint.parent,
    )
    trainer.fit(module, train_dataloaders=holdout, val_dataloaders=training_part)
    module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    return int(trainer.global_step)


def _trainer_options(given: Mapping[str, Any]) -> dict[str, Any]:
    """What the user gave, over what every fit has in common.

    ``accelerator=auto`` is a CUDA GPU where there is one and else the CPU: the running sums are float64, which Apple's
    GPUs do not have.
    """
    options = _DEFAULTS | dict(given)
    if options.get("accelerator", "auto") == "auto":
        options["accelerator"] = "gpu" if torch.cuda.is_available() else "cpu"
    return options


def model_state(checkpoint: Path) -> dict[str, Tensor]:
    """The model's parameters and buffers in a checkpoint of either module."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
