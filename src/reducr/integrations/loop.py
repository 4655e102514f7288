"""The algorithm as a plain PyTorch loop: the executable definition that every integration must agree with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr.batch import Batch, Selection
from reducr.holdout import GroupHoldoutLoss
from reducr.selectors import Selector
from reducr.step import IrreducibleLookup, num_selected_of, pick, update_holdout_loss


def train(
    model: nn.Module,
    candidates: Collection[Batch],
    selector: Selector,
    irreducible: IrreducibleLookup | None,
    optimizer: Optimizer,
    *,
    holdout: Iterable[Batch],
    num_steps: int,
    fraction: float = 0.1,
    refresh_steps: int | None = None,
    scoring_mode: str = "train",
    generator: torch.Generator | None = None,
    on_step: Callable[[int, Batch, Selection, Tensor], None] | None = None,
) -> None:
    """Train ``model`` on the best ``fraction`` of every large batch.

    Args:
        model: trained in place, on the device of the batches.
        candidates: large batches of one epoch; iterated again for every further epoch.
        selector: the rule; its state is carried on.
        irreducible: losses for the rules that need them.
        optimizer: of the model's parameters.
        holdout: batches of the clean holdout set.
        num_steps: gradient steps to take.
        fraction: share of every large batch to train on, in (0, 1].
        refresh_steps: steps between two passes over the holdout set; None for one pass an epoch.
        scoring_mode: see ``step.pick``.
        generator: source of randomness for rules and samplers that draw.
        on_step: called after every step with its number, the selected batch, the selection and the loss.

    Source: REDUCR (arXiv 2312.00486), Algorithm 1.
    """
    holdout_loss = GroupHoldoutLoss(selector.num_groups).to(selector.step.device)
    update_holdout_loss(model, holdout, selector, holdout_loss)  # there is no h before the first evaluation
    model.train()
    step = 0
    for epoch in itertools.count():
        selector.set_epoch(epoch)
        for batch in candidates:
            selected, selection = pick(
                model,
                batch,
                selector,
                irreducible,
                num_selected=num_selected_of(fraction, len(batch.target)),
                scoring_mode=scoring_mode,
                generator=generator,
            )
            loss = F.cross_entropy(model(selected.input), selected.target)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            selector.update(selection)
            step += 1
            if on_step is not None:
                on_step(step, selected, selection, loss.detach())
            if step % (refresh_steps or len(candidates)) == 0:
                update_holdout_loss(model, holdout, selector, holdout_loss)
            if step == num_steps:
                return
