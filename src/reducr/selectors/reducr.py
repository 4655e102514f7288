"""REDUCR and two rules with its excess losses: fixed weights and max-min payoff."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reducr import functional
from reducr._internal.checks import check_flag, group_vector
from reducr._internal.names import unknown_name
from reducr.batch import Candidates
from reducr.selectors.base import Selector
from reducr.selectors.group_weights import GroupWeights


class Reducr(Selector):
    """Robust data downsampling: excess losses weighted by group weights that adapt during training.

    Per step, with the model loss ``l``, the group-irreducible loss ``r`` and the group-holdout loss ``h``::

        excess_ic = max(0, l_i - r_ic)
        score_i   = sum_c w_c excess_ic                       take the b largest
        cum_c     = payoff_decay * cum_c + sum_{i selected} ( excess_ic - h_c )
        w         = softmax(-step_size * cum)                 for the next step

    Args:
        num_groups: G >= 1.
        step_size: eta >= 0 per nat of payoff; 1e-4 in the published experiments. Its best value scales with
            1 / num_selected, because the payoff is a sum over the selected examples.
        clip: apply the max(0, .) above.
        use_holdout: subtract the holdout loss in the payoff.
        use_irreducible: subtract the irreducible loss in the excess. Without it all groups have the same excess loss.
        use_model_loss: include the model loss in the excess.
        initial_payoff: (G,) initial cumulative payoff; None for zeros.
        payoff_decay: in (0, 1]; 1 as published. Below 1 the weights remember about 1 / (1 - payoff_decay) steps, so
            they follow a stream whose groups change. Increase ``step_size`` with it (docs/method.md, section 2).
        holdout_weighting: ``per_point`` subtracts ``h_c`` once per selected example (as the published runs did),
            ``per_step`` once per step (as the paper's Algorithm 1 does).
        sampler_options: ``sampler`` and its options, see ``Selector``.

    Raises:
        ValueError: for a value outside its range, an unknown ``holdout_weighting``, or both loss terms off.

    Example:
        >>> selector = Reducr(num_groups=2, step_size=0.1)
        >>> selector.set_group_holdout_loss(torch.tensor([0.2, 1.5]))
        >>> candidates = Candidates(
        ...     model_loss=torch.tensor([1.0, 2.0, 0.1]),
        ...     group_irreducible_loss=torch.tensor([[0.5, 0.9], [3.0, 1.0], [0.2, 0.3]]),
        ... )
        >>> selection = selector.select(candidates, num_selected=1)
        >>> selection.positions
        tensor([1])
        >>> selector.update(selection)
        >>> selector.group_weights
        tensor([0.4925, 0.5075], dtype=torch.float64)

    Source: Bankes et al., NeurIPS 2024 (arXiv 2312.00486), Algorithm 1; deviations in docs/deviations.md.
    """

    name = "reducr"
    needs = frozenset({"model_loss", "group_irreducible_loss"})
    needs_group_holdout_loss = True

    def __init__(
        self,
        *,
        num_groups: int,
        step_size: float = 1e-4,
        clip: bool = True,
        use_holdout: bool = True,
        use_irreducible: bool = True,
        use_model_loss: bool = True,
        initial_payoff: Tensor | list[float] | None = None,
        payoff_decay: float = 1.0,
        holdout_weighting: str = "per_point",
        **sampler_options: Any,
    ) -> None:
        super().__init__(num_groups=num_groups, **sampler_options)
        if holdout_weighting not in ("per_point", "per_step"):
            raise unknown_name("holdout_weighting", holdout_weighting, ("per_point", "per_step"))
        flags = {"clip": clip, "use_holdout": use_holdout}
        for name, flag in (flags | {"use_irreducible": use_irreducible, "use_model_loss": use_model_loss}).items():
            check_flag(name, flag)
        if not (use_irreducible or use_model_loss):
            raise ValueError(
                "use_irreducible and use_model_loss are both False. Set one of them: there is no other term."
            )
        self.weighting = GroupWeights(
            num_groups, step_size=step_size, initial_payoff=initial_payoff, payoff_decay=payoff_decay
        )
        self.clip = clip
        self.use_irreducible = use_irreducible
        self.use_model_loss = use_model_loss
        self.needs_group_holdout_loss = use_holdout
        self.holdout_weighting = holdout_weighting
        used = {"model_loss": use_model_loss, "group_irreducible_loss": use_irreducible}
        self.needs = frozenset(name for name, is_used in used.items() if is_used)

    def excess(self, candidates: Candidates) -> Tensor:
        """Excess losses (B, G) in nats."""
        excess = functional.excess_loss(
            candidates.model_loss if self.use_model_loss else None,
            candidates.group_losses if self.use_irreducible else None,
            clip=self.clip,
        )
        return excess if excess.ndim == 2 else excess.unsqueeze(1).expand(-1, self.num_groups)

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) excess losses averaged with the group weights."""
        return functional.reducr_score(self.excess(candidates), self.group_weights)

    def payoff(self, selected: Candidates) -> Tensor:
        """(G,) excess losses of the selected examples minus the holdout losses."""
        return functional.group_payoff(
            self.excess(selected),
            self.group_holdout_loss if self.needs_group_holdout_loss else None,
            holdout_weighting=self.holdout_weighting,
        )

    def merged_payoff(self, payoffs: Tensor) -> Tensor:
        """(G,) sum of the payoffs (K, G). ``per_step`` subtracts the holdout loss once, not K times."""
        payoff = super().merged_payoff(payoffs)
        if self.needs_group_holdout_loss and self.holdout_weighting == "per_step":
            payoff += (len(payoffs) - 1) * self.group_holdout_loss.to(payoff)
        return payoff


class FixedWeights(Selector):
    """REDUCR's score with fixed group weights.

    A group of weight zero is left out of the arithmetic, so it needs no reference model and its column of the
    irreducible losses may hold anything.

    Args:
        num_groups: G >= 1.
        group_weights: (G,) >= 0, not all zero; scaled to sum to 1. None for equal weights.
        clip: replace negative excess losses by zero.
        sampler_options: ``sampler`` and its options, see ``Selector``.

    Raises:
        ValueError: for weights of another length, negative, not finite or all zero.
    """

    name = "fixed_weights"
    needs = frozenset({"model_loss", "group_irreducible_loss"})
    fixed_group_weights: Tensor

    def __init__(
        self,
        *,
        num_groups: int,
        group_weights: Tensor | list[float] | None = None,
        clip: bool = True,
        **sampler_options: Any,
    ) -> None:
        super().__init__(num_groups=num_groups, **sampler_options)
        check_flag("clip", clip)
        weights = group_vector(
            [1.0] * num_groups if group_weights is None else group_weights, num_groups, "group_weights"
        )
        if bool((weights < 0).any()) or not bool((weights > 0).any()):
            raise ValueError(f"group_weights must not be negative nor all zero; got {weights.tolist()}.")
        self.clip = clip
        weights = weights / weights.max()  # the sum of huge weights would overflow
        self.register_buffer("fixed_group_weights", weights / weights.sum())

    @property
    def group_weights(self) -> Tensor:
        """(G,) float64, the fixed weights, which sum to 1."""
        return self.fixed_group_weights

    @property
    def weighted_groups(self) -> Tensor:
        """(K,) int64, the groups with a weight above zero; only they need irreducible losses."""
        return torch.nonzero(self.fixed_group_weights).flatten()

    def losses(self, candidates: Candidates) -> list[Tensor]:
        """The model loss, and the irreducible losses of the groups with a weight above zero."""
        return [candidates.model_loss, candidates.group_losses[:, self.weighted_groups]]  # type: ignore[list-item]  # in needs

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) excess losses averaged with the fixed weights."""
        model_loss, group_irreducible_loss = self.losses(candidates)
        excess = functional.excess_loss(model_loss, group_irreducible_loss, clip=self.clip)
        return functional.reducr_score(excess, self.fixed_group_weights[self.weighted_groups])


class Payoff(Selector):
    """Max-min payoff: the payoff of the group that an example helps least, ``min_c (l_i - r_ic - h_c)``.

    Source: the payoff ablation of REDUCR (arXiv 2312.00486).
    """

    name = "payoff"
    needs = frozenset({"model_loss", "group_irreducible_loss"})
    needs_group_holdout_loss = True

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) smallest payoff over the groups."""
        excess = functional.excess_loss(candidates.model_loss, candidates.group_losses)
        return functional.max_min_payoff(excess, self.group_holdout_loss)
