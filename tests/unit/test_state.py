import pytest
import torch
from torch import nn

from reducr.state import ExactState


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
