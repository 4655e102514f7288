import re

import pytest
import torch

import reducr
from reducr.functional import per_example_cross_entropy
from reducr.scoring import GroupHoldoutLoss, Holdout, HoldoutTracker


def minibatches(num_batches, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(num_batches):
        yield (
            torch.rand(6, generator=generator, dtype=torch.float64),
            torch.randint(0, 3, (6,), generator=generator),
        )


def slow_decayed_means(batches, decay, num_groups):
    """Every loss weighs decay^(updates since); debiased by the sum of the weights."""
    means = []
    for c in range(num_groups):
        total, weight = 0.0, 0.0
        for age, (loss, groups) in enumerate(reversed(batches)):
            for value, group in zip(loss.tolist(), groups.tolist(), strict=True):
                if group == c:
                    total += decay**age * value
                    weight += decay**age
        means.append(total / weight)
    return means


@pytest.mark.parametrize("decay", [0.5, 0.9, 0.99, 1.0])
def test_decayed_average_against_a_slow_one(decay):
    holdout = GroupHoldoutLoss(3, decay=decay)
    batches = list(minibatches(12))
    for loss, groups in batches:
        holdout.update(loss, groups)
    assert holdout.compute().tolist() == pytest.approx(slow_decayed_means(batches, decay, 3), abs=1e-12)


def test_one_pass_is_the_plain_mean_in_float64_of_half_precision_losses():
    holdout = GroupHoldoutLoss(2)
    holdout.update(torch.tensor([1.0, 2.0], dtype=torch.float16), torch.tensor([0, 1], dtype=torch.int32))
    holdout.update(torch.tensor([2.0, 4.0], dtype=torch.float16), torch.tensor([0, 0], dtype=torch.int32))
    assert holdout.compute().tolist() == pytest.approx([7 / 3, 2.0], abs=1e-15)
    assert holdout.compute().dtype == torch.float64


def test_reset_forgets_everything():
    holdout = GroupHoldoutLoss(1)
    holdout.update(torch.tensor([float("nan")]), torch.tensor([0]))
    holdout.reset()
    holdout.update(torch.tensor([3.0]), torch.tensor([0]))
    assert holdout.compute().tolist() == [3.0]


def test_a_group_absent_from_a_minibatch_keeps_its_mean():
    holdout = GroupHoldoutLoss(2, decay=0.9)
    holdout.update(torch.tensor([1.0, 5.0]), torch.tensor([0, 1]))
    for _ in range(20):
        holdout.update(torch.tensor([2.0]), torch.tensor([0]))
    assert float(holdout.compute()[1]) == pytest.approx(5.0, abs=1e-12)


def test_a_group_absent_for_very_long_keeps_its_mean():
    """0.5^2000 is below the smallest float64."""
    holdout = GroupHoldoutLoss(2, decay=0.5)
    holdout.update(torch.tensor([1.0, 5.0]), torch.tensor([0, 1]))
    loss, groups = torch.tensor([2.0]), torch.tensor([0])
    for _ in range(2000):
        holdout.update(loss, groups)
    assert holdout.compute().tolist() == pytest.approx([2.0, 5.0], abs=1e-6)


def test_rescale_keeps_the_means_and_sets_the_weight_of_the_past():
    holdout = GroupHoldoutLoss(2, decay=0.5)
    holdout.update(torch.tensor([1.0, 2.0, 6.0]), torch.tensor([0, 0, 1]))
    before = holdout.compute()
    holdout.rescale(6)
    torch.testing.assert_close(holdout.compute(), before, rtol=0, atol=1e-15)
    assert holdout.counts.tolist() == pytest.approx([4.0, 2.0])
    holdout.update(torch.tensor([3.0, 4.0]), torch.tensor([0, 1]))
    assert holdout.compute().tolist() == pytest.approx([(2 * 1.5 + 3) / 3, (1 * 6 + 4) / 2])


def test_groups_without_points_are_named():
    holdout = GroupHoldoutLoss(4)
    holdout.update(torch.tensor([1.0, 2.0]), torch.tensor([0, 2]))
    with pytest.raises(ValueError, match="at least one holdout example; group 1, 3 of 4 has none"):
        holdout.compute()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_group_whose_mean_is_not_finite_is_named(value):
    holdout = GroupHoldoutLoss(3)
    holdout.update(torch.tensor([1.0, value, 2.0]), torch.tensor([0, 1, 2]))
    with pytest.raises(ValueError, match="The holdout loss of group 1 is not finite"):
        holdout.compute()


@pytest.mark.parametrize("decay", [0.0, -0.1, 1.1, float("nan")])
def test_decay_is_above_zero_and_at_most_one(decay):
    with pytest.raises(ValueError, match=rf"`decay` must be in \(0, 1\]; got {decay}"):
        GroupHoldoutLoss(2, decay=decay)


def test_losses_carry_no_gradient_into_the_state():
    holdout = GroupHoldoutLoss(1)
    holdout.update(torch.tensor([1.0], requires_grad=True), torch.tensor([0]))
    assert not holdout.sums.requires_grad
    assert not holdout.compute().requires_grad


def test_the_state_survives_saving():
    holdout, fresh = GroupHoldoutLoss(3, decay=0.9), GroupHoldoutLoss(3, decay=0.9)
    batches = list(minibatches(8))
    for loss, groups in batches[:4]:
        holdout.update(loss, groups)
    fresh.load_state_dict(holdout.state_dict())
    for loss, groups in batches[4:]:
        holdout.update(loss, groups)
        fresh.update(loss, groups)
    assert fresh.compute().tolist() == holdout.compute().tolist()


@pytest.mark.parametrize(
    ("loss", "groups", "message"),
    [
        (torch.zeros(2), torch.tensor([0, 3]), "holdout groups must be in 0..2; position 1 holds 3 (1 such in all)."),
        (torch.zeros(2), torch.tensor([0, -1]), "holdout groups must be in 0..2; position 1 holds -1"),
        (torch.zeros(2), torch.tensor([0]), "group per example; got losses (2,) and groups (1,) of torch.int64."),
        (torch.zeros(2), torch.zeros(2), "group per example; got losses (2,) and groups (2,) of torch.float32."),
        (
            torch.zeros(2, 1),
            torch.tensor([0, 1]),
            "group per example; got losses (2, 1) and groups (2,) of torch.int64.",
        ),
        (torch.tensor(0.0), torch.tensor(0), "group per example; got losses () and groups () of torch.int64."),
    ],
)
def test_a_batch_that_is_not_one_loss_and_group_a_point_is_refused_and_not_counted(loss, groups, message):
    holdout = GroupHoldoutLoss(3, decay=0.5)
    holdout.update(torch.ones(3), torch.arange(3))
    with pytest.raises(ValueError, match=re.escape(message)):
        holdout.update(loss, groups)
    assert holdout.counts.tolist() == [1.0, 1.0, 1.0]


def test_groups_of_narrow_integers_are_groups():
    holdout = GroupHoldoutLoss(3)
    for dtype in (torch.int32, torch.uint8, torch.bool):
        holdout.update(torch.tensor([1.0, 3.0]), torch.tensor([0, 1]).to(dtype))
    assert holdout.sums.tolist() == [3.0, 9.0, 0.0]


def test_a_moving_average_starts_with_the_weight_of_one_batch():
    """A pass over three batches would otherwise outweigh the batches of the first steps threefold."""
    torch.manual_seed(0)
    model, selector = torch.nn.Linear(4, 2), reducr.make_selector("reducr", num_groups=2)
    inputs, targets = torch.randn(30, 4), torch.arange(30) % 2
    batches = list(zip(inputs.split(10), targets.split(10), strict=True))
    tracker = HoldoutTracker(Holdout(batches, decay=0.5), selector)
    tracker.begin(model, num_steps=0)
    before = per_example_cross_entropy(model(inputs), targets).double()
    whole = torch.stack([before[targets == group].mean() for group in range(2)])
    torch.testing.assert_close(selector.group_holdout_loss, whole, rtol=0, atol=1e-6)
    assert float(tracker.moving_loss.counts.sum()) == pytest.approx(10)
    with torch.no_grad():
        model.weight.mul_(3)
    tracker.step(model, num_steps=1, is_last=False)
    after = per_example_cross_entropy(model(inputs[:10]), targets[:10]).double()
    first = torch.stack([after[targets[:10] == group].mean() for group in range(2)])
    torch.testing.assert_close(selector.group_holdout_loss, (whole + 2 * first) / 3, rtol=0, atol=1e-6)
