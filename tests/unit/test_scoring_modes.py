"""What a scoring pass does to a model beside running it; several ranks are in ``tests/distributed/test_engines.py``."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from reducr.irreducible import AdjustedIrreducibleLoss, LiveLogits
from reducr.scoring import device_of
from reducr.scoring.lockstep import even_batches
from reducr.scoring.modes import models_in, repeat_without_trace


def test_repeats_leave_buffers_and_random_states_as_they_were():
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3), nn.Dropout(0.5))
    model(torch.randn(4, 3))
    buffers, state, outputs = [buffer.clone() for buffer in model.buffers()], torch.get_rng_state(), []
    repeat_without_trace(lambda: outputs.append(model(torch.ones(4, 3).cumsum(0))), model, 2)
    assert len(outputs) == 2
    assert not torch.equal(*outputs)  # each drew dropout of its own
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(buffer, before) for buffer, before in zip(model.buffers(), buffers, strict=True))


def test_parameters_that_fsdp_keeps_on_the_cpu_are_computed_with_elsewhere():
    model = nn.Linear(2, 2)
    model.weight.device_mesh = SimpleNamespace(device_type="cpu")
    assert device_of(model) == torch.device("cpu")
    model.weight.device_mesh = SimpleNamespace(device_type="meta")
    assert device_of(model) == torch.device("meta")


def test_models_behind_irreducible_losses_are_found():
    model = nn.Linear(2, 2)
    assert models_in(AdjustedIrreducibleLoss(LiveLogits(model))) == [model]
    assert models_in(SimpleNamespace(members=[LiveLogits(model), 3])) == [model]
    assert models_in(SimpleNamespace(table=torch.zeros(4, 2))) == []
    assert models_in(None) == []


@pytest.mark.parametrize("batches", [[], [1, 2]])
def test_one_process_repeats_no_batch(batches):
    assert list(even_batches(batches, what="batch")) == [(batch, False) for batch in batches]
