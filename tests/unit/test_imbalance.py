import re

import pytest
import torch

from reducr.data.core.imbalance import (
    ClassProbability,
    KeepFractions,
    LongTail,
    make_imbalance,
)
from reducr.data.core.stratified import stratified_split


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def targets():
    """100 examples of each of three classes, mixed."""
    return torch.arange(300) % 3


@pytest.mark.parametrize(
    ("order", "counts"), [((0, 1, 2), [100, 10, 1]), ((2, 0, 1), [10, 1, 100]), ((1, 2, 0), [1, 100, 10])]
)
def test_class_sizes_decrease_by_equal_factors_in_class_order(targets, order, counts):
    kept = LongTail(100, order).positions(targets, num_classes=3, generator=seeded())
    assert torch.bincount(targets[kept]).tolist() == counts
    assert kept.tolist() == sorted(set(kept.tolist()))


def test_a_ratio_of_one_keeps_everything(targets):
    kept = LongTail(1, (2, 1, 0)).positions(targets, num_classes=3, generator=seeded())
    assert kept.tolist() == list(range(300))


def test_the_rarest_class_keeps_an_example_and_an_absent_class_stays_absent():
    kept = LongTail(1000).positions(torch.tensor([0, 0, 2, 2]), num_classes=3, generator=seeded())
    assert torch.bincount(torch.tensor([0, 0, 2, 2])[kept], minlength=3).tolist() == [2, 0, 1]


def test_the_seed_determines_the_kept_examples(targets):
    first, second, other = (
        LongTail(10).positions(targets, num_classes=3, generator=seeded(seed)).tolist() for seed in (1, 1, 2)
    )
    assert first == second
    assert first != other


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ((0, 1), "class_order must contain each of the classes 0..2 once, most frequent first; got [0, 1]."),
        (
            (0, 1, 1),
            "class_order must be a list of all classes, each once, most frequent first; got (0, 1, 1).",
        ),
        ((1, 2, 3), "got [1, 2, 3]."),
    ],
)
def test_an_invalid_class_order_is_an_error(targets, order, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        LongTail(2, order).positions(targets, num_classes=3, generator=seeded())


@pytest.mark.parametrize("ratio", [0.99, 0.0, -1.0])
def test_a_ratio_below_one_is_an_error(ratio):
    message = f"the imbalance ratio, of the most frequent class to the rarest, must be at least 1; got {ratio}"
    with pytest.raises(ValueError, match=message):
        LongTail(ratio)


@pytest.mark.parametrize("ratio", [float("nan"), float("inf")])
def test_a_ratio_that_is_not_finite_is_an_error(ratio):
    with pytest.raises(ValueError, match=f"the imbalance ratio.* must be at least 1; got {ratio}"):
        LongTail(ratio)


def test_a_seed_draws_the_same_examples_as_in_the_published_figures():
    generator, targets = seeded(), torch.arange(12) % 3
    kept = LongTail(4, (2, 0, 1)).positions(targets, num_classes=3, generator=generator)
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
def test_the_number_of_examples_kept_of_each_class(targets, imbalance, counts):
    assert counts_kept(imbalance, targets) == counts


@pytest.mark.parametrize(("probability", "count"), [(0.1, 2500), (0.025, 577), (0.01, 227)])
def test_the_published_imbalance_of_cifar_10(probability, count):
    counts = counts_kept(ClassProbability([3], probability), torch.arange(25_000) % 10, num_classes=10)
    assert counts == [2500] * 3 + [count] + [2500] * 6
    assert count / sum(counts) == pytest.approx(probability, abs=0.5 / sum(counts))


def test_a_class_without_examples_does_not_limit_the_others():
    targets = torch.repeat_interleave(torch.tensor([0, 2]), 100)
    assert counts_kept(ClassProbability([0], 0.2), targets) == [50, 0, 100]


def test_probabilities_hold_for_classes_of_different_sizes():
    targets = torch.repeat_interleave(torch.arange(4), torch.tensor([1000, 300, 5000, 80]))
    counts = counts_kept(ClassProbability([2], 0.7), targets, num_classes=4)
    assert counts == [80, 80, 560, 80]


@pytest.mark.parametrize("imbalance", [LongTail(4), KeepFractions({0: 0.5, 1: 0.5}), ClassProbability([2], 0.6)])
def test_an_empty_class_stays_empty(imbalance):
    assert counts_kept(imbalance, torch.tensor([0, 0, 2, 2, 2, 2]))[1] == 0


@pytest.mark.parametrize("imbalance", [LongTail(4), KeepFractions({0: 0.5}), ClassProbability([1], 0.1)])
def test_the_seed_determines_the_kept_examples_of_each_kind(targets, imbalance):
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
            "class_order must contain each of the classes 0..2 once, most frequent first; got [1, 0].",
        ),
        (
            LongTail(2, class_order=[3, 2, 1, 0]),
            "each of the classes 0..2 once, most frequent first; got [3, 2, 1, 0].",
        ),
        (KeepFractions({0: 0.5, 3: 0.5}), "fractions contains class 3; this data set has the classes 0..2."),
        (ClassProbability([12], 0.5), "classes contains class 12; this data set has the classes 0..2."),
        (
            ClassProbability([0, 1, 2], 0.3),
            "classes must leave out at least one class, which gets the remaining probability; got all 3 classes.",
        ),
    ],
)
def test_unknown_classes_are_errors(targets, imbalance, message):
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
            "X must be null, a number (the ratio of a long tail), or a mapping with a kind (long_tail, keep_fractions",
        ),
        ("10", "probability) and its options; got '10'."),
        ({"ratio": 10}, "and its options; got {'ratio': 10}."),
        ({"kind": "long_tial", "ratio": 10}, "unknown X.kind 'long_tial'. Did you mean 'long_tail'? There are:"),
        ({"kind": ["long_tail"]}, "unknown X.kind ['long_tail']. Did you mean 'long_tail'?"),
        (
            LONG_TAIL | {"ratio": 10, "order": [0, 1]},
            "unknown option 'order' of X. Did you mean 'class_order'? There are: class_order, ratio.",
        ),
        (LONG_TAIL, "X needs ratio. Missing: ratio."),
        (PROBABILITY | {"classes": [3]}, "X needs classes and probability. Missing: probability."),
        (0.5, "X: the imbalance ratio, of the most frequent class to the rarest, must be at least 1; got 0.5."),
        (
            LONG_TAIL | {"ratio": None},
            "X: the imbalance ratio, of the most frequent class to the rarest, must be at least 1; got None.",
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
            "X: fractions must be a mapping from class to the share of its examples to keep, such as {1: 0.22}; got {'",
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
            "X: probability must be above 0 and below 1 / 2, one over the number of named classes; got 0.5.",
        ),
        (
            PROBABILITY | {"classes": [3], "probability": 0},
            "below 1 / 1, one over the number of named classes; got 0.",
        ),
        (PROBABILITY | {"classes": [3], "probability": float("nan")}, "named classes; got nan."),
    ],
)
def test_an_invalid_option_is_an_error(value, message):
    name = "datamodule.imbalance.train"
    with pytest.raises(ValueError, match=re.escape(message.replace("X", name))):
        make_imbalance(value, name=name)
