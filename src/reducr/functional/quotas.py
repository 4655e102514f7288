"""Group quotas: how many examples of each group are selected, and which."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

Floats = NDArray[np.float64]
Numbers = NDArray[np.integer] | Floats
SMALLEST_QUOTA = 1e-9
"""Smallest quota relative to the others. A quota of zero is raised to it, so examples of that group come last."""


_TINY = float(np.finfo(np.float64).tiny)


def quota_scores(
    groups: Tensor,
    quotas: Tensor,
    *,
    num_selected: int,
    log_probabilities: Tensor | None = None,
    generator: torch.Generator | None,
) -> Tensor:
    """Random scores, of which the ``num_selected`` largest fill the quotas of the groups.

    The expected number of examples of each group is ``expected_counts``. The number itself is that number rounded up or
    down, without bias (``systematic_counts``). Which examples of a group come first is a random draw.

    Args:
        groups: (B,) integers in [0, G).
        quotas: (G,), up to a common factor; > 0 for the groups that are present.
        num_selected: b in [1, B].
        log_probabilities: (B,) finite, up to a constant in each group. The examples of a group are drawn one after
            another, without replacement, in proportion to the exponentials; None for equal probabilities.
        generator: random generator; None for torch's global one.

    Returns:
        (B,) float64, negative. Among the b largest, and among the others, groups take turns in proportion to their
        quotas.

    Source: Madow 1949 for systematic sampling; Kool, van Hoof & Welling 2019 (arXiv 1903.06059) for the draw.
    """
    size, num_groups, device = len(groups), len(quotas), groups.device
    noise_device = device if generator is None else generator.device
    noise = torch.rand(size + num_groups + 1, dtype=torch.float64, generator=generator, device=noise_device)
    # so few numbers are worked out fastest on the host
    log_weights = quotas[:0] if log_probabilities is None else log_probabilities
    host_groups, host_quotas, logarithms, uniform = _on_host(device, groups, quotas, log_weights, noise)
    keys = uniform[:size]
    if log_probabilities is not None:
        # minus Gumbel noise: the example with the smallest key is a draw in proportion to the probabilities
        keys = np.log(-np.log(np.maximum(keys, _TINY))) - logarithms
    scores = _quota_scores(host_groups.astype(np.int64, copy=False), host_quotas, keys, num_selected, uniform[size:])
    return torch.from_numpy(scores).to(device)


def _on_host(device: torch.device, groups: Tensor, *floats: Tensor) -> list[NDArray[Any]]:
    """The ``groups`` and the ``floats``, as float64, in arrays of the host: with one transfer from ``device``."""
    if device.type == "cpu":
        return [groups.numpy(), *(column.detach().to(device, torch.float64).numpy() for column in floats)]
    columns = [column.detach().to(device, torch.float64) for column in (groups, *floats)]
    return np.split(torch.cat(columns).cpu().numpy(), np.cumsum([len(column) for column in columns[:-1]]))


def _sorted_in_groups(groups: NDArray[np.int64], keys: Floats, num_groups: int) -> NDArray[np.intp]:
    """The order of ``np.lexsort((keys, groups))``, by faster sorts unless there are equal keys."""
    order = np.argsort(keys)
    ordered = keys[order]
    if num_groups > 2**16 or not (ordered[1:] > ordered[:-1]).all():
        return np.lexsort((keys, groups))
    return order[np.argsort(groups.astype(np.uint16)[order], kind="stable")]  # of 16 bits: a radix sort


def _quota_scores(
    groups: NDArray[np.int64], quotas: Floats, keys: Floats, num_selected: int, uniform: Floats
) -> Floats:
    """Scores (B,); the examples of a group come in the order of ``keys`` (B,). ``uniform`` as in the rounding."""
    sizes = np.bincount(groups, minlength=len(quotas))
    expected = expected_counts(sizes, quotas, num_selected=num_selected)
    counts = systematic_counts(expected, num_selected=num_selected, uniform=uniform)
    order = _sorted_in_groups(groups, keys, len(quotas))
    ranks = np.empty(len(groups))
    ranks[order] = np.arange(len(groups)) - np.repeat(sizes.cumsum() - sizes, sizes)
    periods = 1 / np.maximum(quotas, _TINY)
    scores = (ranks + 0.5) * -periods[groups]
    lowest = ((counts - 0.5) * periods)[counts > 0].max()
    return np.where(ranks < counts[groups], scores, scores - lowest)


def expected_counts(sizes: Numbers, quotas: Floats, *, num_selected: int) -> Floats:
    """Expected number of examples of each group: ``min(sizes_g, factor * quotas_g)``, of sum ``num_selected``.

    A group with fewer examples than its quota is selected completely; what it lacks goes to the others, in proportion
    to their quotas.

    Args:
        sizes: (G,) number of candidates of each group.
        quotas: (G,), up to a common factor; > 0 for the groups that have candidates.
        num_selected: b, at most the sum of ``sizes``.

    Returns:
        (G,).

    Example:
        >>> expected_counts(np.array([9.0, 9.0, 1.0]), np.array([1.0, 3.0, 4.0]), num_selected=6)
        array([1.25, 3.75, 1.  ])
    """
    quotas = np.maximum(quotas, _TINY)  # of absent groups
    expected: Floats = quotas * (num_selected / quotas.sum())
    if (expected <= sizes).all():
        return expected
    # groups are selected completely in the order of sizes / quotas; factors[k] is what is left for the others after k
    order = np.argsort(sizes / quotas)
    ordered_sizes, ordered_quotas = sizes[order], quotas[order]
    factors = (num_selected - (ordered_sizes.cumsum() - ordered_sizes)) / ordered_quotas[::-1].cumsum()[::-1]
    is_enough = factors * ordered_quotas <= ordered_sizes
    return np.minimum(sizes, factors[is_enough.argmax()] * quotas) if is_enough.any() else sizes.astype(np.float64)


def systematic_counts(expected: Floats, *, num_selected: int, uniform: Floats) -> Floats:
    """Round ``expected`` (G,) up or down at random: the mean of each count is its expectation, their sum is fixed.

    Systematic sampling: the fractional parts are laid end to end in a random order, and those that one of the points
    ``u, u + 1, u + 2, ...`` falls on are rounded up.

    Args:
        expected: (G,) >= 0, of sum b up to rounding.
        num_selected: b.
        uniform: (G + 1,) independent uniform numbers in [0, 1), for the order and for u.

    Returns:
        (G,) whole numbers, of sum b.

    Example:
        >>> systematic_counts(np.array([0.5, 2.5]), num_selected=3, uniform=np.array([0.1, 0.2, 0.9]))
        array([0., 3.])
    """
    counts = np.floor(expected)
    num_left = num_selected - counts.sum()
    order = np.argsort(uniform[:-1])
    ends = np.minimum((expected - counts)[order].cumsum(), num_left)
    ends[-1] = num_left
    # a start closer to 1 than the rounding errors of the sums could round a whole number up
    num_points = np.ceil(ends - min(uniform[-1], 1 - 1e-9))
    num_points[1:] -= num_points[:-1].copy()
    counts[order] += num_points
    return counts


def positive_quotas(quotas: Tensor) -> Tensor:
    """``quotas`` (G,), not all zero, raised to at least ``SMALLEST_QUOTA`` times the largest."""
    return quotas.clamp(min=SMALLEST_QUOTA * quotas.max())


def holdout_error(holdout_loss: Tensor) -> Tensor:
    """Error that corresponds to a mean cross-entropy: ``1 - exp(-h)``, zero for a negative h.

    ``exp(-h)`` is the geometric mean of the probabilities of the targets, and at most their mean.

    Args:
        holdout_loss: (G,) nats.

    Returns:
        (G,) in [0, 1].

    Example:
        >>> holdout_error(torch.tensor([0.0, 0.6931, 5.0]))
        tensor([0.0000, 0.5000, 0.9933])
    """
    return -torch.expm1(-holdout_loss.clamp(min=0))
