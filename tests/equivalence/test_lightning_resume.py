"""A training of either stage that is broken off goes on bit for bit: parameters, points, metrics, checkpoints."""

import csv
from functools import partial

import pytest
import torch

import reducr
from reducr.data import ExampleLoader
from reducr.data.published.digits import Digits
from reducr.downsampler import Downsampler
from reducr.irreducible import AdjustedIrreducibleLoss, IrreducibleObjective, IrreducibleTable, TableLogits
from reducr.irreducible.ensemble import Ensemble
from reducr.lightning import (
    CSVMetrics,
    IrreducibleModule,
    RunProgress,
    SelectionRecorder,
    TargetModule,
    fit_irreducible,
    fit_target,
)
from reducr.models import MLP
from reducr.scoring import Holdout

NUM_STEPS = 30  # of 8 an epoch


class BrokenOffError(Exception):
    """In place of a killed process, which tests/end_to_end has."""


@pytest.fixture(scope="module")
def digits():
    return Digits(holdout_size=100, test_size=500, label_noise={"train": 0.3}, imbalance={"train": 10.0}).splits(seed=0)


def stopping_at(stop):
    def advance(step, worst_group_accuracy):
        if step == stop:
            raise BrokenOffError

    return advance


def train(digits, folder, *, refresh_steps, holdout_decay, rule="reducr", stop=None):
    torch.random.manual_seed(3)
    model = MLP(num_features=64, num_classes=10, hidden_sizes=[32], dropout=0.3)
    logits = torch.randn(len(digits.train), 10, generator=torch.Generator().manual_seed(1))
    downsampler = Downsampler(
        reducr.make_selector(rule, num_groups=10, sampler="softmax", **{"step_size": 0.05} if rule == "reducr" else {}),
        AdjustedIrreducibleLoss(TableLogits(IrreducibleTable(logits.numpy(), kind="logits"))),
        fraction=0.2,
        holdout=Holdout(ExampleLoader(digits.holdout, batch_size=40), decay=holdout_decay),
        seed=3,
    )
    module = TargetModule(model, downsampler, optimizer=partial(torch.optim.AdamW, lr=1e-2), num_classes=10)
    recorder = SelectionRecorder(
        folder / "selected.npz", num_examples=len(digits.train), is_corrupted=digits.train.is_corrupted
    )
    steps = fit_target(
        module,
        ExampleLoader(digits.train, batch_size=60, shuffle=True, drop_last=True, seed=3),
        num_steps=NUM_STEPS,
        refresh_steps=refresh_steps,
        folder=folder,
        callbacks=[recorder, RunProgress(stopping_at(stop))],
        loggers=[CSVMetrics(save_dir=folder, name="", version="csv", flush_logs_every_n_steps=5)],
        trainer_options={"accelerator": "cpu"},
        resume_seconds=0,
    )
    assert steps == NUM_STEPS
    return module, recorder


def metrics_of(folder):
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if "seconds" not in name} for row in csv.DictReader(file)]


def same_state(first, second):
    return all(torch.equal(one, two) for one, two in zip(first.values(), second.values(), strict=True))


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        ({"refresh_steps": 3, "holdout_decay": None}, [2, 8, 25]),
        ({"refresh_steps": 8, "holdout_decay": None}, [12, 17, 29]),
        ({"refresh_steps": 4, "holdout_decay": 0.9}, [9, 16]),
        ({"refresh_steps": 3, "holdout_decay": None, "rule": "rs2"}, [8]),
    ],
)
def test_target_training(digits, tmp_path, options, stops):
    """Broken off in the middle and at the ends of epochs, several times, with dropout and a sampler that draws."""
    whole, whole_recorder = train(digits, tmp_path / "whole", **options)
    for stop in stops:
        with pytest.raises(BrokenOffError):
            train(digits, tmp_path / "parts", stop=stop, **options)
        has_resume = any((tmp_path / "parts" / "resume").glob("*.ckpt"))
        assert has_resume == (stop > options["refresh_steps"])
    module, recorder = train(digits, tmp_path / "parts", **options)
    assert same_state(whole.state_dict(), module.state_dict())
    assert torch.equal(torch.stack(whole_recorder.index_by_step), torch.stack(recorder.index_by_step))
    for name in ("num_times_selected", "num_times_scored", "score_sum"):
        assert torch.equal(getattr(whole_recorder, name), getattr(recorder, name)), name
    assert whole_recorder.corrupted_fraction == recorder.corrupted_fraction
    rows = metrics_of(tmp_path / "parts")
    assert rows == metrics_of(tmp_path / "whole")
    assert [int(row["step"]) for row in rows if row["train/loss"]] == list(range(1, NUM_STEPS + 1))
    for rule in ("last", "best_worst_group", "best_mean"):
        states = [
            torch.load(tmp_path / run / f"{rule}.ckpt", weights_only=True)["state_dict"] for run in ("whole", "parts")
        ]
        assert same_state(*states), rule
    assert module.earlier_seconds > whole.earlier_seconds == 0
    counts = module.downsampler.counts
    assert (counts["num_candidates"], counts["num_selected"]) == (NUM_STEPS * 60, NUM_STEPS * 12)


def test_the_best_checkpoints_are_those_of_their_metrics(digits, tmp_path):
    """Each from the first validation with the highest value of its own metric."""
    train(digits, tmp_path, refresh_steps=1, holdout_decay=None)
    rows = [row for row in metrics_of(tmp_path) if row["holdout/mean_accuracy"]]
    assert len(rows) == NUM_STEPS
    best_steps = {}
    for rule, metric in (("best_worst_group", "worst_group_accuracy"), ("best_mean", "mean_accuracy")):
        best = max(rows, key=lambda row: float(row[f"holdout/{metric}"]))
        best_steps[rule] = int(best["step"])
        checkpoint = torch.load(tmp_path / f"{rule}.ckpt", weights_only=True)
        assert checkpoint["global_step"] == best_steps[rule], rule
    assert best_steps["best_worst_group"] != best_steps["best_mean"]


def test_the_reference_model_is_that_of_the_epoch_with_the_lowest_loss_on_the_training_part(digits, tmp_path):
    batch = digits.train.batch(torch.arange(len(digits.train)))

    def fit(num_epochs, *, keeps_lowest_loss):
        torch.random.manual_seed(3)
        module = IrreducibleModule(
            MLP(num_features=64, num_classes=10, hidden_sizes=[16]),
            objective=IrreducibleObjective(lambda batch: batch.target),
            optimizer=partial(torch.optim.AdamW, lr=0.1),
        )
        fit_irreducible(
            module,
            ExampleLoader(digits.holdout, batch_size=20, shuffle=True, seed=5),
            training_part=ExampleLoader(digits.train, batch_size=200),
            num_epochs=num_epochs,
            keeps_lowest_loss=keeps_lowest_loss,
            checkpoint=tmp_path / f"{num_epochs}_{keeps_lowest_loss}" / "model.ckpt",
            trainer_options={"accelerator": "cpu"},
        )
        with torch.no_grad():
            loss = torch.nn.functional.cross_entropy(module.model.eval()(batch.input), batch.target)
        return module.state_dict(), float(loss)

    by_epoch = [fit(num_epochs, keeps_lowest_loss=False) for num_epochs in range(1, 7)]
    losses = [loss for _, loss in by_epoch]
    lowest = losses.index(min(losses))
    assert lowest < 5
    kept, _ = fit(6, keeps_lowest_loss=True)
    assert same_state(kept, by_epoch[lowest][0])


@pytest.mark.parametrize("keeps_lowest_loss", [True, False])
@pytest.mark.parametrize("kind", ["plain", "ensemble"])
def test_irreducible_training(digits, tmp_path, kind, keeps_lowest_loss):
    """Broken off in two epochs; every member of an ensemble keeps its own best one."""

    def fit(folder, stop=None):
        torch.random.manual_seed(3)
        models = [MLP(num_features=64, num_classes=10, hidden_sizes=[16], dropout=0.3) for _ in range(3)]
        ensemble = Ensemble(models) if kind == "ensemble" else None
        objective = IrreducibleObjective(
            lambda batch: batch.target, weighted_groups=[0, 5, 9] if kind == "ensemble" else None
        )
        module = IrreducibleModule(
            models[0] if ensemble is None else ensemble,
            objective=objective,
            optimizer=partial(torch.optim.AdamW, lr=1e-2),
        )
        steps = fit_irreducible(
            module,
            ExampleLoader(digits.holdout, batch_size=30, shuffle=True, seed=5),
            training_part=ExampleLoader(digits.train, batch_size=200),
            num_epochs=6,
            keeps_lowest_loss=keeps_lowest_loss,
            checkpoint=folder / "model.ckpt",
            callbacks=[RunProgress(stopping_at(stop))],
            trainer_options={"accelerator": "cpu"},
            resume_seconds=0,
        )
        assert steps == 24
        return module

    whole = fit(tmp_path / "whole")
    for stop in (3, 14, 22):
        with pytest.raises(BrokenOffError):
            fit(tmp_path / "parts", stop=stop)
    assert same_state(whole.state_dict(), fit(tmp_path / "parts").state_dict())


def test_a_damaged_state_is_refused_and_the_one_before_used(digits, tmp_path):
    options = {"refresh_steps": 3, "holdout_decay": None}
    whole, _ = train(digits, tmp_path / "whole", **options)
    with pytest.raises(BrokenOffError):
        train(digits, tmp_path / "parts", stop=17, **options)
    newest, before = sorted((tmp_path / "parts" / "resume").glob("*.ckpt"), reverse=True)
    assert (newest.name[:14], before.name[:14]) == ("step_000000015", "step_000000012")
    newest.write_bytes(newest.read_bytes()[:-100])
    with pytest.warns(RuntimeWarning, match="is damaged .truncated or altered.: its checksum does not match its name"):
        module, _ = train(digits, tmp_path / "parts", **options)
    assert same_state(whole.state_dict(), module.state_dict())
