"""Class imbalance made on purpose, and splits that keep every class."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def long_tail_positions(
    targets: Tensor, *, imbalance_ratio: float, class_order: Sequence[int], generator: torch.Generator
) -> Tensor:
    """Thin the classes out exponentially: the k-th of C classes keeps ``imbalance_ratio^(-k / (C - 1))`` of its points.

    The first class keeps all it has and the last one ``1 / imbalance_ratio`` of it, at least one point each.

    Args:
        targets: (N,) integers in [0, C).
        imbalance_ratio: >= 1; 1 keeps everything.
        class_order: all C classes, the most frequent one first.
        generator: source of randomness.

    Returns:
        (M,) int64 positions to keep, ascending.

    Raises:
        ValueError: if ``imbalance_ratio`` is below 1 or ``class_order`` is not an order of the classes.

    Source: the long-tailed CIFAR of Cao et al. 2019 (arXiv 1906.07413).
    """
    if not (math.isfinite(imbalance_ratio) and imbalance_ratio >= 1):
        raise ValueError(f"imbalance_ratio must be at least 1, most frequent over rarest; got {imbalance_ratio}.")
    num_classes = len(class_order)
    if sorted(class_order) != list(range(num_classes)) or int(targets.max()) >= num_classes:
        raise ValueError(
            f"class_order must name each of the classes 0..{max(num_classes - 1, int(targets.max()))} once, most "
            f"frequent first; got {list(class_order)}."
        )
    kept = []
    for place, target in enumerate(class_order):
        positions = torch.nonzero(targets == target).flatten()
        share = imbalance_ratio ** (-place / max(num_classes - 1, 1))
        num_kept = min(len(positions), max(1, round(share * len(positions))))
        kept.append(positions[torch.randperm(len(positions), generator=generator)[:num_kept]])
    return torch.cat(kept).sort().values


def stratified_split(targets: Tensor, *, size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draw ``size`` points, every class in proportion to its frequency and with at least one.

    Args:
        targets: (N,) integers.
        size: in [number of classes, N).
        generator: source of randomness.

    Returns:
        (size,) and (N - size,) int64 positions, both ascending and disjoint.

    Raises:
        ValueError: if ``size`` is out of range.
    """
    classes, counts = torch.unique(targets, return_counts=True)
    if not len(classes) <= size < len(targets):
        raise ValueError(
            f"a stratified part must have at least one point of each of the {len(classes)} classes and leave some; "
            f"got size {size} of {len(targets)}."
        )
    quotas = _proportional_quotas(counts, size)
    drawn = []
    for target, quota in zip(classes, quotas.tolist(), strict=True):
        positions = torch.nonzero(targets == target).flatten()
        drawn.append(positions[torch.randperm(len(positions), generator=generator)[:quota]])
    is_drawn = torch.zeros(len(targets), dtype=torch.bool)
    is_drawn[torch.cat(drawn)] = True
    return torch.nonzero(is_drawn).flatten(), torch.nonzero(~is_drawn).flatten()


def _proportional_quotas(counts: Tensor, size: int) -> Tensor:
    """Whole numbers in proportion to ``counts`` that sum to ``size``, at least 1 each (largest remainders)."""
    exact = counts.double() * size / counts.sum()
    quotas = exact.floor().long().clamp(min=1)
    while int(quotas.sum()) != size:
        surplus = int(quotas.sum()) > size
        gaps = quotas - exact if surplus else exact - quotas
        gaps[(quotas <= 1) if surplus else (quotas >= counts)] = -torch.inf
        quotas[int(gaps.argmax())] += -1 if surplus else 1
    return quotas
