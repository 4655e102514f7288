import math

import pytest
from scipy import stats

from reducr.reports.statistics import Estimate, estimate, paired_difference

# two-sided 5 % quantiles of Student's t, from the printed tables
QUANTILES = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 29: 2.045, 120: 1.980}


@pytest.mark.parametrize(("degrees", "quantile"), QUANTILES.items())
def test_half_widths_are_those_of_the_printed_tables(degrees, quantile):
    values = [0.4, *[0.6] * degrees]
    accuracy = estimate(values)
    standard_error = accuracy.deviation / math.sqrt(len(values))
    assert accuracy.high - accuracy.mean == pytest.approx(accuracy.mean - accuracy.low)
    assert (accuracy.high - accuracy.mean) / standard_error == pytest.approx(quantile, abs=5e-4)


@pytest.mark.parametrize("values", [[0.5, 0.7], [0.1, 0.4, 0.35], [0.6, 0.61, 0.62, 0.7, 0.5]])
def test_intervals_are_those_of_scipy(values):
    accuracy = estimate(values)
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=deviation / math.sqrt(len(values)))
    assert (accuracy.mean, accuracy.deviation, accuracy.low, accuracy.high) == pytest.approx(
        (mean, deviation, low, high)
    )
    assert accuracy.count == len(values)


def test_equal_values_have_an_interval_of_width_zero():
    assert estimate([0.5, 0.5, 0.5]) == Estimate(0.5, 0.0, 0.5, 0.5, 3)


def test_one_value_has_a_mean_only_and_no_values_have_none():
    assert estimate([0.25]) == Estimate(0.25, None, None, None, 1)
    assert estimate([]) is None


def test_differences_are_paired_over_the_seeds_that_both_have():
    first, second = {0: 0.8, 1: 0.6, 2: 0.7, 5: 0.1}, {2: 0.5, 1: 0.5, 0: 0.6, 9: 0.0}
    difference = paired_difference(first, second)
    low, high = stats.t.interval(0.95, 2, loc=0.5 / 3, scale=stats.sem([0.2, 0.1, 0.2]))
    assert (difference.mean, difference.low, difference.high, difference.count) == pytest.approx(
        (0.5 / 3, low, high, 3)
    )
    assert paired_difference(first, {9: 1.0}) is None
