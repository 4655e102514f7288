import torch

from reducr.batch import Batch
from reducr.irreducible import CrossFitReference


class Constant:
    """Returns its number plus the index of each example, and records the indices of its calls."""

    def __init__(self, number):
        self.number = number
        self.calls = []

    def lookup(self, batch):
        self.calls += batch.index.tolist()
        return batch.index + self.number

    def logits(self, batch):
        return torch.stack([batch.index, batch.index + self.number], dim=1)


def batch(indices):
    index = torch.tensor(indices)
    return Batch(index, torch.zeros(len(index), 1), torch.zeros_like(index), torch.zeros_like(index))


IS_IN_FIRST = torch.tensor([True, False, True, False, False])


def test_every_example_goes_to_the_model_that_has_not_seen_it():
    first, second = Constant(100), Constant(200)
    losses = CrossFitReference(first, second, is_in_first=IS_IN_FIRST).lookup(batch([4, 0, 2, 1, 3]))
    assert losses.tolist() == [104, 200, 202, 101, 103]
    assert first.calls == [4, 1, 3]
    assert second.calls == [0, 2]


def test_logits_keep_the_order_of_the_batch():
    reference = CrossFitReference(Constant(100), Constant(200), is_in_first=IS_IN_FIRST)
    assert reference.logits(batch([2, 3])).tolist() == [[2, 202], [3, 103]]


def test_a_batch_from_one_half_only():
    first, second = Constant(100), Constant(200)
    assert CrossFitReference(first, second, is_in_first=IS_IN_FIRST).lookup(batch([2, 0])).tolist() == [202, 200]
    assert first.calls == []
