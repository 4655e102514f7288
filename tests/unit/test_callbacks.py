"""The files of a fit: the recorder's file, the checkpoints and the metrics; the moving average of the holdout loss."""

import csv
from functools import partial

import numpy as np
import pytest
import torch

import reducr
from reducr.data import ExampleDataset, ExampleLoader
from reducr.downsampler import Downsampler
from reducr.lightning import CSVMetrics, RunProgress, SelectionRecorder, TargetModule, fit_target, model_state
from reducr.metrics import ClassificationReport, summary
from reducr.scoring import Holdout
from selecting import update_holdout_loss

NUM_STEPS = 9


class InterruptedTrainingError(Exception):
    """Stands for any error that ends training."""


@pytest.fixture
def examples():
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3  # every mini-batch has every group
    inputs = torch.randn(60, 5, generator=generator) + targets.unsqueeze(1)
    return ExampleDataset(inputs, targets, num_classes=3, is_corrupted=torch.arange(60) % 4 == 0)


def fit(examples, folder, *, num_steps=NUM_STEPS, stop=None, trainer_options=None, decay=None):
    torch.random.manual_seed(0)
    model = torch.nn.Linear(5, 3)
    selector = reducr.make_selector("reducr", num_groups=3, use_irreducible=False, step_size=0.01)
    holdout = Holdout(ExampleLoader(examples, batch_size=25), decay=decay)
    downsampler = Downsampler(selector, fraction=0.25, holdout=holdout)
    module = TargetModule(model, downsampler, optimizer=partial(torch.optim.SGD, lr=0.1), num_classes=3)
    recorder = SelectionRecorder(folder / "selected.npz", num_examples=60, is_corrupted=examples.is_corrupted)
    reports = []

    def advance(step, worst_accuracy):
        reports.append((step, worst_accuracy))
        if step == stop:
            raise InterruptedTrainingError

    fit_target(
        module,
        ExampleLoader(examples, batch_size=20, shuffle=True, drop_last=True),
        num_steps=num_steps,
        refresh_steps=2,
        folder=folder / "checkpoints",
        callbacks=[recorder, RunProgress(advance)],
        loggers=[CSVMetrics(save_dir=folder, name="", version="csv", flush_logs_every_n_steps=4)],
        trainer_options={"accelerator": "cpu"} | (trainer_options or {}),
    )
    return module, recorder, reports


def lines_of(folder):
    """Rows of the CSV file as dicts, without seconds and empty cells."""
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [
            {name: cell for name, cell in line.items() if cell and "seconds" not in name}
            for line in csv.DictReader(file)
        ]


def test_files_and_progress_of_a_fit(examples, tmp_path):
    module, recorder, reports = fit(examples, tmp_path)
    with np.load(tmp_path / "selected.npz") as selected:
        assert selected["index"].shape == (NUM_STEPS, 5)
        assert selected["num_times_selected"].sum() == NUM_STEPS * 5
        share = examples.is_corrupted.numpy()[selected["index"]].mean()
    assert recorder.corrupted_fraction == pytest.approx(share)
    assert [step for step, _ in reports] == list(range(1, NUM_STEPS + 1))
    assert reports[0][1] is None
    assert 0 <= reports[-1][1] <= 1
    last = model_state(tmp_path / "checkpoints" / "last.ckpt")
    for name, value in module.model.state_dict().items():
        assert torch.equal(last[name], value), name
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    assert checkpoint["global_step"] == NUM_STEPS
    assert int(checkpoint["state_dict"]["selector.step"]) == NUM_STEPS
    weighting = checkpoint["state_dict"]["selector.weighting.cumulative_payoff"]
    assert torch.equal(weighting, module.selector.cumulative_payoff)
    assert bool((weighting != 0).all())


def test_the_best_checkpoints_come_from_the_first_validation_with_the_highest_accuracy(examples, tmp_path):
    fit(examples, tmp_path, num_steps=30)
    validations = [line for line in lines_of(tmp_path) if "holdout/mean_accuracy" in line]
    assert [int(line["step"]) for line in validations] == list(range(2, 31, 2))
    for rule, metric in (("best_worst_group", "worst_group_accuracy"), ("best_mean", "mean_accuracy")):
        accuracies = [float(line[f"holdout/{metric}"]) for line in validations]
        assert len(set(accuracies)) > 3
        best = torch.load(tmp_path / "checkpoints" / f"{rule}.ckpt", weights_only=True)
        assert best["global_step"] == 2 * (1 + accuracies.index(max(accuracies)))
        logits = examples.input @ best["state_dict"]["model.weight"].T + best["state_dict"]["model.bias"]
        report = ClassificationReport(num_classes=3, num_groups=3)
        report.update(logits, examples.target, examples.group)
        assert summary(report.compute())[metric] == pytest.approx(max(accuracies))
        assert "optimizer_states" not in best


def test_the_file_of_a_training_that_stops_with_an_error(examples, tmp_path):
    _, whole, _ = fit(examples, tmp_path / "whole")
    with pytest.raises(InterruptedTrainingError):
        fit(examples, tmp_path / "stopped", stop=5)
    with np.load(tmp_path / "stopped" / "selected.npz") as selected:
        assert np.array_equal(selected["index"], torch.stack(whole.index_by_step[:5]).numpy())
        assert np.array_equal(selected["num_times_selected"], np.bincount(selected["index"].flatten(), minlength=60))


def test_scores_are_summed_by_example(examples, tmp_path, monkeypatch):
    """Independent of when they leave the device; non-finite scores are left out."""
    times, sums, record = np.zeros(60, dtype=int), np.zeros(60), SelectionRecorder.on_train_batch_end

    def record_twice(self, trainer, pl_module, *rest):
        batch = rest[1]
        pl_module.selection.scores[3] = torch.nan if trainer.global_step % 2 else -torch.inf
        for index, score in zip(batch[0].tolist(), pl_module.selection.scores.tolist(), strict=True):
            if np.isfinite(score):
                times[index] += 1
                sums[index] += score
        record(self, trainer, pl_module, *rest)

    monkeypatch.setattr(SelectionRecorder, "on_train_batch_end", record_twice)
    fit(examples, tmp_path)
    with np.load(tmp_path / "selected.npz") as selected:
        assert np.array_equal(selected["num_times_scored"], times)
        assert np.array_equal(selected["score_sum"], sums)
        assert times.sum() == NUM_STEPS * 19


@pytest.mark.parametrize("every", [3, 7, 0])
def test_log_every_n_steps_selects_the_logged_steps(examples, tmp_path, every):
    """The lines equal those of a run that logs every step, also if an epoch has fewer steps (3) than the interval."""
    whole, _, _ = fit(examples, tmp_path / "whole", trainer_options={"log_every_n_steps": 1})
    module, _, _ = fit(examples, tmp_path / "some", trainer_options={"log_every_n_steps": every})
    expected = [
        line
        for line in lines_of(tmp_path / "whole")
        if "train/loss" not in line or (every and int(line["step"]) % every == 0)
    ]
    assert lines_of(tmp_path / "some") == expected
    assert sum("train/loss" in line for line in expected) == (NUM_STEPS // every if every else 0)
    assert sum("holdout/mean_accuracy" in line for line in expected) == NUM_STEPS // 2
    for counts in (module.downsampler.counts, whole.downsampler.counts):
        assert (counts["num_candidates"], counts["num_selected"]) == (NUM_STEPS * 20, NUM_STEPS * 5)


def test_lines_are_flushed_by_step_if_some_steps_log_nothing(tmp_path):
    logger = CSVMetrics(save_dir=tmp_path, name="", version="csv", flush_logs_every_n_steps=100)
    for step in range(30, 331, 30):
        logger.log_metrics({"loss": step / 10}, step=step)
    assert [line["step"] for line in lines_of(tmp_path)] == [str(step) for step in range(30, 301, 30)]
    logger.finalize("success")
    assert lines_of(tmp_path)[-1] == {"step": "330", "loss": "33.0"}


def test_the_holdout_loss_as_a_moving_average(examples, tmp_path):
    """With a decay near 1 it stays near the first pass; with a decay near 0 it is the loss of the last mini-batch."""
    refreshed, _, _ = fit(examples, tmp_path / "refreshed")
    slow, _, _ = fit(examples, tmp_path / "slow", decay=0.999999)
    fast, _, _ = fit(examples, tmp_path / "fast", decay=1e-9)
    first = reducr.make_selector("reducr", num_groups=3)
    torch.random.manual_seed(0)
    from reducr.scoring import GroupHoldoutLoss

    model = torch.nn.Linear(5, 3)
    update_holdout_loss(model, ExampleLoader(examples, batch_size=60), first, GroupHoldoutLoss(3))
    losses = {name: m.selector.group_holdout_loss for name, m in (("slow", slow), ("fast", fast))}
    # nine mini-batches weigh as much as the first pass, which is rescaled to one mini-batch
    assert bool((losses["slow"] < first.group_holdout_loss).any())
    batch = list(ExampleLoader(examples, batch_size=25))[(NUM_STEPS - 1) % 3]
    last = reducr.make_selector("reducr", num_groups=3)
    update_holdout_loss(fast.model, [batch], last, GroupHoldoutLoss(3))
    torch.testing.assert_close(losses["fast"], last.group_holdout_loss, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(losses["slow"], refreshed.selector.group_holdout_loss, rtol=1e-6)


@pytest.mark.parametrize("decay", [0.0, 1.0, -0.5])
def test_a_decay_out_of_range_is_refused(examples, tmp_path, decay):
    with pytest.raises(ValueError, match=r"decay of the holdout loss must be in \(0, 1\)"):
        fit(examples, tmp_path, decay=decay)
