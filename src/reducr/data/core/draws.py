"""Random draws of exact counts."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


def random_mask(num_examples: int, *, fraction: float, generator: torch.Generator) -> Tensor:
    """(N,) bool, True for exactly ``round(fraction * N)`` random ones of N examples."""
    mask = torch.zeros(num_examples, dtype=torch.bool)
    mask[torch.randperm(num_examples, generator=generator)[: round(fraction * num_examples)]] = True
    return mask


def draw_per_class(targets: Tensor, sizes: Mapping[int, int], *, generator: torch.Generator) -> Tensor:
    """Ascending positions of ``sizes[c]`` random examples of each class c.

    Each class in turn shuffles all its examples, so the draw of one class does not depend on the sizes of the others.
    """
    positions_by_class = []
    for target, size in sizes.items():
        positions = torch.nonzero(targets == target).flatten()
        positions_by_class.append(positions[torch.randperm(len(positions), generator=generator)[:size]])
    return torch.cat(positions_by_class).sort().values


def draw_per_cell(cells: Tensor, sizes: Tensor, *, generator: torch.Generator) -> Tensor:
    """Ascending positions of ``sizes[k]`` random examples of each cell k, with ``cells`` (N,) integers in [0, K)."""
    order = torch.randperm(len(cells), generator=generator)
    order = order[cells[order].argsort(stable=True)]
    counts = torch.bincount(cells, minlength=len(sizes))
    rank = torch.arange(len(cells)) - (counts.cumsum(dim=0) - counts)[cells[order]]
    return order[rank < sizes[cells[order]]].sort().values
