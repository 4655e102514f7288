import re

import pytest
import torch

from reducr.data.core.stratified import stratified_split


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


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
def test_classes_are_drawn_in_proportion_and_at_least_one_each(counts, size, expected):
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor(counts))
    drawn, rest = stratified_split(targets, size=size, generator=seeded())
    assert sorted(torch.bincount(targets[drawn], minlength=3).tolist()) == sorted(expected)
    assert drawn.tolist() == sorted(drawn.tolist())
    assert rest.tolist() == sorted(set(range(len(targets))) - set(drawn.tolist()))


@pytest.mark.parametrize("size", [0, 2, 300, 301])
def test_a_size_out_of_range_is_an_error(size):
    message = f"at least one example of each of the 3 classes and must leave some; got size {size} of 300."
    with pytest.raises(ValueError, match=re.escape(message)):
        stratified_split(torch.arange(300) % 3, size=size, generator=seeded())


def drawn_table(counts, size, **options):
    """Examples drawn from a table of classes (rows) and groups (columns) with these ``counts``."""
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
        # the second class rounds in favour of the group that rounding in the first class shortened
        ([[6, 4], [6, 4]], 2, [[1, 0], [0, 1]]),
        # a share of 0.4 becomes one example, and the class total stays
        ([[60, 26, 4], [50, 40, 0]], 18, [[6, 2, 1], [5, 4, 0]]),
        ([[0, 10], [10, 0]], 4, [[0, 2], [2, 0]]),
        # a class of one example is drawn, and with it the last example of its group
        ([[1, 0], [0, 20]], 3, [[1, 0], [0, 2]]),
        # rounding up leaves the last example of a group where another group can give one
        ([[1, 6], [1, 6]], 10, [[1, 4], [0, 5]]),
        ([[2, 6, 0], [0, 6, 1]], 13, [[1, 6, 0], [0, 5, 1]]),
        # a group that got an example counts as drawn when the next empty one asks for an exchange
        ([[3, 1, 4], [0, 1, 6]], 2, [[1, 0, 0], [0, 0, 1]]),
    ],
)
def test_classes_are_drawn_in_proportion_and_groups_within_them(counts, size, expected):
    assert drawn_table(counts, size) == expected


def test_the_only_example_of_a_group_can_be_spared():
    counts = [[99, 1], [99, 1], [98, 0]]
    assert drawn_table([[99, 1], [99, 0]], 50) == [[24, 1], [25, 0]]
    assert drawn_table([[99, 1], [99, 0]], 50, spares_single_examples=True) == [[25, 0], [25, 0]]
    assert sum(row[1] for row in drawn_table(counts, 50, spares_single_examples=True)) == 1


def test_the_examples_of_a_cell_are_drawn_at_random():
    counts, groups = torch.zeros(100, dtype=torch.int64), torch.arange(100) % 2
    draws = [stratified_split(counts, groups=groups, size=10, generator=seeded(seed))[0] for seed in range(200)]
    share = torch.bincount(torch.cat(draws), minlength=100) / 200
    assert 0 < share.min() < 0.1 < share.max() < 0.2
