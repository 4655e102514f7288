import re

import pytest
import torch

from reducr._internal.checks import (
    check_count,
    check_every_group_has_examples,
    check_flag,
    check_gradient_weight,
    check_num_groups,
    check_range,
    check_state_keys,
    group_vector,
    is_finite_number,
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
        (["a", 1.0], r"initial_payoff must hold one number for each of the 2 groups; got \['a', 1.0\]"),
        ("ab", "initial_payoff must hold one number for each of the 2 groups; got 'ab'"),
        ([[1.0], [2.0, 3.0]], "initial_payoff must hold one number for each of the 2 groups"),
        (torch.ones(2, dtype=torch.complex64), "initial_payoff must hold real numbers; got torch.complex64"),
    ],
)
def test_group_vector_refuses_other_lengths_and_non_finite_values(values, message):
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


def test_groups_without_examples_are_named():
    assert check_every_group_has_examples(torch.tensor([5, 1])) is None
    with pytest.raises(ValueError, match="at least one holdout example; group 0, 2 of 3 has none"):
        check_every_group_has_examples(torch.tensor([0, 5, 0]))
    with pytest.raises(ValueError, match=r"every class needs at least one test example; 'a', 'c' of 3 has none\."):
        check_every_group_has_examples(torch.tensor([0, 5, 0]), kind="class", names="abc", examples="test example")


def test_numbers_given_as_a_list_are_not_rounded():
    assert group_vector([0.1, 1 / 3], 2, "initial_payoff").tolist() == [0.1, 1 / 3]


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.int16, torch.uint16, torch.int32])
def test_narrow_integers_are_compared_with_any_number_of_groups(dtype):
    values = torch.tensor([0, 100]).to(dtype)
    assert check_range("targets", values, 200) is None
    assert check_range("targets", values, 100_000) is None
    with pytest.raises(ValueError, match=r"targets must be in 0..99; position 1 holds 100"):
        check_range("targets", values, 100)


@pytest.mark.parametrize("value", [0.5, 3, True, torch.tensor(1.0)])
def test_finite_numbers_are_numbers(value):
    assert is_finite_number(value)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), "1", None, [1.0], 1j, 10**400, torch.ones(2)])
def test_other_values_are_not_finite_numbers(value):
    assert not is_finite_number(value)


@pytest.mark.parametrize("value", [0, -1, 1.0, True, "2", None, 2**63])
def test_counts_are_whole_numbers_that_a_tensor_can_hold(value):
    assert check_count("num_steps", 1) is check_count("num_steps", 0, least=0) is None
    with pytest.raises(ValueError, match=re.escape(f"num_steps must be a whole number of at least 1; got {value!r}.")):
        check_count("num_steps", value)


@pytest.mark.parametrize("value", [None, 0, 1, "no"])
def test_flags_are_true_or_false(value):
    assert check_flag("clip", True) is check_flag("clip", False) is None
    with pytest.raises(ValueError, match=re.escape(f"clip must be True or False; got {value!r}.")):
        check_flag("clip", value)


@pytest.mark.parametrize(
    ("state", "content"), [(None, "NoneType"), ({}, "nothing"), ({"a": 1}, "a"), ({"a": 1, "b": 2, 3: 4}, "3, a, b")]
)
def test_a_state_with_other_keys_is_refused(state, content):
    assert check_state_keys("a loader", {"b": 1, "a": 2}, ("a", "b")) is None
    with pytest.raises(ValueError, match=re.escape(f"the state of a loader must hold a, b; got {content}.")):
        check_state_keys("a loader", state, ("a", "b"))
