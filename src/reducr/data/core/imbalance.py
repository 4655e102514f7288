"""Class imbalance made on purpose, and splits that keep every class."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reducr.data.core.options import check_classes, check_classes_exist, is_number, make_of_kind


class Imbalance(Protocol):
    """Thins the classes of a part out, each to a size of its own."""

    def positions(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> Tensor:
        """(M,) int64 positions to keep, ascending, of points with these clean ``targets`` (N,)."""


@dataclass(frozen=True)
class LongTail:
    """Class sizes that fall by equal factors, see ``long_tail_positions``.

    Args:
        ratio: most frequent over rarest class, >= 1; 1 keeps everything.
        class_order: all classes, the most frequent one first; None for 0, 1, 2, ...

    Raises:
        ValueError: for a ratio below 1, or an order that is none.
    """

    ratio: float
    class_order: Sequence[int] | None = None

    def __post_init__(self) -> None:
        _check_ratio(self.ratio)
        if self.class_order is not None:
            expected = "a list of all classes, each once, most frequent first"
            check_classes("class_order", self.class_order, expected=expected)
            _check_class_order(self.class_order, num_classes=max(*self.class_order, len(self.class_order) - 1) + 1)

    def positions(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> Tensor:
        """(M,) int64 positions to keep, ascending.

        Raises:
            ValueError: if ``class_order`` is not an order of the ``num_classes`` classes.
        """
        class_order = range(num_classes) if self.class_order is None else self.class_order
        _check_class_order(class_order, num_classes=num_classes)
        return long_tail_positions(targets, imbalance_ratio=self.ratio, class_order=class_order, generator=generator)


@dataclass(frozen=True)
class KeepFractions:
    """Some classes keep a share of their points, at least one each; all others keep every point.

    Args:
        fractions: class -> share of its points to keep, in (0, 1].

    Raises:
        ValueError: for a share out of range, or no class at all.
    """

    fractions: Mapping[int, float]

    def __post_init__(self) -> None:
        expected = "a mapping from class to the share of its points to keep, such as {1: 0.22}"
        check_classes("fractions", self.fractions, expected=expected, container=Mapping)
        for target, fraction in self.fractions.items():
            if not (is_number(fraction) and 0 < fraction <= 1):
                raise ValueError(f"fractions must be in (0, 1]; got {fraction!r} for class {target}.")

    def positions(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> Tensor:
        """(M,) int64 positions to keep, ascending.

        Raises:
            ValueError: for a class that the data does not have.
        """
        check_classes_exist("fractions", list(self.fractions), num_classes=num_classes)
        counts = torch.bincount(targets, minlength=num_classes).tolist()
        sizes = {target: _size(count, self.fractions.get(target, 1) * count) for target, count in enumerate(counts)}
        return _drawn_positions(targets, sizes, generator=generator)


@dataclass(frozen=True)
class ClassProbability:
    """Each of k named classes is drawn with probability p, each other one with ``q = (1 - k p) / (C - k)``.

    What is kept is the largest part of the points with these shares: ``p_c M`` points of class c, rounded and at least
    one, with ``M`` the smallest ``n_c / p_c`` of the classes that have points ``n_c``.

    Args:
        classes: the named classes.
        probability: p, of each of them; > 0 and k p < 1.

    Raises:
        ValueError: for a probability out of range, or no class at all.

    Source: the imbalance runs on CIFAR-10 of Bankes et al. 2024 (arXiv 2312.00486), class 3 or 5 with p = 0.1, 0.025
    or 0.01. Here the part is thinned out once, without replacement.
    """

    classes: Sequence[int]
    probability: float

    def __post_init__(self) -> None:
        check_classes("classes", self.classes, expected="a list of different classes, such as [3]")
        if not (is_number(self.probability) and 0 < self.probability * len(self.classes) < 1):
            raise ValueError(
                f"probability must be above 0 and below 1 / {len(self.classes)}, one over the number of classes it is "
                f"given to; got {self.probability!r}."
            )

    def positions(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> Tensor:
        """(M,) int64 positions to keep, ascending.

        Raises:
            ValueError: for a class that the data does not have, or if no class is left unnamed.
        """
        check_classes_exist("classes", self.classes, num_classes=num_classes)
        num_named = len(self.classes)
        if num_named == num_classes:
            raise ValueError(
                f"classes must leave a class unnamed, for the rest of the probability; got all {num_classes} of them."
            )
        others = (1 - num_named * self.probability) / (num_classes - num_named)
        shares = [self.probability if target in self.classes else others for target in range(num_classes)]
        counts = torch.bincount(targets, minlength=num_classes).tolist()
        total = min((count / share for count, share in zip(counts, shares, strict=True) if count), default=0.0)
        sizes = {target: _size(count, shares[target] * total) for target, count in enumerate(counts)}
        return _drawn_positions(targets, sizes, generator=generator)


_KINDS: dict[str, Callable[..., Imbalance]] = {
    "long_tail": LongTail,
    "keep_fractions": KeepFractions,
    "probability": ClassProbability,
}


def make_imbalance(value: Any, *, name: str) -> Imbalance | None:
    """The imbalance that an option asks for.

    Args:
        value: None for none; a number for the ratio of a long tail; or a mapping with ``kind`` and the arguments of
            that kind: ``long_tail`` (``LongTail``), ``keep_fractions`` (``KeepFractions``), ``probability``
            (``ClassProbability``).
        name: dotted name of the option, for messages.

    Raises:
        ValueError: for an unknown kind or option (with the nearest ones), a missing option, or a value out of range.

    Example:
        >>> make_imbalance({"kind": "probability", "classes": [3], "probability": 0.01}, name="imbalance")
        ClassProbability(classes=[3], probability=0.01)
        >>> make_imbalance(10, name="imbalance")
        LongTail(ratio=10, class_order=None)
    """
    if value is None:
        return None
    if is_number(value):
        value = {"kind": "long_tail", "ratio": value}
    return make_of_kind(value, name=name, kinds=_KINDS, number="the ratio of a long tail")


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
    _check_ratio(imbalance_ratio)
    num_classes = len(class_order)
    _check_class_order(class_order, num_classes=max(num_classes, int(targets.max()) + 1))
    counts = torch.bincount(targets, minlength=num_classes).tolist()
    sizes = {
        target: _size(counts[target], imbalance_ratio ** (-place / max(num_classes - 1, 1)) * counts[target])
        for place, target in enumerate(class_order)
    }
    return _drawn_positions(targets, sizes, generator=generator)


def stratified_split(
    targets: Tensor,
    *,
    size: int,
    generator: torch.Generator,
    groups: Tensor | None = None,
    spares_single_points: bool = False,
) -> tuple[Tensor, Tensor]:
    """Draw ``size`` points, every class in proportion to its frequency and with at least one.

    With ``groups``, each class's points are drawn in proportion to their groups, rounded so that every group comes as
    near to its share as that allows, and gets at least one point where it has any.

    Args:
        targets: (N,) integers.
        size: in [number of classes, N).
        generator: source of randomness.
        groups: (N,) integers; None where groups are the targets or follow from them.
        spares_single_points: leave a group's only point, where the class has others.

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
    if groups is None:
        sizes = dict(zip(classes.tolist(), quotas.tolist(), strict=True))
        drawn = _drawn_positions(targets, sizes, generator=generator)
    else:
        rows, columns = (torch.unique(values, return_inverse=True)[1] for values in (targets, groups))
        num_columns = int(columns.max()) + 1
        cells = rows * num_columns + columns
        counts = torch.bincount(cells, minlength=len(classes) * num_columns).view(-1, num_columns)
        quotas = _cell_quotas(counts, quotas, spares_single_points=spares_single_points)
        drawn = _drawn_of_cells(cells, quotas.flatten(), generator=generator)
    is_left = torch.ones(len(targets), dtype=torch.bool)
    is_left[drawn] = False
    return drawn, torch.nonzero(is_left).flatten()


def _drawn_positions(targets: Tensor, sizes: Mapping[int, int], *, generator: torch.Generator) -> Tensor:
    """Ascending positions of ``sizes[c]`` random points of each class c; the classes draw in the order given.

    Every class draws an order of all its points, so what it keeps does not depend on the sizes of others.
    """
    drawn = []
    for target, size in sizes.items():
        positions = torch.nonzero(targets == target).flatten()
        drawn.append(positions[torch.randperm(len(positions), generator=generator)[:size]])
    return torch.cat(drawn).sort().values


def _cell_quotas(counts: Tensor, sizes: Tensor, *, spares_single_points: bool) -> Tensor:
    """Whole numbers (C, G) that sum to ``sizes`` (C,) in each row, in proportion to ``counts`` (C, G).

    Each is rounded down or up, up where its column is furthest below its share. Then a column that has points and got
    none takes one over from another column of the same row.
    """
    exact = counts.double() * sizes[:, None] / counts.sum(dim=1, keepdim=True)
    quotas = exact.floor().long()
    shares, available, taken = exact.sum(dim=0), counts.sum(dim=0), quotas.sum(dim=0)
    for row in range(len(counts)):
        gaps = exact[row] - quotas[row] + shares - taken
        gaps[available - taken <= 1] -= counts.sum()  # the last point of a group is taken if there is no other
        gaps[quotas[row] == exact[row]] = -torch.inf
        chosen = gaps.topk(int(sizes[row] - quotas[row].sum())).indices
        quotas[row, chosen] += 1
        taken[chosen] += 1
    least = 2 if spares_single_points else 1
    for column in torch.nonzero((taken == 0) & (available >= least)).flatten().tolist():
        surplus = (taken - shares).where((quotas > 0) & (taken > 1) & (counts[:, [column]] > 0), -torch.inf)
        row, giver = divmod(int(surplus.argmax()), len(taken))
        if surplus[row, giver] > -torch.inf:
            quotas[row, [giver, column]] += torch.tensor([-1, 1])
            taken = quotas.sum(dim=0)
    return quotas


def _drawn_of_cells(cells: Tensor, sizes: Tensor, *, generator: torch.Generator) -> Tensor:
    """Ascending positions of ``sizes[k]`` random points of each of the ``cells`` (N,)."""
    order = torch.randperm(len(cells), generator=generator)
    order = order[cells[order].argsort(stable=True)]
    counts = torch.bincount(cells, minlength=len(sizes))
    rank = torch.arange(len(cells)) - (counts.cumsum(dim=0) - counts)[cells[order]]
    return order[rank < sizes[cells[order]]].sort().values


def _size(count: int, exact: float) -> int:
    """``exact``, rounded, of the ``count`` points of a class; at least one where there is one."""
    return min(count, max(1, round(exact)))


def _check_ratio(ratio: float) -> None:
    if not (is_number(ratio) and math.isfinite(ratio) and ratio >= 1):
        raise ValueError(f"the imbalance ratio must be at least 1, most frequent over rarest; got {ratio!r}.")


def _check_class_order(class_order: Sequence[int], *, num_classes: int) -> None:
    if sorted(class_order) != list(range(num_classes)):
        raise ValueError(
            f"class_order must name each of the classes 0..{num_classes - 1} once, most frequent first; "
            f"got {list(class_order)}."
        )


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
