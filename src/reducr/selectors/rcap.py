"""RCAP: quotas of the groups by their losses, and high losses drawn more often within each."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from reducr import functional
from reducr._internal.checks import is_finite_number
from reducr.batch import Candidates
from reducr.selectors.base import Selector

_LEAST_SHARE = 1e-9


class Rcap(Selector):
    """Robust class-aware probabilistic pruning: a group's part grows with the root of its loss and of its size.

    With ``n_g`` candidates of group g, their model losses l clipped and ``L_g`` the mean of those of the group::

        c_i     = min(l_i, largest_loss)
        quota_g = b sqrt(n_g L_g) / sum_k sqrt(n_k L_k)        at most n_g, the excess going to the others
        points of a group are drawn one after another, in proportion to  exp(c_i / loss_temperature)

    Without differences of loss the quotas are between those of a uniform draw and equal ones. The paper chooses a
    subset for a whole epoch, by the losses that its points had when they were trained on last, ``largest_loss`` before;
    here losses are of the model as it is, and a batch of candidates is in the place of the data set. What the losses of
    a group are aggregated to is the mean here. The authors' implementation sums, over the points chosen in the epoch
    before, their shares of ``exp(c / loss_temperature)`` in their group; either way quotas go with ``sqrt(n_g)`` where
    losses are alike. Where every loss is zero, they do so here, too.

    Args:
        num_groups: G >= 1.
        loss_temperature: beta > 0, nats; large values draw all points of a group alike.
        largest_loss: above 0, nats; None for log(G), the loss of a guess, with G of at least 2.
        sampler: a key of ``SAMPLERS``; any but ``top_k`` leaves the quotas.
        sampler_options: see ``Selector``.

    Raises:
        ValueError: for a value outside its range.

    Source: Hassan, Khare & Paik, UAI 2025 (arXiv 2606.11761), and their package datacull.
    """

    name = "rcap"
    is_pointwise = False
    needs = frozenset({"model_loss", "groups"})

    def __init__(
        self,
        *,
        num_groups: int,
        loss_temperature: float = 2.0,
        largest_loss: float | None = None,
        sampler: str | None = None,
        **sampler_options: float | str | None,
    ) -> None:
        super().__init__(num_groups=num_groups, sampler=sampler, **sampler_options)
        if not (is_finite_number(loss_temperature) and loss_temperature > 0):
            raise ValueError(f"loss_temperature must be a finite number of nats above 0; got {loss_temperature}.")
        if largest_loss is not None and not (is_finite_number(largest_loss) and largest_loss > 0):
            raise ValueError(
                "largest_loss must be a finite number of nats above 0, or None for the log of the number of groups; "
                f"got {largest_loss}."
            )
        self.loss_temperature = float(loss_temperature)
        self.largest_loss = math.log(max(num_groups, 2)) if largest_loss is None else float(largest_loss)

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) random numbers; the b largest fill the quotas, for every b."""
        groups = candidates.groups.long()  # type: ignore[union-attr]  # in needs
        loss = candidates.model_loss.double().clamp(0, self.largest_loss)  # type: ignore[union-attr]  # in needs
        counts = torch.bincount(groups, minlength=self.num_groups)
        sums = torch.zeros(self.num_groups, dtype=torch.float64, device=loss.device).index_add_(0, groups, loss)
        squares = sums if bool(sums.any()) else counts.double()  # n_g L_g
        shares = squares.sqrt()
        return functional.quota_scores(
            groups,
            shares.clamp(min=_LEAST_SHARE * float(shares.max())),
            log_probabilities=loss / max(self.loss_temperature, torch.finfo(torch.float32).tiny),
            generator=generator,
        )
