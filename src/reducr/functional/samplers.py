"""Positions from scores: the largest, or a weighted draw without replacement."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

# log-probability of examples that may be drawn only after all others, below the smallest of these
_LAST_RESORT = 1e9
_SMALLEST_TO_DIVIDE = 1024
# larger exponents give the draws of top_k, but products overflow
_LARGEST_BETA = 1e300


def top_k(scores: Tensor, num_selected: int) -> Tensor:
    """Positions of the ``num_selected`` largest scores, best first. Of equal scores the earlier position wins.

    The stable order breaks ties alike on every device and in every run.

    Args:
        scores: (B,).
        num_selected: b in [1, B].

    Returns:
        (b,) int64.

    Example:
        >>> top_k(torch.tensor([1.0, 3.0, 3.0, 2.0]), 3)
        tensor([1, 2, 3])
    """
    if scores.device.type != "cpu" or scores.dtype not in (torch.float32, torch.float64):
        return _first(scores, num_selected)
    if len(scores) < _SMALLEST_TO_DIVIDE or num_selected > len(scores) // 4:
        return _first(scores, num_selected)
    # a selection of the largest takes time in proportion to B; only these are sorted
    values = scores.detach().numpy()
    place = len(values) - num_selected
    is_smaller = values < np.partition(values, place)[place]
    rows = torch.from_numpy(np.flatnonzero(~is_smaller))  # with all equal ones and, as in a sort, NaN
    return rows[_first(scores[rows], num_selected)]


def _first(scores: Tensor, num_selected: int) -> Tensor:
    return torch.sort(scores, descending=True, stable=True).indices[:num_selected]


def gumbel_top_k(log_probabilities: Tensor, num_selected: int, *, generator: torch.Generator | None) -> Tensor:
    """Positions of a weighted draw without replacement, in the order drawn.

    Adding independent Gumbel noise to the log-probabilities and keeping the largest sums is equivalent to drawing one
    example at a time, in proportion to the probabilities of the remaining ones.

    Args:
        log_probabilities: (B,), up to a common constant.
        num_selected: b in [1, B].
        generator: random generator; None for torch's global one.

    Returns:
        (b,) int64.

    Source: Kool, van Hoof & Welling 2019 (arXiv 1903.06059).
    """
    noise_device = log_probabilities.device if generator is None else generator.device
    uniform = torch.rand(log_probabilities.shape, dtype=torch.float64, device=noise_device, generator=generator)
    # keeps log(-log(u)) finite when u is exactly 0
    tiny = torch.finfo(torch.float64).tiny
    gumbel = -torch.log(-torch.log(uniform.clamp(min=tiny)))
    return top_k(log_probabilities.double() + gumbel.to(log_probabilities.device), num_selected)


def power_log_probabilities(scores: Tensor, *, beta: float) -> Tensor:
    """Log-probabilities, up to a constant, of ``p_i`` proportional to ``max(score_i, 0)^beta``.

    Examples without a positive score have probability zero. They are drawn only after all others, with equal
    probabilities.

    Args:
        scores: (B,).
        beta: exponent >= 0.

    Returns:
        (B,) float64.

    Example:
        >>> power_log_probabilities(torch.tensor([1.0, 4.0]), beta=0.5)
        tensor([0.0000, 0.6931], dtype=torch.float64)
    """
    scores = scores.double()
    logarithms = min(beta, _LARGEST_BETA) * torch.log(scores.clamp(min=1e-300))
    positive = scores > 0
    last_resort = 2 * logarithms.masked_fill(~positive, 0).amin() - _LAST_RESORT
    return torch.where(positive, logarithms, last_resort)


def rank_log_probabilities(scores: Tensor, *, beta: float) -> Tensor:
    """Log-probabilities, up to a constant, of ``p_i`` proportional to ``rank_i^-beta``; rank 1 is the largest score.

    Args:
        scores: (B,).
        beta: exponent >= 0.

    Returns:
        (B,) float64.

    Example:
        >>> rank_log_probabilities(torch.tensor([0.1, 5.0]), beta=1.0)
        tensor([-0.6931, -0.0000], dtype=torch.float64)
    """
    return -min(beta, _LARGEST_BETA) * torch.log(_ranks(scores))


def exponential_rank_log_probabilities(scores: Tensor, *, pressure: float) -> Tensor:
    """Log-probabilities, up to a constant, of ``p_i`` proportional to ``pressure^(-rank_i / B)``.

    The best of B examples is about ``pressure`` times as likely as the worst.

    Args:
        scores: (B,).
        pressure: s_e >= 1.

    Returns:
        (B,) float64.

    Example:
        >>> exponential_rank_log_probabilities(torch.tensor([0.1, 5.0]), pressure=100.0)
        tensor([-4.6052, -2.3026], dtype=torch.float64)

    Source: Loshchilov & Hutter 2016 (arXiv 1511.06343), eq. 3.
    """
    return -math.log(pressure) / len(scores) * _ranks(scores)


def _ranks(scores: Tensor) -> Tensor:
    """(B,) float64 ranks, 1 for the largest score; of equal scores the earlier position ranks first."""
    order = top_k(scores, len(scores))
    ranks = torch.empty(len(scores), dtype=torch.float64, device=scores.device)
    ranks[order] = torch.arange(1, len(scores) + 1, dtype=torch.float64, device=scores.device)
    return ranks
