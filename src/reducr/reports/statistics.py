"""Means over seeds with 95 % intervals, and paired differences between two methods."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scipy import stats


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        mean: arithmetic mean.
        deviation: sample standard deviation (n - 1 in the denominator); None for a single value.
        low: lower end of the 95 % interval of the mean; None for a single value. The interval uses Student's t with
            n - 1 degrees of freedom, treats the seeds as independent draws, and is not clipped to [0, 1].
        high: upper end.
        count: number of values, n.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean of ``values`` (n,) with its 95 % interval; None for an empty sequence.

    ``mean ± t_quantile(0.975, n - 1) * deviation / sqrt(n)``.

    Example:
        >>> accuracy = estimate([0.5, 0.7])
        >>> print(f"{accuracy.mean:.2f} ± {accuracy.deviation:.3f} in [{accuracy.low:.2f}, {accuracy.high:.2f}]")
        0.60 ± 0.141 in [-0.67, 1.87]
    """
    if not values:
        return None
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Estimate(mean, None, None, None, 1)
    deviation = statistics.stdev(values)
    margin = float(stats.t.ppf(0.975, count - 1)) * deviation / math.sqrt(count)
    return Estimate(mean, deviation, mean - margin, mean + margin, count)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """Mean of ``first - second`` over the seeds that both have; None if they share none.

    Both methods train on the same data in a seed. So seeds that are easy or hard for both cancel out, and the interval
    of the difference is often narrower than the intervals of the two means.
    """
    return estimate([first[seed] - second[seed] for seed in first if seed in second])
