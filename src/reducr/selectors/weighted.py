"""Rules that weight the losses of selected examples: group DRO and InfoBatch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reducr._internal.checks import is_finite_number
from reducr.batch import Candidates
from reducr.functional import group_weights
from reducr.selectors.base import Selector
from reducr.selectors.group_weights import GroupWeights
from reducr.selectors.samplers import UniformAtEnds
from reducr.selectors.simple import uniform_numbers


class GroupDro(Selector):
    """Group DRO without selection: a uniform draw whose losses are weighted by adaptive group weights.

    With ``b_g`` selected examples of group g and their mean loss ``l_g``, zero if there are none::

        cum_g = cum_g - l_g
        q     = softmax(-step_size * cum)             with these losses, as published
        loss  = sum_g q_g l_g                          so the weight of an example is  b q_g / b_g

    The rule reads the model losses of all candidates, although a uniform draw needs none. With ``fraction=1`` they are
    the losses of the examples trained on. On several ranks with ``distributed="local"``, and over micro-batches, each
    part weights its own mean losses, and the group weights move by the mean over the parts.

    Args:
        num_groups: G >= 1.
        step_size: eta_q >= 0 per nat; 0.01 as published.
        sampler_options: ``sampler`` and its options, see ``Selector``.

    Raises:
        ValueError: for a value outside its range.

    Source: Sagawa et al., ICLR 2020 (arXiv 1911.08731), Algorithm 1, with mini-batches.
    """

    name = "group_dro"
    is_pointwise = False
    weights_examples = True
    needs = frozenset({"model_loss", "groups"})

    def __init__(
        self,
        *,
        num_groups: int,
        step_size: float = 0.01,
        **sampler_options: Any,
    ) -> None:
        super().__init__(num_groups=num_groups, **sampler_options)
        self.weighting = GroupWeights(num_groups, step_size=step_size)

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) independent uniform numbers in [0, 1)."""
        return uniform_numbers(candidates, generator)

    def payoff(self, selected: Candidates) -> Tensor:
        """(G,) minus the mean loss of the selected examples of every group; zero for a group without any."""
        groups = selected.groups.long()  # type: ignore[union-attr]  # in needs
        loss = selected.model_loss.double()  # type: ignore[union-attr]  # in needs
        sums = torch.zeros(self.num_groups, dtype=torch.float64, device=loss.device).index_add_(0, groups, loss)
        return -sums / torch.bincount(groups, minlength=self.num_groups).clamp(min=1)

    def merged_payoff(self, payoffs: Tensor) -> Tensor:
        """(G,) mean of the payoffs (K, G)."""
        return payoffs.mean(dim=0)

    def example_weights(
        self, candidates: Candidates, valid_scores: Tensor, positions: Tensor, payoff: Tensor
    ) -> Tensor | None:
        """(b,) ``b q_g / b_g``, float32."""
        groups = candidates.groups.long().index_select(0, positions)  # type: ignore[union-attr]  # in needs
        q = group_weights(self.cumulative_payoff + payoff, step_size=self.weighting.step_size)
        counts = torch.bincount(groups, minlength=self.num_groups)
        return (len(positions) * q[groups] / counts[groups]).float()


class InfoBatch(Selector):
    """Unbiased pruning: drop examples with a loss below the mean at random, and weight the rest to make up for it.

    A candidate with a loss below the mean is pruned with probability r. The losses of such candidates that remain are
    multiplied by ``1 / (1 - r)``, so the expected gradient is that of all candidates. The selection is a random part of
    the remaining candidates. If too few remain, pruned ones fill it up, and r becomes the share that is left out in the
    end. Uniform phases at the start and the end of training (``uniform_last_epochs``, the paper's annealing) neither
    prune nor weight.

    The paper prunes a whole epoch by the losses of the previous epoch, without a fixed number of examples. Here the
    losses are those of the current model, and the mean is over the candidates. The weights are right for the sampler
    ``top_k`` only.

    Args:
        num_groups: G >= 1.
        prune_probability: r in [0, 1); 0.5 as published.
        sampler_options: ``sampler`` and its options, see ``Selector``.

    Raises:
        ValueError: for a value outside its range.

    Source: Qin et al., ICLR 2024 (arXiv 2303.04947).
    """

    name = "infobatch"
    is_pointwise = False
    weights_examples = True
    needs = frozenset({"model_loss"})

    def __init__(
        self,
        *,
        num_groups: int,
        prune_probability: float = 0.5,
        **sampler_options: Any,
    ) -> None:
        super().__init__(num_groups=num_groups, **sampler_options)
        if not (is_finite_number(prune_probability) and 0 <= prune_probability < 1):
            raise ValueError(
                "prune_probability must be in [0, 1), the share of the examples below the mean loss that is pruned; "
                f"got {prune_probability}."
            )
        self.prune_probability = float(prune_probability)

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) random numbers in [0, 1), or in [-1, 0) for pruned examples."""
        is_low = _is_below_mean(candidates.model_loss)  # type: ignore[arg-type]  # in needs
        is_pruned = is_low & (uniform_numbers(candidates, generator) < self.prune_probability)
        return uniform_numbers(candidates, generator) - is_pruned.float()

    def example_weights(
        self, candidates: Candidates, valid_scores: Tensor, positions: Tensor, payoff: Tensor
    ) -> Tensor | None:
        """(b,) float32: 1 / (1 - r) for examples below the mean loss, 1 for others; None in a uniform phase."""
        if isinstance(self.sampler, UniformAtEnds) and self.sampler.is_uniform(int(self.epoch)):
            return None
        loss: Tensor = candidates.model_loss  # type: ignore[assignment]  # in needs
        is_low = _is_below_mean(loss.masked_fill(valid_scores == -torch.inf, torch.nan))
        is_selected_low = is_low.index_select(0, positions)
        weight = torch.full((), 1 / (1 - self.prune_probability), device=positions.device)
        has_pruned = (valid_scores.index_select(0, positions) < 0).any()
        weight = torch.where(has_pruned, is_low.sum() / is_selected_low.sum(), weight)
        return torch.where(is_selected_low, weight, 1.0)


def _is_below_mean(loss: Tensor) -> Tensor:
    """(B,) bool, whether a loss is below the mean; NaNs are left out of the mean."""
    loss = loss.double()
    return loss < loss.nanmean()
