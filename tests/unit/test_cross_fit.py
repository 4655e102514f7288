import torch

from reducr.batch import Batch
from reducr.irreducible import CrossFitReference


class Constant:
    """Answers with its own number and the index of each point, and remembers which it was asked about."""

    def __init__(self, number):
        self.number = number
        self.asked = []

    def lookup(self, batch):
        self.asked += batch.index.tolist()
        return batch.index + self.number

    def logits(self, batch):
        return torch.stack([batch.index, batch.index + self.number], dim=1)


def batch(indices):
    index = torch.tensor(indices)
    return Batch(index, torch.zeros(len(index), 1), torch.zeros_like(index), torch.zeros_like(index))


IS_IN_FIRST = torch.tensor([True, False, True, False, False])


def test_every_point_is_judged_by_the_model_that_has_not_seen_it():
    first, second = Constant(100), Constant(200)
    losses = CrossFitReference(first, second, is_in_first=IS_IN_FIRST).lookup(batch([4, 0, 2, 1, 3]))
    assert losses.tolist() == [104, 200, 202, 101, 103]
    assert first.asked == [4, 1, 3]
    assert second.asked == [0, 2]


def test_logits_keep_the_order_of_the_batch():
    twins = CrossFitReference(Constant(100), Constant(200), is_in_first=IS_IN_FIRST)
    assert twins.logits(batch([2, 3])).tolist() == [[2, 202], [3, 103]]


def test_a_batch_of_one_half_alone():
    first, second = Constant(100), Constant(200)
    assert CrossFitReference(first, second, is_in_first=IS_IN_FIRST).lookup(batch([2, 0])).tolist() == [202, 200]
    assert first.asked == []
