"""``SelectiveBatchSampler`` selects what ``SelectiveLoader`` selects, loads nothing else, and resumes exactly."""

import copy
from functools import partial
from itertools import chain

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset
from torchdata.stateful_dataloader import StatefulDataLoader

import reducr
from reducr._internal.rng import random_state, set_random_state
from reducr.data import ExampleDataset, ExampleLoader
from reducr.irreducible import IrreducibleTable, TableLoss

NUM_GROUPS, NUM_EXAMPLES, BATCH_SIZE, FRACTION, SEED = 5, 1000, 8, 0.1, 3
RULES = ["priority_sampling", "class_balanced", "drop", "rs2", "irreducible_loss", "uniform"]
OPTIONS = {"priority_sampling": {"step_size": 0.05}}


def examples():
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, NUM_GROUPS, (NUM_EXAMPLES,), generator=generator)
    return ExampleDataset(
        torch.randn(NUM_EXAMPLES, 8, generator=generator) + target.unsqueeze(1), target, num_classes=NUM_GROUPS
    )


class Decoded(Dataset):
    """Single examples, whose indices are recorded when they are read."""

    def __init__(self):
        self.data, self.read = examples(), []
        self.targets = self.data.target.tolist()

    def __len__(self):
        return NUM_EXAMPLES

    def __getitem__(self, position):
        self.read.append(position)
        return self.data[position]


def losses():
    generator = torch.Generator().manual_seed(1)
    return TableLoss(IrreducibleTable(torch.rand(NUM_EXAMPLES, generator=generator).numpy(), kind="loss"))


def holdout():
    return DataLoader(examples().take(torch.arange(60)), batch_size=25, shuffle=True)


class Training:
    """A model with dropout, an optimizer and a batch sampler; made afresh."""

    def __init__(self, rule, dataset, *, make_loader=DataLoader, dropout=0.3, **options):
        torch.manual_seed(SEED)
        self.model = nn.Sequential(nn.Linear(8, 16), nn.Dropout(dropout), nn.Linear(16, NUM_GROUPS))
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=1e-2)
        selector = reducr.make_selector(rule, num_groups=NUM_GROUPS, **OPTIONS.get(rule, {}))
        options = {"fraction": FRACTION, "holdout": holdout(), "refresh_steps": 3, "seed": SEED} | options
        self.sampler = reducr.SelectiveBatchSampler(
            dataset, self.model, selector, losses(), batch_size=BATCH_SIZE, **options
        )
        self.loader = make_loader(self.sampler.dataset, batch_sampler=self.sampler)
        self.picked = []

    def step(self, batch):
        index, inputs, targets, _ = batch
        self.picked.append(index.tolist())
        self.optimizer.zero_grad()
        nn.functional.cross_entropy(self.model(inputs), targets).backward()
        self.optimizer.step()

    def state(self):
        parts = {"model": self.model, "optimizer": self.optimizer, "sampler": self.sampler}
        state = {name: copy.deepcopy(part.state_dict()) for name, part in parts.items()}
        return state | {"random": random_state(), "num_picked": len(self.picked)}

    def load(self, state):
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.sampler.load_state_dict(state["sampler"])
        set_random_state(state["random"])

    def run(self, num_epochs, *, save_at=()):
        """Train to the end; returns the states after so many batches, and between passes for whole ones."""
        states = {}
        while self.sampler.epoch < num_epochs:
            for batch in self.loader:
                self.step(batch)
                if len(self.picked) in save_at:
                    states[len(self.picked)] = self.state()
            states[f"pass {self.sampler.epoch}"] = self.state()
        return states


def assert_same(one, other, *, num_picked=0):
    assert one.picked[num_picked:] == other.picked
    for value, expected in zip(one.model.state_dict().values(), other.model.state_dict().values(), strict=True):
        assert torch.equal(value, expected)
    for (name, value), expected in zip(
        one.sampler.selector.state_dict().items(), other.sampler.selector.state_dict().values(), strict=True
    ):
        torch.testing.assert_close(value, expected, rtol=0, atol=0, equal_nan=True, msg=name)


@pytest.mark.parametrize("options", [{"refresh_steps": 3}, {"refresh_steps": None}, {"accumulate_steps": 2}])
@pytest.mark.parametrize("rule", RULES)
def test_the_same_examples_as_the_loader_and_no_others_are_read(rule, options):
    """From the same order and seed, with a last batch that is smaller, over two passes."""
    dataset, options = Decoded(), {"refresh_steps": 3, "holdout": holdout()} | options
    training = Training(rule, dataset, dropout=0.0, **options)
    again = Training(rule, dataset, dropout=0.0, **options)
    selector = reducr.make_selector(rule, num_groups=NUM_GROUPS, **OPTIONS.get(rule, {}))
    candidates = ExampleLoader(examples(), batch_size=80, shuffle=True, seed=SEED)
    loader = reducr.SelectiveLoader(candidates, again.model, selector, losses(), FRACTION, seed=SEED, **options)
    for _ in range(2):
        for batch in loader:
            again.step(batch)
    training.run(2)
    assert [len(batch) for batch in training.picked] == 2 * [*12 * [8], 4]
    assert training.picked == again.picked
    assert dataset.read == list(chain.from_iterable(training.picked))
    assert all(torch.equal(a, b) for a, b in zip(training.model.parameters(), again.model.parameters(), strict=True))
    report, expected = training.sampler.report(), loader.report()
    assert (report.num_steps, report.num_batches, report.num_candidates, report.num_selected, report.group_counts) == (
        expected.num_steps,
        expected.num_batches,
        expected.num_candidates,
        expected.num_selected,
        expected.group_counts,
    )
    assert training.sampler.metrics().keys() == loader.downsampler.metrics().keys()


@pytest.mark.parametrize("options", [{}, {"seed": 4, "accumulate_steps": 2}])
@pytest.mark.parametrize("rule", ["priority_sampling", "uniform"])
def test_the_same_holdout_examples_as_the_loader(rule, options):
    """In the same places of every batch, until the 60 have been drawn once and come again."""
    dataset, clean = Decoded(), Decoded()
    holdout = DataLoader(Subset(clean, range(60)), batch_size=25, shuffle=True)
    options = {"holdout": holdout, "holdout_fraction": 0.25, "seed": SEED, "refresh_steps": 3} | options
    training = Training(rule, dataset, dropout=0.0, **options)
    again = Training(rule, dataset, dropout=0.0, **options)
    selector = reducr.make_selector(rule, num_groups=NUM_GROUPS, **OPTIONS.get(rule, {}))
    candidates = ExampleLoader(examples(), batch_size=80, shuffle=True, seed=options["seed"])
    loader = reducr.SelectiveLoader(candidates, again.model, selector, losses(), FRACTION, **options)
    for _ in range(3):
        for batch in loader:
            again.step(batch)
    dataset.read.clear()
    training.run(3)
    assert [len(batch) for batch in training.picked] == 3 * [*12 * [8], 4]
    assert training.picked == again.picked
    assert len(dataset.read) == 3 * (12 * 6 + 3)
    assert all(torch.equal(a, b) for a, b in zip(training.model.parameters(), again.model.parameters(), strict=True))
    assert training.sampler.report().num_selected == loader.report().num_selected == len(dataset.read)


WORKERS = {
    "none": {},
    "two": {"num_workers": 2},
    "two that stay": {"num_workers": 2, "persistent_workers": True, "prefetch_factor": 3},
}


@pytest.mark.parametrize(
    ("rule", "options", "workers"),
    [
        ("priority_sampling", {}, "none"),
        ("priority_sampling", {"holdout_fraction": 0.25}, "none"),
        ("drop", {"refresh_steps": None}, "none"),
        ("rs2", {}, "none"),
        ("priority_sampling", {"holdout_fraction": 0.25}, "two"),
        *(
            pytest.param("priority_sampling", options, name, marks=pytest.mark.long)
            for options in ({"refresh_steps": None}, {"refresh_steps": None, "holdout_fraction": 0.25})
            for name in ("two", "two that stay")
        ),
        *(pytest.param("rs2", {}, name, marks=pytest.mark.long) for name in ("two", "two that stay")),
    ],
)
def test_a_resumed_training_goes_on_bit_for_bit(rule, options, workers):
    """After the first batch, in the middle, where all are drawn ahead, after the last batch, and between passes."""
    make_loader, dataset = partial(DataLoader, **WORKERS[workers]), examples()
    whole = Training(rule, dataset, make_loader=make_loader, **options)
    num_batches = len(whole.sampler)
    assert num_batches == 13
    save_at = (1, 5, num_batches - 2, num_batches, num_batches + 4)
    states = whole.run(2, save_at=save_at)
    assert sorted(map(str, states)) == sorted([*map(str, save_at), "pass 1", "pass 2"])
    for name, state in states.items():
        resumed = Training(rule, dataset, make_loader=make_loader, **options)
        resumed.load(state)
        num_picked = state["num_picked"]
        assert resumed.sampler.epoch == num_picked // num_batches, name
        assert resumed.sampler.position in (num_picked % num_batches, num_batches), name
        resumed.run(2)
        assert_same(whole, resumed, num_picked=num_picked)


def test_what_is_counted_are_batches_trained_on_not_drawn():
    training = Training("priority_sampling", examples(), make_loader=partial(DataLoader, num_workers=2))
    batches = iter(training.loader)
    assert training.sampler.position == 0
    assert training.sampler.state_dict()["position"] == 0
    next(batches)
    next(batches)
    assert (training.sampler.epoch, training.sampler.position) == (0, 2)
    state = training.sampler.state_dict()
    assert len(state["ahead"]) == 4  # two workers with two batches each
    assert training.sampler.report().num_batches == 6
    for _ in batches:
        pass
    assert (training.sampler.epoch, training.sampler.position) == (1, 13)


def test_a_state_is_a_copy():
    training = Training("priority_sampling", examples(), make_loader=partial(DataLoader, num_workers=2))
    state = training.sampler.state_dict()
    before = copy.deepcopy(state)
    training.run(1)
    assert str(state) == str(before)
    training.sampler.load_state_dict(state)
    training.run(1)
    assert str(state) == str(before)


def test_batches_drawn_ahead_survive_another_number_of_workers():
    """No example is lost or trained on twice; for a rule that does not read the holdout loss all is exact."""
    options = {"holdout": None, "refresh_steps": None}
    whole = Training("rs2", examples(), make_loader=partial(DataLoader, num_workers=2), **options)
    state = whole.run(1, save_at=[3])[3]
    resumed = Training("rs2", examples(), **options)
    resumed.load(state)
    resumed.run(1)
    assert_same(whole, resumed, num_picked=3)


def test_the_number_of_batches_can_be_said():
    """For a loop that takes the indices by itself and reads ahead."""
    training = Training("priority_sampling", examples())
    ahead = [next(indices) for indices in [iter(training.sampler)] for _ in range(5)]
    state = training.sampler.state_dict(num_batches=2)
    resumed = Training("priority_sampling", examples()).sampler
    resumed.load_state_dict(state)
    assert [next(indices) for indices in [iter(resumed)] for _ in range(3)] == ahead[2:]
    with pytest.raises(ValueError, match=r"`num_batches` must be in 0\.\.5, the batches .* drawn so far; got 6\."):
        training.sampler.state_dict(num_batches=6)


@pytest.mark.filterwarnings("ignore:'set_vital' is deprecated")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("rule", ["rs2", "class_balanced"])
def test_torchdata_keeps_the_state_of_the_batch_it_yields(rule, num_workers):
    make_loader = partial(StatefulDataLoader, num_workers=num_workers)
    whole = Training(rule, examples(), make_loader=make_loader, dropout=0.0)
    batches = iter(whole.loader)
    for _ in range(4):
        whole.step(next(batches))
    state = copy.deepcopy(whole.loader.state_dict())
    resumed = Training(rule, examples(), make_loader=make_loader, dropout=0.0)
    resumed.model.load_state_dict(whole.model.state_dict())
    resumed.loader.load_state_dict(state)
    for batch in batches:
        whole.step(batch)
    for batch in resumed.loader:
        resumed.step(batch)
    assert whole.picked[4:] == resumed.picked


@pytest.mark.parametrize("num_workers", [0, 2])
def test_accelerate_reads_one_batch_ahead_of_the_loop(num_workers):
    def make_loader(dataset, **options):
        AcceleratorState._reset_state(reset_partial_state=True)
        return Accelerator(cpu=True).prepare(DataLoader(dataset, num_workers=num_workers, **options))

    whole = Training("priority_sampling", examples(), make_loader=make_loader)
    states = whole.run(2, save_at=(1, 6, 13, 15))
    for number in (1, 6, 13, 15):
        resumed = Training("priority_sampling", examples(), make_loader=make_loader)
        resumed.load(states[number])
        resumed.run(2)
        assert_same(whole, resumed, num_picked=number)


def test_checkpoints_hold_the_sampler(tmp_path):
    """With the global random states; the loop of docs/loops.md, left in the middle of a pass."""

    def parts():
        training = Training("priority_sampling", examples())
        return training, {"model": training.model, "optimizer": training.optimizer, "sampler": training.sampler}

    whole, kept = parts()
    checkpoints = reducr.Checkpoints(tmp_path)
    for batch in chain.from_iterable(whole.loader for _ in range(2)):
        whole.step(batch)
        if len(whole.picked) == 17:
            checkpoints.save(17, **kept)
    resumed, kept = parts()
    assert reducr.Checkpoints(tmp_path).resume(**kept) == 17
    assert (resumed.sampler.epoch, resumed.sampler.position) == (1, 4)
    resumed.run(2)
    assert_same(whole, resumed, num_picked=17)
