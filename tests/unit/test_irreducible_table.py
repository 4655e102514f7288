import numpy as np
import pytest
import torch

from reducr.batch import Batch
from reducr.functional import point_cross_entropy
from reducr.irreducible import (
    AdjustedIrreducibleLoss,
    IrreducibleTable,
    PlainIrreducibleLoss,
    TableLogits,
    TableLoss,
)


def batch_of(index, target=None):
    index = torch.tensor(index)
    target = torch.zeros_like(index) if target is None else torch.tensor(target)
    return Batch(index=index, input=torch.zeros(len(index), 1), target=target, group=target)


@pytest.fixture
def losses():
    return np.arange(12, dtype=np.float32).reshape(4, 3)


def test_rows_are_read_by_index_in_the_order_of_the_batch(losses):
    table = IrreducibleTable(losses, kind="group_loss")
    assert len(table) == 4
    assert TableLoss(table).lookup(batch_of([3, 0, 3])).tolist() == [
        [9.0, 10.0, 11.0],
        [0.0, 1.0, 2.0],
        [9.0, 10.0, 11.0],
    ]


def test_a_table_of_one_loss_a_point(losses):
    table = IrreducibleTable(losses[:, 1].copy(), kind="loss")
    assert TableLoss(table).lookup(batch_of([2, 1])).tolist() == [7.0, 4.0]


def test_what_is_read_may_be_changed_without_changing_the_table(losses):
    table = IrreducibleTable(losses, kind="group_loss")
    table.rows(torch.tensor([0, 1])).zero_()
    assert table.rows(torch.tensor([1])).tolist() == [[3.0, 4.0, 5.0]]


@pytest.mark.parametrize(("index", "first"), [([0, 4], 4), ([2, -1, 7], -1)])
def test_an_index_without_a_row_is_named(losses, index, first):
    table = IrreducibleTable(losses, kind="group_loss")
    with pytest.raises(ValueError, match=f"index {first} has no row in an irreducible table of 4 points"):
        table.rows(torch.tensor(index))


def test_an_unknown_kind_is_refused(losses):
    with pytest.raises(
        ValueError, match="kind of a table must be one of loss, group_loss, logits, joint_logits; got 'lossy'"
    ):
        IrreducibleTable(losses, kind="lossy")


@pytest.mark.parametrize(
    ("kind", "shape"), [("loss", "(N,)"), ("joint_logits", "(N, C, G)")], ids=["loss", "joint_logits"]
)
def test_a_wrong_number_of_axes_is_refused(losses, kind, shape):
    with pytest.raises(ValueError, match=f"a table of kind '{kind}' has shape .*; got .4, 3.") as caught:
        IrreducibleTable(losses, kind=kind)
    assert shape in str(caught.value)


def test_readers_refuse_the_other_kind(losses):
    with pytest.raises(ValueError, match="TableLoss reads losses; this table holds logits"):
        TableLoss(IrreducibleTable(losses, kind="logits"))
    with pytest.raises(ValueError, match="TableLogits reads logits; this table holds group_loss"):
        TableLogits(IrreducibleTable(losses, kind="group_loss"))


def test_plain_loss_of_table_logits_is_their_cross_entropy(losses):
    source = TableLogits(IrreducibleTable(losses, kind="logits"))
    batch = batch_of([3, 1], target=[2, 0])
    expected = point_cross_entropy(torch.from_numpy(losses[[3, 1]]), batch.target)
    assert PlainIrreducibleLoss(source).lookup(batch).tolist() == expected.tolist()


def test_plain_loss_of_joint_logits_sums_over_the_groups():
    joint = np.log(np.array([[[3, 1], [2, 2]]], dtype=np.float64))
    source = TableLogits(IrreducibleTable(joint, kind="joint_logits"))
    assert PlainIrreducibleLoss(source).lookup(batch_of([0], target=[0])).tolist() == [pytest.approx(float(np.log(2)))]


def test_adjusted_loss_by_hand_from_table_logits():
    source = TableLogits(IrreducibleTable(np.zeros((2, 2), dtype=np.float32), kind="logits"))
    losses = AdjustedIrreducibleLoss(source, gradient_weight=3.0).lookup(batch_of([1], target=[1]))
    assert losses.exp().tolist() == [pytest.approx([4.0, 4 / 3])]


def test_adjusted_loss_of_groups_of_targets():
    source = TableLogits(IrreducibleTable(np.zeros((1, 3), dtype=np.float32), kind="logits"))
    adjusted = AdjustedIrreducibleLoss(source, gradient_weight=2.0, group_of_target=torch.tensor([0, 0, 1]))
    assert adjusted.lookup(batch_of([0], target=[2])).exp().tolist() == [pytest.approx([5.0, 2.0])]


def test_adjusted_loss_of_a_joint_table():
    joint = np.log(np.array([[[3, 1], [1, 3]]], dtype=np.float64))
    source = TableLogits(IrreducibleTable(joint, kind="joint_logits"))
    losses = AdjustedIrreducibleLoss(source, gradient_weight=2.0).lookup(batch_of([0], target=[0]))
    assert losses.exp().tolist() == [pytest.approx([12 / 7, 12 / 5])]


def test_adjusted_loss_refuses_a_gradient_weight_below_one_at_construction():
    source = TableLogits(IrreducibleTable(np.zeros((1, 3), dtype=np.float32), kind="logits"))
    with pytest.raises(ValueError, match=r"gradient_weight must be a finite number of at least 1.*got 0\.9"):
        AdjustedIrreducibleLoss(source, gradient_weight=0.9)
