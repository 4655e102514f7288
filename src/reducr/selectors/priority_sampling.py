"""Priority sampling: REDUCR's group weights as quotas, without a scoring pass."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reducr._internal.checks import is_finite_number
from reducr._internal.names import unknown_name
from reducr.batch import Candidates
from reducr.functional.quotas import SMALLEST_QUOTA
from reducr.selectors.base import HOLDOUT_LOSSES
from reducr.selectors.group_weights import GroupWeights
from reducr.selectors.quota import QuotaSelector


class PrioritySampling(QuotaSelector):
    """Group quotas that adapt to the holdout losses, filled with examples whose targets the reference model believes.

    Per step, with ``r`` the irreducible loss, ``h`` the group-holdout loss, ``m`` the ``uniform_share`` and b examples
    to select::

        quota_c = b ( (1 - m) w_c + m / G )                  at most the group's size; the rest goes to the others
        examples of a group are drawn one after another, in proportion to  exp(-r_i / irreducible_temperature)
        cum_c   = payoff_decay * cum_c - b h_c
        w       = softmax(-step_size * cum)                  for the next step

    ``exp(-r_i)`` is the probability that the reference model (the paper's irreducible model) gives to the target of
    example i, so examples that are probably mislabelled are rarely drawn. The model is not run for scoring. With a
    table of irreducible losses a step costs as much as one of class-balanced sampling, plus a pass over the holdout set
    every ``refresh_steps``. The weights are REDUCR's without the excess losses. ``uniform_share`` keeps a part of the
    quotas equal; without it the weights end up on a single group. Quotas are rounded up or down at random, without
    bias.

    Args:
        num_groups: G >= 1.
        step_size: eta >= 0 per nat, as in REDUCR.
        uniform_share: m in [0, 1]; 1 is class-balanced sampling that avoids mislabelled examples.
        irreducible_temperature: T > 0; the larger, the more uniform the draw within a group.
        payoff_decay: in (0, 1]; below 1 the weights remember about 1 / (1 - payoff_decay) steps.
        holdout_loss: loss whose mean is h: ``cross_entropy`` (nats), or ``zero_one``, the share of wrong predictions.
            A few confident mistakes can give the highest cross-entropy to a group with fewer errors than others.
        sampler_options: ``sampler`` and its options, see ``Selector``. Samplers other than ``top_k`` do not keep to the
            quotas.

    Raises:
        ValueError: for a value outside its range.

    Example:
        >>> selector = PrioritySampling(num_groups=2, uniform_share=1.0)
        >>> selector.set_group_holdout_loss(torch.tensor([0.2, 1.5]))
        >>> candidates = Candidates(
        ...     irreducible_loss=torch.tensor([0.1, 0.1, 90.0, 0.1]), groups=torch.tensor([0, 1, 0, 0])
        ... )
        >>> selection = selector.select(candidates, num_selected=3)
        >>> sorted(selection.positions.tolist())  # both groups, without example 2, whose target is implausible
        [0, 1, 3]
        >>> selection.payoff
        tensor([-0.6000, -4.5000], dtype=torch.float64)

    Source: this package, with the weights of Bankes et al., NeurIPS 2024 (arXiv 2312.00486), Algorithm 1. Compared
    with REDUCR in docs/results.md.
    """

    name = "priority_sampling"
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
        **sampler_options: Any,
    ) -> None:
        super().__init__(num_groups=num_groups, **sampler_options)
        if not (is_finite_number(uniform_share) and 0 <= uniform_share <= 1):
            raise ValueError(
                f"uniform_share must be in [0, 1], the part of the quotas that is equal for all groups; got "
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

    def quotas(self, candidates: Candidates) -> Tensor:
        """(G,) shares of the selection."""
        shares = (1 - self.uniform_share) * self.group_weights + self.uniform_share / self.num_groups
        return shares.clamp(min=SMALLEST_QUOTA)

    def log_probabilities(self, candidates: Candidates) -> Tensor:
        """(B,) belief of the reference model in the targets, at ``irreducible_temperature``."""
        loss: Tensor = candidates.irreducible_loss.double()  # type: ignore[union-attr]  # in self.needs
        return -loss / max(self.irreducible_temperature, torch.finfo(torch.float32).tiny)

    def payoff(self, selected: Candidates) -> Tensor:
        """(G,) minus the holdout losses times the number of selected examples."""
        return -selected.num_candidates * self.group_holdout_loss
