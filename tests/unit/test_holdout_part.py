"""The default refresh of the holdout loss: when it is due, on which examples, and what is said without one."""

import re
import warnings

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.batch import BatchSpec
from reducr.downsampler import Downsampler
from reducr.scoring import HoldoutGroups

EARLY = [1, 2, 4, 8, 16, 32]


class Recording(nn.Module):
    """Logits of three classes; remembers the examples that it evaluates in eval mode, by their number."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(1, 3)
        self.seen = []

    def forward(self, inputs):
        if not self.training:
            self.seen += inputs[:, 0].int().tolist()
        return self.linear(inputs)


def holdout_set(sizes=(300, 40, 7), *, seed=0):
    """Numbered examples of three groups in a random order."""
    groups = torch.cat([torch.full((size,), group) for group, size in enumerate(sizes)])
    groups = groups[torch.randperm(len(groups), generator=torch.Generator().manual_seed(seed))]
    return torch.arange(len(groups)).float()[:, None], groups


@pytest.mark.parametrize(
    ("refresh_steps", "due"),
    [(None, [*EARLY, 50, 100, 150]), (60, [60, 120]), ("epoch", [])],
)
def test_when_a_refresh_is_due(refresh_steps, due):
    holdout = reducr.Holdout([], refresh_steps)
    assert [step for step in range(1, 151) if holdout.is_due(step, is_last=False)] == due
    assert not holdout.is_due(None, is_last=False)
    assert holdout.is_due(None, is_last=True) == (refresh_steps == "epoch")


@pytest.mark.parametrize("kind", ["in order", "shuffled", "list", "generator"])
def test_a_part_has_as_many_of_each_group_spread_over_the_set(kind):
    inputs, groups = holdout_set()

    class Batches:
        def __iter__(self):
            return zip(inputs.split(50), groups.split(50), strict=True)

    data = TensorDataset(inputs, groups)
    batches = {
        "in order": lambda: DataLoader(data, batch_size=50),
        "shuffled": lambda: DataLoader(data, batch_size=50, shuffle=True),
        "list": lambda: list(Batches()),
        "generator": Batches,
    }[kind]()
    part = HoldoutGroups(batches, None).part(20, num_groups=3)
    for _ in range(2):
        numbers = torch.cat([batch[0][:, 0] for batch in part]).long()
        assert torch.bincount(groups[numbers]).tolist() == [20, 20, 7]
        assert len(set(numbers.tolist())) == 47
        if kind != "shuffled":
            # every 15th and every second of their group
            assert numbers[groups[numbers] == 0].tolist() == torch.nonzero(groups == 0).flatten()[::15].tolist()
            assert numbers[groups[numbers] == 1].tolist() == torch.nonzero(groups == 1).flatten()[::2].tolist()
    if kind == "in order":
        assert len(part.batches.dataset) == 47  # the others are not even read


def test_a_part_without_groups_is_of_the_whole_set():
    inputs, groups = holdout_set()
    batches = [(inputs, groups.float())]
    (part,) = HoldoutGroups(batches, None).part(10, num_groups=1)
    assert len(part[0]) == 10
    assert part[0][:3, 0].tolist() == [0, 35, 70]


def test_by_default_a_hundred_of_each_group_are_evaluated():
    inputs, groups = holdout_set()
    model = Recording()
    core = Downsampler(
        "class_balanced", holdout=DataLoader(TensorDataset(inputs, groups), batch_size=64), refresh_steps=None
    )
    core.prepare(model)
    assert torch.bincount(groups[torch.tensor(model.seen)]).tolist() == [100, 40, 7]
    losses = nn.functional.cross_entropy(model.train()(inputs), groups, reduction="none").detach()
    taken = torch.tensor(model.seen)
    means = [float(losses[taken][groups[taken] == group].mean()) for group in range(3)]
    assert core.selector.group_holdout_loss.tolist() == pytest.approx(means, rel=1e-5)
    for options, expected in (({"refresh_steps": 5}, [300, 40, 7]), ({"examples_per_group": 10}, [10, 10, 7])):
        model = Recording()
        core = Downsampler("class_balanced", holdout=reducr.Holdout([(inputs, groups)], **options))
        core.prepare(model)
        assert torch.bincount(groups[torch.tensor(model.seen)]).tolist() == expected


def train(name, *, num_batches, num_passes=1, stop=None, **options):
    torch.manual_seed(0)
    model = nn.Linear(1, 3)
    batches = [holdout_set((8, 8, 4), seed=seed) for seed in range(num_batches)]
    optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
    loader = reducr.SelectiveLoader(batches, model, name, fraction=0.2, holdout=[holdout_set((9, 9, 9))], **options)
    for _ in range(num_passes):
        for number, (inputs, targets) in enumerate(loader):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()
            optimizer.step()
            if number == stop:
                break
    return model, loader


def held_out_loss(model):
    inputs, groups = holdout_set((9, 9, 9))
    losses = nn.functional.cross_entropy(model(inputs), groups, reduction="none").detach()
    return [float(losses[groups == group].mean()) for group in range(3)]


def test_one_pass_follows_the_trained_model():
    """32 steps: the loss in force is that of the model at the end, not of the one that has not been trained."""
    model, loader = train("drop", num_batches=32)
    assert loader.downsampler.selector.group_holdout_loss.tolist() == pytest.approx(held_out_loss(model), rel=1e-5)
    assert loader.report().num_refreshes == len(EARLY)


def test_passes_that_are_left_are_refreshed_by_steps():
    _, loader = train("drop", num_batches=9, num_passes=2, stop=3)
    assert loader.report().num_steps == 7  # the last batch is not counted yet
    assert loader.report().num_refreshes == 3  # after steps 1, 2 and 4


def test_a_rule_that_does_not_read_the_loss_gets_it_once():
    _, loader = train("train_loss", num_batches=9)
    assert loader.report().num_refreshes == 0
    assert bool(torch.isfinite(loader.downsampler.selector.group_holdout_loss).all())


def test_a_pass_left_before_the_refresh_at_its_end_is_warned_of_once():
    message = "A pass was left after 3 steps without a refresh of the holdout loss (refresh_steps='epoch'): the group"
    with pytest.warns(UserWarning, match=re.escape(message)) as told:
        train("drop", num_batches=9, num_passes=2, stop=3, refresh_steps="epoch")
    assert len(told) == 1


def test_a_long_pass_without_a_refresh_is_warned_of():
    message = "A pass ended after 60 steps without a refresh of the holdout loss (refresh_steps=1000): the group we"
    with pytest.warns(UserWarning, match=re.escape(message)):
        train("drop", num_batches=60, refresh_steps=1000)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train("drop", num_batches=60)
        train("uniform", num_batches=60, refresh_steps=1000)  # reads no holdout loss
        train("drop", num_batches=9, num_passes=2, refresh_steps="epoch")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"refresh_steps": "epochs"},
            "a number of gradient steps, 'epoch' for the end of every epoch, or None; got 'ep",
        ),
        ({"examples_per_group": 0}, "examples_per_group must be a whole number of at least 1; got 0."),
        ({"examples_per_group": 5, "decay": 0.9}, "examples_per_group=5 has no effect with decay=0.9"),
        ({"fraction": 1.0}, "holdout_fraction must be in [0, 1), the share of the examples of each gradient step"),
    ],
)
def test_options_of_the_holdout_set_out_of_range(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        reducr.Holdout([], **options)


def test_options_given_twice_or_without_a_holdout_set():
    holdout = reducr.Holdout([holdout_set()], refresh_steps=3, fraction=0.2)
    for options, message in (
        ({"refresh_steps": 4}, "refresh_steps=4 has no effect beside a Holdout with its own refresh_steps. Leave one"),
        ({"holdout_fraction": 0.1}, "holdout_fraction=0.1 has no effect beside a Holdout with its own fraction."),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            Downsampler("class_balanced", holdout=holdout, **options)
    with pytest.raises(ValueError, match=r"holdout_fraction=0.1 has no effect without `holdout`. Pass `holdout=`"):
        Downsampler("uniform", holdout_fraction=0.1)


def test_groups_that_a_spec_names_are_evaluated_in_parts():
    inputs, groups = holdout_set((50, 50))
    batches = [{"x": inputs, "y": torch.zeros_like(groups), "site": groups}]
    (part,) = HoldoutGroups(batches, BatchSpec(input="x", target="y", group="site")).part(5, num_groups=2)
    assert torch.bincount(part["site"]).tolist() == [5, 5]
