"""Two processes with ``SelectiveLoader``: what they do together, and what is refused; see ``tests/loader_ranks.py``."""

import pytest

import loader_ranks
import ranks

UNEVEN = "ValueError: Rank 1 ended its pass after batch {}, and rank 0 goes on."
STATES = "ValueError: the selectors of the ranks are in different states:"
SHORT = "A batch has 5 candidates where others have 20: fraction=0.1 of it is one example,"


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    return ranks.run_ranks("everything", 2, tmp_path_factory.mktemp("ranks"), script=loader_ranks.__file__)


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (
            "fewer",
            f"{UNEVEN.format(2)} All ranks must read the same number of batches: use `drop_last=True` or a Distri",
        ),
        ("fewer in a plain loop", UNEVEN.format(2)),
        ("left", UNEVEN.format(1)),
        (
            "checkpoint",
            f"{STATES} they have made 2, 0 updates. Load the same checkpoint on all ranks, and update all of ",
        ),
        ("refused", f"ValueError: {SHORT} with which layers such as BatchNorm cannot be trained. Use `drop_last=True`"),
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
    told = [SHORT], []
    for results, expected in zip(of_ranks, told, strict=True):
        sizes, warnings, counts = results["short"]
        assert (sizes, counts) == ([2, 2], (2, 1))
        assert [warning[: len(expected[0])] for warning in warnings] == expected if expected else warnings == []


def test_a_batch_that_is_too_short_for_all_ranks_together_is_skipped(of_ranks):
    """5 and 5 candidates together give one example; 10 and 10 give two, though 10 alone give one."""
    told = "A batch has 10 candidates where others have 40: fraction=0.1 of it is one example"
    for results, warnings in zip(of_ranks, ([told], []), strict=True):
        sizes, own_warnings, counts = results["short together"]
        assert (len(sizes), counts) == (2, (2, 1))
        assert [warning[: len(told)] for warning in own_warnings] == warnings
        assert results["lengths"] == {"global": 3, "local": 2}


def test_short_batches_can_be_kept(of_ranks):
    for results, last in zip(of_ranks, (2, 1), strict=True):
        assert results["kept"] == ([2, 2, last], [], (3, 0))


def test_ranks_meet_once_for_each_batch_and_at_the_end_of_a_pass(of_ranks):
    assert [results["exchanges"] for results in of_ranks] == [3 + 1] * 2


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("fraction", "0.1, 0.2"),
        ("rule", "'train_loss', 'uniform'"),
        ("step_size", "0.1, 0.2"),
        ("temperature", "1.0, 2.0"),
        ("distributed", "'global', 'local'"),
    ],
)
def test_an_option_that_differs_between_ranks_is_named(of_ranks, name, values):
    expected = f"ValueError: `{name}` differs between the ranks: {values}. Pass the same on all of them."
    assert [results["options"][name] for results in of_ranks] == [expected] * 2


def test_groups_are_counted_over_all_ranks(of_ranks):
    assert [results["groups"] for results in of_ranks] == [3, 3]


def test_one_rank_writes_how_good_the_reference_model_is(of_ranks):
    (written, num_warnings), nothing = (results["reference"] for results in of_ranks)
    assert "Reference model on 12 held-out examples" in written
    assert (num_warnings, nothing) == (1, ("", 0))
