"""Means over seeds with their uncertainty, and paired differences of two methods."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Estimate:
    """A mean over seeds.

    Args:
        mean: of the values.
        deviation: of the sample, with n - 1 in the denominator; None for one value.
        low: lower end of the 95 % interval of the mean, by Student's t with n - 1 degrees of freedom; None for one
            value. It takes the seeds for independent draws, and is not cut off at 0 or 1.
        high: the upper end.
        count: n.
    """

    mean: float
    deviation: float | None
    low: float | None
    high: float | None
    count: int


def estimate(values: Sequence[float]) -> Estimate | None:
    """The mean of ``values`` (n,) with its 95 % interval; None if there are none.

    ``mean ± t_quantile(0.975, n - 1) * deviation / sqrt(n)``.

    Example:
        >>> found = estimate([0.5, 0.7])
        >>> print(f"{found.mean:.2f} ± {found.deviation:.3f} in [{found.low:.2f}, {found.high:.2f}]")
        0.60 ± 0.141 in [-0.67, 1.87]
    """
    if not values:
        return None
    mean, count = statistics.fmean(values), len(values)
    if count == 1:
        return Estimate(mean, None, None, None, 1)
    deviation = statistics.stdev(values)
    margin = t_quantile(0.975, count - 1) * deviation / math.sqrt(count)
    return Estimate(mean, deviation, mean - margin, mean + margin, count)


def paired_difference(first: Mapping[int, float], second: Mapping[int, float]) -> Estimate | None:
    """``first - second`` by seed, over the seeds that both have; None if they share none.

    Both methods of a seed have the same data, so the interval is that of the mean difference, which is narrower than
    those of the two means where good and bad seeds are the same for both.
    """
    return estimate([first[seed] - second[seed] for seed in first if seed in second])


def t_quantile(probability: float, degrees: int) -> float:
    """Quantile of Student's t distribution, for a probability in [0.5, 1) and at least 1 degree of freedom.

    Bisection of the distribution function, which for whole degrees of freedom is a finite sum.

    Raises:
        ValueError: for values out of range.

    Example:
        >>> [round(t_quantile(0.975, degrees), 3) for degrees in (1, 2, 4)]
        [12.706, 4.303, 2.776]

    Source: Abramowitz & Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
    """
    if not 0.5 <= probability < 1 or degrees < 1:
        raise ValueError(
            f"a quantile needs a probability in [0.5, 1) and at least 1 degree of freedom; got {probability}, "
            f"{degrees}."
        )
    low, high = 0.0, math.pi / 2  # of theta = atan(t / sqrt(degrees))
    while True:
        middle = (low + high) / 2
        if middle in (low, high):
            return math.tan(middle) * math.sqrt(degrees)
        if (1 + _inner_probability(middle, degrees)) / 2 < probability:
            low = middle
        else:
            high = middle


def _inner_probability(theta: float, degrees: int) -> float:
    """P(|T| < t) for t = sqrt(degrees) * tan(theta)."""
    sine, cosine = math.sin(theta), math.cos(theta)
    if degrees % 2 == 0:
        term = total = 1.0
        for step in range(2, degrees, 2):
            term *= cosine * cosine * (step - 1) / step
            total += term
        return sine * total
    term = total = 0.0 if degrees == 1 else cosine
    for step in range(3, degrees, 2):
        term *= cosine * cosine * (step - 1) / step
        total += term
    return (theta + sine * total) * 2 / math.pi
