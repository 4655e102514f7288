"""RS2: a new random subset in every epoch, without replacement across epochs."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from reducr.batch import Candidates, Selection
from reducr.selectors.base import Selector
from reducr.selectors.simple import uniform_numbers


class Rs2(Selector):
    """Repeated random sampling without replacement: a random choice of the candidates selected least often so far.

    ``score_i = u_i - n_i`` with u_i uniform in [0, 1) and n_i the number of times that example i was selected. No
    example is selected again while its batch has one that was selected less often. At a fraction r every example is
    selected once in about 1/r epochs.

    The paper takes the next part of a shuffled data set in each epoch and reshuffles at the end. Here the subset of an
    epoch consists of parts of its batches, so an example may return slightly before all others had their turn. Without
    the counts this is ``uniform``, the paper's sampling with replacement.

    State:
        num_times_selected: (N,) int32, for every index up to the largest selected so far; equal on all ranks.

    Source: Okanovic et al., ICLR 2024 (arXiv 2305.18424).
    """

    name = "rs2"
    is_pointwise = False
    needs = frozenset({"index"})
    growing: ClassVar[frozenset[str]] = frozenset({"num_times_selected"})

    num_times_selected: Tensor

    def __init__(self, *, num_groups: int, **sampler_options: Any) -> None:
        super().__init__(num_groups=num_groups, **sampler_options)
        self.register_buffer("num_times_selected", torch.zeros(0, dtype=torch.int32))

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) float64, a random number in [0, 1) minus the number of times that the example was selected."""
        index: Tensor = candidates.index.long()  # type: ignore[union-attr]  # in needs
        uniform = uniform_numbers(candidates, generator).double()
        size = len(self.num_times_selected)
        if not size:
            return uniform
        num_times = self.num_times_selected.index_select(0, index.clamp(max=size - 1))
        return uniform - torch.where(index < size, num_times, 0)

    def update(self, selection: Selection) -> None:
        """Count the step and the selected examples.

        Raises:
            ValueError: for a selection without indices.
        """
        super().update(selection)
        index = selection.index
        if index is None:
            raise ValueError(
                "'rs2' counts selected examples by index; this selection has none. Pass one that 'rs2' made."
            )
        num_missing = int(index.max()) + 1 - len(self.num_times_selected)
        if num_missing > 0:
            counts = self.num_times_selected
            self.num_times_selected = torch.cat([counts, counts.new_zeros(max(num_missing, len(counts)))])
        ones = torch.ones_like(index, dtype=torch.int32)
        self.num_times_selected.index_add_(0, index.to(self.num_times_selected.device), ones)
