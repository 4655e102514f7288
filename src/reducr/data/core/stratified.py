"""Stratified splits: every class and group in proportion to its frequency."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr.data.core.draws import draw_per_cell, draw_per_class


def stratified_split(
    targets: Tensor,
    *,
    size: int,
    generator: torch.Generator,
    groups: Tensor | None = None,
    spares_single_examples: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw ``size`` examples, in proportion to the class frequencies and at least one of each class.

    With ``groups``, the draw of each class is also proportional to the frequencies of its groups. Counts are rounded so
    that the total of each group is as close to its share as possible, and at least one if the group has an example.

    Args:
        targets: (N,) integers.
        size: in [number of classes, N).
        generator: source of randomness.
        groups: (N,) integers; None if groups are the targets or follow from them.
        spares_single_examples: whether the only example of a group is not drawn if its class has others.

    Returns:
        Positions of the drawn and of the remaining examples, (size,) and (N - size,) int64, ascending.

    Raises:
        ValueError: if ``size`` is out of range.
    """
    classes, counts = torch.unique(targets, return_counts=True)
    if not len(classes) <= size < len(targets):
        raise ValueError(
            f"a stratified part needs at least one example of each of the {len(classes)} classes and must leave some; "
            f"got size {size} of {len(targets)}."
        )
    quotas = _proportional_quotas(counts, size)
    if groups is None:
        sizes = dict(zip(classes.tolist(), quotas.tolist(), strict=True))
        drawn = draw_per_class(targets, sizes, generator=generator)
    else:
        rows, columns = (torch.unique(values, return_inverse=True)[1] for values in (targets, groups))
        num_columns = int(columns.max()) + 1
        cells = rows * num_columns + columns
        counts = torch.bincount(cells, minlength=len(classes) * num_columns).view(-1, num_columns)
        quotas = _cell_quotas(counts, quotas, spares_single_examples=spares_single_examples)
        drawn = draw_per_cell(cells, quotas.flatten(), generator=generator)
    is_rest = torch.ones(len(targets), dtype=torch.bool)
    is_rest[drawn] = False
    return drawn, torch.nonzero(is_rest).flatten()


def _proportional_quotas(counts: Tensor, size: int) -> Tensor:
    """Integers of at least 1 that sum to ``size``, in proportion to ``counts`` (largest remainders)."""
    exact = counts.double() * size / counts.sum()
    quotas = exact.floor().long().clamp(min=1)
    while int(quotas.sum()) != size:
        is_above = int(quotas.sum()) > size
        gaps = quotas - exact if is_above else exact - quotas
        gaps[(quotas <= 1) if is_above else (quotas >= counts)] = -torch.inf
        quotas[int(gaps.argmax())] += -1 if is_above else 1
    return quotas


def _cell_quotas(counts: Tensor, sizes: Tensor, *, spares_single_examples: bool) -> Tensor:
    """Integers (C, G) whose rows sum to ``sizes`` (C,), in proportion to ``counts`` (C, G).

    Each is its exact share rounded down, or up if its column is furthest below its total. Then each empty column with
    examples takes one from another column in the same row.
    """
    exact = counts.double() * sizes[:, None] / counts.sum(dim=1, keepdim=True)
    quotas = exact.floor().long()
    shares, available, totals = exact.sum(dim=0), counts.sum(dim=0), quotas.sum(dim=0)
    for row in range(len(counts)):
        gaps = exact[row] - quotas[row] + shares - totals
        gaps[available - totals <= 1] -= counts.sum()  # take the last example of a group only if nothing else is left
        gaps[quotas[row] == exact[row]] = -torch.inf
        rounded_up = gaps.topk(int(sizes[row] - quotas[row].sum())).indices
        quotas[row, rounded_up] += 1
        totals[rounded_up] += 1
    min_available = 2 if spares_single_examples else 1
    for column in torch.nonzero((totals == 0) & (available >= min_available)).flatten().tolist():
        surplus = (totals - shares).where((quotas > 0) & (totals > 1) & (counts[:, [column]] > 0), -torch.inf)
        row, donor = divmod(int(surplus.argmax()), len(totals))
        if surplus[row, donor] > -torch.inf:
            quotas[row, [donor, column]] += torch.tensor([-1, 1])
            totals = quotas.sum(dim=0)
    return quotas
