import re

import pytest
import torch
from torch import nn

from reducr._internal.buffers import FixedDtypeBuffers


class Running(FixedDtypeBuffers):
    def __init__(self):
        super().__init__()
        self.register_buffer("total", torch.tensor([1 / 3, 1e9 + 1 / 7], dtype=torch.float64))
        self.register_buffer("count", torch.tensor(2**40 + 1))


@pytest.mark.parametrize(
    "cast",
    [nn.Module.half, nn.Module.float, nn.Module.bfloat16, lambda module: module.to(torch.float16)],
    ids=["half", "float", "bfloat16", "to"],
)
def test_casting_the_surrounding_model_changes_no_bit(cast):
    running = Running()
    around = cast(nn.Sequential(nn.Linear(1, 1), running))
    assert around[0].weight.dtype != torch.float64
    assert running.total.dtype == torch.float64
    assert running.total.tolist() == [1 / 3, 1e9 + 1 / 7]
    assert running.count.tolist() == 2**40 + 1


def test_buffers_follow_the_model_to_another_device():
    running = nn.Sequential(Running()).to("meta")[0]
    assert running.total.device.type == "meta"
    assert running.total.dtype == torch.float64


class Partly(Running):
    nan_before_use = frozenset({"total"})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("count"), "count is missing"),
        (lambda state: state.update(momentum=torch.zeros(1)), "momentum is not expected"),
        (lambda state: state.update(count=3), "count must be a tensor, not int"),
        (lambda state: state.update(total=torch.zeros(3)), "total must be torch.float64 (2,), not torch.float32 (3,)"),
        (
            lambda state: state.update(total=state["total"].half()),
            "total must be torch.float64 (2,), not torch.float16 (2,)",
        ),
        (lambda state: state["total"].fill_(torch.nan), "total is not finite"),
        (lambda state: state["total"][0].fill_(torch.inf), "total is not finite"),
    ],
)
def test_a_state_that_does_not_fit_is_refused_as_a_whole(change, message):
    running, state = Running(), {name: value.clone() for name, value in Running().state_dict().items()}
    state["count"].fill_(7)
    change(state)
    with pytest.raises(ValueError, match=re.escape(f"the state does not fit this Running: {message}")):
        running.load_state_dict(state)
    assert running.count.tolist() == 2**40 + 1


def test_a_buffer_that_is_nan_before_use_may_be_all_nan_in_a_state_but_not_partly():
    state = {name: value.clone() for name, value in Partly().state_dict().items()}
    state["total"].fill_(torch.nan)
    Partly().load_state_dict(state)
    state["total"][0] = 1.0
    with pytest.raises(ValueError, match="total is not finite"):
        Partly().load_state_dict(state)


class Growing(FixedDtypeBuffers):
    growing = frozenset({"times"})

    def __init__(self):
        super().__init__()
        self.register_buffer("times", torch.zeros(0, dtype=torch.int32))


def test_a_growing_buffer_may_have_any_length_in_a_state():
    inner = Growing()
    outer = nn.Sequential(inner)
    outer.load_state_dict({"0.times": torch.tensor([3, 1], dtype=torch.int32)})
    assert inner.times.tolist() == [3, 1]
    inner.load_state_dict({"times": torch.tensor([5], dtype=torch.int32)})
    assert inner.times.tolist() == [5]
    for times, message in (
        (torch.tensor([1]), r"times must be torch.int32 \(1,\), not torch.int64 \(1,\)"),
        (torch.zeros(2, 2, dtype=torch.int32), r"times must be torch.int32 \(1,\), not torch.int32 \(2, 2\)"),
    ):
        with pytest.raises(ValueError, match=message):
            inner.load_state_dict({"times": times})
    assert inner.times.tolist() == [5]
