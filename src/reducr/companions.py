"""Models that learn along with the target model, from the same selected points."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr.batch import Batch
from reducr.forward import model_output

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]


def selected_loss(model: nn.Module, batch: Batch, point_weights: Tensor | None = None) -> Tensor:
    """The mean cross-entropy of ``model`` on the selected points, what a target or proxy model minimises.

    Args:
        model: gives (b, C) logits.
        batch: the selected points.
        point_weights: (b,) what the loss of each is multiplied with, ``Selection.point_weights``; None for 1.
    """
    output = model_output(model, batch.input)
    if point_weights is None:
        return F.cross_entropy(output, batch.target)
    return (F.cross_entropy(output, batch.target, reduction="none") * point_weights).mean()


@dataclass(frozen=True)
class Companion:
    """A model that learns along: a proxy that scores, or irreducible models that go on learning.

    Its parameters are its own, so adding its loss to the target model's gives each the gradient it would have alone.
    Points have no weights for it, also where the rule weights them for the target model.

    Args:
        model: trained in place.
        loss: of the model on the selected points, ().
        rate: its learning rate as a multiple of the target model's; 0.01 for irreducible models, as published.
    """

    model: nn.Module
    loss: Callable[[nn.Module, Batch], Tensor] = selected_loss
    rate: float = 1.0


def total_loss(loss: Tensor, companions: Sequence[Companion], selected: Batch) -> Tensor:
    """The target model's ``loss`` and those of all companions on the ``selected`` points, ()."""
    return sum((companion.loss(companion.model, selected) for companion in companions), start=loss)


def joint_optimizer(make: MakeOptimizer, model: nn.Module, companions: Sequence[Companion]) -> Optimizer:
    """One optimiser of ``model`` and all companions, each companion at its own learning rate."""
    if not companions:
        return make(model.parameters())
    models = [model, *(companion.model for companion in companions)]
    optimizer = make([{"params": list(one.parameters())} for one in models])
    for group, companion in zip(optimizer.param_groups[1:], companions, strict=True):
        group["lr"] = group["lr"] * companion.rate
    return optimizer
