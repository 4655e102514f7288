"""Group quotas: how many examples of each group are selected, and which."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_QUOTA = 1e-9
"""Smallest quota relative to the others. A quota of zero is raised to it, so examples of that group come last."""


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
    uniform = torch.rand(size + num_groups + 1, dtype=torch.float64, generator=generator, device=noise_device)
    uniform = uniform.to(device)
    keys = uniform[:size]
    if log_probabilities is not None:
        # minus Gumbel noise: the example with the smallest key is a draw in proportion to the probabilities
        keys = torch.log(-torch.log(keys.clamp(min=torch.finfo(keys.dtype).tiny))) - log_probabilities.double()
    sizes = torch.bincount(groups, minlength=num_groups)
    expected = expected_counts(sizes, quotas, num_selected=num_selected)
    counts = systematic_counts(expected, num_selected=num_selected, uniform=uniform[size:])
    ranks = _ranks_in_groups(groups, keys, sizes=sizes)
    scores = -(ranks + 0.5) / quotas.double()[groups]
    is_selected = ranks < counts[groups]
    # below all of the selected
    return torch.where(is_selected, scores, scores + scores.masked_fill(~is_selected, 0).amin())


def expected_counts(sizes: Tensor, quotas: Tensor, *, num_selected: int) -> Tensor:
    """Expected number of examples of each group: ``min(sizes_g, factor * quotas_g)``, of sum ``num_selected``.

    A group with fewer examples than its quota is selected completely; what it lacks goes to the others, in proportion
    to their quotas.

    Args:
        sizes: (G,) int64, number of candidates of each group.
        quotas: (G,), up to a common factor; > 0 for the groups that have candidates.
        num_selected: b, at most the sum of ``sizes``.

    Returns:
        (G,) float64.

    Example:
        >>> expected_counts(torch.tensor([9, 9, 1]), torch.tensor([1.0, 3.0, 4.0]), num_selected=6)
        tensor([1.2500, 3.7500, 1.0000], dtype=torch.float64)
    """
    sizes, quotas = sizes.double(), quotas.double().clamp(min=torch.finfo(torch.float64).tiny)  # of absent groups
    # groups are selected completely in the order of sizes / quotas; factors[k] is what is left for the others after k
    factors_when_complete, order = (sizes / quotas).sort()
    taken = sizes[order].cumsum(0) - sizes[order]
    quotas_left = quotas[order].flip(0).cumsum(0).flip(0)
    factors = (num_selected - taken) / quotas_left
    is_enough = factors <= factors_when_complete
    # the first; all groups are complete if there is none
    factor = torch.where(is_enough.any(), factors[is_enough.to(torch.uint8).argmax()], torch.inf)
    return torch.minimum(sizes, factor * quotas)


def systematic_counts(expected: Tensor, *, num_selected: int, uniform: Tensor) -> Tensor:
    """Round ``expected`` (G,) up or down at random: the mean of each count is its expectation, their sum is fixed.

    Systematic sampling: the fractional parts are laid end to end in a random order, and those that one of the points
    ``u, u + 1, u + 2, ...`` falls on are rounded up.

    Args:
        expected: (G,) float64 >= 0, of sum b up to rounding.
        num_selected: b.
        uniform: (G + 1,) independent uniform numbers in [0, 1), for the order and for u.

    Returns:
        (G,) int64, of sum b.

    Example:
        >>> systematic_counts(torch.tensor([0.5, 2.5]).double(), num_selected=3, uniform=torch.tensor([0.1, 0.2, 0.9]))
        tensor([0, 3])
    """
    whole = expected.floor()
    num_left = num_selected - whole.sum()
    order = uniform[:-1].argsort()
    ends = (expected - whole)[order].cumsum(0).clamp(max=num_left)
    ends[-1] = num_left
    # a start closer to 1 than the rounding errors of the sums could round a whole number up
    num_points = (ends - uniform[-1].clamp(max=1 - 1e-9)).ceil()
    is_rounded_up = torch.empty_like(num_points)
    is_rounded_up[order] = num_points.diff(prepend=num_points.new_zeros(1))
    return (whole + is_rounded_up).long()


def positive_quotas(quotas: Tensor) -> Tensor:
    """``quotas`` (G,), not all zero, raised to at least ``SMALLEST_QUOTA`` times the largest."""
    return quotas.clamp(min=SMALLEST_QUOTA * quotas.max())


def _ranks_in_groups(groups: Tensor, keys: Tensor, *, sizes: Tensor) -> Tensor:
    """(B,) number of examples of the same group with a smaller key; ``sizes`` (G,) are the sizes of the groups."""
    order = keys.argsort()
    order = order[groups[order].argsort(stable=True)]  # by group, then by key
    starts = sizes.cumsum(0) - sizes
    ranks = torch.empty_like(order)
    ranks[order] = torch.arange(len(groups), device=groups.device) - starts[groups[order]]
    return ranks


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
