"""Score a batch of candidates and select from it, within a scoring budget and across ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from reducr.batch import Batch, Selection
from reducr.scoring.budget import ScoringBudget
from reducr.scoring.scorer import IrreducibleLookup, score_candidates, select_within_budget
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
        budget: chooses which candidates to score; None for all.
        mode: of ``select_distributed``.
        sizes: number of candidates of every rank, for ``score_candidates``.
        scoring: ``loss``, ``scoring`` and ``forward`` of ``score_candidates``.
    """
    if budget is None:
        candidates = score_candidates(model, batch, selector, irreducible, sizes=sizes, **scoring)
        return select_distributed(selector, candidates, num_selected=num_selected, generator=generator, mode=mode)
    count = num_selected(batch.target.shape[0])
    return select_within_budget(
        budget, model, batch, selector, irreducible, num_selected=count, generator=generator, **scoring
    )
