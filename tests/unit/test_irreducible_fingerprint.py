import pytest
import torch

from reducr.data import ExampleDataset
from reducr.irreducible import DataFingerprint


def data_of(size):
    return ExampleDataset(torch.arange(size * 2.0).reshape(size, 2), torch.arange(size) % 3, num_classes=3)


@pytest.mark.parametrize("size", [1, 2, 63, 64, 65, 1000])
def test_equal_data_has_equal_fingerprints_also_through_a_manifest(size):
    fingerprint = DataFingerprint.of(data_of(size))
    assert fingerprint == DataFingerprint.of(data_of(size))
    assert DataFingerprint.from_dict(fingerprint.to_dict()) == fingerprint
    assert fingerprint.differences(DataFingerprint.of(data_of(size))) == []
    assert fingerprint.length == size


@pytest.mark.parametrize("size", [2, 64])
def test_every_input_counts_up_to_64_examples(size):
    plain = DataFingerprint.of(data_of(size))
    for position in range(size):
        changed = data_of(size)
        changed.pool[position, 1] += 0.5
        assert plain.differences(DataFingerprint.of(changed)) == ["the inputs or their order differ"]


@pytest.mark.parametrize("position", [0, 999])
def test_the_first_and_the_last_input_of_many_count(position):
    changed = data_of(1000)
    changed.pool[position] += 0.5
    assert DataFingerprint.of(changed).input_checksum != DataFingerprint.of(data_of(1000)).input_checksum


def test_an_input_of_another_shape_with_the_same_bytes_differs():
    flat = ExampleDataset(torch.zeros(3, 4), torch.zeros(3), num_classes=1)
    square = ExampleDataset(torch.zeros(3, 2, 2), torch.zeros(3), num_classes=1)
    assert DataFingerprint.of(flat).input_checksum != DataFingerprint.of(square).input_checksum


def test_another_length_is_the_only_difference_reported():
    assert DataFingerprint.of(data_of(10)).differences(DataFingerprint.of(data_of(12))) == [
        "it was built for 10 examples, the data has 12"
    ]


class LongData:
    """More examples than float32 can count exactly, created on access."""

    def __init__(self, size):
        self.size = size
        self.target = self.group = torch.zeros(size, dtype=torch.int64)
        self.positions = []

    def __len__(self):
        return self.size

    def __getitem__(self, position):
        self.positions.append(position)
        return torch.tensor(position), torch.zeros(1), torch.tensor(0), torch.tensor(0)


def test_positions_are_exact_beyond_two_to_the_24():
    data = LongData(2**24 + 4)
    DataFingerprint.of(data)
    assert len(set(data.positions)) == 64
    assert data.positions[0] == 0
    assert data.positions[-1] == 2**24 + 3
