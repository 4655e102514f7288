"""One selection by the core, for tests that say how many examples to select rather than a fraction."""

from __future__ import annotations

import torch

from reducr.downsampler import Downsampler
from reducr.scoring import HoldoutTracker, Scoring


def pick(
    model,
    batch,
    selector,
    irreducible=None,
    *,
    num_selected,
    budget=None,
    generator=None,
    scoring=None,
    **options,
):
    """The selected batch and the selection: of ``num_selected`` candidates, or as many as it returns for B."""
    downsampler = Downsampler(selector, irreducible, scoring=scoring or Scoring(), **options)
    downsampler._num_selected = num_selected if callable(num_selected) else lambda _: num_selected
    downsampler.budget = budget
    downsampler.generator = generator
    selected = downsampler.select(batch, model)
    return selected, downsampler.selection


def update_holdout_loss(model, batches, selector, holdout_loss=None, *, loss=None, sync=False):
    """Put the holdout loss of ``model`` on ``batches`` in force; ``holdout_loss`` gets the sums of the pass."""
    from reducr.scoring import Holdout

    tracker = HoldoutTracker(Holdout(batches), selector, loss=loss, sync=sync)
    if holdout_loss is not None:
        tracker.loss = holdout_loss
    tracker.refresh(model)


def under_autocast(loader, dtype):
    """The batches of ``loader``, which scores and evaluates the holdout set in autocast; None for no autocast."""
    batches = iter(loader)
    while True:
        with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
            batch = next(batches, None)
        if batch is None:
            return
        yield batch
