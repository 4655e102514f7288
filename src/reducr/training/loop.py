"""The algorithm as a plain PyTorch loop: the executable definition that every integration must agree with."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr.batch import Batch, Selection
from reducr.scoring.budget import ScoringBudget, ScoringForward, check_budget, check_compiled
from reducr.scoring.holdout import GroupHoldoutLoss
from reducr.scoring.scorer import IrreducibleLookup, num_selected_of, pick, update_holdout_loss
from reducr.selectors import Selector
from reducr.training.auxiliary import AuxiliaryModel, ExtraBatches, selected_loss, total_loss


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
    autocast: torch.dtype | None = None,
    scoring_compile: bool = False,
    scoring_resolution: float | None = None,
    scoring_budget: ScoringBudget | None = None,
    augment: Callable[[Tensor], Tensor] | None = None,
    proxy: nn.Module | None = None,
    auxiliary_models: Sequence[AuxiliaryModel] = (),
    extra_batches: Iterable[Batch] | None = None,
    generator: torch.Generator | None = None,
    on_step: Callable[[int, Batch, Selection, Tensor], None] | None = None,
) -> None:
    """Train ``model`` on the best ``fraction`` of every large batch.

    Args:
        model: trained in place, on the device of the batches.
        candidates: large batches of one epoch; iterated again for every further epoch.
        selector: the rule; its state is carried on.
        irreducible: losses for the rules that need them.
        optimizer: of the parameters of the model and all auxiliary_models.
        holdout: batches of the clean holdout set.
        num_steps: gradient steps to take.
        fraction: share of every large batch to train on, in (0, 1].
        refresh_steps: steps between two passes over the holdout set; None for one pass an epoch.
        scoring_mode: see ``step.pick``.
        autocast: bfloat16 or float16, in which candidates are scored; None for the autocast mode at hand.
        scoring_compile: candidates are scored through ``torch.compile``.
        scoring_resolution: share of an image's height and width that is left for scoring, in (0, 1).
        scoring_budget: scores only the part of the candidates that could be selected; its memory is carried on.
        augment: random changes of the candidates' inputs, before they are scored.
        proxy: scores in the place of ``model``; one of the auxiliary_models.
        auxiliary_models: models that learn from the same selected points.
        extra_batches: batches of other points, such as holdout points, one of which joins the selected points in every
            gradient step; iterated again at its end.
        generator: source of randomness for rules and samplers that draw.
        on_step: called after every step with its number, the selected batch, the selection and the loss.

    Source: REDUCR (arXiv 2312.00486), Algorithm 1.
    """
    check_budget(scoring_budget, selector, fraction=fraction, distributed=None)
    check_compiled(selector, scoring_compile)
    scorer = model if proxy is None else proxy
    forward = ScoringForward(
        scorer,
        scoring_mode=scoring_mode,
        autocast=autocast,
        is_compiled=scoring_compile,
        resolution=scoring_resolution,
    )
    holdout_loss = GroupHoldoutLoss(selector.num_groups).to(selector.step.device)
    update_holdout_loss(model, holdout, selector, holdout_loss)  # there is no h before the first evaluation
    model.train()
    if proxy is not None:
        proxy.train()
    others = None if extra_batches is None else ExtraBatches(extra_batches, augment=augment)
    step = 0
    for epoch in itertools.count():
        selector.set_epoch(epoch)
        for batch in candidates:
            if augment is not None:
                batch = batch._replace(input=augment(batch.input))  # noqa: PLW2901
            selected, selection = pick(
                scorer,
                batch,
                selector,
                irreducible,
                num_selected=num_selected_of(fraction, len(batch.target)),
                scoring_mode=scoring_mode,
                forward=forward,
                budget=scoring_budget,
                generator=generator,
            )
            trained_on = selected if others is None else others.append_to(selected)
            loss = selected_loss(model, trained_on, selection.example_weights)
            optimizer.zero_grad()
            total_loss(loss, auxiliary_models, trained_on).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimizer.step()
            selector.update(selection)
            step += 1
            if on_step is not None:
                on_step(step, selected, selection, loss.detach())
            if step % (refresh_steps or len(candidates)) == 0:
                update_holdout_loss(model, holdout, selector, holdout_loss)
            if step == num_steps:
                return
