import re
import threading
from itertools import chain

import pytest
import torch

from reducr.data import ExampleDataset, ExampleLoader


@pytest.fixture
def data():
    return ExampleDataset(torch.arange(20.0).reshape(10, 2), torch.arange(10) % 3, num_classes=3)


def indices_of(loader):
    return [batch.index.tolist() for batch in loader]


def test_an_example_is_index_input_target_group(data):
    index, inputs, target, group = data[4]
    assert (int(index), inputs.tolist(), int(target), int(group)) == (4, [8.0, 9.0], 1, 1)
    assert index.dtype == target.dtype == group.dtype == torch.int64
    assert len(data) == 10
    assert data.num_groups == 3


def test_positions_may_be_negative_and_are_bounded(data):
    assert [int(value) for value in (data[-1][0], data[-10][0])] == [9, 0]
    for position in (10, -11):
        with pytest.raises(IndexError):
            data[position]
    assert len(list(data)) == 10


def test_groups_may_differ_from_targets():
    data = ExampleDataset(
        torch.zeros(3, 1), torch.tensor([0, 1, 0]), num_classes=2, group=torch.tensor([3, 0, 1]), num_groups=4
    )
    batch = data.batch(torch.tensor([2, 0]))
    assert batch.index.tolist() == [2, 0]
    assert batch.target.tolist() == [0, 0]
    assert batch.group.tolist() == [1, 3]
    assert data.num_groups == 4


def test_concatenation_reindexes_and_keeps_is_corrupted(data):
    flags = torch.tensor([True] + [False] * 9)
    known = ExampleDataset(data.input, data.target, num_classes=3, is_corrupted=flags)
    both = known.concatenated(known)
    assert both.index.tolist() == list(range(20))
    assert both[14][1].tolist() == [8.0, 9.0]
    assert torch.nonzero(both.is_corrupted).flatten().tolist() == [0, 10]
    unknown = ExampleDataset(known.pool, data.target, num_classes=3)
    assert torch.nonzero(known.concatenated(unknown).is_corrupted).flatten().tolist() == [0]
    assert torch.nonzero(unknown.concatenated(known).is_corrupted).flatten().tolist() == [10]
    assert unknown.concatenated(unknown).is_corrupted is None


def test_data_sets_with_different_pools_cannot_be_concatenated(data):
    other = ExampleDataset(data.input.clone(), data.target, num_classes=3)
    with pytest.raises(ValueError, match="Only parts of the same data set can be concatenated"):
        data.concatenated(other)


def test_a_view_reads_its_examples_from_the_pool():
    pool = torch.arange(20.0).reshape(10, 2)
    view = ExampleDataset(pool, torch.tensor([1, 0, 1]), num_classes=2, source=torch.tensor([7, 0, 3]))
    assert view.input[:, 0].tolist() == [14.0, 0.0, 6.0]
    assert view[0][1].tolist() == [14.0, 15.0]
    part = view.take(torch.tensor([2, 0]))
    assert part.index.tolist() == [0, 1]
    assert part.input[:, 0].tolist() == [6.0, 14.0]
    assert part.target.tolist() == [1, 1]


class OnDisk:
    """Inputs that are read, not held, and that say in which thread and order."""

    def __init__(self):
        self.reads = []

    def __len__(self):
        return 10

    def __getitem__(self, positions):
        self.reads.append((threading.current_thread() is threading.main_thread(), positions.tolist()))
        return positions.float().unsqueeze(1)


def test_inputs_not_in_memory_are_read_one_batch_ahead_by_a_thread():
    pool = OnDisk()
    loader = ExampleLoader(ExampleDataset(pool, torch.arange(10) % 3, num_classes=3), batch_size=4)
    batches = iter(loader)
    first = next(batches)
    assert first.input.flatten().tolist() == [0.0, 1.0, 2.0, 3.0]
    rest = list(batches)
    assert [batch.index.tolist() for batch in rest] == [[4, 5, 6, 7], [8, 9]]
    assert pool.reads == [(False, [0, 1, 2, 3]), (False, [4, 5, 6, 7]), (False, [8, 9])]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"source": torch.tensor([0, 1, 3])}, "source must be in 0..2; index 2 holds 3"),
        ({"target": torch.zeros(4)}, "must have the same length; got {'input': 3, 'target': 4, 'group': 4}."),
        ({"target": torch.tensor([0, 2, 5])}, "target must be in 0..1; index 1 holds 2 (2 such in all)."),
        ({"target": torch.tensor([0, -1, 0])}, "target must be in 0..1; index 1 holds -1"),
        ({"group": torch.zeros(3)}, "group and num_groups must be given together, or neither"),
        ({"num_groups": 2}, "group and num_groups must be given together, or neither"),
        (
            {"group": torch.tensor([0, 0, 2]), "num_groups": 2},
            "group must be in 0..1; index 2 holds 2 (1 such in all).",
        ),
        ({"group": torch.zeros(2), "num_groups": 2}, "got {'input': 3, 'target': 3, 'group': 2}."),
    ],
)
def test_inconsistent_data_is_an_error(options, message):
    options = {"target": torch.zeros(3), **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        ExampleDataset(torch.zeros(3, 1), num_classes=2, **options)


def test_batches_are_in_order(data):
    loader = ExampleLoader(data, batch_size=4)
    assert len(loader) == 3
    assert indices_of(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert next(iter(loader)).input.tolist() == data.input[:4].tolist()


def test_drop_last_drops_the_last_batch(data):
    loader = ExampleLoader(data, batch_size=4, drop_last=True)
    assert len(loader) == 2
    assert indices_of(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    exact = ExampleLoader(data, batch_size=5, drop_last=True)
    assert len(exact) == len(indices_of(exact)) == 2


def test_every_epoch_has_its_own_order_of_all_examples(data):
    loader = ExampleLoader(data, batch_size=3, shuffle=True, seed=1)
    epochs = [list(chain(*indices_of(loader))) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_the_order_depends_only_on_seed_and_epoch(data):
    loader = ExampleLoader(data, batch_size=3, shuffle=True, seed=1)
    epochs = [indices_of(loader) for _ in range(3)]
    resumed = ExampleLoader(data, batch_size=3, shuffle=True, seed=1)
    resumed.set_epoch(2)
    torch.manual_seed(99)
    assert indices_of(resumed) == epochs[2]
    other = ExampleLoader(data, batch_size=3, shuffle=True, seed=2)
    assert indices_of(other) not in epochs


def test_shuffling_does_not_use_the_global_generator(data):
    before = torch.random.get_rng_state()
    indices_of(ExampleLoader(data, batch_size=3, shuffle=True))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_impossible_batches_are_errors_at_construction(data):
    with pytest.raises(ValueError, match="A batch needs 11 examples, but the data set has 10"):
        ExampleLoader(data, batch_size=11, drop_last=True)
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        ExampleLoader(data, batch_size=0)


def shuffled(data, **options):
    return ExampleLoader(data, **{"batch_size": 3, "shuffle": True, "seed": 1, **options})


@pytest.mark.parametrize("position", [1, 2, 4])
def test_a_loaded_state_resumes_the_epoch_and_later_epochs_follow(data, position):
    """In the middle, and after the last batch, where the rest of the pass is empty."""
    loader = shuffled(data)
    epochs = [indices_of(loader) for _ in range(4)]
    loader.set_epoch(1)
    passed = iter(loader)
    for _ in range(position):
        next(passed)
    state = loader.state_dict()
    assert (state["epoch"], state["position"]) == (1, position)
    resumed = shuffled(data)
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    assert [indices_of(resumed) for _ in range(3)] == [epochs[1][position:], epochs[2], epochs[3]]


def test_the_state_before_and_after_a_pass_is_the_beginning_of_the_next(data):
    loader = shuffled(data)
    for epoch in range(2):
        state = loader.state_dict()
        assert (state["epoch"], state["position"]) == (epoch, 0)
        resumed = shuffled(data)
        resumed.load_state_dict(state)
        assert indices_of(resumed) == indices_of(loader)
    next(iter(loader))  # abandoned: the next pass is the next epoch
    assert (loader.state_dict()["epoch"], loader.state_dict()["position"]) == (2, 1)
    fourth = shuffled(data)
    fourth.set_epoch(3)
    assert indices_of(loader) == indices_of(fourth)


def test_setting_another_epoch_discards_a_loaded_position(data):
    whole = shuffled(data)
    epochs = [indices_of(whole) for _ in range(3)]
    loader = shuffled(data)
    next(iter(loader))
    state = loader.state_dict()
    for epoch, expected in ((0, epochs[0][1:]), (2, epochs[2])):
        resumed = shuffled(data)
        resumed.load_state_dict(state)
        resumed.set_epoch(epoch)
        assert indices_of(resumed) == expected


def test_a_resumed_pass_does_not_read_earlier_batches():
    pool = OnDisk()
    data = ExampleDataset(pool, torch.arange(10) % 3, num_classes=3)
    loader = ExampleLoader(data, batch_size=4)
    passed = iter(loader)
    next(passed), next(passed)
    state = loader.state_dict()
    passed.close()
    pool.reads.clear()
    resumed = ExampleLoader(data, batch_size=4)
    resumed.load_state_dict(state)
    assert indices_of(resumed) == [[8, 9]]
    assert pool.reads == [(False, [8, 9])]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 2}, "seed is 1 in the state and 2 here"),
        ({"batch_size": 5, "drop_last": True}, "batch_size is 3 in the state and 5 here, drop_last is 0"),
        ({"shuffle": False}, "shuffle is 1 in the state and 0 here"),
    ],
)
def test_a_state_of_different_batches_is_an_error(data, change, message):
    state = shuffled(data).state_dict()
    with pytest.raises(ValueError, match=message):
        shuffled(data, **change).load_state_dict(state)
    with pytest.raises(ValueError, match="num_points is 10 in the state and 4 here"):
        shuffled(data.take(torch.arange(4))).load_state_dict(state)
