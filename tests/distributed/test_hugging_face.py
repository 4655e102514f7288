"""The Trainer of transformers, and accelerate, on two ranks; see ``tests/hugging_face_ranks.py`` for what they run."""

import pytest
import torch
from accelerate.state import AcceleratorState

import hugging_face_ranks
import ranks


@pytest.fixture(autouse=True)
def _one_thread():
    """As the processes have, and no trace of what accelerate was before."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def of_ranks(tmp_path_factory):
    """What each rank found."""
    return ranks.run_ranks("everything", 2, tmp_path_factory.mktemp("ranks"), script=hugging_face_ranks.__file__)


def found(of_ranks, name):
    return [results[name] for results in of_ranks]


def assert_as_one(both, one):
    """The same points selected as by one process, shared over the ranks, and the same parameters up to rounding."""
    steps = zip(both[0]["picked"], both[1]["picked"], one["picked"], strict=True)
    for step, (first, second, whole) in enumerate(steps):
        assert sorted(first + second) == sorted(whole), step
    for result in both:
        torch.testing.assert_close(result["parameters"], one["parameters"], rtol=0, atol=1e-5)
        torch.testing.assert_close(result["weights"], one["weights"], rtol=0, atol=1e-6)
    assert torch.equal(both[0]["weights"], both[1]["weights"])


@pytest.mark.parametrize("name", ["trainer", "accelerate", "accelerate unsplit"])
def test_two_ranks_train_as_one_process(of_ranks, tmp_path, name):
    """The best of both ranks' candidates together; no dropout, which each rank draws for itself."""
    train = hugging_face_ranks.with_trainer if name == "trainer" else hugging_face_ranks.with_accelerate
    one, both = train(tmp_path), found(of_ranks, name)
    assert_as_one(both, one)
    shares = {len(picked) for result in both for picked in result["picked"]}
    assert len(shares) > 2  # of 8 points, not half of them each
    if name == "trainer":
        assert both[0]["losses"] == pytest.approx(one["losses"], abs=1e-4)  # rounded in the logs
        assert both[0]["counts"] == both[1]["counts"] == one["counts"]  # of all ranks


@pytest.mark.parametrize(("whole", "again"), [("dropout", "dropout again"), ("accelerate", "accelerate again")])
def test_a_resumed_run_of_two_ranks_goes_on_bit_for_bit(of_ranks, whole, again):
    """In the second epoch, which has an order of its own; with the dropout of each rank."""
    for first, second in zip(found(of_ranks, whole), found(of_ranks, again), strict=True):
        assert len(first["picked"]) == 16
        assert second["picked"] == first["picked"][11:]
        assert torch.equal(second["parameters"], first["parameters"])
        assert torch.equal(second["weights"], first["weights"])
        assert second.get("counts") == first.get("counts")


def test_each_ranks_own_best(of_ranks):
    both = found(of_ranks, "local")
    assert {len(picked) for result in both for picked in result["picked"]} == {4}
    assert torch.equal(both[0]["weights"], both[1]["weights"])
    assert torch.equal(both[0]["parameters"], both[1]["parameters"])
    assert both[0]["picked"] != both[1]["picked"]


def test_a_trainer_without_a_mode_is_refused(of_ranks):
    for error in found(of_ranks, "no mode"):
        assert error.startswith(
            "ValueError: 2 processes train together and `distributed` is None: each would select alone"
        )
