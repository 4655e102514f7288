import re
from itertools import chain

import pytest
import torch

from reducr.data import PointDataset, PointLoader


@pytest.fixture
def data():
    return PointDataset(torch.arange(20.0).reshape(10, 2), torch.arange(10) % 3, num_classes=3)


def indices_of(loader):
    return [batch.index.tolist() for batch in loader]


def test_a_point_is_index_input_target_group(data):
    index, inputs, target, group = data[4]
    assert (int(index), inputs.tolist(), int(target), int(group)) == (4, [8.0, 9.0], 1, 1)
    assert index.dtype == target.dtype == group.dtype == torch.int64
    assert len(data) == 10
    assert data.num_groups == 3


def test_groups_of_their_own():
    data = PointDataset(
        torch.zeros(3, 1), torch.tensor([0, 1, 0]), num_classes=2, group=torch.tensor([3, 0, 1]), num_groups=4
    )
    batch = data.batch(torch.tensor([2, 0]))
    assert batch.index.tolist() == [2, 0]
    assert batch.target.tolist() == [0, 0]
    assert batch.group.tolist() == [1, 3]
    assert data.num_groups == 4


def test_concatenated_points_are_indexed_anew_and_keep_what_is_known_of_them(data):
    flags = torch.tensor([True] + [False] * 9)
    known = PointDataset(data.input, data.target, num_classes=3, is_corrupted=flags)
    both = known.concatenated(known)
    assert both.index.tolist() == list(range(20))
    assert both[14][1].tolist() == [8.0, 9.0]
    assert torch.nonzero(both.is_corrupted).flatten().tolist() == [0, 10]
    assert known.concatenated(data).is_corrupted is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": torch.zeros(4)}, "must have the same length; got {'input': 3, 'target': 4, 'group': 4}."),
        ({"target": torch.tensor([0, 2, 5])}, "target must be in 0..1; index 1 holds 2 (2 such in all)."),
        ({"target": torch.tensor([0, -1, 0])}, "target must be in 0..1; index 1 holds -1"),
        ({"group": torch.zeros(3)}, "give group and num_groups together, or neither"),
        ({"num_groups": 2}, "give group and num_groups together, or neither"),
        (
            {"group": torch.tensor([0, 0, 2]), "num_groups": 2},
            "group must be in 0..1; index 2 holds 2 (1 such in all).",
        ),
        ({"group": torch.zeros(2), "num_groups": 2}, "got {'input': 3, 'target': 3, 'group': 2}."),
    ],
)
def test_data_that_does_not_fit_together_is_refused(options, message):
    options = {"target": torch.zeros(3), **options}
    with pytest.raises(ValueError, match=re.escape(message)):
        PointDataset(torch.zeros(3, 1), num_classes=2, **options)


def test_whole_batches_in_order(data):
    loader = PointLoader(data, batch_size=4)
    assert len(loader) == 3
    assert indices_of(loader) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9]]
    assert next(iter(loader)).input.tolist() == data.input[:4].tolist()


def test_the_last_batch_is_left_out_on_request(data):
    loader = PointLoader(data, batch_size=4, drop_last=True)
    assert len(loader) == 2
    assert indices_of(loader) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    exact = PointLoader(data, batch_size=5, drop_last=True)
    assert len(exact) == len(indices_of(exact)) == 2


def test_every_epoch_has_its_own_order_of_all_points(data):
    loader = PointLoader(data, batch_size=3, shuffle=True, seed=1)
    epochs = [list(chain(*indices_of(loader))) for _ in range(3)]
    assert [sorted(epoch) for epoch in epochs] == [list(range(10))] * 3
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_an_order_depends_on_seed_and_epoch_alone(data):
    loader = PointLoader(data, batch_size=3, shuffle=True, seed=1)
    epochs = [indices_of(loader) for _ in range(3)]
    resumed = PointLoader(data, batch_size=3, shuffle=True, seed=1)
    resumed.set_epoch(2)
    torch.manual_seed(99)
    assert indices_of(resumed) == epochs[2]
    other = PointLoader(data, batch_size=3, shuffle=True, seed=2)
    assert indices_of(other) not in epochs


def test_shuffling_leaves_the_global_generator_alone(data):
    before = torch.random.get_rng_state()
    indices_of(PointLoader(data, batch_size=3, shuffle=True))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_batches_that_cannot_be_made_are_refused_at_construction(data):
    with pytest.raises(ValueError, match="one batch needs 11 points, but the data set has 10"):
        PointLoader(data, batch_size=11, drop_last=True)
    with pytest.raises(ValueError, match="batch_size must be at least 1; got 0"):
        PointLoader(data, batch_size=0)
