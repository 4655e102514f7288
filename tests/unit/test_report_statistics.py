import math

import pytest

from reducr.reports.statistics import Estimate, estimate, paired_difference, t_quantile

stats = pytest.importorskip("scipy.stats", reason="scikit-learn brings scipy, which checks the intervals")


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 5, 7, 9, 10, 29, 30, 120, 999])
@pytest.mark.parametrize("probability", [0.5, 0.6, 0.9, 0.95, 0.975, 0.995, 0.9999])
def test_t_quantiles_are_those_of_scipy(probability, degrees):
    expected = stats.t.ppf(probability, degrees)
    assert t_quantile(probability, degrees) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(("probability", "degrees"), [(0.4, 3), (1.0, 3), (0.9, 0)])
def test_quantiles_out_of_range_are_refused(probability, degrees):
    with pytest.raises(ValueError, match=r"a probability in \[0.5, 1\) and at least 1 degree of freedom; got"):
        t_quantile(probability, degrees)


@pytest.mark.parametrize("values", [[0.5, 0.7], [0.1, 0.4, 0.35], [0.6, 0.61, 0.62, 0.7, 0.5]])
def test_intervals_are_those_of_scipy(values):
    found = estimate(values)
    mean = sum(values) / len(values)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    low, high = stats.t.interval(0.95, len(values) - 1, loc=mean, scale=deviation / math.sqrt(len(values)))
    assert (found.mean, found.deviation, found.low, found.high) == pytest.approx((mean, deviation, low, high))
    assert found.count == len(values)


def test_of_one_value_only_the_mean_is_known_and_of_none_nothing():
    assert estimate([0.25]) == Estimate(0.25, None, None, None, 1)
    assert estimate([]) is None


def test_differences_are_paired_over_the_seeds_that_both_have():
    first, second = {0: 0.8, 1: 0.6, 2: 0.7, 5: 0.1}, {2: 0.5, 1: 0.5, 0: 0.6, 9: 0.0}
    found = paired_difference(first, second)
    low, high = stats.t.interval(0.95, 2, loc=0.5 / 3, scale=stats.sem([0.2, 0.1, 0.2]))
    assert (found.mean, found.low, found.high, found.count) == pytest.approx((0.5 / 3, low, high, 3))
    assert paired_difference(first, {9: 1.0}) is None
