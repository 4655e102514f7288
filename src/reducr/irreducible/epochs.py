"""One epoch of training a reference model, and its losses on held-out examples."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr._internal.rng import random_state, set_random_state
from reducr.batch import Batch, PerExampleLoss, model_output
from reducr.functional.outputs import check_output, per_example_losses
from reducr.functional.sequences import example_loss, row_groups

MakeOptimizer = Callable[[Any], Optimizer]
OWNER = "The reference model"


@dataclass(frozen=True)
class Losses:
    """Losses of held-out examples, in the order in which they were evaluated.

    Args:
        loss: (n,) of each example.
        other_loss: (n,) of each example with the target of another example of its batch.
        is_correct: (n,) whether the prediction is the target; None for outputs and targets without classes.
        target: (n, ...).
    """

    loss: Tensor
    other_loss: Tensor
    is_correct: Tensor | None
    target: Tensor


def train_epoch(
    model: nn.Module,
    batches: Iterable[Batch],
    optimizer: Optimizer,
    *,
    loss: PerExampleLoss | None,
    group_weights: Tensor | None,
) -> None:
    """Train ``model`` on every batch once, with the mean loss, weighted by group.

    Raises:
        ValueError: if a loss is not finite.
    """
    model.train()
    total: Tensor | float = 0.0
    with torch.enable_grad():
        for batch in batches:
            output = model_output(model, batch.input)
            check_output(output, batch.target, loss, owner=OWNER)
            losses = per_example_losses(output, batch.target, loss, owner=OWNER)
            mean = losses.mean()
            if group_weights is not None:
                weights = group_weights.to(losses)[row_groups(batch.group, batch.target, loss).long()]
                mean = (weights * losses).sum() / weights.sum()
            optimizer.zero_grad()
            mean.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            total = total + mean.detach()
    if not torch.isfinite(torch.as_tensor(total)):
        raise ValueError(
            "The loss of the reference model is NaN or infinite. Lower the learning rate, such as optimizer="
            "functools.partial(torch.optim.AdamW, lr=1e-4), or look for inputs that are not finite."
        )


@torch.no_grad()
def held_out_losses(model: nn.Module, batches: Iterable[Batch], *, loss: PerExampleLoss | None) -> Losses:
    """Evaluate ``model`` in eval mode; by sequence with a ``TokenLoss``."""
    model.eval()
    loss = example_loss(loss)
    parts: list[list[Tensor]] = []
    has_classes = True
    for batch in batches:
        output, target = model_output(model, batch.input), batch.target
        own = per_example_losses(output, target, loss, owner=OWNER)
        other = per_example_losses(output, target.roll(1, 0), loss, owner=OWNER)
        has_classes &= _predicts_classes(output, target)
        is_correct = output.argmax(dim=1) == target if has_classes else torch.zeros_like(own, dtype=torch.bool)
        parts.append([own.cpu(), other.cpu(), is_correct.cpu(), target.cpu()])
    own, other, is_correct = (torch.cat([part[place] for part in parts]) for place in range(3))
    target = torch.cat([part[3] for part in parts]) if has_classes else torch.empty(0)
    return Losses(own.double(), other.double(), is_correct if has_classes else None, target)


def _predicts_classes(output: Any, target: Tensor) -> bool:
    is_logits = isinstance(output, Tensor) and output.ndim == 2 and output.shape[1] > 1
    return is_logits and target.ndim == 1 and not target.is_floating_point()


def new_optimizer(model: nn.Module, make: MakeOptimizer) -> Optimizer:
    """Return an optimizer of the trainable parameters.

    Raises:
        ValueError: if there is none.
        TypeError: if ``make`` returns something else.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not parameters:
        raise ValueError(
            "The reference model has no parameter that requires gradients. If reducr.Reference has read it before and "
            "frozen it, call model.requires_grad_() first."
        )
    optimizer = make(parameters)
    if not isinstance(optimizer, Optimizer):
        raise TypeError(f"`optimizer` must return a torch.optim.Optimizer; it returned a {type(optimizer).__name__}.")
    return optimizer


@contextmanager
def seeded(seed: int, device: torch.device) -> Iterator[None]:
    """Seed the global random states of torch, numpy and Python inside the block, and restore them afterwards."""
    state = random_state()
    try:
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            torch.cuda.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002  (data sets may draw from it)
        random.seed(seed)
        yield
    finally:
        set_random_state(state)
