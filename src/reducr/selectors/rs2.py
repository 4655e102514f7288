"""RS2: a fresh random subset in every epoch, without replacement over epochs."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor

from reducr.batch import Candidates, Selection
from reducr.selectors.base import Selector
from reducr.selectors.simple import uniform_numbers


class Rs2(Selector):
    """Repeated random sampling without replacement: of the candidates selected least often so far, some at random.

    ``score_i = u_i - (how often point i was selected so far)`` with u_i uniform in [0, 1). So no point is taken again
    while a candidate of the same batch was taken less often, and of a fraction r every point is taken once in about 1/r
    epochs. The paper takes the next part of a shuffled data set in each epoch and shuffles again when none is left;
    here the subset of an epoch is made up of parts of its batches, so that a point may be taken again a little before
    all others had their turn. Without the memory this is ``uniform``, the paper's sampling with replacement.

    State:
        num_times_selected: (N,) int32 for every index up to the largest selected so far; equal on all ranks.

    Source: Okanovic et al., ICLR 2024 (arXiv 2305.18424).
    """

    name = "rs2"
    is_pointwise = False
    needs = frozenset({"index"})
    growing: ClassVar[frozenset[str]] = frozenset({"num_times_selected"})

    num_times_selected: Tensor

    def __init__(self, *, num_groups: int, sampler: str | None = None, **sampler_options: float | str | None) -> None:
        super().__init__(num_groups=num_groups, sampler=sampler, **sampler_options)
        self.register_buffer("num_times_selected", torch.zeros(0, dtype=torch.int32))

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) float64, a random number in [0, 1) less the times that the point was selected."""
        index: Tensor = candidates.index.long()  # type: ignore[union-attr]  # in needs
        chance = uniform_numbers(candidates, generator).double()
        num_known = len(self.num_times_selected)
        if not num_known:
            return chance
        times = self.num_times_selected.index_select(0, index.clamp(max=num_known - 1))
        return chance - torch.where(index < num_known, times, 0)

    def update(self, selection: Selection) -> None:
        """Count the step, and every selected point once more."""
        super().update(selection)
        index = selection.index
        if index is None:
            raise ValueError("'rs2' counts the selected points by their index, and this selection is of another rule.")
        more = int(index.max()) + 1 - len(self.num_times_selected)
        if more > 0:
            more = max(more, len(self.num_times_selected))
            self.num_times_selected = torch.cat([self.num_times_selected, self.num_times_selected.new_zeros(more)])
        ones = torch.ones_like(index, dtype=torch.int32)
        self.num_times_selected.index_add_(0, index.to(self.num_times_selected.device), ones)
