"""What a fit leaves: the recorder's file, the checkpoints, and the moving average of the holdout loss."""

from functools import partial

import numpy as np
import pytest
import torch

import reducr
from reducr.data import PointDataset, PointLoader
from reducr.integrations.lightning import SelectionRecorder, TargetModule, fit_target, model_state

NUM_STEPS = 9


@pytest.fixture
def points():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3  # so that every mini-batch has every group
    inputs = torch.randn(60, 5, generator=generator) + targets.unsqueeze(1)
    return PointDataset(inputs, targets, num_classes=3, is_corrupted=torch.arange(60) % 4 == 0)


def fitted(points, folder, **options):
    torch.random.manual_seed(0)
    module = TargetModule(
        torch.nn.Linear(5, 3),
        reducr.make_selector("reducr", num_groups=3, use_irreducible=False, step_size=0.01),
        None,
        optimizer=partial(torch.optim.SGD, lr=0.1),
        holdout=PointLoader(points, batch_size=25),
        num_classes=3,
        fraction=0.25,
        **options,
    )
    recorder = SelectionRecorder(folder / "selected.npz", num_points=60, is_corrupted=points.is_corrupted)
    seen = []
    fit_target(
        module,
        PointLoader(points, batch_size=20, shuffle=True, drop_last=True),
        num_steps=NUM_STEPS,
        refresh_steps=2,
        folder=folder / "checkpoints",
        recorder=recorder,
        loggers=[],
        advance=lambda step, worst: seen.append((step, worst)),
        trainer_options={"accelerator": "cpu"},
    )
    return module, recorder, seen


def test_files_and_progress_of_a_fit(points, tmp_path):
    module, recorder, seen = fitted(points, tmp_path)
    with np.load(tmp_path / "selected.npz") as selected:
        assert selected["index"].shape == (NUM_STEPS, 5)
        assert selected["num_times_selected"].sum() == NUM_STEPS * 5
        share = points.is_corrupted.numpy()[selected["index"]].mean()
    assert recorder.corrupted_fraction == pytest.approx(share)
    assert [step for step, _ in seen] == list(range(1, NUM_STEPS + 1))
    assert seen[0][1] is None
    assert 0 <= seen[-1][1] <= 1
    last = model_state(tmp_path / "checkpoints" / "last.ckpt")
    for name, value in module.model.state_dict().items():
        assert torch.equal(last[name], value), name
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == NUM_STEPS
    assert int(checkpoint["state_dict"]["selector.step"]) == NUM_STEPS
    weighting = checkpoint["state_dict"]["selector.weighting.cumulative_payoff"]
    assert torch.equal(weighting, module.selector.cumulative_payoff)
    assert bool((weighting != 0).all())


def test_the_holdout_loss_as_a_moving_average(points, tmp_path):
    """With a decay near 1 it stays near the first pass; with one near 0 it is that of the last mini-batch."""
    refreshed, _, _ = fitted(points, tmp_path / "refreshed")
    slow, _, _ = fitted(points, tmp_path / "slow", holdout_decay=0.999999)
    fast, _, _ = fitted(points, tmp_path / "fast", holdout_decay=1e-9)
    first = reducr.make_selector("reducr", num_groups=3)
    torch.random.manual_seed(0)
    from reducr.holdout import GroupHoldoutLoss
    from reducr.step import update_holdout_loss

    model = torch.nn.Linear(5, 3)
    update_holdout_loss(model, PointLoader(points, batch_size=60), first, GroupHoldoutLoss(3))
    losses = {name: m.selector.group_holdout_loss for name, m in (("slow", slow), ("fast", fast))}
    # nine later mini-batches count as much as the first pass, which is rescaled to one
    assert bool((losses["slow"] < first.group_holdout_loss).any())
    batch = list(PointLoader(points, batch_size=25))[(NUM_STEPS - 1) % 3]
    last = reducr.make_selector("reducr", num_groups=3)
    update_holdout_loss(fast.model, [batch], last, GroupHoldoutLoss(3))
    torch.testing.assert_close(losses["fast"], last.group_holdout_loss, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(losses["slow"], refreshed.selector.group_holdout_loss, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_decay_out_of_range_is_refused(points, tmp_path, decay):
    with pytest.raises(ValueError, match=r"holdout_decay must be in \(0, 1\)"):
        fitted(points, tmp_path, holdout_decay=decay)
