"""Two processes with ``SelectiveLoader``: what they do together, and what is refused; see ``tests/loader_ranks.py``."""

import pytest

import loader_ranks
import ranks


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    return ranks.run_ranks("everything", 2, tmp_path_factory.mktemp("ranks"), script=loader_ranks.__file__)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "fewer",
            "ValueError: Rank 1 has no batch left in this epoch, and rank 0 has. Use a DistributedSampler, or",
        ),
        (
            "unweighted",
            "RuntimeError: With distributed='global' the ranks have different numbers of selected examples, and this l",
        ),
        (
            "counted apart",
            "ValueError: The ranks have counted 2, 3 groups in their holdout sets. Pass `num_groups=3` on all of them.",
        ),
    ],
)
def test_every_rank_is_told_of_a_fault(of_ranks, fault, message):
    assert all(results[fault].startswith(message) for results in of_ranks)


def test_a_weight_of_one_on_every_rank_need_not_be_read(of_ranks):
    assert [results["equal"] for results in of_ranks] == [None, None]


def test_all_ranks_skip_a_batch_that_is_too_short_on_one(of_ranks):
    told = ["A batch has 5 candidates where others have 20: fraction=0.1 of it is one example"], []
    for results, expected in zip(of_ranks, told, strict=True):
        sizes, warnings, counts = results["short"]
        assert (sizes, counts) == ([2, 2], (2, 1))
        assert [warning[: len(expected[0])] for warning in warnings] == expected if expected else warnings == []


def test_groups_are_counted_over_all_ranks(of_ranks):
    assert [results["groups"] for results in of_ranks] == [3, 3]
