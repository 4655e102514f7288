import re

import pytest
import torch

from reducr.batch import Batch, Candidates


@pytest.fixture
def batch():
    return Batch(
        index=torch.tensor([10, 11, 12]),
        input=torch.arange(12.0).reshape(3, 4),
        target=torch.tensor([0, 1, 2]),
        group=torch.tensor([1, 0, 1]),
    )


def test_batch_take_keeps_the_given_order_in_every_field(batch):
    taken = batch.take(torch.tensor([2, 0]))
    assert taken.index.tolist() == [12, 10]
    assert taken.input.tolist() == [[8.0, 9.0, 10.0, 11.0], [0.0, 1.0, 2.0, 3.0]]
    assert taken.target.tolist() == [2, 0]
    assert taken.group.tolist() == [1, 1]


def test_an_input_of_texts_is_taken_as_one_for_each_point():
    target = torch.tensor([0, 1])
    taken = Batch(None, ["first", "second"], target, target).take(torch.tensor([1]))
    assert (taken.index, taken.input, taken.target.tolist()) == (None, ["second"], [1])


def test_batch_reads_the_tuples_of_a_data_set(batch):
    item = (torch.tensor([5]), torch.zeros(1, 2), torch.tensor([1]), torch.tensor([0]))
    assert Batch(*item).index.tolist() == [5]
    assert Batch._fields == ("index", "input", "target", "group")
    assert batch.to(torch.device("cpu")).input.tolist() == batch.input.tolist()


@pytest.mark.parametrize(
    ("fields", "size"),
    [
        ({"model_loss": torch.zeros(5)}, 5),
        ({"logits": torch.zeros(5, 3)}, 5),
        ({"logits": torch.zeros(7, 5, 3)}, 5),
        ({"group_irreducible_loss": torch.zeros(5, 9), "targets": torch.zeros(5, dtype=torch.uint8)}, 5),
    ],
)
def test_candidates_count_their_points(fields, size):
    assert Candidates(**fields).num_candidates == size


def test_candidates_take_points_and_not_dropout_samples():
    candidates = Candidates(
        model_loss=torch.tensor([0.0, 1.0, 2.0]), logits=torch.arange(12.0).reshape(2, 3, 2), groups=None
    )
    taken = candidates.take(torch.tensor([2, 1]))
    assert taken.model_loss.tolist() == [2.0, 1.0]
    assert taken.logits.tolist() == [[[4.0, 5.0], [2.0, 3.0]], [[10.0, 11.0], [8.0, 9.0]]]
    assert taken.groups is None
    assert sorted(taken.given()) == ["logits", "model_loss"]


def test_candidates_take_from_one_pass_logits():
    candidates = Candidates(logits=torch.arange(6.0).reshape(3, 2))
    assert candidates.take(torch.tensor([1])).logits.tolist() == [[2.0, 3.0]]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({}, ValueError, "Candidates need at least one tensor; got none. Pass one of"),
        (
            {"model_loss": torch.zeros(3), "targets": torch.zeros(4, dtype=torch.int64)},
            ValueError,
            "All fields of Candidates must have the same number of examples; got {'model_loss': 3, 'targets': 4}.",
        ),
        (
            {"model_loss": torch.zeros(3), "logits": torch.zeros(3, 4, 2)},
            ValueError,
            "got {'model_loss': 3, 'logits': 4}.",
        ),
        (
            {"model_loss": torch.zeros(3, 1)},
            ValueError,
            "Candidates.model_loss must have 1 axes; got shape (3, 1).",
        ),
        (
            {"group_irreducible_loss": torch.zeros(3)},
            ValueError,
            "Candidates.group_irreducible_loss must have 2 axes; got shape (3,).",
        ),
        ({"logits": torch.zeros(3)}, ValueError, "Candidates.logits must have 2 or 3 axes; got shape (3,)."),
        (
            {"model_loss": torch.zeros(3, dtype=torch.int64)},
            TypeError,
            "Candidates.model_loss must be floating point; got torch.int64.",
        ),
        (
            {"targets": torch.zeros(3)},
            TypeError,
            "Candidates.targets must be integers; got torch.float32.",
        ),
        (
            {"groups": torch.zeros(3, dtype=torch.bool)},
            TypeError,
            "Candidates.groups must be integers; got torch.bool.",
        ),
        ({"model_loss": [1.0, 2.0]}, TypeError, "Candidates.model_loss must be a tensor; got list."),
        (
            {"model_loss": torch.ones(3).to_sparse()},
            TypeError,
            "Candidates.model_loss must be a dense tensor; got torch.sparse_coo. Pass tensor.to_dense().",
        ),
        (
            {"model_loss": torch.ones(3).to(torch.float8_e4m3fn)},
            TypeError,
            "Candidates.model_loss must be floating point; got torch.float8_e4m3fn.",
        ),
        ({"logits": torch.zeros(3, 0)}, ValueError, "need at least one class and sample; got shape (3, 0)."),
        ({"logits": torch.zeros(0, 3, 2)}, ValueError, "need at least one class and sample; got shape (0, 3, 2)."),
    ],
)
def test_candidates_refuse_what_is_not_a_batch(fields, error, message):
    with pytest.raises(error, match=re.escape(message)):
        Candidates(**fields)
