"""What learns along with the target model from the selected points, and what is learned beside them."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr.batch import Batch
from reducr.batch.model_output import model_output

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]


def selected_loss(model: nn.Module, batch: Batch, example_weights: Tensor | None = None) -> Tensor:
    """The mean cross-entropy of ``model`` on the selected points, what a target or proxy model minimises.

    Args:
        model: gives (b, C) logits.
        batch: the selected points, and others after them.
        example_weights: (b,) what each selected loss is multiplied with, ``Selection.example_weights``; None
            for 1, which is the weight of the others.
    """
    output = model_output(model, batch.input)
    if example_weights is None:
        return F.cross_entropy(output, batch.target)
    losses = F.cross_entropy(output, batch.target, reduction="none")
    return torch.cat([losses[: len(example_weights)] * example_weights, losses[len(example_weights) :]]).mean()


@dataclass(frozen=True)
class AuxiliaryModel:
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


def total_loss(loss: Tensor, auxiliary_models: Sequence[AuxiliaryModel], selected: Batch) -> Tensor:
    """The target model's ``loss`` and those of all auxiliary_models on the ``selected`` points, ()."""
    return sum(
        (auxiliary_model.loss(auxiliary_model.model, selected) for auxiliary_model in auxiliary_models), start=loss
    )


def joint_optimizer(make: MakeOptimizer, model: nn.Module, auxiliary_models: Sequence[AuxiliaryModel]) -> Optimizer:
    """One optimiser of ``model`` and all auxiliary_models, each auxiliary_model at its own learning rate."""
    if not auxiliary_models:
        return make(model.parameters())
    models = [model, *(auxiliary_model.model for auxiliary_model in auxiliary_models)]
    optimizer = make([{"params": list(one.parameters())} for one in models])
    for group, auxiliary_model in zip(optimizer.param_groups[1:], auxiliary_models, strict=True):
        group["lr"] = group["lr"] * auxiliary_model.rate
    return optimizer


class ExtraBatches:
    """Points beside the selected ones that a gradient step trains on as well, such as some of the holdout set.

    Args:
        batches: of which every step takes the next; iterated again at their end.
        augment: random changes of their inputs.
        first_step: how many have been taken before.
    """

    def __init__(
        self, batches: Iterable[Batch], *, augment: Callable[[Tensor], Tensor] | None = None, first_step: int = 0
    ) -> None:
        self.augment = augment
        endless = itertools.chain.from_iterable(itertools.repeat(batches))
        self._batches: Iterator[Batch] = itertools.islice(endless, first_step, None)

    def append_to(self, selected: Batch) -> Batch:
        """The selected points, followed by the next batch of others on their device."""
        others = Batch(*next(self._batches)).to(selected.target.device)
        if self.augment is not None:
            others = others._replace(input=self.augment(others.input))
        return selected.concatenated(others)
