import re

import pytest
import torch

from reducr.data.core.imbalance import (
    ClassProbability,
    KeepFractions,
    LongTail,
    long_tail_positions,
    make_imbalance,
    stratified_split,
)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def targets():
    """100 points of each of three classes, mixed."""
    return torch.arange(300) % 3


@pytest.mark.parametrize(
    ("order", "counts"), [((0, 1, 2), [100, 10, 1]), ((2, 0, 1), [10, 1, 100]), ((1, 2, 0), [1, 100, 10])]
)
def test_class_sizes_fall_by_equal_factors_in_the_given_order(targets, order, counts):
    kept = long_tail_positions(targets, imbalance_ratio=100, class_order=order, generator=seeded())
    assert torch.bincount(targets[kept]).tolist() == counts
    assert kept.tolist() == sorted(set(kept.tolist()))


def test_a_ratio_of_one_keeps_everything(targets):
    kept = long_tail_positions(targets, imbalance_ratio=1, class_order=(2, 1, 0), generator=seeded())
    assert kept.tolist() == list(range(300))


def test_the_rarest_class_keeps_a_point_and_an_absent_one_stays_absent():
    kept = long_tail_positions(
        torch.tensor([0, 0, 2, 2]), imbalance_ratio=1000, class_order=(0, 1, 2), generator=seeded()
    )
    assert torch.bincount(torch.tensor([0, 0, 2, 2])[kept], minlength=3).tolist() == [2, 0, 1]


def test_which_points_are_kept_is_random_by_seed(targets):
    first, second, other = (
        long_tail_positions(targets, imbalance_ratio=10, class_order=(0, 1, 2), generator=seeded(seed)).tolist()
        for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((0, 1), "class_order must name each of the classes 0..2 once, most frequent first; got [0, 1]."),
        (
            (0, 1, 1),
            "each of the classes 0..2 once, most frequent first; got [0, 1, 1].",
        ),
        ((1, 2, 3), "got [1, 2, 3]."),
    ],
)
def test_an_order_that_is_none_is_refused(targets, order, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        long_tail_positions(targets, imbalance_ratio=2, class_order=order, generator=seeded())


@pytest.mark.parametrize("ratio", [0.99, 0.0, -1.0])
def test_a_ratio_below_one_is_refused(targets, ratio):
    with pytest.raises(
        ValueError, match=f"the imbalance ratio must be at least 1, most frequent over rarest; got {ratio}"
    ):
        long_tail_positions(targets, imbalance_ratio=ratio, class_order=(0, 1, 2), generator=seeded())


@pytest.mark.parametrize("ratio", [float("nan"), float("inf")])
def test_a_ratio_that_is_not_finite_is_refused(targets, ratio):
    with pytest.raises(ValueError, match=f"the imbalance ratio must be at least 1.*; got {ratio}"):
        long_tail_positions(targets, imbalance_ratio=ratio, class_order=(0, 1, 2), generator=seeded())


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([60, 30, 10], 10, [6, 3, 1]),
        ([60, 30, 10], 50, [30, 15, 5]),
        ([98, 1, 1], 3, [1, 1, 1]),
        ([98, 1, 1], 50, [48, 1, 1]),
        ([5, 5, 5], 14, [5, 5, 4]),
        ([1000, 3, 3], 10, [8, 1, 1]),
    ],
)
def test_every_class_gives_in_proportion_and_at_least_one(counts, size, expected):
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    drawn, rest = stratified_split(targets, size=size, generator=seeded())
    assert sorted(torch.bincount(targets[drawn], minlength=3).tolist()) == sorted(expected)
    assert drawn.tolist() == sorted(drawn.tolist())
    assert rest.tolist() == sorted(set(range(len(targets))) - set(drawn.tolist()))


@pytest.mark.parametrize("size", [0, 2, 300, 301])
def test_a_size_that_cannot_keep_every_class_on_both_sides_is_refused(targets, size):
    message = f"at least one point of each of the 3 classes and leave some; got size {size} of 300."
    with pytest.raises(ValueError, match=re.escape(message)):
        stratified_split(targets, size=size, generator=seeded())


def test_a_seed_draws_the_same_points_as_in_the_published_figures():
    generator, targets = seeded(), torch.arange(12) % 3
    kept = long_tail_positions(targets, imbalance_ratio=4, class_order=(2, 0, 1), generator=generator)
    drawn, _ = stratified_split(targets, size=5, generator=generator)
    assert kept.tolist() == [0, 2, 5, 6, 8, 10, 11]
    assert drawn.tolist() == [0, 1, 2, 4, 9]


def counts_kept(imbalance, targets, *, num_classes=3, seed=0):
    kept = imbalance.positions(targets, num_classes=num_classes, generator=seeded(seed))
    assert kept.dtype == torch.int64
    assert kept.tolist() == sorted(set(kept.tolist()))
    return torch.bincount(targets[kept], minlength=num_classes).tolist()


@pytest.mark.parametrize(
    ("imbalance", "counts"),
    [
        (LongTail(100), [100, 10, 1]),
        (LongTail(100.0, class_order=[2, 0, 1]), [10, 1, 100]),
        (LongTail(1), [100, 100, 100]),
        (KeepFractions({1: 0.22}), [100, 22, 100]),
        (KeepFractions({2: 0.001, 0: 0.5, 1: 1}), [50, 100, 1]),
        (ClassProbability([1], 0.01), [100, 2, 100]),
        (ClassProbability([0, 2], 0.1), [12, 100, 12]),
        (ClassProbability([1], 0.5), [50, 100, 50]),
        (ClassProbability([1], 1e-6), [100, 1, 100]),
        (ClassProbability([1], 0.999), [1, 100, 1]),
    ],
)
def test_the_points_kept_of_each_class(targets, imbalance, counts):
    assert counts_kept(imbalance, targets) == counts


@pytest.mark.parametrize(("probability", "count"), [(0.1, 2500), (0.025, 577), (0.01, 227)])
def test_the_published_imbalance_of_cifar_10(probability, count):
    counts = counts_kept(ClassProbability([3], probability), torch.arange(25_000) % 10, num_classes=10)
    assert counts == [2500] * 3 + [count] + [2500] * 6
    assert count / sum(counts) == pytest.approx(probability, abs=0.5 / sum(counts))


def test_probabilities_hold_for_classes_that_were_uneven_before():
    targets = torch.repeat_interleave(torch.arange(4), torch.tensor([1000, 300, 5000, 80]))
    counts = counts_kept(ClassProbability([2], 0.7), targets, num_classes=4)
    assert counts == [80, 80, 560, 80]


@pytest.mark.parametrize("imbalance", [LongTail(4), KeepFractions({0: 0.5, 1: 0.5}), ClassProbability([2], 0.6)])
def test_a_class_without_points_stays_without(imbalance):
    assert counts_kept(imbalance, torch.tensor([0, 0, 2, 2, 2, 2]))[1] == 0


@pytest.mark.parametrize("imbalance", [LongTail(4), KeepFractions({0: 0.5}), ClassProbability([1], 0.1)])
def test_the_seed_decides_which_points_are_kept(targets, imbalance):
    first, second, other = (
        imbalance.positions(targets, num_classes=3, generator=seeded(seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


def test_what_a_class_keeps_does_not_depend_on_the_others(targets):
    kept = [
        KeepFractions(fractions).positions(targets, num_classes=3, generator=seeded())
        for fractions in ({1: 0.3}, {2: 0.1, 0: 0.5, 1: 0.3})
    ]
    first, second = (positions[targets[positions] == 1].tolist() for positions in kept)
    assert first == second


@pytest.mark.parametrize(
    ("imbalance", "message"),
    [
        (
            LongTail(2, class_order=[1, 0]),
            "class_order must name each of the classes 0..2 once, most frequent first; got [1, 0].",
        ),
        (
            LongTail(2, class_order=[3, 2, 1, 0]),
            "each of the classes 0..2 once, most frequent first; got [3, 2, 1, 0].",
        ),
        (KeepFractions({0: 0.5, 3: 0.5}), "fractions names class 3; the classes of this data set are 0..2."),
        (ClassProbability([12], 0.5), "classes names class 12; the classes of this data set are 0..2."),
        (
            ClassProbability([0, 1, 2], 0.3),
            "classes must leave a class unnamed, for the rest of the probability; got all 3",
        ),
    ],
)
def test_classes_that_the_data_does_not_have_are_refused(targets, imbalance, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        imbalance.positions(targets, num_classes=3, generator=seeded())


@pytest.mark.parametrize(
    ("value", "imbalance"),
    [
        (None, None),
        (10, LongTail(10)),
        (2.5, LongTail(2.5)),
        ({"kind": "long_tail", "ratio": 10, "class_order": [1, 0]}, LongTail(10, [1, 0])),
        ({"kind": "long_tail", "ratio": 10, "class_order": None}, LongTail(10)),
        ({"kind": "keep_fractions", "fractions": {"1": 0.22, 3: 0.5}}, KeepFractions({1: 0.22, 3: 0.5})),
        ({"kind": "probability", "classes": [3, 5], "probability": 0.01}, ClassProbability([3, 5], 0.01)),
    ],
)
def test_imbalance_from_a_yaml(value, imbalance):
    assert make_imbalance(value, name="datamodule.imbalance.train") == imbalance


LONG_TAIL, KEEP, PROBABILITY = ({"kind": kind} for kind in ("long_tail", "keep_fractions", "probability"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            True,
            "X must be null, a number (the ratio of a long tail) or a mapping with a kind (long_tail, keep_fractions, ",
        ),
        ("10", "probability) and its options; got '10'."),
        ({"ratio": 10}, "and its options; got {'ratio': 10}."),
        ({"kind": "long_tial", "ratio": 10}, "unknown X.kind 'long_tial'. Did you mean 'long_tail'? There are:"),
        ({"kind": ["long_tail"]}, "unknown X.kind ['long_tail']. Did you mean 'long_tail'?"),
        (
            LONG_TAIL | {"ratio": 10, "order": [0, 1]},
            "unknown option 'order' of X. Did you mean 'class_order'? There are: class_order, ratio.",
        ),
        (LONG_TAIL, "X needs ratio; got no ratio."),
        (PROBABILITY | {"classes": [3]}, "X needs classes and probability; got no probability."),
        (0.5, "X: the imbalance ratio must be at least 1, most frequent over rarest; got 0.5."),
        (
            LONG_TAIL | {"ratio": None},
            "X: the imbalance ratio must be at least 1, most frequent over rarest; got None.",
        ),
        (LONG_TAIL | {"ratio": 2, "class_order": 3}, "X: class_order must be a list of all classes, each once"),
        (LONG_TAIL | {"ratio": 2, "class_order": [0, 0]}, "each once, most frequent first; got [0, 0]."),
        (
            LONG_TAIL | {"ratio": 2, "class_order": [0, 2]},
            "each of the classes 0..2 once, most frequent first; got [0, 2].",
        ),
        (KEEP | {"fractions": {1: 0.0}}, "X: fractions must be in (0, 1]; got 0.0 for class 1."),
        (KEEP | {"fractions": {"1": 1.1}}, "X: fractions must be in (0, 1]; got 1.1 for class 1."),
        (KEEP | {"fractions": {1: "all"}}, "X: fractions must be in (0, 1]; got 'all' for class 1."),
        (
            KEEP | {"fractions": {"cat": 0.5}},
            "X: fractions must be a mapping from class to the share of its points to keep, such as {1: 0.22}; got {'",
        ),
        (KEEP | {"fractions": {}}, "such as {1: 0.22}; got {}."),
        (KEEP | {"fractions": [0.1]}, "such as {1: 0.22}; got [0.1]."),
        (
            PROBABILITY | {"classes": 3, "probability": 0.1},
            "X: classes must be a list of different classes, such as [3]; got 3.",
        ),
        (PROBABILITY | {"classes": "3", "probability": 0.1}, "such as [3]; got '3'."),
        (PROBABILITY | {"classes": [], "probability": 0.1}, "such as [3]; got []."),
        (PROBABILITY | {"classes": [3, 3], "probability": 0.1}, "such as [3]; got [3, 3]."),
        (PROBABILITY | {"classes": [-1], "probability": 0.1}, "such as [3]; got [-1]."),
        (PROBABILITY | {"classes": [True], "probability": 0.1}, "such as [3]; got [True]."),
        (
            PROBABILITY | {"classes": [3, 5], "probability": 0.5},
            "X: probability must be above 0 and below 1 / 2, one over the number of classes it is given to; got 0.5.",
        ),
        (
            PROBABILITY | {"classes": [3], "probability": 0},
            "below 1 / 1, one over the number of classes it is given to; got 0.",
        ),
        (PROBABILITY | {"classes": [3], "probability": float("nan")}, "given to; got nan."),
    ],
)
def test_a_yaml_that_cannot_be_meant_is_refused(value, message):
    name = "datamodule.imbalance.train"
    with pytest.raises(ValueError, match=re.escape(message.replace("X", name))):
        make_imbalance(value, name=name)


def drawn_table(counts, size, **options):
    """Points drawn from a table of classes (rows) and groups (columns) with these ``counts``."""
    counts = torch.tensor(counts)
    cells = torch.repeat_interleave(torch.arange(counts.numel()), counts.flatten())
    num_groups = counts.shape[1]
    drawn, rest = stratified_split(
        cells // num_groups, groups=cells % num_groups, size=size, generator=seeded(), **options
    )
    assert sorted([*drawn.tolist(), *rest.tolist()]) == list(range(len(cells)))
    return torch.bincount(cells[drawn], minlength=counts.numel()).view_as(counts).tolist()


@pytest.mark.parametrize(
    ("counts", "size", "expected"),
    [
        ([[60, 30], [10, 20]], 12, [[6, 3], [1, 2]]),
        # the second class rounds in favour of the group that the first one left short
        ([[6, 4], [6, 4]], 2, [[1, 0], [0, 1]]),
        # 0.4 of a point of the last group is one, and its class has as many as without groups
        ([[60, 26, 4], [50, 40, 0]], 18, [[6, 2, 1], [5, 4, 0]]),
        ([[0, 10], [10, 0]], 4, [[0, 2], [2, 0]]),
        # a class of one point is drawn, and with it the last point of its group
        ([[1, 0], [0, 20]], 3, [[1, 0], [0, 2]]),
    ],
)
def test_classes_are_drawn_in_proportion_and_groups_within_them(counts, size, expected):
    assert drawn_table(counts, size) == expected


def test_a_groups_only_point_may_be_left():
    counts = [[99, 1], [99, 1], [98, 0]]
    assert drawn_table([[99, 1], [99, 0]], 50) == [[24, 1], [25, 0]]
    assert drawn_table([[99, 1], [99, 0]], 50, spares_single_points=True) == [[25, 0], [25, 0]]
    assert sum(row[1] for row in drawn_table(counts, 50, spares_single_points=True)) == 1


def test_the_points_of_a_cell_are_drawn_at_random():
    counts, groups = torch.zeros(100, dtype=torch.int64), torch.arange(100) % 2
    draws = [stratified_split(counts, groups=groups, size=10, generator=seeded(seed))[0] for seed in range(200)]
    share = torch.bincount(torch.cat(draws), minlength=100) / 200
    assert 0 < share.min() < 0.1 < share.max() < 0.2
