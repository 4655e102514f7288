"""Two processes with ``SelectiveBatchSampler`` train on what one selects; see ``tests/sampler_ranks.py``."""

import pytest
import torch

import ranks
import sampler_ranks


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    return ranks.run_ranks("everything", 2, tmp_path_factory.mktemp("ranks"), script=sampler_ranks.__file__)


@pytest.mark.parametrize("rule", ["priority_sampling", "rs2"])
def test_the_ranks_share_the_selection_of_one_process(of_ranks, rule):
    """In batches of the same size; the small batch at the end of a pass is left out, as all ranks need as many."""
    one = sampler_ranks.train(rule, drop_last=True)
    zero, other = (results[rule] for results in of_ranks)
    assert zero["length"] == other["length"] == one["length"] == 5
    assert [len(batch) for batch in [*zero["picked"], *other["picked"]]] == [4] * 20
    for batch, *shares in zip(one["picked"], zero["picked"], other["picked"], strict=True):
        assert [batch[0::2], batch[1::2]] == shares
    for results in (zero, other):
        assert torch.equal(results["weights"], zero["weights"])
        torch.testing.assert_close(results["weights"], one["weights"])
        torch.testing.assert_close(results["parameters"], one["parameters"])
        assert results["counts"] == one["counts"]


def test_the_ranks_share_the_holdout_examples_of_one_process(of_ranks):
    """Of the six selected and two drawn ones, each rank has three and one."""
    one = sampler_ranks.train("priority_sampling", holdout_fraction=0.25, drop_last=True)
    shares = [results["with holdout examples"] for results in of_ranks]
    assert len(one["picked"]) == 10
    for batch, zero, other in zip(one["picked"], *(results["picked"] for results in shares), strict=True):
        assert [index >= 1000 for index in batch] == [False] * 6 + [True] * 2
        assert [zero, other] == [batch[0::2], batch[1::2]]
    assert len({index for batch in one["picked"] for index in batch if index >= 1000}) == 20
    for results, mine in zip(of_ranks, shares, strict=True):
        torch.testing.assert_close(mine["parameters"], one["parameters"])
        assert results["resumed with holdout examples"]["picked"] == mine["picked"][7:]


def test_two_ranks_resume_bit_for_bit(of_ranks):
    for results in of_ranks:
        whole, resumed = results["priority_sampling"], results["resumed"]
        assert resumed["picked"] == whole["picked"][7:]
        assert torch.equal(resumed["weights"], whole["weights"])
        assert torch.equal(resumed["parameters"], whole["parameters"])


def test_ranks_that_would_select_differently_are_refused(of_ranks):
    for results in of_ranks:
        assert "The batch samplers of the ranks differ, so each rank would select other" in results["other_seeds"]
