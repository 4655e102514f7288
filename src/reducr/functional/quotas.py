"""Quotas: how many points of each group are selected, and which of them."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_QUOTA = 1e-9
"""Smallest quota relative to the others. A quota of zero is raised to it, so examples of that group come last."""


def quota_scores(
    groups: Tensor, quotas: Tensor, *, log_probabilities: Tensor | None = None, generator: torch.Generator | None
) -> Tensor:
    """Random scores of which the b largest share b out among the groups by their ``quotas``, for every b.

    Point i, which is the j-th of its group g in a random order (j = 0, 1, ...), has the score::

        score_i = -(j + u_g) / quotas_g          u_g uniform in [0, 1)

    So the next place goes to the group that is farthest behind its quota, as in a highest-averages apportionment. A
    group gets its quota of b, rounded up or down at random without a bias towards either; one that has no more points
    leaves the rest to the others, in proportion to their quotas.

    Args:
        groups: (B,) integers in [0, G).
        quotas: (G,) > 0, up to a common factor.
        log_probabilities: (B,) finite, up to a constant in each group: the order of a group is that of a draw of its
            points one after another, without replacement, in proportion to their exponentials; None for equal ones.
        generator: source of randomness; None uses the global one.

    Returns:
        (B,) float64.

    Source: Sainte-Lague's method, with random starts in place of 1/2; Kool, van Hoof & Welling 2019 (arXiv 1903.06059)
        for the draw.
    """
    size, device = len(groups), groups.device
    drawn_on = device if generator is None else generator.device
    drawn = torch.rand(size + len(quotas), dtype=torch.float64, generator=generator, device=drawn_on).to(device)
    keys = drawn[:size]
    if log_probabilities is not None:
        # -Gumbel noise: the smallest of the keys is a draw in proportion to the probabilities
        keys = torch.log(-torch.log(keys.clamp(min=torch.finfo(keys.dtype).tiny))) - log_probabilities.double()
    places = _places_in_groups(groups, keys, num_groups=len(quotas))
    return -(places + drawn[size:][groups]) / quotas.double()[groups]


def positive_quotas(quotas: Tensor) -> Tensor:
    """``quotas`` (G,), not all zero, raised to at least ``SMALLEST_QUOTA`` times the largest."""
    return quotas.clamp(min=SMALLEST_QUOTA * quotas.max())


def _places_in_groups(groups: Tensor, keys: Tensor, *, num_groups: int) -> Tensor:
    """(B,) how many points of the same group have a smaller key."""
    order = keys.argsort()
    order = order[groups[order].argsort(stable=True)]  # by group, then by key
    counts = torch.bincount(groups, minlength=num_groups)
    starts = counts.cumsum(0) - counts
    places = torch.empty_like(order)
    places[order] = torch.arange(len(groups), device=groups.device) - starts[groups[order]]
    return places


def holdout_error(holdout_loss: Tensor) -> Tensor:
    """The error that a mean cross-entropy stands for: ``1 - exp(-h)``, zero for a negative h.

    ``exp(-h)`` is the geometric mean of the probabilities of the right targets, and so at most their mean.

    Args:
        holdout_loss: (G,) nats.

    Returns:
        (G,) in [0, 1].

    Example:
        >>> holdout_error(torch.tensor([0.0, 0.6931, 5.0]))
        tensor([0.0000, 0.5000, 0.9933])
    """
    return -torch.expm1(-holdout_loss.clamp(min=0))
