import pytest
import torch
from torch import nn

from reducr.state import ExactState, check_num_groups, group_vector


class Running(ExactState):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.tensor([1 / 3, 1e9 + 1 / 7], dtype=torch.float64))
        self.register_buffer("count", torch.tensor(2**40 + 1))


@pytest.mark.parametrize(
    "cast",
    [nn.Module.half, nn.Module.float, nn.Module.bfloat16, lambda module: module.to(torch.float16)],
    ids=["half", "float", "bfloat16", "to"],
)
def test_casts_of_the_model_around_it_change_no_bit(cast):
    running = Running()
    around = cast(nn.Sequential(nn.Linear(1, 1), running))
    assert around[0].weight.dtype != torch.float64
    assert running.total.dtype == torch.float64
    assert running.total.tolist() == [1 / 3, 1e9 + 1 / 7]
    assert running.count.tolist() == 2**40 + 1


def test_it_follows_the_model_to_another_device():
    running = nn.Sequential(Running()).to("meta")[0]
    assert running.total.device.type == "meta"
    assert running.total.dtype == torch.float64


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
    with pytest.raises(
        ValueError, match=f"num_groups must be a whole number of at least 1; got {num_groups!r}"
    ):
        check_num_groups(num_groups)
