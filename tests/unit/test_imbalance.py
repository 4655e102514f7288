import re

import pytest
import torch

from reducr.data.imbalance import long_tail_positions, stratified_split


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
    with pytest.raises(ValueError, match=f"imbalance_ratio must be at least 1.*; got {ratio}"):
        long_tail_positions(targets, imbalance_ratio=ratio, class_order=(0, 1, 2), generator=seeded())


@pytest.mark.parametrize("ratio", [float("nan"), float("inf")])
def test_a_ratio_that_is_not_finite_is_refused(targets, ratio):
    with pytest.raises(ValueError, match="imbalance_ratio"):
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
