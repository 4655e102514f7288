"""Which points of a training part are kept, by how often a run selected them and how it scored them."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reducr._internal.names import unknown_name

ORDERS = ("times", "score", "both")
QUOTAS = ("none", "equal", "training", "selected")

Counts = NDArray[np.int64]


def best_first(num_times_selected: Counts, mean_score: NDArray[np.float64], *, order: str) -> Counts:
    """(N,) positions of all points, best first.

    ``times`` goes by the number of times selected and, where that is equal, by the mean score; ``score`` the other way
    round; ``both`` by the sum of a point's places in these two orders. What is still equal stays in order of index.

    Args:
        num_times_selected: (N,).
        mean_score: (N,), larger is better; NaN, of a point that was never scored, comes last.
        order: one of ``ORDERS``.

    Raises:
        ValueError: for an unknown order.

    Example:
        >>> times, score = np.array([2, 0, 2, 1]), np.array([0.1, 0.9, 0.3, np.nan])
        >>> [best_first(times, score, order=order).tolist() for order in ORDERS]
        [[2, 0, 3, 1], [1, 2, 0, 3], [2, 0, 1, 3]]
    """
    if order not in ORDERS:
        raise unknown_name("order", order, ORDERS)
    score = np.where(np.isnan(mean_score), -np.inf, mean_score)
    by_times, by_score = np.lexsort((-score, -num_times_selected)), np.lexsort((-num_times_selected, -score))
    if order != "both":
        return by_times if order == "times" else by_score
    place = np.zeros(len(score), dtype=np.int64)
    for one in (by_times, by_score):
        place[one] += np.arange(len(score))
    return np.argsort(place, kind="stable")


def class_quotas(
    num_chosen: int,
    *,
    available: Counts,
    share: NDArray[Any],
    at_least: int = 0,
    given: Mapping[int, int] | None = None,
) -> Counts:
    """(C,) how many points of each class are chosen, ``num_chosen`` in all.

    ``given`` classes have what they are given. Every other one has ``at_least`` points, or all it has. The rest goes
    point by point to the class with the largest ``share / (2 count + 1)`` that has one left, so that counts are in
    proportion to the shares, as near as whole numbers and the points there are allow (Webster's method of seats for
    votes).

    Args:
        num_chosen: in all.
        available: (C,) points of each class.
        share: (C,) not negative.
        at_least: >= 0.
        given: number by class.

    Raises:
        ValueError: for more points than there are, or numbers that do not add up; says which.

    Example:
        >>> class_quotas(10, available=np.array([50, 2, 50]), share=np.ones(3)).tolist()
        [4, 2, 4]
        >>> class_quotas(10, available=np.array([50, 2, 50]), share=np.ones(3), given={0: 1}).tolist()
        [1, 2, 7]

    Source: M. L. Balinski and H. P. Young, Fair Representation, 1982.
    """
    given = given or {}
    counts = np.minimum(at_least, available).astype(np.int64)
    for number, count in given.items():
        if not 0 <= count <= available[number]:
            raise ValueError(
                f"class {number} has {available[number]} points that may be chosen, and a quota of {count}. Ask for at "
                "most what there is."
            )
        counts[number] = count
    is_open = np.array([number not in given for number in range(len(available))])
    largest = int(counts[~is_open].sum() + available[is_open].sum())
    if not counts.sum() <= num_chosen <= largest:
        raise ValueError(
            f"{num_chosen} points are to be chosen; with at least {at_least} of each class and quotas for "
            f"{len(given)} of {len(available)} classes it can be {counts.sum()} to {largest}. Change the fraction, "
            "--at-least or --quota."
        )
    order = [(-share[c] / (2 * counts[c] + 1), c) for c in np.flatnonzero(is_open & (counts < available)).tolist()]
    heapq.heapify(order)
    for _ in range(num_chosen - int(counts.sum())):
        _, number = heapq.heappop(order)
        counts[number] += 1
        if counts[number] < available[number]:
            heapq.heappush(order, (-share[number] / (2 * counts[number] + 1), number))
    return counts


def chosen_points(
    ranked: Counts, target: Counts, *, num_chosen: int, num_classes: int, quotas: str = "none",
    num_times_selected: Counts, at_least: int = 0, given: Mapping[int, int] | None = None,
) -> Counts:  # fmt: skip
    """(n,) the chosen ones of the ``ranked`` positions, best first.

    Args:
        ranked: (M,) positions that may be chosen, best first.
        target: (N,) the class of each point.
        num_chosen: n.
        num_classes: C.
        quotas: in proportion to what the numbers of points of the classes are: ``equal``; ``training``, the points that
            may be chosen; ``selected``, the times that points of the class were selected. ``none``: the best ``n``,
            whatever their class, beside what ``at_least`` and ``given`` ask for.
        num_times_selected: (N,).
        at_least: of every class, or all that it has.
        given: number by class.

    Raises:
        ValueError: for unknown quotas, and as ``class_quotas``.
    """
    if quotas not in QUOTAS:
        raise unknown_name("quotas", quotas, QUOTAS)
    of_ranked = target[ranked]
    available = np.bincount(of_ranked, minlength=num_classes)
    shares = {
        "none": np.ones(num_classes),
        "equal": np.ones(num_classes),
        "training": available,
        "selected": np.bincount(target, weights=num_times_selected, minlength=num_classes),
    }
    counts = class_quotas(num_chosen, available=available, share=shares[quotas], at_least=at_least, given=given)
    if quotas == "none":
        # what each class must have, then the best of the others
        must, open_to_all = np.minimum(at_least, available), np.ones(num_classes, dtype=bool)
        for number, count in (given or {}).items():
            must[number], open_to_all[number] = count, False
        is_chosen = _place_in_class(of_ranked, num_classes) < must[of_ranked]
        others = np.flatnonzero(~is_chosen & open_to_all[of_ranked])
        is_chosen[others[: num_chosen - int(is_chosen.sum())]] = True
        return ranked[is_chosen]
    return ranked[_place_in_class(of_ranked, num_classes) < counts[of_ranked]]


def _place_in_class(target: Counts, num_classes: int) -> Counts:
    """(M,) how many points of the same class come before each."""
    place = np.zeros(len(target), dtype=np.int64)
    for number in range(num_classes):
        is_of_class = target == number
        place[is_of_class] = np.arange(int(is_of_class.sum()))
    return place
