"""Group quotas: how many examples of each group are selected, and which."""

from __future__ import annotations

import torch
from torch import Tensor

SMALLEST_QUOTA = 1e-9
"""Smallest quota relative to the others. A quota of zero is raised to it, so examples of that group come last."""


def quota_scores(
    groups: Tensor, quotas: Tensor, *, log_probabilities: Tensor | None = None, generator: torch.Generator | None
) -> Tensor:
    """Random scores: the b largest of them fill the groups' quotas of b, for every b.

    If example i is the j-th of its group g in a random order (j = 0, 1, ...), its score is::

        score_i = -(j + u_g) / quotas_g          u_g uniform in [0, 1)

    The next example comes from the group that is farthest behind its quota, as in a highest-averages apportionment. A
    group gets its quota of b, rounded up or down at random without bias. A group that runs out of examples leaves the
    rest to the others, in proportion to their quotas.

    Args:
        groups: (B,) integers in [0, G).
        quotas: (G,) > 0, up to a common factor.
        log_probabilities: (B,) finite, up to a constant in each group. The examples of a group are drawn one after
            another, without replacement, in proportion to the exponentials; None for equal probabilities.
        generator: random generator; None for torch's global one.

    Returns:
        (B,) float64.

    Source: Sainte-Lague's method with random starts instead of 1/2; Kool, van Hoof & Welling 2019 (arXiv 1903.06059)
        for the draw.
    """
    size, device = len(groups), groups.device
    noise_device = device if generator is None else generator.device
    uniform = torch.rand(size + len(quotas), dtype=torch.float64, generator=generator, device=noise_device).to(device)
    keys, starts = uniform[:size], uniform[size:]
    if log_probabilities is not None:
        # minus Gumbel noise: the example with the smallest key is a draw in proportion to the probabilities
        keys = torch.log(-torch.log(keys.clamp(min=torch.finfo(keys.dtype).tiny))) - log_probabilities.double()
    ranks = _ranks_in_groups(groups, keys, num_groups=len(quotas))
    return -(ranks + starts[groups]) / quotas.double()[groups]


def positive_quotas(quotas: Tensor) -> Tensor:
    """``quotas`` (G,), not all zero, raised to at least ``SMALLEST_QUOTA`` times the largest."""
    return quotas.clamp(min=SMALLEST_QUOTA * quotas.max())


def _ranks_in_groups(groups: Tensor, keys: Tensor, *, num_groups: int) -> Tensor:
    """(B,) number of examples of the same group with a smaller key."""
    order = keys.argsort()
    order = order[groups[order].argsort(stable=True)]  # by group, then by key
    counts = torch.bincount(groups, minlength=num_groups)
    starts = counts.cumsum(0) - counts
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
