"""Rules that weight the losses of the points they select: group DRO and InfoBatch."""

from __future__ import annotations

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
    """Group DRO without selection: a uniform draw, whose losses are weighted by groups that an online rule adapts.

    With ``l_g`` the mean loss of the selected points of group g, zero if there is none, and ``b_g`` their number::

        cum_g = cum_g - l_g
        q     = softmax(-step_size * cum)             these losses included, as published
        loss  = sum_g q_g l_g                          so a point's weight is  b q_g / b_g

    It reads the model losses of all candidates, although a draw needs none; with ``fraction=1`` these are those of the
    points trained on. On several ranks with ``distributed="local"``, and over micro-batches, each part weights its own
    mean losses, and the weights move by their mean.

    Args:
        num_groups: G >= 1.
        step_size: eta_q >= 0 per nat; 0.01 as published.
        sampler: a key of ``SAMPLERS``.
        sampler_options: see ``Selector``.

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
        sampler: str | None = None,
        **sampler_options: float | str | None,
    ) -> None:
        super().__init__(num_groups=num_groups, sampler=sampler, **sampler_options)
        self.weighting = GroupWeights(num_groups, step_size=step_size)

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) independent uniform numbers in [0, 1)."""
        return uniform_numbers(candidates, generator)

    def payoff(self, selected: Candidates) -> Tensor:
        """(G,) minus the mean loss of every group's selected points; zero for a group without any."""
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
    """Unbiased pruning of points that are learnt: those below the mean loss, with one probability.

    Of the candidates whose loss is below the mean of all, each is pruned with probability r; the losses of those of
    them that are trained on are multiplied with ``1 / (1 - r)``, so that the gradient stays that of all candidates in
    expectation. The selection is a random part of what is not pruned; if that is less than it takes, pruned points fill
    it up, and r becomes the share of them that is left out after all. Uniform phases at the ends of training
    (``uniform_last_epochs``, the paper's annealing) prune and weight nothing.

    The paper prunes a whole epoch by the losses of the epoch before and has no fixed number of points; here losses are
    of the model as it is, and the mean is over the candidates. Its weights hold for the sampler ``top_k``.

    Args:
        num_groups: G >= 1.
        prune_probability: r in [0, 1); 0.5 as published.
        sampler: a key of ``SAMPLERS``.
        sampler_options: see ``Selector``.

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
        sampler: str | None = None,
        **sampler_options: float | str | None,
    ) -> None:
        super().__init__(num_groups=num_groups, sampler=sampler, **sampler_options)
        if not (is_finite_number(prune_probability) and 0 <= prune_probability < 1):
            raise ValueError(
                "prune_probability must be in [0, 1), the share of the points below the mean loss that is pruned; got "
                f"{prune_probability}."
            )
        self.prune_probability = float(prune_probability)

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) random numbers, in [0, 1), and in [-1, 0) for pruned points."""
        is_low = _is_below_mean(candidates.model_loss)  # type: ignore[arg-type]  # in needs
        is_pruned = is_low & (uniform_numbers(candidates, generator) < self.prune_probability)
        return uniform_numbers(candidates, generator) - is_pruned.float()

    def example_weights(
        self, candidates: Candidates, valid_scores: Tensor, positions: Tensor, payoff: Tensor
    ) -> Tensor | None:
        """(b,) float32: 1 / (1 - r) for points below the mean loss, 1 for others."""
        if isinstance(self.sampler, UniformAtEnds) and self.sampler.is_at_an_end(int(self.epoch)):
            return None
        loss: Tensor = candidates.model_loss  # type: ignore[assignment]  # in needs
        is_low = _is_below_mean(loss.masked_fill(valid_scores == -torch.inf, torch.nan))
        is_selected_low = is_low.index_select(0, positions)
        weight = torch.full((), 1 / (1 - self.prune_probability), device=positions.device)
        has_pruned = (valid_scores.index_select(0, positions) < 0).any()
        weight = torch.where(has_pruned, is_low.sum() / is_selected_low.sum(), weight)
        return torch.where(is_selected_low, weight, 1.0)


def _is_below_mean(loss: Tensor) -> Tensor:
    """(B,) bool; a NaN counts for nothing."""
    loss = loss.double()
    return loss < loss.nanmean()
