import re

import pytest
import torch

from reducr.data.core.noise import (
    MatrixNoise,
    PairwiseNoise,
    StructuredNoise,
    UniformNoise,
    make_label_noise,
)


def noise(targets, *, fraction, num_classes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return UniformNoise(fraction).noisy(targets, num_classes=num_classes, generator=generator)


@pytest.mark.parametrize(
    ("fraction", "size", "expected"), [(0.0, 10, 0), (0.3, 10, 3), (1.0, 10, 10), (0.26, 10, 3), (0.5, 0, 0)]
)
def test_the_number_of_changes_is_exact(fraction, size, expected):
    targets = torch.arange(size) % 4
    noisy, is_corrupted = noise(targets, fraction=fraction, num_classes=4)
    assert int(is_corrupted.sum()) == expected
    assert torch.equal(noisy != targets, is_corrupted)
    assert noisy.dtype == torch.int64


def test_all_other_classes_are_equally_likely():
    noisy, _ = noise(torch.full((4000,), 2), fraction=1.0, num_classes=5)
    counts = torch.bincount(noisy, minlength=5).tolist()
    assert counts[2] == 0
    for target in (0, 1, 3, 4):
        assert abs(counts[target] - 1000) <= 4.5 * (4000 * 0.25 * 0.75) ** 0.5


def test_all_examples_are_equally_likely_to_change():
    _, is_corrupted = noise(torch.zeros(4000), fraction=0.5, num_classes=2)
    assert abs(int(is_corrupted[:2000].sum()) - 1000) <= 4.5 * (4000 * 0.25 / 4) ** 0.5


def test_the_seed_determines_the_noise():
    targets = torch.arange(50) % 4
    first, second, other = (noise(targets, fraction=0.5, num_classes=4, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("fraction", [-0.1, 1.1, 30, float("nan")])
def test_a_fraction_out_of_range_is_an_error(fraction):
    with pytest.raises(ValueError, match=rf"noisy labels must be in \[0, 1\]; got {fraction}"):
        noise(torch.zeros(3), fraction=fraction, num_classes=2)


def test_noise_needs_two_classes():
    with pytest.raises(ValueError, match="label noise needs at least two classes; got num_classes=1"):
        noise(torch.zeros(3), fraction=0.5, num_classes=1)


def test_a_seed_draws_the_same_noise_as_in_the_published_figures():
    noisy, is_corrupted = noise(torch.arange(12) % 3, fraction=0.4, num_classes=3)
    assert noisy.tolist() == [1, 1, 2, 0, 1, 0, 0, 2, 1, 1, 1, 2]
    assert torch.nonzero(is_corrupted).flatten().tolist() == [0, 5, 7, 8, 9]


def changed(label_noise, targets, *, num_classes, seed=0):
    before = targets.clone()
    generator = torch.Generator().manual_seed(seed)
    noisy, is_corrupted = label_noise.noisy(targets, num_classes=num_classes, generator=generator)
    assert torch.equal(targets, before)
    assert torch.equal(noisy != targets, is_corrupted)
    assert (noisy.dtype, is_corrupted.dtype) == (torch.int64, torch.bool)
    return noisy, is_corrupted


IDENTITY = [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]


def test_uniform_noise_changes_an_exact_number_of_targets_and_marks_them():
    _, is_corrupted = changed(UniformNoise(0.3), torch.arange(50) % 4, num_classes=4, seed=7)
    assert int(is_corrupted.sum()) == 15


@pytest.mark.parametrize(("fraction", "expected"), [(0.0, 0), (0.26, 26), (1, 100)])
def test_pairwise_noise_gives_an_exact_number_of_examples_the_next_class(fraction, expected):
    targets = torch.arange(100) % 3
    noisy, is_corrupted = changed(PairwiseNoise(fraction), targets, num_classes=3)
    assert int(is_corrupted.sum()) == expected
    assert torch.equal(noisy[is_corrupted], (targets[is_corrupted] + 1) % 3)


def test_structured_noise_changes_the_share_of_each_named_class_only():
    targets = torch.repeat_interleave(torch.arange(4), torch.tensor([10, 20, 30, 40]))
    noisy, _ = changed(StructuredNoise(0.3, {3: 1, 1: 3, 2: 0}), targets, num_classes=4)
    counts = torch.bincount(targets * 4 + noisy, minlength=16).reshape(4, 4).tolist()
    assert counts == [[10, 0, 0, 0], [0, 14, 0, 6], [9, 0, 21, 0], [0, 12, 0, 28]]


def test_structured_noise_does_not_depend_on_the_order_of_the_mapping():
    targets = torch.arange(60) % 3
    first, second = (
        changed(StructuredNoise(0.5, confused_with), targets, num_classes=3)[0]
        for confused_with in ({0: 1, 1: 2}, {1: 2, 0: 1})
    )
    assert torch.equal(first, second)


def test_matrix_noise_draws_every_class_from_the_row_of_the_clean_one():
    matrix = [[0.5, 0.5, 0.0], [0.0, 0.2, 0.8], [0.0, 0.0, 1.0]]
    targets = torch.arange(12_000) % 3
    noisy, _ = changed(MatrixNoise(matrix), targets, num_classes=3)
    counts = torch.bincount(targets * 3 + noisy, minlength=9).reshape(3, 3).tolist()
    for row, expected in zip(counts, matrix, strict=True):
        for count, probability in zip(row, expected, strict=True):
            assert abs(count - 4000 * probability) <= 4.5 * (4000 * probability * (1 - probability)) ** 0.5


def test_a_matrix_of_ones_and_zeros_is_deterministic():
    targets = torch.arange(3000) % 3
    assert not bool(changed(MatrixNoise(IDENTITY), targets, num_classes=3)[1].any())
    cycle = [IDENTITY[1], IDENTITY[2], IDENTITY[0]]
    assert torch.equal(changed(MatrixNoise(cycle), targets, num_classes=3)[0], (targets + 1) % 3)


def test_rows_may_sum_to_one_up_to_rounding():
    third = 0.3333333
    noisy, _ = changed(MatrixNoise([[third] * 3] * 3), torch.zeros(3000, dtype=torch.int64), num_classes=3)
    assert sorted(set(noisy.tolist())) == [0, 1, 2]


@pytest.mark.parametrize(
    "label_noise",
    [UniformNoise(0.5), PairwiseNoise(0.5), StructuredNoise(0.5, {0: 1}), MatrixNoise([[0.5, 0.5], [0.5, 0.5]])],
)
def test_the_seed_determines_the_noise_of_each_kind(label_noise):
    targets = torch.arange(60) % 2
    first, second, other = (changed(label_noise, targets, num_classes=2, seed=seed)[0] for seed in (1, 1, 2))
    assert torch.equal(first, second)
    assert not torch.equal(first, other)


@pytest.mark.parametrize(
    ("label_noise", "num_classes", "message"),
    [
        (UniformNoise(0.1), 1, "label noise needs at least two classes; got num_classes=1."),
        (PairwiseNoise(0.1), 1, "label noise needs at least two classes; got num_classes=1."),
        (StructuredNoise(0.1, {0: 9}), 3, "confused_with contains class 9; this data set has the classes 0..2."),
        (StructuredNoise(0.1, {3: 0}), 3, "confused_with contains class 3; this data set has the classes 0..2."),
        (MatrixNoise(IDENTITY), 4, "matrix must have a row and a column for each of the 4 classes; got 3."),
    ],
)
def test_noise_for_other_classes_is_an_error(label_noise, num_classes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        label_noise.noisy(
            torch.zeros(3, dtype=torch.int64), num_classes=num_classes, generator=torch.Generator().manual_seed(0)
        )


STRUCTURED, MATRIX = {"kind": "structured", "fraction": 0.4}, {"kind": "matrix"}


@pytest.mark.parametrize(
    ("value", "label_noise"),
    [
        (None, None),
        (0.3, UniformNoise(0.3)),
        (0, UniformNoise(0)),
        ({"kind": "uniform", "fraction": 0.3}, UniformNoise(0.3)),
        ({"kind": "pairwise", "fraction": 0.3}, PairwiseNoise(0.3)),
        (STRUCTURED | {"confused_with": {"9": 1, 3: 5}}, StructuredNoise(0.4, {9: 1, 3: 5})),
        (MATRIX | {"matrix": IDENTITY}, MatrixNoise(IDENTITY)),
    ],
)
def test_label_noise_from_a_yaml(value, label_noise):
    assert make_label_noise(value, name="datamodule.label_noise.train") == label_noise


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            [0.1],
            "X must be null, a number (the fraction of uniform noise), or a mapping with a kind (uniform, pairwise, ",
        ),
        (False, "structured, matrix) and its options; got False."),
        ({"kind": "pairvise", "fraction": 0.1}, "unknown X.kind 'pairvise'. Did you mean 'pairwise'?"),
        ({"kind": "pairwise", "fractoin": 0.1}, "unknown option 'fractoin' of X. Did you mean 'fraction'?"),
        ({"kind": "structured"}, "X needs fraction and confused_with. Missing: fraction, confused_with."),
        (1.5, "X: the fraction of noisy labels must be in [0, 1]; got 1.5."),
        ({"kind": "pairwise", "fraction": "0.1"}, "X: the fraction of noisy labels must be in [0, 1]; got '0.1'."),
        (
            STRUCTURED | {"confused_with": [9, 1]},
            "X: confused_with must be a mapping from class to the class it is confused with, such as {9: 1}; got [9",
        ),
        (STRUCTURED | {"confused_with": {}}, "such as {9: 1}; got {}."),
        (STRUCTURED | {"confused_with": {9: "car"}}, "such as {9: 1}, never with itself; got {9: 'car'}."),
        (STRUCTURED | {"confused_with": {9: 9}}, "such as {9: 1}, never with itself; got {9: 9}."),
        (MATRIX | {"matrix": 0.5}, "X: matrix must have a row and a column for each class; got shape ()."),
        (MATRIX | {"matrix": [[0.5, 0.5]]}, "X: matrix must have a row and a column for each class; got shape (1, 2)."),
        (
            MATRIX | {"matrix": [[1.0], [0.5, 0.5]]},
            "matrix must be rows of numbers, all of the same length; got [[1.0]",
        ),
        (
            MATRIX | {"matrix": [["a", "b"], [0, 1]]},
            "matrix must be rows of numbers, all of the same length; got [['a'",
        ),
        (MATRIX | {"matrix": {0: [1.0]}}, "matrix must be rows of numbers, all of the same length; got {0"),
        (
            MATRIX | {"matrix": [[1, 0], [0.5, 0.4]]},
            "X: each row of matrix must be probabilities that sum to 1; row 1 is [0.5, 0.4].",
        ),
        (MATRIX | {"matrix": [[1.5, -0.5], [0, 1]]}, "row 0 is [1.5, -0.5]."),
        (MATRIX | {"matrix": [[float("nan"), 1], [0, 1]]}, "row 0 is [nan, 1.0]."),
    ],
)
def test_an_invalid_option_is_an_error(value, message):
    name = "datamodule.label_noise.train"
    with pytest.raises(ValueError, match=re.escape(message.replace("X", name))):
        make_label_noise(value, name=name)
