"""Fitting both modules: the Trainer, its callbacks, and the files they leave."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor, nn

from reducr._internal.distributed import num_ranks
from reducr.batch import Batch
from reducr.lightning.callbacks import (
    BestCheckpoints,
    BestMembers,
    LastCheckpoint,
    ResumeCheckpoint,
    RunProgress,
    SelectionRecorder,
)
from reducr.lightning.irreducible import IrreducibleModule
from reducr.lightning.target import TargetModule
from reducr.training.resumable import Resumable

Advance = Callable[[int, float | None], None]
ShowWeights = Callable[[Sequence[float]], None]


class Batches(Protocol):
    """A loader with a length."""

    def __iter__(self) -> Iterator[Batch]:
        """The batches of an epoch."""

    def __len__(self) -> int:
        """How many."""


_LOCAL_RANKS = (("LOCAL_WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))  # as torchrun sets them
_DEFAULTS = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
}


def fit_target(
    module: TargetModule,
    candidates: Batches,
    *,
    num_steps: int,
    refresh_steps: int,
    folder: Path,
    recorder: SelectionRecorder,
    loggers: Sequence[Logger],
    advance: Advance,
    trainer_options: Mapping[str, Any],
    show_weights: ShowWeights | None = None,
    resume_seconds: float = 30.0,
) -> int:
    """Train a target model; validation over ``module.holdout`` every ``refresh_steps`` is its refresh.

    Args:
        module: trained in place.
        candidates: large batches.
        num_steps: gradient steps.
        refresh_steps: steps between two passes over the holdout set.
        folder: gets ``last.ckpt``, ``best_worst_group.ckpt`` and ``best_mean.ckpt``, and ``resume``, from which the
            training goes on if that is there already.
        recorder: of the selected points.
        loggers: get every metric of every step.
        advance: called after every step with its number and the worst-group holdout accuracy so far.
        trainer_options: of the Trainer.
        show_weights: called after every validation with the weight of each group; None for nothing.
        resume_seconds: least wall-clock between two states to go on from; they are written at validations.

    Returns:
        Gradient steps taken.
    """
    best = BestCheckpoints(
        {
            "holdout/worst_group_accuracy": folder / "best_worst_group.ckpt",
            "holdout/mean_accuracy": folder / "best_mean.ckpt",
        }
    )
    resume = ResumeCheckpoint(folder / "resume", at_epoch_ends=False, seconds=resume_seconds, last_step=num_steps)
    go_on_from = resume.checkpoints.newest()
    trainer = pl.Trainer(
        **_trainer_options(trainer_options, is_alone=False),
        max_steps=num_steps,
        val_check_interval=min(refresh_steps, num_steps),
        check_val_every_n_epoch=None,
        logger=list(loggers),
        callbacks=[recorder, best, LastCheckpoint(folder / "last.ckpt"), RunProgress(advance, show_weights), resume],
        default_root_dir=folder,
    )
    _fit(trainer, module, Resumable(candidates, skips_finished=True), module.holdout, go_on_from=go_on_from)
    for logger in loggers:
        # a tracker that has one run per process, such as wandb, must end this one before the next method's
        finish = getattr(getattr(logger, "experiment", None), "finish", None)
        if callable(finish):
            finish()
    return int(trainer.global_step)


def fit_irreducible(
    module: IrreducibleModule,
    holdout: Batches,
    *,
    training_part: Iterable[Batch],
    num_epochs: int,
    keeps_lowest_loss: bool,
    ensemble: nn.Module | None = None,
    checkpoint: Path,
    advance: Advance,
    trainer_options: Mapping[str, Any],
    resume_seconds: float = 30.0,
) -> int:
    """Train an irreducible model and leave it with the parameters of the chosen checkpoint.

    Args:
        module: trained in place.
        holdout: shuffled batches of the holdout set, what it learns from.
        training_part: batches of the target model's training points, on which the checkpoint may be chosen.
        num_epochs: over the holdout set.
        keeps_lowest_loss: keep the epoch whose loss on ``training_part`` is lowest (as published) rather than the last.
        ensemble: the part of the model whose members are stacked, each of which then keeps its own epoch.
        checkpoint: file to write, and ``resume`` beside it, from which the training goes on if that is there already.
        advance: called after every step with its number and None.
        trainer_options: of the Trainer.
        resume_seconds: least wall-clock between two states to go on from; they are written at the ends of epochs.

    Returns:
        Gradient steps taken.
    """
    keep: list[pl.Callback] = []
    if keeps_lowest_loss and ensemble is not None:
        keep = [BestMembers(ensemble)]
    elif keeps_lowest_loss:
        keep = [
            ModelCheckpoint(
                dirpath=checkpoint.parent,
                filename=checkpoint.stem,
                monitor="irreducible/loss_on_training_part",
                save_weights_only=True,
                enable_version_counter=False,
            )
        ]
    last_step = num_epochs * len(holdout)
    resume = ResumeCheckpoint(
        checkpoint.parent / "resume", at_epoch_ends=True, seconds=resume_seconds, last_step=last_step
    )
    go_on_from = resume.checkpoints.newest()
    trainer = pl.Trainer(
        **_trainer_options(trainer_options, is_alone=True),
        max_epochs=num_epochs,
        limit_val_batches=1.0 if keeps_lowest_loss else 0,
        callbacks=[*keep, RunProgress(advance), resume],
        logger=False,
        default_root_dir=checkpoint.parent,
    )
    _fit(trainer, module, Resumable(holdout, skips_finished=True), training_part, go_on_from=go_on_from)
    if keeps_lowest_loss and ensemble is None:
        module.load_state_dict(torch.load(checkpoint, weights_only=True)["state_dict"])
    else:
        trainer.save_checkpoint(checkpoint, weights_only=True)
    return int(trainer.global_step)


def _fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    train: Resumable,
    validation: Iterable[Batch],
    *,
    go_on_from: Path | None,
) -> None:
    if go_on_from is not None:
        state = torch.load(go_on_from, weights_only=True, map_location="cpu")
        for logger in trainer.loggers:
            if hasattr(logger, "go_on_from"):
                logger.go_on_from(int(state["global_step"]))
        # Lightning puts it back itself, but not where an epoch had just ended
        train.load_state_dict(state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0])
    with warnings.catch_warnings():
        # irreducible models that go on learning do so in eval mode, which is meant
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")
        # steps are counted over epochs here
        warnings.filterwarnings("ignore", r"The number of training batches .* is smaller than the logging interval")
        # what an interrupted training has left there is meant to be gone on with
        warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")
        trainer.fit(
            module, train_dataloaders=train, val_dataloaders=validation, ckpt_path=go_on_from, weights_only=True
        )


def _trainer_options(given: Mapping[str, Any], *, is_alone: bool) -> dict[str, Any]:
    """What the user gave, over what every fit has in common.

    On several ranks a fit is of all of them together, or of each ``is_alone``.

    ``accelerator=auto`` is a CUDA GPU where there is one and else the CPU: the running sums are float64, which Apple's
    GPUs do not have.
    """
    options = _DEFAULTS | {"profiler": _NoProfiler()} | dict(given)
    if options.get("accelerator", "auto") == "auto":
        options["accelerator"] = "gpu" if torch.cuda.is_available() else "cpu"
    if num_ranks() > 1:
        num_local, local = (int(os.environ.get(name, default)) for name, default in _LOCAL_RANKS)
        if is_alone:
            devices = [local] if options["accelerator"] == "gpu" else 1
            return options | {"devices": devices, "strategy": "auto", "plugins": [LightningEnvironment()]}
        return {"strategy": "ddp"} | options | {"devices": num_local, "num_nodes": num_ranks() // num_local}
    return options


class _NoProfiler(PassThroughProfiler):
    """Measures nothing, as the Trainer's own, which makes a context anew for each of some sixty calls in a step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Nothing."""
        return nullcontext()


def model_state(checkpoint: Path) -> dict[str, Tensor]:
    """The model's parameters and buffers in a checkpoint of either module."""
    state = torch.load(checkpoint, weights_only=True, map_location="cpu")["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
