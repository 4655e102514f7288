"""Quotas of groups: their expectation, their rounding, and groups that are absent or have a quota of zero."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import reducr
from reducr.functional.quotas import (
    SMALLEST_QUOTA,
    _sorted_in_groups,
    expected_counts,
    holdout_error,
    positive_quotas,
    quota_scores,
    systematic_counts,
)
from reference.baselines import quota_counts

ZERO_QUOTA = {
    "priority_sampling": {"uniform_share": 0.0, "step_size": 1e6},
    "drop": {},
    "rcap": {},
}


def candidates_of(groups, model_loss=None):
    groups = torch.tensor(groups)
    loss = torch.ones(len(groups)) if model_loss is None else torch.tensor(model_loss)
    return reducr.Candidates(model_loss=loss, irreducible_loss=torch.ones(len(groups)), groups=groups)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("name", ZERO_QUOTA)
def test_examples_of_a_group_with_a_quota_of_zero_fill_what_the_others_leave(name):
    """Group 1 has no weight, no error and no loss."""
    selector = reducr.make_selector(name, num_groups=2, **ZERO_QUOTA[name])
    selector.set_group_holdout_loss(torch.tensor([2.0, 0.0]))
    if name == "priority_sampling":
        selector.weighting.update(torch.tensor([-1.0, 0.0], dtype=torch.float64))
        assert selector.group_weights.tolist() == [1.0, 0.0]
    candidates = candidates_of([1, 0, 1, 0, 1], model_loss=[0.0, 1.0, 0.0, 1.0, 0.0])
    for seed in range(10):
        selection = selector.select(candidates, num_selected=4, generator=seeded(seed))
        assert len(selection.positions) == 4
        assert sorted(selection.positions[:2].tolist()) == [1, 3]
        assert selection.num_non_finite == 0


@pytest.mark.parametrize("num_selected", [20, 57])
def test_the_uniform_share_is_that_of_all_groups_also_of_absent_ones(num_selected):
    """Shares (1 - m) w_c + m / G with G = 4, of which two are among the candidates."""
    selector = reducr.make_selector("priority_sampling", num_groups=4, uniform_share=0.5, step_size=1.0)
    selector.set_group_holdout_loss(torch.ones(4))
    weights = torch.tensor([0.85, 0.05, 0.05, 0.05], dtype=torch.float64)
    selector.weighting.update(-weights.log())
    torch.testing.assert_close(selector.group_weights, weights)
    shares = 0.5 * weights + 0.5 / 4
    candidates = candidates_of([0] * 100 + [2] * 100)
    expected = num_selected * shares[0] / (shares[0] + shares[2])
    for seed in range(10):
        positions = selector.select(candidates, num_selected=num_selected, generator=seeded(seed)).positions
        assert abs(int((positions < 100).sum()) - float(expected)) < 1


def test_quotas_of_zero_are_raised_in_proportion_to_the_largest():
    assert positive_quotas(torch.tensor([0.0, 200.0, 50.0])).tolist() == pytest.approx([200 * SMALLEST_QUOTA, 200, 50])


def test_a_negative_holdout_loss_is_no_error():
    """A loss with a margin, or rounding, can be below zero."""
    assert holdout_error(torch.tensor([-0.5, 0.0, 1e-7])).tolist() == pytest.approx([0.0, 0.0, 1e-7], abs=1e-12)


# expectation and rounding

GROUPS = st.lists(st.tuples(st.integers(0, 12), st.floats(1e-6, 1e6)), min_size=1, max_size=8)


@given(GROUPS, st.data())
def test_every_draw_lies_between_floor_and_ceil_of_the_expected_counts(sizes_and_quotas, data):
    sizes, quotas = map(list, zip(*sizes_and_quotas, strict=True))
    if not sum(sizes):
        sizes[0] = 1
    num_selected = data.draw(st.integers(1, sum(sizes)))
    expected = quota_counts(sizes, quotas, num_selected)
    groups = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    generator = seeded(data.draw(st.integers(0, 2**31)))
    scores = quota_scores(groups, torch.tensor(quotas), num_selected=num_selected, generator=generator)
    chosen = groups[scores.topk(num_selected).indices]
    counts = torch.bincount(chosen, minlength=len(sizes)).tolist()
    assert sum(counts) == num_selected
    for count, mean, size in zip(counts, expected, sizes, strict=True):
        assert math.floor(mean - 1e-4) <= count <= min(math.ceil(mean + 1e-4), size)


@given(GROUPS, st.data())
def test_expected_counts_are_those_of_the_plain_loop(sizes_and_quotas, data):
    sizes, quotas = map(list, zip(*sizes_and_quotas, strict=True))
    sizes[0] += 1
    num_selected = data.draw(st.integers(1, sum(sizes)))
    counts = expected_counts(np.array(sizes, dtype=float), np.array(quotas), num_selected=num_selected)
    assert counts.tolist() == pytest.approx(quota_counts(sizes, quotas, num_selected), abs=1e-9)
    assert (counts <= np.array(sizes)).all()


@pytest.mark.parametrize("eighths", [[1, 7], [3, 5, 8], [0, 12, 3, 1], [20, 4, 7, 9, 0]])
def test_rounding_is_exactly_unbiased_in_every_order(eighths):
    """Of whole eighths, eight equally spaced starts have every outcome as often as a uniform start."""
    expected, size = np.array(eighths) / 8, len(eighths)
    for order in itertools.permutations(range(size)):
        draws = [
            systematic_counts(
                expected, num_selected=sum(eighths) // 8, uniform=np.array([*(place / size for place in order), start])
            )
            for start in (np.arange(8) + 0.5) / 8
        ]
        assert np.mean(draws, axis=0).tolist() == expected.tolist()


@pytest.mark.parametrize(
    ("shares", "sizes", "num_selected"),
    [
        ([0.8, 0.2], [50, 50], 1),
        ([0.55, *[0.05] * 9], [40] * 10, 24),
        ([0.55, *[0.05] * 9], [4, *[40] * 9], 24),
        ([0.9, 0.05, 0.05], [100, 100, 1], 7),
    ],
)
def test_a_group_is_selected_as_often_as_its_quota(shares, sizes, num_selected):
    """Over many draws, against the formula, within 4.5 standard deviations of a rounding at random."""
    groups, num_draws = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)), 3000
    selector = reducr.make_selector("priority_sampling", num_groups=len(sizes), uniform_share=0.0, step_size=1.0)
    selector.set_group_holdout_loss(torch.ones(len(sizes)))
    selector.weighting.update(-torch.tensor(shares).double().log())
    candidates = reducr.Candidates(irreducible_loss=torch.ones(len(groups)), groups=groups)
    total, generator = torch.zeros(len(sizes)), seeded(3)
    for _ in range(num_draws):
        positions = selector.select(candidates, num_selected=num_selected, generator=generator).positions
        total += torch.bincount(groups[positions], minlength=len(sizes))
    for count, mean in zip(total.tolist(), quota_counts(sizes, shares, num_selected), strict=True):
        part = mean % 1
        assert abs(count - num_draws * mean) <= 4.5 * (num_draws * part * (1 - part)) ** 0.5 + 1e-3


def test_quotas_are_those_of_the_candidates_with_finite_losses():
    """Half of the selection is of each group, though group 1 loses seven of its ten candidates."""
    losses = torch.ones(20)
    losses[torch.arange(10, 17)] = torch.nan
    candidates = reducr.Candidates(irreducible_loss=losses, groups=torch.arange(20) // 10)
    selector = reducr.make_selector("priority_sampling", num_groups=2, uniform_share=1.0)
    selector.set_group_holdout_loss(torch.ones(2))
    for num_selected, expected in ((4, [2, 2]), (8, [5, 3]), (20, [10, 3])):
        selection = selector.select(candidates, num_selected=num_selected, generator=seeded(0))
        assert torch.bincount(candidates.groups[selection.positions]).tolist() == expected


@pytest.mark.parametrize("num_groups", [1, 7, 2**16 + 1])
def test_examples_are_sorted_by_group_and_key_with_the_earlier_of_equal_keys_first(num_groups):
    random = np.random.default_rng(0)
    groups = random.integers(num_groups, size=500)
    for keys in (random.random(500), random.integers(9, size=500) / 9.0, np.full(500, np.nan)):
        order = _sorted_in_groups(groups, keys, num_groups)
        assert np.array_equal(order, np.lexsort((keys, groups)))
