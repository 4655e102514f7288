"""Quotas of groups that are absent, or that have a quota of zero; their draws are in ``test_baselines.py``."""

import pytest
import torch

import reducr
from reducr.functional.quotas import SMALLEST_QUOTA, holdout_error, positive_quotas

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
        assert abs(int((positions < 100).sum()) - float(expected)) < 1.5


def test_quotas_of_zero_are_raised_in_proportion_to_the_largest():
    assert positive_quotas(torch.tensor([0.0, 200.0, 50.0])).tolist() == pytest.approx([200 * SMALLEST_QUOTA, 200, 50])


def test_a_negative_holdout_loss_is_no_error():
    """A loss with a margin, or rounding, can be below zero."""
    assert holdout_error(torch.tensor([-0.5, 0.0, 1e-7])).tolist() == pytest.approx([0.0, 0.0, 1e-7], abs=1e-12)
