import math

import pytest
import torch

from reducr.functional import group_weights
from reducr.group_weights import GroupWeights


def test_weights_start_equal_and_follow_the_summed_payoff():
    weights = GroupWeights(2, step_size=0.5)
    assert weights.weights().tolist() == [0.5, 0.5]
    weights.update(torch.tensor([1.0, 0.0]))
    weights.update(torch.tensor([1.0, -2.0]))
    assert weights.cumulative_payoff.tolist() == [2.0, -2.0]
    assert weights.weights().tolist() == pytest.approx([1 / (1 + math.e**2), math.e**2 / (1 + math.e**2)])


def test_initial_payoff_is_where_the_sum_starts():
    given = torch.tensor([math.log(3), 0.0])
    weights = GroupWeights(2, step_size=1.0, initial_payoff=given)
    assert weights.weights().tolist() == pytest.approx([0.25, 0.75], abs=1e-7)
    weights.update(torch.tensor([-1.0, 1.0]))
    assert weights.cumulative_payoff.tolist() == pytest.approx([math.log(3) - 1, 1.0], abs=1e-7)
    assert given.tolist() == pytest.approx([math.log(3), 0.0])


def test_float32_payoffs_add_up_in_float64():
    weights = GroupWeights(1, step_size=1.0)
    weights.update(torch.tensor([2.0**30], dtype=torch.float32))
    for _ in range(10):
        weights.update(torch.tensor([0.5], dtype=torch.float32))
    assert weights.cumulative_payoff.tolist() == [2.0**30 + 5.0]


def test_the_state_is_the_cumulative_payoff_alone():
    weights = GroupWeights(3, step_size=1.0, initial_payoff=[1.0, 2.0, 3.0])
    assert list(weights.state_dict()) == ["cumulative_payoff"]
    fresh = GroupWeights(3, step_size=1.0)
    fresh.load_state_dict(weights.state_dict())
    assert fresh.cumulative_payoff.tolist() == [1.0, 2.0, 3.0]


def test_weights_are_a_new_tensor():
    weights = GroupWeights(2, step_size=0.0)
    weights.weights().zero_()
    assert weights.weights().tolist() == [0.5, 0.5]


@pytest.mark.parametrize("step_size", [-1e-9, float("nan"), float("inf")])
def test_step_size_is_finite_and_not_negative(step_size):
    with pytest.raises(ValueError, match=f"step_size must be a finite number of at least 0; got {step_size}"):
        GroupWeights(2, step_size=step_size)


def test_initial_payoff_has_one_value_a_group():
    with pytest.raises(ValueError, match=r"initial_payoff must hold one value for each of the 2 groups"):
        GroupWeights(2, step_size=1.0, initial_payoff=[1.0])


def test_far_apart_payoffs_give_weights_of_zero_and_one():
    payoff = torch.tensor([1e6, -1e6, 0.0], dtype=torch.float64)
    assert group_weights(payoff, step_size=1.0).tolist() == [0.0, 1.0, 0.0]
