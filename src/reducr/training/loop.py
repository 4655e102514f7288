"""The algorithm as a plain PyTorch loop: every integration must agree with it bit for bit."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection

from torch import Tensor, nn
from torch.optim import Optimizer

from reducr._internal.checks import check_count
from reducr.auxiliary import selected_loss
from reducr.batch import Batch, Selection
from reducr.downsampler import Downsampler


def train(
    model: nn.Module,
    candidates: Collection[Batch],
    downsampler: Downsampler,
    optimizer: Optimizer,
    *,
    num_steps: int,
    augment: Callable[[Tensor], Tensor] | None = None,
    on_step: Callable[[int, Batch, Selection, Tensor], None] | None = None,
) -> None:
    """Train ``model`` on the best part of every large batch.

    Args:
        model: trained in place, on the device of the batches.
        candidates: large batches of one epoch, each a ``Batch``; iterated again for every further epoch.
        downsampler: the selection, with its rule, reference model and holdout set.
        optimizer: of the model's parameters.
        num_steps: gradient steps to take.
        augment: random changes of the candidates' inputs, before they are scored.
        on_step: called after every step with its number from 1, the selected batch, the selection and the loss.

    Raises:
        ValueError: for no candidates, or fewer steps than one.

    Source: REDUCR (arXiv 2312.00486), Algorithm 1.
    """
    check_count("num_steps", num_steps)
    if not len(candidates):
        raise ValueError("`candidates` hold no batch. Pass at least one large batch.")
    downsampler.prepare(model)
    model.train()
    step = 0
    for epoch in itertools.count():
        downsampler.selector.set_epoch(epoch)
        downsampler.counts["largest_batch"] = 0
        for number, batch in enumerate(candidates, start=1):
            if downsampler.skips(batch):
                downsampler.step(model, is_last=number == len(candidates))
                continue
            if augment is not None:
                batch = batch._replace(input=augment(batch.input))  # noqa: PLW2901
            selected = downsampler.select(batch, model)
            loss = selected_loss(model, selected, downsampler.example_weights, loss=downsampler.loss)
            optimizer.zero_grad()
            (loss * downsampler.loss_weight).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            downsampler.step(model, is_last=number == len(candidates))
            step += 1
            if on_step is not None and downsampler.selection is not None:
                on_step(step, selected, downsampler.selection, loss.detach())
            if step == num_steps:
                return
