"""DRoP: group quotas in proportion to the holdout error, filled at random."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr import functional
from reducr.batch import Candidates
from reducr.functional.quotas import positive_quotas
from reducr.selectors.quota import QuotaSelector


class Drop(QuotaSelector):
    """Distributionally robust pruning: the higher a group's holdout error, the more of its examples are kept.

    With ``n_g`` candidates and holdout loss ``h_g`` of group g::

        error_g = 1 - exp(-h_g)
        quota_g = b n_g error_g / sum_k n_k error_k        at most n_g, the rest going to the others

    The examples of a group are chosen at random, whatever their losses (see ``functional.quota_scores``). The paper
    prunes once, and its error is 1 minus the recall of a model trained before. Here ``exp(-h_g)`` replaces the recall:
    it is the geometric mean of the probabilities that the current model gives to the targets, and at most their mean.
    It changes with every new holdout loss. If all errors are zero, the quotas are those of a uniform draw.

    Source: Vysogorets, Ahuja & Kempe, ICLR 2025 (arXiv 2404.05579), Algorithm 1.
    """

    name = "drop"
    needs = frozenset({"groups"})
    needs_group_holdout_loss = True

    def quotas(self, candidates: Candidates) -> Tensor:
        """(G,) number of candidates times the holdout error."""
        groups = candidates.groups.long()  # type: ignore[union-attr]  # in self.needs
        error = functional.holdout_error(self.group_holdout_loss)
        counts = torch.bincount(groups, minlength=self.num_groups)
        return counts * positive_quotas(error) if bool(error.any()) else counts
