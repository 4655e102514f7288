import re
from itertools import chain

import pytest
import torch

from reducr.data.digits import Digits
from reducr.data.module import DataModule, RawData

NUM_POINTS, NUM_TEST = 600, 90


class Tiny(DataModule):
    """Three classes; the input of point i is i, so that every point can be followed through the splits."""

    def __init__(self, *, has_test=False, last_target=None, **options):
        super().__init__(**options)
        self.has_test = has_test
        self.last_target = last_target

    def read(self):
        target = torch.arange(NUM_POINTS) % 3
        if self.last_target is not None:
            target[-1] = self.last_target
        return RawData(
            input=torch.arange(float(NUM_POINTS)).unsqueeze(1),
            target=target,
            test_input=torch.arange(1000.0, 1000.0 + NUM_TEST).unsqueeze(1) if self.has_test else None,
            test_target=torch.arange(NUM_TEST) % 3 if self.has_test else None,
            class_names=("a", "b", "c"),
        )


def sources(data):
    return data.input[:, 0].long().tolist()


def test_drawn_parts_are_disjoint_complete_and_stratified():
    splits = Tiny(holdout_size=60, test_size=90).splits(seed=0)
    parts = [sources(part) for part in (splits.train, splits.holdout, splits.test)]
    assert [len(part) for part in parts] == [450, 60, 90]
    assert sorted(chain(*parts)) == list(range(NUM_POINTS))
    for part, count in ((splits.train, 150), (splits.holdout, 20), (splits.test, 30)):
        assert torch.bincount(part.target).tolist() == [count] * 3
    assert splits.class_names == ("a", "b", "c")


def test_a_published_test_part_stays_as_it_is():
    splits = Tiny(holdout_size=60, has_test=True).splits(seed=0)
    assert sources(splits.test) == list(range(1000, 1000 + NUM_TEST))
    assert sorted(sources(splits.train) + sources(splits.holdout)) == list(range(NUM_POINTS))


def test_sources_say_where_every_point_was():
    splits = Tiny(holdout_size=60, test_size=90, imbalance_ratio=10, label_noise=0.2).splits(seed=0)
    assert splits.train_source.tolist() == sources(splits.train)
    assert splits.holdout_source.tolist() == sources(splits.holdout)


def test_noise_and_imbalance_are_in_the_training_part_alone():
    splits = Tiny(holdout_size=60, test_size=90, imbalance_ratio=25, label_noise=0.3, class_order=(2, 0, 1)).splits(
        seed=3
    )
    clean = splits.train_source % 3
    assert torch.bincount(clean).tolist() == [30, 6, 150]
    assert torch.equal(splits.train.target != clean, splits.train.is_corrupted)
    assert int(splits.train.is_corrupted.sum()) == round(0.3 * 186)
    assert torch.equal(splits.holdout.target, splits.holdout_source % 3)
    assert not bool(splits.holdout.is_corrupted.any())
    assert torch.bincount(splits.holdout.target).tolist() == [20] * 3
    assert torch.equal(splits.test.target, splits.test.input[:, 0].long() % 3)


def test_one_seed_gives_one_split():
    module = Tiny(holdout_size=60, test_size=90, imbalance_ratio=10, label_noise=0.2)
    first, second, other = (module.splits(seed=seed) for seed in (1, 1, 2))
    assert sources(first.train) == sources(second.train)
    assert torch.equal(first.train.target, second.train.target)
    assert sources(first.holdout) != sources(other.holdout)
    assert sources(first.test) != sources(other.test)


def test_noise_and_imbalance_do_not_change_what_is_held_out():
    plain, changed = (
        Tiny(holdout_size=60, test_size=90, **options).splits(seed=1)
        for options in ({}, {"imbalance_ratio": 10, "label_noise": 0.2})
    )
    assert sources(plain.holdout) == sources(changed.holdout)
    assert sources(plain.test) == sources(changed.test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "this data set has no published test part: give test_size, the points to draw for it."),
        (
            {"has_test": True, "test_size": 10},
            "test_size=10 changes nothing: this data set has a published test part of 90 points.",
        ),
        ({"test_size": 600}, "leave some; got size 600 of 600."),
        ({"test_size": 90, "holdout_size": 510}, "leave some; got size 510 of 510."),
        ({"test_size": 90, "holdout_size": 2}, "each of the 3 classes and leave some; got size 2 of 510."),
        ({"test_size": 90, "label_noise": 1.5}, "the fraction of noisy labels must be in [0, 1]; got 1.5."),
        ({"test_size": 90, "imbalance_ratio": 0.5}, "imbalance_ratio must be at least 1"),
        ({"test_size": 90, "class_order": (0, 1)}, "class_order must name each of the classes 0..2 once"),
        (
            {"test_size": 90, "last_target": 3},
            "target must be in 0..2; index 599 holds 3",
        ),
    ],
)
def test_options_that_cannot_be_met_are_refused(options, message):
    options = {"holdout_size": 60, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        Tiny(**options).splits(seed=0)


class MissingClass(Tiny):
    """Class 1 of three has no point."""

    def read(self):
        raw = super().read()
        return RawData(raw.input, torch.where(raw.target == 1, 0, raw.target), None, None, raw.class_names)


def test_a_class_without_a_holdout_point_is_named():
    with pytest.raises(ValueError, match="at least one holdout point; group 1 of 3 has none"):
        MissingClass(holdout_size=60, test_size=90).splits(seed=0)


def test_digits_are_those_of_scikit_learn():
    raw = Digits(holdout_size=200, test_size=300).read()
    assert raw.input.shape == (1797, 64)
    assert (float(raw.input.min()), float(raw.input.max())) == (0.0, 1.0)
    assert torch.bincount(raw.target).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert raw.class_names == tuple("0123456789")


def test_digits_are_split_without_overlap():
    splits = Digits(holdout_size=200, test_size=300).splits(seed=0)
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [1297, 200, 300]
    assert set(splits.train_source.tolist()).isdisjoint(splits.holdout_source.tolist())
    counts = sum(torch.bincount(part.target) for part in (splits.train, splits.holdout, splits.test))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
