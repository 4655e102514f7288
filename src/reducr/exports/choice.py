"""Choose which training examples to keep, from how often a run selected them and how it scored them."""

from __future__ import annotations

import heapq
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from reducr._internal.names import unknown_name

ORDERS = ("times", "score", "both")
QUOTAS = ("none", "equal", "training", "selected")

Counts = NDArray[np.int64]


def best_first(num_times_selected: Counts, mean_score: NDArray[np.float64], *, order: str) -> Counts:
    """(N,) positions of all examples, best first.

    ``times`` sorts by the number of times selected, ties by the mean score. ``score`` sorts by the mean score, ties by
    the number of times selected. ``both`` sorts by the sum of an example's ranks in these two orders. Remaining ties
    stay in index order.

    Args:
        num_times_selected: (N,) counts.
        mean_score: (N,), larger is better; NaN, for an example that was never scored, comes last.
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
    rank_sum = np.zeros(len(score), dtype=np.int64)
    for positions in (by_times, by_score):
        rank_sum[positions] += np.arange(len(score))
    return np.argsort(rank_sum, kind="stable")


def class_quotas(
    num_chosen: int,
    *,
    available: Counts,
    share: NDArray[Any],
    at_least: int = 0,
    fixed: Mapping[int, int] | None = None,
) -> Counts:
    """(C,) number of examples to keep in each class, ``num_chosen`` in total.

    Classes in ``fixed`` get exactly that many. Every other class starts with ``at_least`` examples, or all it has.
    The remaining places go one by one to the class with the largest ``share / (2 count + 1)`` that has examples left
    (Webster's method of apportionment), which makes the counts as proportional to the shares as whole numbers allow.

    Args:
        num_chosen: total over all classes.
        available: (C,) examples in each class.
        share: (C,) weights, not negative.
        at_least: minimum for every class that is not fixed, >= 0.
        fixed: number of examples by class.

    Raises:
        ValueError: if a fixed number exceeds what the class has, or the numbers cannot add up to ``num_chosen``.

    Example:
        >>> class_quotas(10, available=np.array([50, 2, 50]), share=np.ones(3)).tolist()
        [4, 2, 4]
        >>> class_quotas(10, available=np.array([50, 2, 50]), share=np.ones(3), fixed={0: 1}).tolist()
        [1, 2, 7]

    Source: M. L. Balinski and H. P. Young, Fair Representation, 1982.
    """
    fixed = fixed or {}
    counts = np.minimum(at_least, available).astype(np.int64)
    for label, count in fixed.items():
        if not 0 <= count <= available[label]:
            raise ValueError(
                f"The quota of class {label} is {count}, but {available[label]} of its examples can be kept. "
                "Lower this `--quota`."
            )
        counts[label] = count
    is_open = np.array([label not in fixed for label in range(len(available))])
    lowest, highest = int(counts.sum()), int(counts[~is_open].sum() + available[is_open].sum())
    if not lowest <= num_chosen <= highest:
        raise ValueError(
            f"Cannot keep {num_chosen} examples: with at least {at_least} per class and quotas for {len(fixed)} of "
            f"{len(available)} classes, an export holds {lowest} to {highest}. Change `--fraction`, `--at-least` or "
            "`--quota`."
        )
    queue = [(-share[c] / (2 * counts[c] + 1), c) for c in np.flatnonzero(is_open & (counts < available)).tolist()]
    heapq.heapify(queue)
    for _ in range(num_chosen - lowest):
        _, label = heapq.heappop(queue)
        counts[label] += 1
        if counts[label] < available[label]:
            heapq.heappush(queue, (-share[label] / (2 * counts[label] + 1), label))
    return counts


def chosen_examples(
    ranked: Counts, target: Counts, *, num_chosen: int, num_classes: int, quotas: str = "none",
    num_times_selected: Counts, at_least: int = 0, fixed: Mapping[int, int] | None = None,
) -> Counts:  # fmt: skip
    """(n,) positions to keep, out of the ``ranked`` ones and in the same order.

    Args:
        ranked: (M,) positions that may be kept, best first.
        target: (N,) class of each example.
        num_chosen: n.
        num_classes: C.
        quotas: how many examples each class gets. ``equal``: the same number; ``training``: in proportion to its
            examples in ``ranked``; ``selected``: in proportion to how often its examples were selected; ``none``: the
            best ``n`` of any class, once ``at_least`` and ``fixed`` are met.
        num_times_selected: (N,) counts.
        at_least: minimum for every class that is not fixed, or all it has.
        fixed: number of examples by class.

    Raises:
        ValueError: for unknown quotas, and as ``class_quotas``.
    """
    if quotas not in QUOTAS:
        raise unknown_name("quotas", quotas, QUOTAS)
    ranked_target = target[ranked]
    available = np.bincount(ranked_target, minlength=num_classes)
    shares = {
        "none": np.ones(num_classes),
        "equal": np.ones(num_classes),
        "training": available,
        "selected": np.bincount(target, weights=num_times_selected, minlength=num_classes),
    }
    counts = class_quotas(num_chosen, available=available, share=shares[quotas], at_least=at_least, fixed=fixed)
    rank_in_class = _rank_in_class(ranked_target, num_classes)
    if quotas != "none":
        return ranked[rank_in_class < counts[ranked_target]]
    minimum, is_open = np.minimum(at_least, available), np.ones(num_classes, dtype=bool)
    for label, count in (fixed or {}).items():
        minimum[label], is_open[label] = count, False
    is_chosen = rank_in_class < minimum[ranked_target]
    others = np.flatnonzero(~is_chosen & is_open[ranked_target])
    is_chosen[others[: num_chosen - int(is_chosen.sum())]] = True
    return ranked[is_chosen]


def suspected_label_errors(model_loss: Tensor, irreducible_loss: Tensor, *, num_classes: int) -> Tensor:
    """(N,) bool, true where both models find the label less likely than a uniform guess.

    ``model_loss > log C and irreducible_loss > log C``.

    The run's model has trained on these labels, the reference model only on clean ones. An example with a high loss
    under one of them alone may be hard to learn, or unlike the holdout set; a label is suspected only where both agree.

    Args:
        model_loss: (N,) nats, under the run's model at the last step.
        irreducible_loss: (N,) nats, under the plain reference model (the paper's irreducible model).
        num_classes: C.

    Example:
        >>> import torch
        >>> loss = torch.tensor([0.1, 0.6, 0.8, 3.0])
        >>> suspected_label_errors(loss, torch.tensor([3.0, 0.8, 0.8, 0.1]), num_classes=2)
        tensor([False, False,  True, False])

    Source: our own rule. Confident learning (Northcutt, Jiang & Chuang, JAIR 2021) uses one model and a threshold per
    class; docs/export.md compares the two.
    """
    uniform_loss = math.log(num_classes)
    return (model_loss > uniform_loss) & (irreducible_loss > uniform_loss)


def _rank_in_class(target: Counts, num_classes: int) -> Counts:
    """(M,) number of earlier examples of the same class."""
    rank = np.zeros(len(target), dtype=np.int64)
    for label in range(num_classes):
        is_in_class = target == label
        rank[is_in_class] = np.arange(int(is_in_class.sum()))
    return rank
