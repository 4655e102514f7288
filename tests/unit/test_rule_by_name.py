"""A rule by its name: its groups counted from the holdout set, its options beside those of the selection."""

import random
import re

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import reducr
from reducr.batch import BatchSpec
from reducr.downsampler import Downsampler
from reducr.irreducible import AdjustedIrreducibleLoss, LiveLogits, PlainIrreducibleLoss
from reducr.scoring import HoldoutGroups


def model():
    torch.manual_seed(0)
    return nn.Linear(4, 3)


def data(size=30, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(size, 4, generator=generator), torch.arange(size) % 3


HOLDOUT = [data(9, seed=1), data(6, seed=2)]


def test_groups_are_counted_from_the_holdout_set():
    core = Downsampler("priority_sampling", PlainIrreducibleLoss(LiveLogits(model())), holdout=HOLDOUT, step_size=0.3)
    assert core.selector.name == "priority_sampling"
    assert (core.selector.num_groups, core.selector.weighting.step_size) == (3, 0.3)
    sites = [(*data(9), torch.arange(9) % 5)]
    spec = BatchSpec(input=0, target=1, group=2)
    assert Downsampler("class_balanced", holdout=sites, spec=spec).selector.num_groups == 5
    assert Downsampler("class_balanced", holdout=sites, spec=spec, num_groups=7).selector.num_groups == 7


def test_a_rule_by_name_selects_as_one_that_was_made():
    """The same batches from the same seed, with options of the rule and of its sampler."""
    picked = []
    for selector, options in (
        ("reducr", {"step_size": 0.3, "sampler": "softmax", "temperature": 0.5}),
        (reducr.make_selector("reducr", num_groups=3, step_size=0.3, sampler="softmax", temperature=0.5), {}),
    ):
        irreducible = AdjustedIrreducibleLoss(LiveLogits(model()))
        batches = [data(seed=seed) for seed in range(5)]
        loader = reducr.SelectiveLoader(batches, model(), selector, irreducible, holdout=HOLDOUT, **options)
        picked.append(torch.cat([inputs for inputs, _ in loader]))
        assert bool((loader.downsampler.selector.cumulative_payoff != 0).all())
    assert torch.equal(*picked)


class Counting(IterableDataset):
    """Draws from every global generator, and counts its passes."""

    num_passes = 0

    def __iter__(self):
        self.num_passes += 1
        for inputs, target in zip(*data(9), strict=True):
            yield inputs + torch.randn(()) + random.random() + float(np.random.rand()), target  # noqa: NPY002


@pytest.mark.parametrize("kind", ["shuffled", "own generator", "stream"])
def test_counting_reads_once_and_leaves_no_trace(kind):
    generator = torch.Generator().manual_seed(3)
    stream = Counting()
    loader = {
        "shuffled": lambda: DataLoader(TensorDataset(*data(9)), batch_size=4, shuffle=True),
        "own generator": lambda: DataLoader(TensorDataset(*data(9)), batch_size=4, shuffle=True, generator=generator),
        "stream": lambda: DataLoader(stream, batch_size=4),
    }[kind]()

    def states():
        return [generator.get_state(), torch.get_rng_state()], random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002

    before = states()
    groups = HoldoutGroups(loader, None)
    assert groups.num_groups(sync=False) == groups.num_groups(sync=False) == 3
    after = states()
    assert all(torch.equal(one, two) for one, two in zip(before[0], after[0], strict=True))
    assert before[1:] == after[1:]
    assert stream.num_passes == (kind == "stream")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("reducr", {}, "'reducr' treats each group of examples by itself, and the groups are counted from the holdout"),
        ("class_balanced", {}, "Pass `holdout=`, its batches, or `num_groups=`."),
        ("redcur", {}, "unknown selector 'redcur'. Did you mean 'reducr'"),
        ("reducr", {"holdout": [(torch.zeros(3, 4), torch.rand(3))]}, "must be one integer per example; got torch.flo"),
        ("reducr", {"holdout": []}, "The holdout set has no examples. Pass batches with at least one of each group."),
        (
            "reducr",
            {"holdout": [(torch.zeros(3, 4), torch.tensor([0, -1, 2]))]},
            "Groups are counted from 0, and the holdout set has group -1. Say where the groups are with",
        ),
        (
            "reducr",
            {"holdout": HOLDOUT, "step_sise": 1.0},
            "unknown option 'step_sise' of SelectiveLoader. Did you mean 'step_size'",
        ),
        ("reducr", {"holdout": HOLDOUT, "sampler": "top"}, "unknown sampler 'top'. Did you mean 'top_k'"),
        ("reducr", {"holdout": HOLDOUT, "step_size": -1}, "step_size must be a finite number of at least 0; got -1"),
        (
            "train_loss",
            {"scoring_mode": "eval"},
            "SelectiveLoader has no option 'scoring_mode': pass `scoring=reducr.Scoring(mode=...)`.",
        ),
        ("train_loss", {"budget": 0.3}, "has no option 'budget': pass `scoring=reducr.Scoring(budget=...)`."),
        ("train_loss", {"decay": 0.9}, "has no option 'decay': pass `holdout=reducr.Holdout(batches, decay=...)`."),
        ("train_loss", {"warm_start": True}, "pass `model.load_state_dict(reference.state_dict())` before the"),
        ("train_loss", {"percent_train": 0.1}, "has no option 'percent_train': pass `fraction=...`, in (0, 1]."),
    ],
)
def test_faults_of_a_rule_by_name(name, options, message):
    irreducible = AdjustedIrreducibleLoss(LiveLogits(model()))
    with pytest.raises(ValueError, match=re.escape(message)):
        reducr.SelectiveLoader([data()], model(), name, irreducible, **options)


def test_options_of_a_rule_that_was_made_are_refused():
    message = (
        "'step_size' is an option of the rule, which is already made: pass it to reducr.make_selector('reducr', ...), "
        "or pass the name 'reducr' as the selector."
    )
    with pytest.raises(ValueError, match=re.escape(message)):
        Downsampler(reducr.make_selector("reducr", num_groups=3), LiveLogits(model()), step_size=1.0)


def test_rules_without_groups_need_no_number_of_them():
    assert reducr.make_selector("train_loss").num_groups == 1
    assert Downsampler("rho_loss", PlainIrreducibleLoss(LiveLogits(model()))).selector.num_groups == 1
    message = "'drop' treats each group of examples by itself, so it needs `num_groups=`, the number of groups (of"
    with pytest.raises(ValueError, match=re.escape(message)):
        reducr.make_selector("drop")


@pytest.mark.parametrize("selector", ["train_loss", "reducr"])
def test_one_group_means_no_groups_whatever_the_targets(selector):
    """Also for a rule with groups, which is RHO-LOSS then."""

    class Ones:
        def lookup(self, batch):
            return torch.zeros(len(batch.target), 1)

    rule = reducr.make_selector(selector, num_groups=1, sampler="top_k")
    loader = reducr.SelectiveLoader([data()], model(), rule, Ones(), fraction=0.2, holdout=HOLDOUT)
    (selected,) = loader
    inputs, targets = data()
    hardest = nn.functional.cross_entropy(model()(inputs), targets, reduction="none").topk(6).indices
    assert torch.equal(selected[1], targets[hardest])
    assert loader.report().group_counts == [6]
    core = loader.downsampler
    assert core.selected.group.tolist() == [0] * 6


def test_a_holdout_set_without_classes_has_no_groups_for_rules_without_them():
    """A regression with a holdout set."""

    def loss(output, target):
        return (output[:, 0] - target).square()

    batch = (torch.randn(20, 4), torch.randn(20))
    loader = reducr.SelectiveLoader([batch], model(), "train_loss", holdout=[batch], loss=loss)
    assert [len(selected) for selected, _ in loader] == [2]
    assert float(loader.downsampler.selector.group_holdout_loss) == pytest.approx(
        float(loss(model()(batch[0]), batch[1]).mean().detach()), rel=1e-5
    )
