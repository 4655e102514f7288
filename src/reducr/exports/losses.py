"""Losses of the training points under a run's models, and which labels they speak against."""

from __future__ import annotations

import math
from pathlib import Path

import torch
from omegaconf import DictConfig
from torch import Tensor

from reducr.data import ExampleLoader
from reducr.functional import per_example_cross_entropy
from reducr.lightning import model_state
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import SeedData
from reducr.scoring.scorer import scoring_pass

_BATCH_SIZE = 1000


def suspected_label_errors(model_loss: Tensor, irreducible_loss: Tensor, *, num_classes: int) -> Tensor:
    """(N,) bool: points whose label both models find less likely than a guess, ``l_i > log C`` and ``r_i > log C``.

    One of the models has learned from the labels in question, the other from clean ones alone. What only the first
    does not find likely may be hard to learn, and what only the second does not may be new to it; the label is
    suspected where they agree.

    Args:
        model_loss: (N,) nats, of the run's model at the last step.
        irreducible_loss: (N,) nats, of its plain irreducible model.
        num_classes: C.

    Example:
        >>> loss = torch.tensor([0.1, 0.6, 0.8, 3.0])
        >>> suspected_label_errors(loss, torch.tensor([3.0, 0.8, 0.8, 0.1]), num_classes=2)
        tensor([False, False,  True, False])

    Source: ours. Confident learning (Northcutt, Jiang & Chuang, JAIR 2021) has a threshold for each class instead,
    from one model; docs/export.md says how the two compare.
    """
    guess = math.log(num_classes)
    return (model_loss > guess) & (irreducible_loss > guess)


def losses_at_the_end(config: DictConfig, data: SeedData, *, seed_folder: Path, method: str) -> tuple[Tensor, Tensor]:
    """(N,) nats each: the losses of the training points under the model at the last step and the irreducible model.

    Raises:
        FileNotFoundError: if there is no ``last.ckpt``.
        ValueError: if there is no table of a plain irreducible model.
    """
    train = data.splits.train
    checkpoint = seed_folder / method / "checkpoints" / "last.ckpt"
    if not checkpoint.is_file():
        raise FileNotFoundError(
            f"label errors are suspected by the model at the last step, and there is no {checkpoint}: the run was "
            "killed. Finish it with `reducr resume`, or leave out --drop-label-errors."
        )
    stage = IrreducibleStage(config, data, seed_folder / "irreducible", RunDisplay(0))
    if not stage.has_table(None):
        raise ValueError(
            "label errors are suspected by the table of the plain irreducible model, and the run has none: it comes "
            "with irreducible=adjusted and irreducible.lookup=table, and with the method rho_loss. Leave out "
            "--drop-label-errors."
        )
    logits = torch.from_numpy(stage.table(None).values.copy())
    if logits.ndim == 3:  # of classes and groups together
        logits = logits.logsumexp(dim=2)
    model = data.make_model(config.model, num_outputs=train.num_classes, seed=0)
    model.load_state_dict(model_state(checkpoint))
    with torch.no_grad(), scoring_pass(model, "eval"):
        batches = ExampleLoader(train, batch_size=_BATCH_SIZE)
        losses = [per_example_cross_entropy(model(batch.input), batch.target) for batch in batches]
    return torch.cat(losses).double(), per_example_cross_entropy(logits, train.target).double()
