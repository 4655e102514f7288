"""RCAP: group quotas by loss and size, filled with a draw that prefers high losses."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from reducr._internal.checks import is_finite_number
from reducr.batch import Candidates
from reducr.functional.quotas import positive_quotas
from reducr.selectors.quota import QuotaSelector


class Rcap(QuotaSelector):
    """Robust class-aware probabilistic pruning: a group's quota grows with the root of its loss and of its size.

    With ``n_g`` candidates of group g, and ``L_g`` the mean of their clipped model losses ``c_i``::

        c_i     = min(l_i, largest_loss)
        quota_g = b sqrt(n_g L_g) / sum_k sqrt(n_k L_k)        at most n_g, the rest going to the others
        examples of a group are drawn one after another, in proportion to  exp(c_i / loss_temperature)

    With equal losses, or with zeros alone, the quotas go with ``sqrt(n_g)``: between a uniform draw and equal quotas.

    Deviations: the paper chooses a subset of the data set for a whole epoch, by the loss of each example when it was
    last trained on (``largest_loss`` before that). Here the losses are those of the current model on a batch of
    candidates. The authors' implementation aggregates the losses of a group differently: it sums, over the examples
    chosen in the previous epoch, their shares of ``exp(c / loss_temperature)`` in the group. Here it is the mean.

    Args:
        num_groups: G >= 1.
        loss_temperature: beta > 0, nats; the larger, the more uniform the draw within a group.
        largest_loss: bound at which losses are clipped, > 0 nats; None for log(max(G, 2)), the loss of a random guess.
        sampler_options: ``sampler`` and its options, see ``Selector``. Samplers other than ``top_k`` do not keep to the
            quotas.

    Raises:
        ValueError: for a value outside its range.

    Source: Hassan, Khare & Paik, UAI 2025 (arXiv 2606.11761), and their package datacull.
    """

    name = "rcap"
    needs = frozenset({"model_loss", "groups"})

    def __init__(
        self,
        *,
        num_groups: int,
        loss_temperature: float = 2.0,
        largest_loss: float | None = None,
        **sampler_options: Any,
    ) -> None:
        super().__init__(num_groups=num_groups, **sampler_options)
        if not (is_finite_number(loss_temperature) and loss_temperature > 0):
            raise ValueError(f"loss_temperature must be a finite number of nats above 0; got {loss_temperature}.")
        if largest_loss is not None and not (is_finite_number(largest_loss) and largest_loss > 0):
            raise ValueError(
                "largest_loss must be a finite number of nats above 0, or None for the log of the number of groups; "
                f"got {largest_loss}."
            )
        self.loss_temperature = float(loss_temperature)
        self.largest_loss = math.log(max(num_groups, 2)) if largest_loss is None else float(largest_loss)

    def quotas(self, candidates: Candidates) -> Tensor:
        """(G,) root of the number of candidates times their mean loss."""
        groups = candidates.groups.long()  # type: ignore[union-attr]  # in needs
        loss = self._clipped(candidates)
        counts = torch.bincount(groups, minlength=self.num_groups)
        sums = torch.zeros(self.num_groups, dtype=torch.float64, device=loss.device).index_add_(0, groups, loss)
        squared_quotas = sums if bool(sums.any()) else counts.double()  # n_g L_g
        return positive_quotas(squared_quotas.sqrt())

    def log_probabilities(self, candidates: Candidates) -> Tensor:
        """(B,) clipped losses at ``loss_temperature``."""
        return self._clipped(candidates) / max(self.loss_temperature, torch.finfo(torch.float32).tiny)

    def _clipped(self, candidates: Candidates) -> Tensor:
        return candidates.model_loss.double().clamp(0, self.largest_loss)  # type: ignore[union-attr]  # in needs
