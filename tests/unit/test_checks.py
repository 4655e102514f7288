import re

import pytest
import torch

from reducr.checks import (
    check_every_group_has_points,
    check_gradient_weight,
    check_num_groups,
    check_range,
    group_vector,
)


def test_group_vector_copies_in_float64():
    values = torch.tensor([1.0, 2.0])
    vector = group_vector(values, 2, "initial_payoff")
    values[0] = 9.0
    assert vector.tolist() == [1.0, 2.0]
    assert vector.dtype == torch.float64
    assert group_vector(None, 3, "initial_payoff").tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([1.0], r"initial_payoff must hold one value for each of the 2 groups; got shape \(1,\)"),
        ([[1.0, 2.0]], r"got shape \(1, 2\)"),
        ([1.0, float("nan")], r"initial_payoff must be finite; got \[1.0, nan\]"),
        ([float("-inf"), 0.0], r"initial_payoff must be finite; got \[-inf, 0.0\]"),
    ],
)
def test_group_vector_refuses_other_lengths_and_what_is_not_finite(values, message):
    with pytest.raises(ValueError, match=message):
        group_vector(values, 2, "initial_payoff")


@pytest.mark.parametrize("num_groups", [0, -3, 1.0, True, "2", None])
def test_num_groups_is_a_whole_number_of_at_least_one(num_groups):
    with pytest.raises(ValueError, match=f"must be a whole number of at least 1; got {num_groups!r}"):
        check_num_groups(num_groups)


def test_num_groups_of_at_least_one_passes():
    assert [check_num_groups(num_groups) for num_groups in (1, 1000)] == [None, None]


@pytest.mark.parametrize("gradient_weight", [0.999, 0.0, -1.0, float("nan"), float("inf")])
def test_gradient_weight_is_finite_and_at_least_one(gradient_weight):
    assert check_gradient_weight(1) is None
    message = f"gradient_weight must be a finite number of at least 1 .*; got {gradient_weight}"
    with pytest.raises(ValueError, match=message):
        check_gradient_weight(gradient_weight)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([0, 3, 1, 7], "targets must be in 0..2; position 1 holds 3 (2 such in all)."),
        ([0, 2, -1], "targets must be in 0..2; position 2 holds -1 (1 such in all)."),
    ],
)
def test_the_first_integer_out_of_range_is_named(values, message):
    assert check_range("targets", torch.tensor([0, 1, 2]), 3) is None
    with pytest.raises(ValueError, match=re.escape(message)):
        check_range("targets", torch.tensor(values), 3)


def test_groups_without_points_are_named():
    assert check_every_group_has_points(torch.tensor([5, 1])) is None
    with pytest.raises(ValueError, match="at least one holdout point; group 0, 2 of 3 has none"):
        check_every_group_has_points(torch.tensor([0, 5, 0]))
