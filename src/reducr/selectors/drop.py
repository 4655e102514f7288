"""DRoP: quotas of the groups by their holdout error, and a random choice within each."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr import functional
from reducr.batch import Candidates
from reducr.selectors.base import Selector

_LEAST_SHARE = 1e-9


class Drop(Selector):
    """Distributionally robust pruning: the worse a group does on the holdout set, the more of its points are kept.

    With ``n_g`` candidates and holdout loss ``h_g`` of group g::

        error_g = 1 - exp(-h_g)
        quota_g = b n_g error_g / sum_k n_k error_k        at most n_g, the excess going to the others

    Which points of a group is decided at random (see ``functional.quota_scores``), whatever their losses. The paper
    prunes once, with one less the recall of a model trained before as the error. Here ``exp(-h_g)`` takes the place of
    the recall: the geometric mean of the probabilities that the model at hand gives to the right targets, at most their
    mean. It changes with every new holdout loss. Where every error is zero, quotas are those of a uniform draw.

    Source: Vysogorets, Ahuja & Kempe, ICLR 2025 (arXiv 2404.05579), Algorithm 1.
    """

    name = "drop"
    is_pointwise = False
    needs = frozenset({"groups"})
    needs_group_holdout_loss = True

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) random numbers; the b largest fill the quotas, for every b."""
        groups = candidates.groups.long()  # type: ignore[union-attr]  # in self.needs
        error = functional.holdout_error(self.group_holdout_loss)
        counts = torch.bincount(groups, minlength=self.num_groups)
        quotas = counts * error.clamp(min=_LEAST_SHARE * error.max()) if bool(error.any()) else counts
        return functional.quota_scores(groups, quotas, generator=generator)
