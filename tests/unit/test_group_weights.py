import copy
import math
import re

import pytest
import torch

import reducr
from reducr.functional import group_weights
from reducr.selectors.group_weights import GroupWeights


def test_weights_start_equal_and_follow_the_summed_payoff():
    weights = GroupWeights(2, step_size=0.5)
    assert weights.weights().tolist() == [0.5, 0.5]
    weights.update(torch.tensor([1.0, 0.0]))
    weights.update(torch.tensor([1.0, -2.0]))
    assert weights.cumulative_payoff.tolist() == [2.0, -2.0]
    assert weights.weights().tolist() == pytest.approx([1 / (1 + math.e**2), math.e**2 / (1 + math.e**2)])


def test_the_sum_starts_at_the_initial_payoff():
    initial = torch.tensor([math.log(3), 0.0])
    weights = GroupWeights(2, step_size=1.0, initial_payoff=initial)
    assert weights.weights().tolist() == pytest.approx([0.25, 0.75], abs=1e-7)
    weights.update(torch.tensor([-1.0, 1.0]))
    assert weights.cumulative_payoff.tolist() == pytest.approx([math.log(3) - 1, 1.0], abs=1e-7)
    assert initial.tolist() == pytest.approx([math.log(3), 0.0])


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


def test_decay_of_a_half_halves_the_payoff_at_every_update():
    weights = GroupWeights(2, step_size=1.0, initial_payoff=[8.0, 0.0], payoff_decay=0.5)
    for expected in ([5.0, 4.0], [3.5, 6.0], [2.75, 7.0]):
        weights.update(torch.tensor([1.0, 4.0]))
        assert weights.cumulative_payoff.tolist() == expected
    gap = math.exp(2.75 - 7.0)
    assert weights.weights().tolist() == pytest.approx([1 / (1 + gap), gap / (1 + gap)])


def test_a_decayed_sum_is_bounded():
    """A constant payoff sums to at most payoff / (1 - decay)."""
    weights = GroupWeights(1, step_size=1.0, payoff_decay=0.99)
    for _ in range(3000):
        weights.update(torch.tensor([2.0]))
    assert weights.cumulative_payoff.tolist() == pytest.approx([200.0], rel=1e-12)


def test_decay_of_one_is_bit_for_bit_a_plain_sum():
    weights, total = GroupWeights(7, step_size=1.0, payoff_decay=1.0), torch.zeros(7, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(1000):
        payoff = torch.randn(7, generator=generator) * 10 ** torch.randn(7, generator=generator)
        weights.update(payoff)
        total += payoff.double()
    assert torch.equal(weights.cumulative_payoff, total)


def test_decayed_state_goes_on_where_it_was_saved():
    payoffs = torch.randn(20, 3, generator=torch.Generator().manual_seed(1))
    whole, first, second = (GroupWeights(3, step_size=1.0, payoff_decay=0.9) for _ in range(3))
    for payoff in payoffs:
        whole.update(payoff)
    for payoff in payoffs[:8]:
        first.update(payoff)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for payoff in payoffs[8:]:
        second.update(payoff)
    assert torch.equal(second.cumulative_payoff, whole.cumulative_payoff)


@pytest.mark.parametrize("payoff_decay", [0, -0.5, 1.01, 99, float("nan")])
def test_payoff_decay_is_above_zero_and_not_above_one(payoff_decay):
    message = rf"payoff_decay must be in \(0, 1\].* got {payoff_decay}\."
    with pytest.raises(ValueError, match=message):
        GroupWeights(2, step_size=1.0, payoff_decay=payoff_decay)
    with pytest.raises(ValueError, match=message):
        reducr.make_selector("reducr", num_groups=2, payoff_decay=payoff_decay)


@pytest.mark.parametrize("step_size", [-1e-9, float("nan"), float("inf")])
def test_step_size_is_finite_and_not_negative(step_size):
    with pytest.raises(ValueError, match=f"step_size must be a finite number of at least 0; got {step_size}"):
        GroupWeights(2, step_size=step_size)


def test_initial_payoff_has_one_value_for_each_group():
    with pytest.raises(ValueError, match=r"initial_payoff must hold one value for each of the 2 groups"):
        GroupWeights(2, step_size=1.0, initial_payoff=[1.0])


def test_far_apart_payoffs_give_weights_of_zero_and_one():
    payoff = torch.tensor([1e6, -1e6, 0.0], dtype=torch.float64)
    assert group_weights(payoff, step_size=1.0).tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("shape", [(1,), (3,), (), (2, 1)])
def test_a_payoff_of_another_number_of_groups_is_refused(shape):
    weights = GroupWeights(2, step_size=1.0)
    message = f"payoff must hold one value for each of the 2 groups; got shape {shape}."
    with pytest.raises(ValueError, match=re.escape(message)):
        weights.update(torch.zeros(shape))
    assert weights.cumulative_payoff.tolist() == [0.0, 0.0]
