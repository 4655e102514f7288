"""Rules that divide a selection between groups by quotas."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr import functional
from reducr.batch import Candidates
from reducr.selectors.base import Selector


class QuotaSelector(Selector):
    """A rule that selects a quota of each group, and draws the examples of a group at random.

    A rule defines ``quotas``, and ``log_probabilities`` unless all examples of a group are equally likely. The number
    of selected examples of a group is its quota rounded up or down, and equals the quota on average; see
    ``functional.quota_scores``. Samplers other than ``top_k`` do not keep to the quotas.
    """

    is_pointwise = False

    def quotas(self, candidates: Candidates) -> Tensor:
        """Quotas (G,), up to a common factor; > 0 for the groups that are present."""
        raise NotImplementedError(f"{type(self).__name__} must define quotas().")

    def log_probabilities(self, candidates: Candidates) -> Tensor | None:
        """(B,) float64, up to a constant in each group; None if all examples of a group are equally likely."""
        return None

    def score_for(
        self, candidates: Candidates, *, num_selected: int | None, generator: torch.Generator | None
    ) -> Tensor:
        """(B,) random scores; the ``num_selected`` largest fill the quotas."""
        return functional.quota_scores(
            candidates.groups.long(),  # type: ignore[union-attr]  # in self.needs
            self.quotas(candidates),
            num_selected=candidates.num_candidates if num_selected is None else num_selected,
            log_probabilities=self.log_probabilities(candidates),
            generator=generator,
        )
