"""Score a batch of candidates and select from it, within a scoring budget and across ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from reducr.batch import Batch, Candidates, Selection
from reducr.scoring.budget import ScoringBudget
from reducr.scoring.scorer import IrreducibleLookup, known_fields, model_fields, score_candidates
from reducr.selectors import Selector
from reducr.selectors.distributed import select_distributed


def choose(
    model: nn.Module,
    batch: Batch,
    selector: Selector,
    irreducible: IrreducibleLookup | None,
    *,
    num_selected: Callable[[int], int],
    generator: torch.Generator,
    budget: ScoringBudget | None,
    mode: str | None,
    sizes: list[int] | None = None,
    **scoring: Any,
) -> Selection:
    """Return the selection from the candidates of ``batch``, on several ranks from those of all.

    Args:
        model: scores.
        batch: B candidates on its device.
        selector: the rule.
        irreducible: source of irreducible losses.
        num_selected: of the number of candidates.
        generator: source of random numbers.
        budget: chooses which candidates to score, and remembers their losses; its ``reserve`` has seen the index of the
            batch. None for all.
        mode: of ``select_distributed``.
        sizes: number of candidates of every rank, for ``score_candidates``.
        scoring: ``loss``, ``scoring`` and ``forward`` of ``score_candidates``.

    Returns:
        Positions in all B candidates. The score of those that the budget leaves out is NaN.
    """
    if budget is None:
        candidates = score_candidates(model, batch, selector, irreducible, sizes=sizes, **scoring)
        return select_distributed(selector, candidates, num_selected=num_selected, generator=generator, mode=mode)
    count = num_selected(batch.target.shape[0])
    with torch.no_grad():
        fields = known_fields(batch, selector, irreducible, scoring=scoring["scoring"])
        known = Candidates(**fields or {"groups": batch.group})
        positions = budget.positions(batch.index, known, selector, num_selected=count, generator=generator)
        part = batch.take(positions)
        model_loss = model_fields(model, part, selector, **scoring)["model_loss"]
        budget.remember(part.index, model_loss)
        candidates = replace(known.take(positions), model_loss=model_loss)
        selection = selector.select(candidates, num_selected=count, generator=generator)
        scores = selection.scores.new_full(batch.target.shape, torch.nan)
        return replace(
            selection,
            positions=positions.index_select(0, selection.positions),
            scores=scores.index_copy_(0, positions, selection.scores),
            num_candidates=len(scores),
        )
