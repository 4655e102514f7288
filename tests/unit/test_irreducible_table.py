import re

import numpy as np
import pytest
import torch

from reducr import make_selector
from reducr.batch import Batch, Candidates
from reducr.functional import per_example_cross_entropy
from reducr.irreducible import (
    AdjustedGroupLoss,
    AdjustedIrreducibleLoss,
    IrreducibleTable,
    LiveLogits,
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


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.int32])
def test_an_index_of_narrow_integers_is_an_index(losses, dtype):
    table = IrreducibleTable(losses, kind="group_loss")
    assert table.rows(torch.tensor([3, 0]).to(dtype)).tolist() == [[9.0, 10.0, 11.0], [0.0, 1.0, 2.0]]
    with pytest.raises(ValueError, match="index 4 has no row in an irreducible table of 4 examples"):
        table.rows(torch.tensor([3, 4]).to(dtype))


def test_an_empty_table():
    table = IrreducibleTable(np.zeros((0, 3), dtype=np.float32), kind="group_loss")
    assert table.rows(torch.tensor([], dtype=torch.int64)).shape == (0, 3)
    with pytest.raises(ValueError, match="index 0 has no row in an irreducible table of 0 examples"):
        table.rows(torch.tensor([0]))


def test_a_table_of_one_loss_per_example(losses):
    table = IrreducibleTable(losses[:, 1].copy(), kind="loss")
    assert TableLoss(table).lookup(batch_of([2, 1])).tolist() == [7.0, 4.0]


def test_changing_the_rows_read_does_not_change_the_table(losses):
    table = IrreducibleTable(losses, kind="group_loss")
    table.rows(torch.tensor([0, 1])).zero_()
    assert table.rows(torch.tensor([1])).tolist() == [[3.0, 4.0, 5.0]]


@pytest.mark.parametrize(("index", "first"), [([0, 4], 4), ([2, -1, 7], -1)])
def test_an_index_without_a_row_is_named(losses, index, first):
    table = IrreducibleTable(losses, kind="group_loss")
    with pytest.raises(ValueError, match=f"index {first} has no row in an irreducible table of 4 examples"):
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
    expected = per_example_cross_entropy(torch.from_numpy(losses[[3, 1]]), batch.target)
    assert PlainIrreducibleLoss(source).lookup(batch).tolist() == expected.tolist()


def test_plain_loss_of_joint_logits_sums_over_the_groups():
    joint = np.log(np.array([[[3, 1], [2, 2]]], dtype=np.float64))
    source = TableLogits(IrreducibleTable(joint, kind="joint_logits"))
    assert PlainIrreducibleLoss(source).lookup(batch_of([0], target=[0])).tolist() == [pytest.approx(float(np.log(2)))]


def test_adjusted_loss_of_table_logits_equals_the_hand_calculation():
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


@pytest.mark.parametrize(
    ("index", "description"),
    [
        (torch.tensor([0.0, 1.0]), "torch.float32 (2,)"),
        (torch.tensor([True, False]), "torch.bool (2,)"),
        (torch.tensor([[0, 1]]), "torch.int64 (1, 2)"),
        (torch.tensor(1), "torch.int64 ()"),
    ],
)
def test_an_index_that_is_not_one_integer_per_example_is_refused(losses, index, description):
    message = f"index must hold one integer per example, (B,); got {description}. Floats cannot tell"
    with pytest.raises(ValueError, match=re.escape(message)):
        IrreducibleTable(losses, kind="group_loss").rows(index)


@pytest.mark.parametrize(
    ("values", "description"),
    [
        (torch.zeros(4, 3), "torch.float32"),
        ([[0.0]], "list"),
        (np.zeros((4, 3), dtype=np.int64), "int64"),
        (np.zeros((4, 3), dtype=np.longdouble), str(np.dtype(np.longdouble))),
    ],
)
def test_values_that_are_not_an_array_of_floats_are_refused(values, description):
    message = f"values of a table must be a numpy array of float16, float32 or float64; got {description}. For a"
    with pytest.raises(TypeError, match=re.escape(message)):
        IrreducibleTable(values, kind="group_loss")


@pytest.mark.parametrize(
    "groups", [torch.tensor([0.0, 1.0]), torch.tensor([0, -1]), torch.tensor([[0, 1]]), torch.tensor([])]
)
def test_groups_of_classes_are_checked_at_construction(losses, groups):
    message = "group_of_target must hold one non-negative integer per class, (C,); got "
    with pytest.raises(ValueError, match=re.escape(f"{message}{groups.dtype} {groups.tolist()}.")):
        AdjustedIrreducibleLoss(TableLogits(IrreducibleTable(losses, kind="logits")), group_of_target=groups)


@pytest.mark.parametrize("group_of_target", [None, torch.tensor([1, 0, 1, 1, 0])])
@pytest.mark.parametrize("size", [40, 2**14 + 3])
def test_tabulated_losses_equal_those_from_logits_bit_for_bit(size, group_of_target):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(size, 5, generator=generator) * 4
    targets = torch.randint(5, (size,), generator=generator)
    source = TableLogits(IrreducibleTable(logits.numpy(), kind="logits"))
    for losses in (
        AdjustedIrreducibleLoss(source, group_of_target=group_of_target),
        PlainIrreducibleLoss(source),
    ):
        tabulated = losses.tabulate(targets)
        for _ in range(20):
            index = torch.randint(size, (33,), generator=generator)
            batch = Batch(index, None, targets[index], targets[index])
            assert torch.equal(tabulated.lookup(batch), losses.lookup(batch))


def test_tabulated_losses_of_a_joint_model():
    logits = torch.randn(6, 3, 2, generator=torch.Generator().manual_seed(0))
    targets = torch.tensor([0, 1, 2, 2, 1, 0])
    losses = AdjustedIrreducibleLoss(TableLogits(IrreducibleTable(logits.numpy(), kind="joint_logits")))
    batch = Batch(torch.tensor([4, 0]), None, targets[[4, 0]], targets[[4, 0]])
    assert torch.equal(losses.tabulate(targets).lookup(batch), losses.lookup(batch))


def test_tabulate_refuses_other_sources_and_other_lengths(losses):
    source = TableLogits(IrreducibleTable(losses, kind="logits"))
    with pytest.raises(ValueError, match=r"one target per row; got a table of 4 rows and targets of shape \(3,\)"):
        AdjustedIrreducibleLoss(source).tabulate(torch.tensor([0, 1, 2]))
    live = PlainIrreducibleLoss(LiveLogits(torch.nn.Linear(2, 3)))
    with pytest.raises(ValueError, match=r"tabulate\(\) needs TableLogits .*; got LiveLogits and"):
        live.tabulate(torch.tensor([0]))


def test_lazy_losses_equal_those_of_the_whole_batch_bit_for_bit():
    generator = torch.Generator().manual_seed(0)
    size, num_groups = 3000, 200
    logits = torch.randn(size, num_groups, generator=generator) * 3
    targets = torch.randint(num_groups, (size,), generator=generator)
    model_loss = torch.rand(size, generator=generator) * 5
    model_loss[7] = torch.nan
    lazy = AdjustedGroupLoss(logits, targets)
    whole = lazy.rows(slice(None))
    assert lazy.shape == whole.shape
    assert lazy.dtype == whole.dtype
    selections = []
    for table in (whole, lazy):
        selector = make_selector("reducr", num_groups=num_groups, step_size=0.1)
        selector.set_group_holdout_loss(torch.ones(num_groups))
        candidates = Candidates(model_loss=model_loss, group_irreducible_loss=table)
        assert candidates.chunk_size < size  # so the selector works in chunks
        selection = selector.select(candidates, num_selected=1500)
        with pytest.warns(RuntimeWarning, match="1 of 3000 candidates have a NaN or infinite loss"):
            selector.update(selection)
        selections.append((selection.positions, selection.scores, selection.payoff, selector.group_weights))
        assert selection.num_non_finite == 1
    for from_whole, from_lazy in zip(*selections, strict=True):
        assert torch.equal(from_whole, from_lazy)
    excess = (model_loss.unsqueeze(1) - whole).clamp(min=0)
    weights = torch.full((num_groups,), 1 / num_groups)
    expected = (excess @ weights).masked_fill(torch.isnan(model_loss), -torch.inf)
    torch.testing.assert_close(selections[0][1], expected, rtol=1e-5, atol=1e-5)
    payoff = excess[selections[0][0]].double().sum(0) - 1500
    torch.testing.assert_close(selections[0][2], payoff, rtol=1e-6, atol=1e-3)


@pytest.mark.parametrize("targets", [torch.tensor(1.0), torch.tensor(1), torch.tensor([[0], [1]]), torch.arange(3)])
def test_targets_that_do_not_fit_the_logits_are_refused_before_any_row_is_read(targets):
    shape = re.escape(str(tuple(targets.shape)))
    with pytest.raises(ValueError, match=f"one integer for each of the 2 examples; got {targets.dtype} {shape}"):
        AdjustedGroupLoss(torch.zeros(2, 3), targets)
