"""Multiplicative weights over groups."""

from __future__ import annotations

import torch
from torch import Tensor


def group_weights(cumulative_payoff: Tensor, *, step_size: float) -> Tensor:
    """Multiplicative weights: ``w = softmax(-step_size * cumulative_payoff)``, computed in log space.

    A group with a low payoff, because its holdout loss stays high, gets a high weight.

    Args:
        cumulative_payoff: (G,) nats, summed over selected examples and steps.
        step_size: eta >= 0; with 0 all weights are equal. The best value scales with 1 / num_selected, because the
            payoff is a sum over the selected examples.

    Returns:
        (G,) weights on the simplex, in the dtype of ``cumulative_payoff``.

    Example:
        >>> group_weights(torch.tensor([0.0, 1.0], dtype=torch.float64), step_size=1.0)
        tensor([0.7311, 0.2689], dtype=torch.float64)

    Source: Freund & Schapire 1997; REDUCR (arXiv 2312.00486), Algorithm 1.
    """
    if step_size == 0:
        return torch.full_like(cumulative_payoff, 1 / len(cumulative_payoff))
    # subtract before multiplying: products of large finite payoffs would overflow to infinity
    return torch.softmax((cumulative_payoff.min() - cumulative_payoff) * step_size, dim=0)
