"""Label noise put in on purpose, with a record of where."""

from __future__ import annotations

import torch
from torch import Tensor


def uniform_label_noise(
    targets: Tensor, *, fraction: float, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace the target of a random share of the points by another class, all others equally likely.

    Exactly ``round(fraction * N)`` points change, every one of them to a class that is not its own.

    Args:
        targets: (N,) integers in [0, num_classes); not changed.
        fraction: in [0, 1].
        num_classes: C >= 2.
        generator: source of randomness.

    Returns:
        The noisy targets (N,) int64, and (N,) bool, True where a target was changed.

    Raises:
        ValueError: if ``fraction`` is outside [0, 1], or there is no other class.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> noisy, is_corrupted = uniform_label_noise(
        ...     torch.zeros(10, dtype=torch.int64), fraction=0.3, num_classes=5, generator=generator
        ... )
        >>> int(is_corrupted.sum()), bool((noisy[is_corrupted] > 0).all())
        (3, True)
    """
    if not 0 <= fraction <= 1:
        raise ValueError(f"the fraction of noisy labels must be in [0, 1]; got {fraction}.")
    if num_classes < 2:
        raise ValueError(f"label noise needs another class to change to; got num_classes={num_classes}.")
    is_corrupted = torch.zeros(len(targets), dtype=torch.bool)
    is_corrupted[torch.randperm(len(targets), generator=generator)[: round(fraction * len(targets))]] = True
    shifts = torch.randint(1, num_classes, (len(targets),), generator=generator)
    noisy = torch.where(is_corrupted, (targets.long() + shifts) % num_classes, targets.long())
    return noisy, is_corrupted
