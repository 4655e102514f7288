import re
from itertools import chain

import pytest
import torch

from reducr.data import RawData
from reducr.data.core.module import DataModule
from reducr.data.published.digits import Digits

NUM_EXAMPLES, NUM_TEST = 600, 90


class Tiny(DataModule):
    """Three classes; the input of example i is i, so that every example can be followed through the splits."""

    def __init__(self, *, has_test=False, last_target=None, **options):
        super().__init__(**options)
        self.has_test = has_test
        self.last_target = last_target

    def read(self):
        target = torch.arange(NUM_EXAMPLES) % 3
        if self.last_target is not None:
            target[-1] = self.last_target
        if not self.has_test:
            return RawData(torch.arange(float(NUM_EXAMPLES)).unsqueeze(1), target, ("a", "b", "c"))
        return RawData(
            input=torch.cat([torch.arange(float(NUM_EXAMPLES)), torch.arange(1000.0, 1000.0 + NUM_TEST)]).unsqueeze(1),
            target=torch.cat([target, torch.arange(NUM_TEST) % 3]),
            class_names=("a", "b", "c"),
            parts={"test": torch.arange(NUM_EXAMPLES, NUM_EXAMPLES + NUM_TEST)},
        )


def sources(data):
    return data.input[:, 0].long().tolist()


def test_drawn_parts_are_disjoint_complete_and_stratified():
    splits = Tiny(holdout_size=60, test_size=90).splits(seed=0)
    parts = [sources(part) for part in (splits.train, splits.holdout, splits.test)]
    assert [len(part) for part in parts] == [450, 60, 90]
    assert sorted(chain(*parts)) == list(range(NUM_EXAMPLES))
    for part, count in ((splits.train, 150), (splits.holdout, 20), (splits.test, 30)):
        assert torch.bincount(part.target).tolist() == [count] * 3
    assert splits.class_names == ("a", "b", "c")


def test_a_published_test_part_stays_as_it_is():
    splits = Tiny(holdout_size=60, has_test=True).splits(seed=0)
    assert sources(splits.test) == list(range(1000, 1000 + NUM_TEST))
    assert sorted(sources(splits.train) + sources(splits.holdout)) == list(range(NUM_EXAMPLES))


def test_source_is_the_position_in_the_published_data():
    splits = Tiny(holdout_size=60, test_size=90, imbalance={"train": 10}, label_noise={"train": 0.2}).splits(seed=0)
    assert splits.train.source.tolist() == sources(splits.train)
    assert splits.holdout.source.tolist() == sources(splits.holdout)


def test_noise_and_imbalance_affect_only_the_training_part():
    imbalance = {"train": {"kind": "long_tail", "ratio": 25, "class_order": [2, 0, 1]}}
    splits = Tiny(holdout_size=60, test_size=90, imbalance=imbalance, label_noise={"train": 0.3}).splits(seed=3)
    clean = splits.train.source % 3
    assert torch.bincount(clean).tolist() == [30, 6, 150]
    assert torch.equal(splits.train.target != clean, splits.train.is_corrupted)
    assert int(splits.train.is_corrupted.sum()) == round(0.3 * 186)
    assert torch.equal(splits.holdout.target, splits.holdout.source % 3)
    assert not bool(splits.holdout.is_corrupted.any())
    assert torch.bincount(splits.holdout.target).tolist() == [20] * 3
    assert torch.equal(splits.test.target, splits.test.input[:, 0].long() % 3)


def test_one_seed_gives_one_split():
    module = Tiny(holdout_size=60, test_size=90, imbalance={"train": 10}, label_noise={"train": 0.2})
    first, second, other = (module.splits(seed=seed) for seed in (1, 1, 2))
    assert sources(first.train) == sources(second.train)
    assert torch.equal(first.train.target, second.train.target)
    assert sources(first.holdout) != sources(other.holdout)
    assert sources(first.test) != sources(other.test)


def test_noise_and_imbalance_do_not_change_what_is_held_out():
    plain, changed = (
        Tiny(holdout_size=60, test_size=90, **options).splits(seed=1)
        for options in ({}, {"imbalance": {"train": 10}, "label_noise": {"train": 0.2}})
    )
    assert sources(plain.holdout) == sources(changed.holdout)
    assert sources(plain.test) == sources(changed.test)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {},
            "This data set has no published test part. Set `datamodule.test_size` to the number of examples to draw",
        ),
        (
            {"test_size": 90, "holdout_size": None},
            "This data set has no published holdout part. Set `datamodule.holdout_size`",
        ),
        ({"test_size": 1.5}, "test_size must be a whole number of examples, or a share in (0, 1)"),
        ({"test_size": 0}, "test_size must be a whole number of examples, or a share in (0, 1)"),
        ({"imbalance": {"trian": 2}}, "Did you mean 'train'"),
        (
            {"has_test": True, "test_size": 10},
            "`datamodule.test_size=10` has no effect: this data set has a published test part of 90 examples.",
        ),
        ({"test_size": 600}, "datamodule.test_size=600: a stratified part needs"),
        ({"test_size": 600}, "must leave some; got size 600 of 600."),
        ({"test_size": 90, "holdout_size": 0.001}, "datamodule.holdout_size=0.001: a stratified part needs"),
        ({"test_size": 90, "holdout_size": 510}, "must leave some; got size 510 of 510."),
        ({"test_size": 90, "holdout_size": 2}, "each of the 3 classes and must leave some; got size 2 of 510."),
        ({"test_size": 90, "label_noise": {"train": 1.5}}, "must be in [0, 1]; got 1.5."),
        ({"test_size": 90, "imbalance": {"train": 0.5}}, "must be at least 1"),
        (
            {"test_size": 90, "imbalance": {"train": {"kind": "long_tail", "ratio": 2, "class_order": [0, 1]}}},
            "class_order must contain each of the classes 0..2 once",
        ),
        (
            {"test_size": 90, "last_target": 3},
            "target must be in 0..2; index 599 holds 3",
        ),
    ],
)
def test_invalid_options_are_errors(options, message):
    options = {"holdout_size": 60, **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        Tiny(**options).splits(seed=0)


class MissingClass(Tiny):
    """Class 1 of three has no example."""

    def read(self):
        raw = super().read()
        return RawData(raw.input, torch.where(raw.target == 1, 0, raw.target), raw.class_names)


def test_a_class_without_a_holdout_example_is_an_error():
    with pytest.raises(ValueError, match="every class needs at least one holdout example; 'b' of 3 has none"):
        MissingClass(holdout_size=60, test_size=90).splits(seed=0)


def test_digits_match_scikit_learn():
    raw = Digits(holdout_size=200, test_size=300).read()
    assert raw.input.shape == (1797, 64)
    assert (float(raw.input.min()), float(raw.input.max())) == (0.0, 1.0)
    assert torch.bincount(raw.target).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert raw.class_names == tuple("0123456789")


def test_digits_are_split_without_overlap():
    splits = Digits(holdout_size=200, test_size=300).splits(seed=0)
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [1297, 200, 300]
    assert set(splits.train.source.tolist()).isdisjoint(splits.holdout.source.tolist())
    counts = sum(torch.bincount(part.target) for part in (splits.train, splits.holdout, splits.test))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


class Published(DataModule):
    """Twelve examples of two classes with published parts, noisy targets and groups that follow from the target."""

    def __init__(self, *, parts, **options):
        super().__init__(**options)
        self.parts = {part: torch.tensor(positions) for part, positions in parts.items()}

    def read(self):
        target = torch.arange(12) % 2
        noisy = target.clone()
        noisy[:4] = 1 - noisy[:4]
        return RawData(
            torch.arange(12.0).unsqueeze(1),
            target,
            ("even", "odd"),
            parts=self.parts,
            noisy_target=noisy,
            group_of_target=torch.tensor([1, 0]),
            num_groups=2,
        )


PARTS = {"train": list(range(6)), "holdout": [6, 7, 8, 9], "test": [10, 11]}


def test_only_the_training_part_has_noisy_targets_and_they_are_marked():
    splits = Published(parts=PARTS | {"train": [0, 1, 2, 3, 5, 4]}).splits(seed=0)
    assert splits.train.target.tolist() == [1, 0, 1, 0, 1, 0]
    assert splits.train.is_corrupted.tolist() == [True] * 4 + [False] * 2
    assert splits.train.group.tolist() == [0, 1, 0, 1, 0, 1]
    assert splits.train.source.tolist() == [0, 1, 2, 3, 5, 4]
    assert splits.holdout.target.tolist() == [0, 1, 0, 1]
    assert splits.irreducible is splits.holdout


def test_holdout_and_test_examples_keep_their_clean_targets():
    """Also those with another target in the noisy labels, which the training part alone shows."""
    splits = Published(parts={"train": list(range(4, 12)), "holdout": [0, 1], "test": [2, 3]}).splits(seed=0)
    assert splits.holdout.target.tolist() == splits.test.target.tolist() == [0, 1]
    drawn = Published(parts={"test": [0, 1]}, holdout_size=5).splits(seed=0)
    assert set(drawn.holdout.source.tolist()) & {2, 3}
    assert torch.equal(drawn.holdout.target, drawn.holdout.source % 2)


def test_noise_on_noisy_targets_is_compared_with_the_clean_ones():
    splits = Published(parts=PARTS, label_noise={"train": 1.0}).splits(seed=0)
    assert splits.train.is_corrupted.tolist() == [False] * 4 + [True] * 2


def test_examples_in_no_part_are_in_the_training_part():
    splits = Published(parts={"holdout": [0, 1], "test": [2, 3]}).splits(seed=0)
    assert splits.train.source.tolist() == list(range(4, 12))


def test_a_test_part_is_drawn_from_the_published_holdout_part():
    splits = Published(parts={"holdout": list(range(4, 12))}, test_size=4).splits(seed=0)
    assert splits.train.source.tolist() == [0, 1, 2, 3]
    assert sorted(splits.test.source.tolist() + splits.holdout.source.tolist()) == list(range(4, 12))
    assert torch.bincount(splits.test.target).tolist() == [2, 2]


def test_a_share_of_the_published_holdout_part_can_be_drawn():
    splits = Published(parts=PARTS, holdout_size=0.5).splits(seed=0)
    assert len(splits.holdout) == 2
    assert set(splits.holdout.source.tolist()) < {6, 7, 8, 9}
    assert splits.train.source.tolist() == list(range(6))


def test_the_irreducible_part_may_overlap_only_the_holdout_part():
    splits = Published(
        parts={"train": [0, 1, 2], "holdout": [6, 7], "test": [10, 11], "irreducible": [7, 8, 9]}
    ).splits(seed=0)
    assert splits.irreducible.source.tolist() == [7, 8, 9]
    assert list(splits.by_name()) == ["train", "holdout", "test", "irreducible"]
    with pytest.raises(ValueError, match=r"The train and irreducible parts share 2 examples\. They must be"):
        Published(parts=PARTS | {"irreducible": [4, 5, 6]}).splits(seed=0)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (PARTS | {"test": [9, 10]}, "The holdout and test parts share 1 examples. They must be disjoint."),
        (
            PARTS | {"holdout": [6, 7, 7, 8, 8]},
            "holdout part contains 2 examples more than once; the first is index 7",
        ),
        (PARTS | {"valid": [6]}, "unknown published part 'valid'"),
        (PARTS | {"holdout": [6, 8]}, "every class needs at least one holdout example; 'odd' of 2 has none"),
        (PARTS | {"train": [1, 3]}, "every class needs at least one training example; 'even' of 2 has none"),
        (
            PARTS | {"irreducible": [6, 8]},
            "every class needs at least one example for the reference models; 'odd' of 2 has none",
        ),
    ],
)
def test_invalid_published_parts_are_errors(parts, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Published(parts=parts).splits(seed=0)


def test_a_class_emptied_by_noise_is_a_note():
    module = Tiny(
        holdout_size=60,
        test_size=90,
        label_noise={"train": {"kind": "structured", "fraction": 1, "confused_with": {0: 1}}},
    )
    splits = module.splits(seed=0)
    assert torch.bincount(splits.train.target, minlength=3).tolist() == [0, 300, 150]
    assert splits.notes == ("Label noise left no training example of the class 'a'.",)


def test_many_small_classes_can_be_imbalanced_and_noisy():
    """150 classes of 20 rows: noise empties some classes and still changes its exact share of the examples."""
    for seed in range(3):
        splits = Classes(150, 20, imbalance={"train": 10}, label_noise={"train": 0.3}).splits(seed=seed)
        clean = splits.train.source % 150
        assert len(clean.unique()) == 150
        assert int((splits.train.target != clean).sum()) == round(0.3 * len(clean))


class Classes(DataModule):
    """C classes of n examples each; the input of example i is i, or i modulo ``num_inputs``."""

    drawn_sizes = {"holdout": 0.1, "test": 0.2}  # noqa: RUF012

    def __init__(self, num_classes, num_each, *, num_inputs=None, group=None, **options):
        super().__init__(**options)
        self.num_classes, self.num_examples = num_classes, num_classes * num_each
        self.num_inputs = num_inputs
        self.group = group

    def read(self):
        input = torch.arange(self.num_examples) % (self.num_inputs or self.num_examples)  # noqa: A001
        group = None if self.group is None else self.group(torch.arange(self.num_examples))
        return RawData(
            input.float().unsqueeze(1),
            torch.arange(self.num_examples) % self.num_classes,
            tuple(f"class {target}" for target in range(self.num_classes)),
            content=input,
            group=group,
            num_groups=None if group is None else int(group.max()) + 1,
            group_names=None if group is None else tuple(f"site {site}" for site in range(int(group.max()) + 1)),
        )


def test_a_drawn_part_is_enlarged_to_contain_every_class():
    splits = Classes(150, 10).splits(seed=0)
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [1050, 150, 300]
    with pytest.raises(ValueError, match=r"datamodule\.test_size=null: a stratified part .* got size 3 of 3\."):
        Classes(3, 1).splits(seed=0)


def test_drawn_parts_contain_every_group():
    """A site with 5 of 3,000 examples, spread over 150 classes, is in the holdout part of every seed."""
    module = Classes(150, 20, group=lambda place: torch.where(place >= 2995, 2, (place % 7 > 3).long()))
    for seed in range(10):
        splits = module.splits(seed=seed)
        for part in (splits.train, splits.holdout, splits.test):
            counts = torch.bincount(part.group, minlength=3)
            assert counts.min() >= 1
            assert abs(int(counts[1]) - len(part) * 3 / 7) < 5
            assert len(part.target.unique()) == 150
        assert splits.group_names == ("site 0", "site 1", "site 2")


def test_the_only_example_of_a_group_is_in_the_holdout_part():
    module = Classes(3, 100, group=lambda place: (place == 7).long())
    for seed in range(10):
        assert 7 in module.splits(seed=seed).holdout.source.tolist()


def test_a_group_without_a_holdout_example_is_an_error():
    """Imbalance may empty a group: class 0 keeps one of its holdout examples."""
    thinned = {"holdout": {"kind": "keep_fractions", "fractions": {0: 0.01}}}
    module = Classes(3, 100, group=lambda place: (place % 3 == 0) * (place // 3 % 2 + 1), imbalance=thinned)
    with pytest.raises(ValueError, match=r"every group needs at least one holdout example; 'site \d' of 3 has none"):
        module.splits(seed=0)


def test_examples_with_the_same_input_are_drawn_into_one_part():
    """30 inputs occur twice among 600 examples."""
    module = Classes(3, 200, num_inputs=570)
    plain = Classes(3, 200)
    for seed in range(5):
        splits = module.splits(seed=seed)
        assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [432, 48, 120]
        assert (
            torch.bincount(splits.test.target).tolist() == torch.bincount(plain.splits(seed=seed).test.target).tolist()
        )
        inputs = [set(sources(part)) for part in (splits.train, splits.holdout, splits.test)]
        assert sum(map(len, inputs)) == 570
        assert splits.notes == ()


def test_frequent_inputs_are_drawn_with_all_their_examples():
    splits = Classes(3, 100, num_inputs=30).splits(seed=0)
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [216, 24, 60]
    inputs = [set(sources(part)) for part in (splits.train, splits.holdout, splits.test)]
    assert inputs[2].isdisjoint(inputs[0] | inputs[1])
    # an input has ten examples, but the holdout part has room for eight of a class
    assert splits.notes == ("24 of 24 examples of the holdout part have the same input as a train example.",)


def test_sizes_match_the_parts_and_need_no_encoding():
    class Unread(Classes):
        def encoded(self, raw, train_source):
            raise AssertionError

    module = Unread(3, 100, imbalance={"train": 10})
    assert module.sizes(seed=0) == {"train": 102, "holdout": 24, "test": 60}
    with pytest.raises(AssertionError):
        module.splits(seed=0)


def test_each_part_draws_its_noise_independently():
    """Parts of one size do not have their noise at the same places."""
    options = {"holdout_size": 90, "test_size": 90, "label_noise": {"holdout": 0.3, "test": 0.3}}
    splits = Tiny(**options).splits(seed=1)
    assert int(splits.holdout.is_corrupted.sum()) == int(splits.test.is_corrupted.sum()) == 27
    assert not torch.equal(splits.holdout.is_corrupted, splits.test.is_corrupted)
    assert int((splits.holdout.is_corrupted & splits.test.is_corrupted).sum()) < 20


def test_each_part_has_its_own_changes():
    changes = {
        "imbalance": {"holdout": {"kind": "keep_fractions", "fractions": {2: 0.5}}},
        "label_noise": {"test": {"kind": "pairwise", "fraction": 0.5}},
        "input_noise": {"train": {"fraction": 0.1, "standard_deviation": 5.0}},
    }
    plain = Tiny(holdout_size=60, test_size=90).splits(seed=1)
    changed = Tiny(holdout_size=60, test_size=90, **changes).splits(seed=1)
    assert torch.equal(changed.train.source, plain.train.source)
    is_noisy = (changed.train.input != plain.train.input).flatten()
    assert int(is_noisy.sum()) == 45
    assert torch.equal(changed.train.is_corrupted, is_noisy)
    assert torch.bincount(changed.holdout.target).tolist() == [20, 20, 10]
    assert set(changed.holdout.source.tolist()) < set(plain.holdout.source.tolist())
    assert int(changed.test.is_corrupted.sum()) == 45
    wrong = changed.test.is_corrupted
    assert torch.equal(changed.test.target[wrong], (plain.test.target[wrong] + 1) % 3)
