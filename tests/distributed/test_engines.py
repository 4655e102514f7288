"""Engines on two ranks train as one process does; see ``tests/engine_ranks.py`` for what the ranks run."""

import pytest
import torch

import engine_ranks
import ranks


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def quick(tmp_path_factory):
    """What each rank found in the cases of the default lane."""
    return ranks.run_ranks("quick", 2, tmp_path_factory.mktemp("quick"), script=engine_ranks.__file__)


@pytest.fixture(scope="module")
def long(tmp_path_factory):
    return ranks.run_ranks("long", 2, tmp_path_factory.mktemp("long"), script=engine_ranks.__file__)


def found(of_ranks, name):
    return [results[name] for results in of_ranks]


def assert_as_one(both, one):
    """The same examples selected as by one process from the same candidates, and the same parameters up to rounding."""
    steps = zip(both[0]["picked"], both[1]["picked"], one["picked"], strict=True)
    for step, (first, second, whole) in enumerate(steps):
        assert sorted(first + second) == sorted(whole), step
    assert len({len(picked) for result in both for picked in result["picked"]}) > 2  # not half of them on each
    for result in both:
        torch.testing.assert_close(result["parameters"], one["parameters"], rtol=0, atol=1e-6)
        torch.testing.assert_close(result["weights"], one["weights"], rtol=0, atol=1e-6)
    assert torch.equal(both[0]["parameters"], both[1]["parameters"])
    assert torch.equal(both[0]["weights"], both[1]["weights"])


def assert_resumes_exactly(run):
    assert run["before"]["picked"] + run["after"]["picked"] == run["whole"]["picked"]
    assert len(run["before"]["picked"]) == 11  # in the second epoch
    for name in ("parameters", "weights", "random"):
        assert torch.equal(run["after"][name], run["whole"][name]), name
    assert run["after"]["buffers"].keys() == run["whole"]["buffers"].keys()
    for name, buffer in run["whole"]["buffers"].items():
        assert torch.equal(run["after"]["buffers"][name], buffer), name


@pytest.mark.parametrize("name", engine_ranks.EQUAL_TO_ONE_PROCESS)
def test_an_engine_trains_as_one_process(quick, name):
    """With loss_weight, under the mean of each engine, and with gradients accumulated without being averaged."""
    one = engine_ranks.train(**engine_ranks.EQUAL_TO_ONE_PROCESS[name])
    assert_as_one([found["equal"][name] for found in quick], one)
    assert float((one["weights"] - 1 / 3).abs().max()) > 0.01  # they have moved


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of the compiler itself
@pytest.mark.parametrize("name", engine_ranks.LONG_EQUAL_TO_ONE_PROCESS)
def test_every_engine_trains_as_one_process(long, name):
    one = engine_ranks.train(**engine_ranks.LONG_EQUAL_TO_ONE_PROCESS[name])
    assert_as_one([found["equal"][name] for found in long], one)


def test_scoring_never_runs_distributed_data_parallel(quick):
    assert [found["equal"]["ddp"]["num_forwards"] for found in quick] == [0, 0]


def test_ranks_of_a_sharded_model_run_it_equally_often(quick):
    """15 and 9 candidates in chunks of 4 are 4 and 3; 8 and 2 holdout batches, read before steps 1, 4 and 7."""
    num_forwards = 4 * engine_ranks.NUM_BATCHES + 8 * 3
    assert [found["equal"]["fsdp chunks"]["num_forwards"] for found in quick] == [num_forwards] * 2


def test_a_sharded_run_resumes_bit_for_bit_from_one_file(quick):
    for run in found(quick, "resumed"):
        assert_resumes_exactly(run)
    first, second = found(quick, "resumed")
    assert not torch.equal(first["whole"]["random"], second["whole"]["random"])


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ddp", "static", "kept", "compile ddp"])
def test_every_engine_resumes_bit_for_bit(long, engine):
    for results in long:
        assert_resumes_exactly(results["resumed"][engine])


@pytest.mark.long
@pytest.mark.parametrize("engine", ["ddp", "fsdp"])
def test_gradient_checkpointing_changes_nothing(long, engine):
    """With dropout, which the backward pass draws again as the forward pass of the step did, not as scoring did."""
    for results in long:
        expected, run = results["dropout"][engine], results["checkpointing"][engine]
        assert run["picked"] == expected["picked"]
        assert torch.equal(run["parameters"], expected["parameters"])
        assert torch.equal(run["random"], expected["random"])


@pytest.mark.long
def test_repeated_chunks_leave_no_trace(long):
    """Rank 1 has 3 chunks and repeats one; its batch norms count 3 and the training step."""
    for results, num_chunks in zip(long, (4, 3), strict=True):
        buffers = results["repeats"]["buffers"]
        assert int(buffers["norm.num_batches_tracked"]) == (num_chunks + 1) * engine_ranks.NUM_BATCHES


@pytest.mark.long
def test_a_sharded_reference_model_gives_the_same_losses(long):
    for results in long:
        assert results["live"]["picked"] == results["live alone"]["picked"]
        assert torch.equal(results["live"]["parameters"], results["live alone"]["parameters"])


@pytest.mark.long
def test_mixed_precision_and_dropout_samples_of_a_sharded_model(long):
    one = engine_ranks.train()
    first, second = found(long, "bf16")
    assert torch.equal(first["parameters"], second["parameters"])
    difference = float((first["parameters"] - one["parameters"]).abs().max())
    assert 1e-5 < difference < 0.02
    first, second = found(long, "bald")
    assert torch.equal(first["parameters"], second["parameters"])


def test_a_rank_whose_loader_ends_early_is_named_by_all(quick):
    expected = (
        "ValueError: Rank 1 ended its pass after batch 6, and rank 0 goes on. All ranks must read the same number of "
        "batches: use `drop_last=True` or a DistributedSampler (with accelerate, `even_batches=True`), and leave a "
        "pass early on all ranks or on none."
    )
    assert found(quick, "uneven") == [[expected] * 3] * 2


def test_ranks_that_read_the_same_data_are_warned(quick):
    first, second = found(quick, "same_data")
    assert len(first) == 1
    assert first[0].startswith("The first batches of all ranks hold the same candidates")
    assert second == []


def test_a_sharded_model_needs_a_holdout_batch_on_every_rank(quick):
    for error in found(quick, "no_holdout"):
        assert error.startswith("ValueError: Rank 1 has no holdout batch. The forward pass of a sharded model needs")


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("model", "ValueError: `model` is sharded (FSDP), so this process holds only a part of it. Use `Checkpoints("),
        ("optimizer", "ValueError: `optimizer` is sharded (FSDP), so this process holds only a part of it."),
        ("resume", "ValueError: `model` is sharded (FSDP), so this process holds only a part of it."),
        ("hidden", "ValueError: The state of `state` holds DTensors, of which this process has only a part. Pass"),
        ("not_synced", "ValueError: the checkpoints in "),
        ("auxiliary", "ValueError: An auxiliary model cannot be sharded (FSDP). Pass the model itself"),
        ("tensor_parallel", "ValueError: Parameter 'head.weight' is divided over a mesh of 2 of the 2 processes as "),
    ],
)
def test_sharded_models_that_cannot_be_served_are_refused(quick, fault, message):
    for faults in found(quick, "faults"):
        assert faults[fault].startswith(message)


def test_the_checkpoint_of_another_rank_is_warned_of(quick):
    first, second = (faults["other_rank"] for faults in found(quick, "faults"))
    assert first == []
    assert len(second) == 1
    assert second[0].startswith("Rank 1 resumes from the checkpoint of rank 0: its random numbers and the place")


def test_what_makes_a_forward_pass_a_collective(quick):
    for faults in found(quick, "faults"):
        assert faults["collective"] == [True, False, True, False]
        assert faults["data_parallel"] is None


def test_distributed_data_parallel_inside_a_model_broadcasts_nothing_while_it_scores(quick):
    assert [faults["nested_forward"] for faults in found(quick, "faults")] == [(1, True), (2, True)]
