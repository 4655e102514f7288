"""REDUCR's group priorities without its scoring pass."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr import functional
from reducr._internal.checks import is_finite_number
from reducr._internal.names import unknown_name
from reducr.batch import Candidates
from reducr.selectors.base import HOLDOUT_LOSSES, Selector
from reducr.selectors.group_weights import GroupWeights

_LEAST_SHARE = 1e-9


class PrioritySampling(Selector):
    """Quotas of the groups by weights that an online rule adapts, filled with points the irreducible model believes.

    Per step, with ``r`` the plain irreducible loss, ``h`` the group-holdout loss, ``m`` the ``uniform_share`` and b
    points to select::

        quota_c = b ( (1 - m) w_c + m / G )                  at most what there is; the rest goes to the others
        points of a group are drawn one after another, in proportion to  exp(-r_i / irreducible_temperature)
        cum_c   = payoff_decay * cum_c - b h_c
        w       = softmax(-step_size * cum)                  for the next step

    ``exp(-r_i)`` is the probability that the irreducible model gives to the label of point i, so points that are likely
    mislabelled are drawn seldom, and all others again and again. The model is not run for scoring: with a table of
    irreducible losses a step costs what a step of class-balanced sampling does, and every ``refresh_steps`` a pass over
    the holdout set. The weights are those of REDUCR without the excess losses. A share that every group keeps bounds
    what the sum can do: without one the weights end on a single group.

    Args:
        num_groups: G >= 1.
        step_size: eta >= 0 per nat, as REDUCR's.
        uniform_share: m in [0, 1]; 1 is class-balanced sampling with a filter.
        irreducible_temperature: T > 0; large values draw all points of a group alike.
        payoff_decay: in (0, 1]; below 1 the weights remember about 1 / (1 - payoff_decay) steps.
        holdout_loss: what h is the mean of: ``cross_entropy``, nats, or ``zero_one``, so that h is the share of wrong
            predictions, and the weights of the groups with most of them grow. A few confident mistakes can give the
            highest loss to a group that is predicted right more often than others.
        sampler: a key of ``SAMPLERS``; any but ``top_k`` leaves the quotas.
        sampler_options: see ``Selector``.

    Raises:
        ValueError: for a value outside its range.

    Example:
        >>> selector = PrioritySampling(num_groups=2, uniform_share=1.0)
        >>> selector.set_group_holdout_loss(torch.tensor([0.2, 1.5]))
        >>> candidates = Candidates(
        ...     irreducible_loss=torch.tensor([0.1, 0.1, 90.0, 0.1]), groups=torch.tensor([0, 1, 0, 0])
        ... )
        >>> selection = selector.select(candidates, num_selected=3)
        >>> sorted(selection.positions.tolist())  # both groups, and not the third point, whose label is not believed
        [0, 1, 3]
        >>> selection.payoff
        tensor([-0.6000, -4.5000], dtype=torch.float64)

    Source: this package; the weights are those of Bankes et al., NeurIPS 2024 (arXiv 2312.00486), Algorithm 1. Measured
        beside it in docs/results.md.
    """

    name = "priority_sampling"
    is_pointwise = False
    needs = frozenset({"irreducible_loss", "groups"})
    needs_group_holdout_loss = True

    def __init__(
        self,
        *,
        num_groups: int,
        step_size: float = 1e-4,
        uniform_share: float = 0.5,
        irreducible_temperature: float = 2.0,
        payoff_decay: float = 1.0,
        holdout_loss: str = "cross_entropy",
        sampler: str | None = None,
        **sampler_options: float | str | None,
    ) -> None:
        super().__init__(num_groups=num_groups, sampler=sampler, **sampler_options)
        if not (is_finite_number(uniform_share) and 0 <= uniform_share <= 1):
            raise ValueError(
                "uniform_share must be in [0, 1], the part of the quotas that all groups share alike; got "
                f"{uniform_share}."
            )
        if not (is_finite_number(irreducible_temperature) and irreducible_temperature > 0):
            raise ValueError(f"irreducible_temperature must be a finite number above 0; got {irreducible_temperature}.")
        if holdout_loss not in HOLDOUT_LOSSES:
            raise unknown_name("holdout_loss", holdout_loss, HOLDOUT_LOSSES)
        self.holdout_loss = holdout_loss
        self.weighting = GroupWeights(num_groups, step_size=step_size, payoff_decay=payoff_decay)
        self.uniform_share = float(uniform_share)
        self.irreducible_temperature = float(irreducible_temperature)

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) random numbers; the b largest fill the quotas, for every b."""
        groups = candidates.groups.long()  # type: ignore[union-attr]  # in self.needs
        loss = candidates.irreducible_loss.double()  # type: ignore[union-attr]  # in self.needs
        shares = (1 - self.uniform_share) * self.group_weights + self.uniform_share / self.num_groups
        believed = -loss / max(self.irreducible_temperature, torch.finfo(torch.float32).tiny)
        return functional.quota_scores(
            groups, shares.clamp(min=_LEAST_SHARE), log_probabilities=believed, generator=generator
        )

    def payoff(self, selected: Candidates) -> Tensor:
        """(G,) the holdout losses, once for each selected point, negated."""
        return -selected.num_candidates * self.group_holdout_loss
