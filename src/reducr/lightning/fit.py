"""Fit the target module and the irreducible module: the Trainer, its callbacks and the files they write."""

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
from lightning.pytorch.plugins.io import CheckpointIO
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor

from reducr._internal.distributed import num_ranks
from reducr._internal.files import naming_file
from reducr._internal.reading import read_checkpoint
from reducr.batch import Batch
from reducr.irreducible.ensemble import Ensemble
from reducr.lightning.callbacks import BestCheckpoints, BestMembers, LastCheckpoint, ResumeCheckpoint
from reducr.lightning.checkpoint_files import CheckpointFiles
from reducr.lightning.irreducible import IrreducibleModule
from reducr.lightning.target import TargetModule
from reducr.training.resumable import Resumable

_LOCAL_RANKS = (("LOCAL_WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))
"""Environment variables of torchrun, with their values for a single process."""
_DEFAULTS = {
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "log_every_n_steps": 1,
    "num_sanity_val_steps": 0,
}


class Batches(Protocol):
    """A loader with a length."""

    def __iter__(self) -> Iterator[Batch]:
        """Iterate over the batches of one epoch."""

    def __len__(self) -> int:
        """Number of batches in an epoch."""


def fit_target(
    module: TargetModule,
    candidates: Batches,
    *,
    num_steps: int,
    refresh_steps: int,
    folder: Path,
    callbacks: Sequence[pl.Callback] = (),
    loggers: Sequence[Logger] = (),
    trainer_options: Mapping[str, Any],
    resume_seconds: float = 30.0,
    on_resume_point: Callable[[int], None] | None = None,
) -> int:
    """Train a target model, or resume its training from ``folder``.

    Validation over ``module.holdout_batches`` refreshes the group holdout loss.

    Args:
        module: trained in place.
        candidates: batches of candidates.
        num_steps: gradient steps.
        refresh_steps: steps between two passes over the holdout set.
        folder: receives ``last.ckpt``, ``best_worst_group.ckpt`` and ``best_mean.ckpt``, and the folder ``resume``.
            Training resumes from ``resume`` if an interrupted fit has left a state there.
        callbacks: run before the callbacks that write these files, such as ``SelectionRecorder`` and ``RunProgress``.
        loggers: receive every metric of every step.
        trainer_options: keyword arguments of ``lightning.Trainer``.
        resume_seconds: minimum wall-clock time between two states in ``resume``; written after validation.
        on_resume_point: called with the step before such a state is written.

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
    resume.before_writing = on_resume_point
    resume_path = resume.checkpoints.newest()
    trainer = _Trainer(
        **_trainer_options(trainer_options, is_single_process=False),
        max_steps=num_steps,
        val_check_interval=min(refresh_steps, num_steps),
        check_val_every_n_epoch=None,
        logger=list(loggers),
        callbacks=[*callbacks, best, LastCheckpoint(folder / "last.ckpt"), resume],
        default_root_dir=folder,
    )
    train = Resumable(candidates, skip_finished_epoch=True)
    _fit(trainer, module, train, module.holdout_batches, resume_path=resume_path)
    for logger in loggers:
        # A tracker with one run per process, such as wandb, must end this run before the next method starts its own.
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
    checkpoint: Path,
    callbacks: Sequence[pl.Callback] = (),
    trainer_options: Mapping[str, Any],
    resume_seconds: float = 30.0,
    on_resume_point: Callable[[int], None] | None = None,
) -> int:
    """Train a reference model (the paper's irreducible model), or resume its training.

    ``module`` ends with the parameters of the chosen checkpoint. Each member of an ``Ensemble`` keeps its own best
    epoch.

    Args:
        module: trained in place.
        holdout: shuffled batches of the holdout set, on which the model trains.
        training_part: batches of the target model's training examples, used to choose the checkpoint.
        num_epochs: passes over the holdout set.
        keeps_lowest_loss: keep the epoch with the lowest loss on ``training_part`` (as published) instead of the last.
        checkpoint: file to write. Training resumes from the folder ``resume`` beside it if an interrupted fit has left
            a state there.
        callbacks: run before the callbacks that write these files, such as ``RunProgress``.
        trainer_options: keyword arguments of ``lightning.Trainer``.
        resume_seconds: minimum wall-clock time between two states in ``resume``; written at the ends of epochs.
        on_resume_point: called with the step before such a state is written.

    Returns:
        Gradient steps taken.
    """
    ensemble = next((part for part in module.model.modules() if isinstance(part, Ensemble)), None)
    last_step = num_epochs * len(holdout)
    resume = ResumeCheckpoint(
        checkpoint.parent / "resume", at_epoch_ends=True, seconds=resume_seconds, last_step=last_step
    )
    resume.before_writing = on_resume_point
    resume_path = resume.checkpoints.newest()
    trainer = _Trainer(
        **_trainer_options(trainer_options, is_single_process=True),
        max_epochs=num_epochs,
        limit_val_batches=1.0 if keeps_lowest_loss else 0,
        callbacks=[*callbacks, *([_keep_lowest_loss(ensemble, checkpoint)] if keeps_lowest_loss else []), resume],
        logger=False,
        default_root_dir=checkpoint.parent,
    )
    _fit(trainer, module, Resumable(holdout, skip_finished_epoch=True), training_part, resume_path=resume_path)
    if keeps_lowest_loss and ensemble is None:
        module.load_state_dict(read_checkpoint(checkpoint, names=["state_dict"])["state_dict"])
    else:
        trainer.save_checkpoint(checkpoint, weights_only=True)
    return int(trainer.global_step)


def _keep_lowest_loss(ensemble: Ensemble | None, checkpoint: Path) -> pl.Callback:
    """A callback that keeps the epoch with the lowest loss on the training part, for each member of an ensemble."""
    if ensemble is not None:
        return BestMembers(ensemble)
    return ModelCheckpoint(
        dirpath=checkpoint.parent,
        filename=checkpoint.stem,
        monitor="irreducible/loss_on_training_part",
        save_weights_only=True,
        enable_version_counter=False,
    )


def model_state(checkpoint: Path) -> dict[str, Tensor]:
    """Parameters and buffers of the model in a checkpoint of ``TargetModule`` or ``IrreducibleModule``."""
    state = read_checkpoint(checkpoint, names=["state_dict"])["state_dict"]
    return {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}


def _fit(
    trainer: pl.Trainer,
    module: pl.LightningModule,
    train: Resumable,
    validation: Iterable[Batch],
    *,
    resume_path: Path | None,
) -> None:
    if resume_path is not None:
        state = read_checkpoint(resume_path)
        for logger in trainer.loggers:
            if hasattr(logger, "resume_from"):
                logger.resume_from(int(state["global_step"]))
        # Lightning restores the loader too, but not if an epoch has just ended.
        train.load_state_dict(state["loops"]["fit_loop"]["state_dict"]["combined_loader"][0])
    with warnings.catch_warnings():
        # Irreducible models that keep learning beside the target model do so in eval mode.
        warnings.filterwarnings("ignore", r"Found \d+ module\(s\) in eval mode at the start of training")
        # Steps are counted across epochs.
        warnings.filterwarnings("ignore", r"The number of training batches .* is smaller than the logging interval")
        # An interrupted fit has left its files there.
        warnings.filterwarnings("ignore", r"Checkpoint directory .* exists and is not empty")
        trainer.fit(
            module, train_dataloaders=train, val_dataloaders=validation, ckpt_path=resume_path, weights_only=True
        )


def _trainer_options(user_options: Mapping[str, Any], *, is_single_process: bool) -> dict[str, Any]:
    """The user's options over the defaults.

    Several ranks fit one model together, or one model each if ``is_single_process``.

    ``accelerator=auto`` means a CUDA GPU if there is one, else the CPU: the running sums are float64, which Apple's
    GPUs do not support.
    """
    options = _DEFAULTS | {"profiler": _NoProfiler()} | dict(user_options)
    plugins = options.get("plugins") or []
    options["plugins"] = [*(plugins if isinstance(plugins, list | tuple) else [plugins])]
    if not any(isinstance(plugin, CheckpointIO) for plugin in options["plugins"]):
        options["plugins"].append(CheckpointFiles())
    if options.get("accelerator", "auto") == "auto":
        options["accelerator"] = "gpu" if torch.cuda.is_available() else "cpu"
    if num_ranks() > 1:
        num_local, local_rank = (int(os.environ.get(name, default)) for name, default in _LOCAL_RANKS)
        if is_single_process:
            devices = [local_rank] if options["accelerator"] == "gpu" else 1
            plugins = [LightningEnvironment(), CheckpointFiles()]
            return options | {"devices": devices, "strategy": "auto", "plugins": plugins}
        return {"strategy": "ddp"} | options | {"devices": num_local, "num_nodes": num_ranks() // num_local}
    return options


class _Trainer(pl.Trainer):
    """Names the checkpoint for which the disk has no room."""

    def save_checkpoint(self, filepath: Any, *arguments: Any, **options: Any) -> None:
        """Write a checkpoint."""
        with naming_file(Path(filepath)):
            super().save_checkpoint(filepath, *arguments, **options)


class _NoProfiler(PassThroughProfiler):
    """Measure nothing. Unlike the Trainer's default, it creates no context for each of some sixty calls per step."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Return a context that does nothing."""
        return nullcontext()
