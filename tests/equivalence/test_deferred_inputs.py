"""Candidates whose inputs are read once they are selected give the same training, bit for bit."""

import csv

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from torch import nn

import reducr
from reducr.batch import Batch
from reducr.batch.deferred import DeferredInput
from reducr.data import ExampleDataset, ExampleLoader
from reducr.irreducible import IrreducibleTable, TableLoss
from reducr.pipeline import run_experiment, target_stage

RULES = ["priority_sampling", "class_balanced", "drop", "rs2", "irreducible_loss", "uniform"]


class Files:
    """A pool of inputs that records which are read."""

    def __init__(self, inputs):
        self.inputs, self.read = inputs, []

    def __len__(self):
        return len(self.inputs)

    def __getitem__(self, positions):
        self.read += positions.tolist()
        return self.inputs[positions]


def train(rule, *, defers_inputs):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, 4, (300,), generator=generator)
    pool = Files(torch.randn(400, 5, generator=generator))
    source = torch.randperm(400, generator=generator)[:300]
    data = ExampleDataset(pool, target, num_classes=4, source=source)
    losses = TableLoss(IrreducibleTable(torch.rand(300, generator=generator).numpy(), kind="loss"))
    torch.manual_seed(0)
    model = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loader = reducr.SelectiveLoader(
        ExampleLoader(data, batch_size=50, shuffle=True, defers_inputs=defers_inputs),
        model,
        reducr.make_selector(rule, num_groups=4),
        losses,
        scoring=reducr.Scoring(batch_size=20),
        holdout=[(pool.inputs[:40], torch.arange(40) % 4)],
        refresh_steps=2,
    )
    picked = []
    for _ in range(2):
        for index, inputs, targets, _ in loader:
            assert isinstance(inputs, torch.Tensor)
            picked += source[index].tolist()
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
    return picked, pool.read, model.weight.detach()


@pytest.mark.parametrize("rule", RULES)
def test_only_selected_inputs_are_read(rule):
    picked, read, weight = train(rule, defers_inputs=True)
    expected, read_of_all, expected_weight = train(rule, defers_inputs=False)
    assert picked == expected == read
    assert len(read_of_all) == 600
    assert torch.equal(weight, expected_weight)


def test_a_slice_reads_nothing():
    read = []

    def inputs(positions):
        read.append(positions.tolist())
        return positions.double()

    index = torch.arange(5)
    batch = Batch(index, DeferredInput(inputs, index + 10), index, index)
    part = batch.take(slice(1, 4))
    assert (len(part.input), read) == (3, [])
    assert part.take(torch.tensor([2, 0])).input.tolist() == [13.0, 11.0]
    assert read == [[13, 11]]


QUICK = [
    "num_steps=40", "seed=0", "irreducible.num_epochs=2", "trainer.accelerator=cpu", "datamodule.holdout_size=50",
    "holdout.refresh_steps=9", "model.dropout=0.2",
]  # fmt: skip


def run(folder, *options):
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return run_experiment(compose("main", overrides=[*QUICK, *options, f"model_io.run_dir={folder}"]))


def metrics(folder):
    (path,) = folder.glob("seed_0/*/csv/metrics.csv")
    with path.open(newline="") as file:
        return [{name: cell for name, cell in row.items() if "seconds" not in name} for row in csv.DictReader(file)]


@pytest.mark.parametrize(
    "options",
    [
        ["selection_method=priority_sampling", "holdout_fraction=0.25"],
        pytest.param(["selection_method=rs2"], marks=pytest.mark.long),
        pytest.param(["selection_method=drop"], marks=pytest.mark.long),
    ],
)
def test_a_run_is_the_same(tmp_path, monkeypatch, options):
    num_read = []
    read_deferred = DeferredInput.take
    monkeypatch.setattr(DeferredInput, "take", lambda *a: num_read.append(len(a[1])) or read_deferred(*a))
    run(tmp_path / "deferred", *options)
    assert len(num_read) == 40
    monkeypatch.setattr(target_stage, "_selects_before_loading", lambda *_: False)
    run(tmp_path / "read", *options)
    assert len(num_read) == 40
    assert metrics(tmp_path / "deferred") == metrics(tmp_path / "read")
    (one,), (other,) = ((tmp_path / name).glob("seed_0/*/selected.npz") for name in ("deferred", "read"))
    with np.load(one) as arrays, np.load(other) as others:
        assert all(np.array_equal(arrays[name], others[name]) for name in arrays)


@pytest.mark.long
@pytest.mark.parametrize(
    ("options", "is_deferred"),
    [
        (["selection_method=uniform"], True),
        (["selection_method=priority_sampling"], True),
        (["selection_method=reducr"], False),
        (["selection_method=priority_sampling", "irreducible.lookup=live"], False),
    ],
)
def test_inputs_are_deferred_where_nothing_reads_those_of_candidates(tmp_path, monkeypatch, options, is_deferred):
    made = []

    def loader(*arguments, **options):
        made.append(options.get("defers_inputs"))
        return ExampleLoader(*arguments, **options)

    monkeypatch.setattr(target_stage, "ExampleLoader", loader)
    run(tmp_path / "run", *options, "num_steps=2")
    assert [value for value in made if value is not None] == [is_deferred]
