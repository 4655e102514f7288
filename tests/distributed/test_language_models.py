"""Language models by sequence and by token on two ranks of unequal size; see ``tests/language_ranks.py``."""

import pytest
import torch

import language_ranks
import ranks
from language import LOSSES


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    """The results of each rank."""
    return ranks.run_ranks("everything", 2, tmp_path_factory.mktemp("ranks"), script=language_ranks.__file__)


@pytest.mark.parametrize("unit", LOSSES)
def test_two_ranks_select_and_train_as_one_process(of_ranks, unit):
    one, (first, second) = language_ranks.training(unit), (results[unit] for results in of_ranks)
    assert [sorted(a + b) for a, b in zip(first["picked"], second["picked"], strict=True)] == one["picked"]
    assert any(not picks for results in (first, second) for picks in results["picked"])  # a step of one rank alone
    assert first["counts"] == second["counts"] == one["counts"]
    assert torch.equal(first["weights"], second["weights"])
    torch.testing.assert_close(first["weights"], one["weights"], rtol=1e-12, atol=0)
    for results in (first, second):
        torch.testing.assert_close(results["parameters"], one["parameters"], rtol=1e-9, atol=1e-12)
