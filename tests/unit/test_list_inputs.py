"""Inputs that are lists with one entry per example: one argument of the model, and never its arguments in order."""

import re

import pytest
import torch
from torch import nn
from torch.nn.utils.rnn import pack_sequence

import reducr
from reducr import BatchSpec, Downsampler, Scoring

SIZE = 12


class OfList(nn.Module):
    """Logits from a list: the length of a string, the mean of a sequence, the entry ``x`` of a dict."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(1, 2)
        torch.nn.init.ones_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, entries):
        return self.layer(torch.stack([self.value(entry) for entry in entries])) * torch.tensor([1.0, 0.0])

    def value(self, entry):
        if isinstance(entry, str):
            return torch.tensor([float(len(entry))])
        return entry["x"] if isinstance(entry, dict) else entry.mean(0)


TARGET = torch.ones(SIZE, dtype=torch.long)  # so the loss grows with the value
WORDS = ["w" * (1 + number) for number in range(SIZE)]
SEQUENCES = [torch.full((1 + number % 3, 1), 1.0 + number) for number in range(SIZE)]


@pytest.mark.parametrize("scoring", [Scoring(), Scoring(batch_size=1), Scoring(batch_size=5)])
@pytest.mark.parametrize("inputs", [WORDS, tuple(WORDS), SEQUENCES])
def test_a_list_with_one_entry_per_example_is_one_argument(inputs, scoring):
    core = Downsampler("train_loss", sampler="top_k", fraction=0.2, scoring=scoring)
    selected, target = core.select((inputs, TARGET), OfList())
    assert {id(entry) for entry in selected} == {id(entry) for entry in inputs[-2:]}
    assert type(selected) is type(inputs)
    assert len(target) == 2


def test_batches_that_are_lists_of_dicts():
    batch = [{"x": torch.tensor([float(number)]), "y": 1} for number in range(SIZE)]
    spec = BatchSpec(input=lambda batch: batch, target=lambda batch: torch.tensor([row["y"] for row in batch]))
    core = Downsampler("train_loss", sampler="top_k", fraction=0.2, spec=spec)
    assert sorted(row["x"].item() for row in core.select(batch, OfList())) == [SIZE - 2, SIZE - 1]


def test_a_batch_of_two_dicts_holds_columns():
    inputs, targets = {"x": torch.tensor([[1.0], [2.0]])}, {"y": torch.tensor([1, 1])}
    core = Downsampler("uniform", spec=BatchSpec(input=0, target=(1, "y")), fraction=0.5)
    (x, y) = core.select((inputs, targets), nn.Linear(1, 2))
    assert (x["x"].shape, y["y"].shape) == ((1, 1), (1,))


class OfTwo(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, first, second):
        return self.layer(first + second)


@pytest.mark.parametrize("size", [2, 3, 5])
def test_columns_stay_arguments_in_order_in_a_batch_of_their_number(size):
    columns, target = [torch.randn(size, 3), torch.randn(size, 3)], torch.zeros(size, dtype=torch.long)
    core = Downsampler("train_loss", spec=BatchSpec(input=0, target=1, lists="columns"), fraction=1.0)
    selected, _ = core.select((columns, target), OfTwo())
    assert [len(column) for column in selected] == [size, size]


def test_one_example_of_a_list_stays_a_list():
    reference = reducr.Reference(OfList()).bind(reducr.make_selector("rho_loss"))
    read = reducr.batch.BatchReader()
    read((SEQUENCES, TARGET))
    batch = read(([torch.ones(1, 1)], TARGET[:1]))
    assert [type(batch.input), type(batch.input[0])] == [tuple, list]
    assert reference.lookup(batch).shape == (1,)


@pytest.mark.parametrize("name", ["train_loss", "uniform"])
@pytest.mark.parametrize("place", ["input", "entry"])
def test_packed_sequences_are_refused(name, place):
    packed = pack_sequence([torch.ones(2, 1)] * 4)
    batch = (packed, TARGET[:4]) if place == "input" else {"input": TARGET[:4, None].float(), "p": packed, "y": 0}
    batch = batch | {"target": TARGET[:4]} if isinstance(batch, dict) else batch
    model = nn.GRU(1, 2) if place == "input" else nn.Linear(1, 2)
    with pytest.raises(ValueError, match=re.escape("is a PackedSequence, which has no row per example to select.")):
        Downsampler(name, fraction=0.5).select(batch, model)
