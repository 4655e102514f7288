import math
import re

import pytest
import torch

from reducr.functional import (
    adjusted_irreducible_loss,
    adjusted_joint_irreducible_loss,
    per_example_cross_entropy,
    zero_one_loss,
)
from reducr.functional.losses import selection_dtype


@pytest.mark.parametrize(
    ("dtype", "expected"),
    [
        (torch.float16, torch.float32),
        (torch.bfloat16, torch.float32),
        (torch.float32, torch.float32),
        (torch.float64, torch.float64),
    ],
)
def test_selection_runs_in_float32_or_better(dtype, expected):
    logits = torch.zeros(2, 4, dtype=dtype)
    assert selection_dtype(logits) == expected
    loss = per_example_cross_entropy(logits, torch.tensor([0, 3]))
    assert loss.dtype == expected
    assert loss.tolist() == pytest.approx([math.log(4)] * 2, abs=1e-7)
    assert adjusted_irreducible_loss(logits, torch.tensor([0, 3]), gradient_weight=2.0).dtype == expected


def test_per_example_cross_entropy_keeps_gradients():
    logits = torch.zeros(1, 2, requires_grad=True)
    per_example_cross_entropy(logits, torch.tensor([0])).sum().backward()
    assert logits.grad.tolist() == [[-0.5, 0.5]]


def test_per_example_cross_entropy_of_large_logits_is_exact():
    logits = torch.tensor([[1e4, 0.0], [0.0, 1e4]])
    assert per_example_cross_entropy(logits, torch.tensor([0, 0])).tolist() == [0.0, 1e4]


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64])
def test_zero_one_loss_by_hand(dtype):
    """The first of equal logits is the prediction; non-finite logits give NaN."""
    rows = [[0.1, 0.9, 0.0], [0.5, 0.5, 0.5], [0.5, 0.5, 0.5], [0.0, math.inf, 0.0], [math.nan, 0.0, 1.0]]
    losses = zero_one_loss(torch.tensor(rows, dtype=dtype), torch.tensor([1, 0, 2, 1, 2]))
    assert losses.dtype == selection_dtype(torch.zeros(1, dtype=dtype))
    assert losses[:3].tolist() == [0.0, 0.0, 1.0]
    assert bool(losses[3:].isnan().all())
    with pytest.raises(ValueError, match=r"one integer for each of the 2 examples; got torch.int64 \(3,\)"):
        zero_one_loss(torch.zeros(2, 2), torch.zeros(3, dtype=torch.int64))


def test_adjusted_loss_by_hand():
    """p = (1/2, 1/2), g = 3: q_0 = (3/4, 1/4), q_1 = (1/4, 3/4)."""
    losses = adjusted_irreducible_loss(
        torch.zeros(2, 2, dtype=torch.float64), torch.tensor([0, 1]), gradient_weight=3.0
    )
    assert losses[0].tolist() == pytest.approx([math.log(4 / 3), math.log(4)], abs=1e-15)
    assert losses[1].tolist() == pytest.approx([math.log(4), math.log(4 / 3)], abs=1e-15)


def test_adjusted_loss_of_groups_by_hand():
    """Three equal classes, groups (0, 0, 1), g = 2: q_0 = (2, 2, 1) / 5, q_1 = (1, 1, 2) / 4."""
    losses = adjusted_irreducible_loss(
        torch.zeros(3, 3, dtype=torch.float64),
        torch.tensor([0, 1, 2]),
        gradient_weight=2.0,
        group_of_target=torch.tensor([0, 0, 1]),
    )
    expected = [[5 / 2, 4.0], [5 / 2, 4.0], [5.0, 2.0]]
    assert losses.exp().tolist() == [pytest.approx(row, abs=1e-14) for row in expected]


def test_adjusted_joint_loss_by_hand():
    """JointLabels p = [[3/8, 1/8], [1/8, 3/8]], g = 2: group 0 doubles column 0."""
    joint = torch.tensor([[[3.0, 1.0], [1.0, 3.0]]], dtype=torch.float64).log()
    losses = adjusted_joint_irreducible_loss(joint, torch.tensor([0]), gradient_weight=2.0)
    assert losses.exp().tolist() == [pytest.approx([12 / 7, 12 / 5], abs=1e-14)]


def test_adjusted_loss_leaves_its_inputs_unchanged():
    logits, targets = (
        torch.randn(4, 3, generator=torch.Generator().manual_seed(0)),
        torch.tensor([0, 1, 2, 0]),
    )
    before = logits.clone()
    adjusted_irreducible_loss(logits, targets, gradient_weight=10.0)
    assert torch.equal(logits, before)
    assert targets.tolist() == [0, 1, 2, 0]


def test_adjusted_loss_in_float32_is_close_to_float64():
    logits = torch.randn(200, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 10
    targets = torch.arange(200) % 10
    torch.testing.assert_close(
        adjusted_irreducible_loss(logits.float(), targets, gradient_weight=10.0).double(),
        adjusted_irreducible_loss(logits, targets, gradient_weight=10.0),
        rtol=0,
        atol=2e-5,
    )


@pytest.mark.parametrize("gradient_weight", [0.5, 0.0, -1.0, float("nan"), float("inf")])
def test_gradient_weight_is_finite_and_at_least_one(gradient_weight):
    message = f"gradient_weight must be a finite number of at least 1 .*; got {gradient_weight}"
    with pytest.raises(ValueError, match=message):
        adjusted_irreducible_loss(torch.zeros(1, 2), torch.tensor([0]), gradient_weight=gradient_weight)
    with pytest.raises(ValueError, match=message):
        adjusted_joint_irreducible_loss(torch.zeros(1, 2, 2), torch.tensor([0]), gradient_weight=gradient_weight)


@pytest.mark.parametrize("target", [3, -1, -100])
def test_a_target_out_of_range_is_named(target):
    """Also -100, for which torch's cross-entropy returns a loss of zero."""
    logits, targets = torch.zeros(2, 3), torch.tensor([0, target])
    message = f"targets must be in 0..2; position 1 holds {target} (1 such in all)."
    for losses in (
        lambda: per_example_cross_entropy(logits, targets),
        lambda: adjusted_irreducible_loss(logits, targets, gradient_weight=2.0),
        lambda: adjusted_irreducible_loss(
            logits, targets, gradient_weight=2.0, group_of_target=torch.tensor([0, 1, 1])
        ),
        lambda: adjusted_joint_irreducible_loss(torch.zeros(2, 3, 2), targets, gradient_weight=2.0),
    ):
        with pytest.raises(ValueError, match=re.escape(message)):
            losses()


@pytest.mark.parametrize("targets", [torch.zeros(2), torch.zeros(3).long(), torch.zeros(2, 1).long(), torch.tensor(0)])
def test_targets_are_one_integer_for_each_example(targets):
    message = f"targets must be one integer for each of the 2 examples; got {targets.dtype} {tuple(targets.shape)}."
    with pytest.raises(ValueError, match=re.escape(message)):
        per_example_cross_entropy(torch.zeros(2, 3), targets)
    with pytest.raises(ValueError, match=re.escape(message)):
        adjusted_joint_irreducible_loss(torch.zeros(2, 3, 2), targets, gradient_weight=2.0)


def test_the_group_of_every_class_is_needed():
    message = "group_of_target must hold the group of each of the 3 classes that the logits have; got shape (2,)."
    with pytest.raises(ValueError, match=re.escape(message)):
        adjusted_irreducible_loss(
            torch.zeros(1, 3), torch.tensor([0]), gradient_weight=2.0, group_of_target=torch.tensor([0, 1])
        )
