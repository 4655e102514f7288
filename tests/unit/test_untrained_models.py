"""Whether the model that scores is the one that a loop trains."""

import copy
import re
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.training.trace import ModelTrace

MESSAGE = "The model that scores the candidates has neither changed nor got a gradient in 10 batches. Give Selective"


def loader_of(model, name="train_loss", size=240, **options):
    inputs = torch.randn(size, 4, generator=torch.Generator().manual_seed(0))
    data = TensorDataset(inputs, inputs[:, :3].argmax(dim=1))
    holdout = [(inputs[:60], inputs[:60, :3].argmax(dim=1))]
    return reducr.SelectiveLoader(DataLoader(data, batch_size=20), model, name, holdout=holdout, **options)


def train(loader, model, optimizer, *, num_passes=1):
    for _ in range(num_passes):
        for inputs, targets in loader:
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            optimizer.zero_grad()


def warnings_of(run):
    """The warnings of an untrained model."""
    with warnings.catch_warnings(record=True) as record:
        warnings.simplefilter("always")
        run()
    return [str(warning.message) for warning in record if str(warning.message).startswith(MESSAGE)]


@pytest.mark.parametrize("name", ["train_loss", "class_balanced", "priority_sampling"])
def test_training_a_copy_is_warned_of_once_if_the_rule_reads_the_model(name):
    model, trained = nn.Linear(4, 3), nn.Linear(4, 3)
    irreducible = reducr.Reference(nn.Linear(4, 3)) if name == "priority_sampling" else None
    loader = loader_of(model, name, irreducible=irreducible)
    told = warnings_of(lambda: train(loader, trained, torch.optim.SGD(trained.parameters(), lr=0.1), num_passes=2))
    assert len(told) == (0 if name == "class_balanced" else 1)


@pytest.mark.parametrize("options", [{"fused": True}, {"foreach": True}, {"foreach": False}])
def test_the_trained_model_is_not(options):
    model = nn.Linear(4, 3)
    assert warnings_of(lambda: train(loader_of(model), model, torch.optim.AdamW(model.parameters(), **options))) == []


def test_gradients_that_accumulate_are_enough():
    model = nn.Linear(4, 3)

    def accumulate():
        for inputs, targets in loader_of(model, accumulate_steps=20):
            nn.functional.cross_entropy(model(inputs), targets).backward()

    assert warnings_of(accumulate) == []


@pytest.mark.parametrize("fused", [True, False])
def test_a_batch_trained_on_by_a_fused_optimizer_is_not_only_looked_at(fused):
    """It changes values without another version, and the gradients are gone."""
    model = nn.Linear(4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), fused=fused)
    loader, picked = loader_of(model, "uniform"), []
    for _ in range(3):
        inputs, targets = next(iter(loader))
        nn.functional.cross_entropy(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        picked.append(inputs)
    loader.state_dict()
    assert loader.report().num_steps == 3
    assert not torch.equal(picked[0], picked[1])


def test_what_a_trace_sees():
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    trace = ModelTrace(model)
    assert trace.is_known
    assert trace.is_of(model)
    assert trace.is_of(model)
    assert not trace.is_of(copy.deepcopy(model).double())
    other = copy.deepcopy(model)
    other[1].bias.data.view(-1)[0] += 1.0  # without another version
    assert not trace.is_of(other)
    with torch.no_grad():
        model[0].weight[2, 3] += 1.0  # not among the values that are compared
    assert not trace.is_of(model)
    assert not ModelTrace(nn.ReLU()).is_known


def test_the_message_ends_with_what_to_do():
    model, trained = nn.Linear(4, 3), nn.Linear(4, 3)
    with pytest.warns(
        RuntimeWarning, match=re.escape("Give SelectiveLoader the model that the loop trains, not a copy")
    ):
        train(loader_of(model), trained, torch.optim.SGD(trained.parameters(), lr=0.1))
