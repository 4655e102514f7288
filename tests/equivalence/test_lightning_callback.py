"""``SelectiveTraining`` gives anyone's LightningModule the training of the plain loop, also after a resume."""

import csv
import logging
import runpy
import subprocess
import sys
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import Checkpoint, GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, IterableDataset

import reducr
from lightning_modules import (
    ACCUMULATED,
    FRACTION,
    IN_SECOND_EPOCH,
    QUIET,
    SEED,
    Classifier,
    candidates_of,
    holdout_of,
    net,
    rule,
    run_ranks,
    splits,
    trained,
    trainings,
)
from reducr.batch import BatchSpec
from reducr.downsampler import Downsampler
from reducr.lightning import SelectiveTraining
from reducr.scoring import Holdout, Scoring
from reducr.training import loop
from selecting import under_autocast

NUM_STEPS, NUM_EPOCHS, REFRESH_STEPS = 30, 3, 7

pytestmark = [
    pytest.mark.filterwarnings(f"ignore:{text}")
    for text in (
        "The 'train_dataloader' does not have many workers",
        "The 'val_dataloader' does not have many workers",
        "The 'test_dataloader' does not have many workers",
        "The 'predict_dataloader' does not have many workers",
        "The number of training batches",
        "Checkpoint directory",
        "The dirpath has changed",
        "You are using the `dataloader_iter` step flavor",
        "Found `dataloader_iter` argument",
        "You defined a `validation_step` but have no `val_dataloader`",
    )
]


@pytest.fixture(scope="module")
def digits():
    return splits()


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


def fit(digits, name="reducr", *, loader=None, module=None, selection=(), rule_options=(), fit_options=(), **options):
    """A user's training with the callback; gives the module, the callback and the Trainer."""
    selector, irreducible = rule(digits, name, **dict(rule_options))
    settings = {"holdout": holdout_of(digits), "refresh_steps": REFRESH_STEPS, "seed": SEED} | dict(selection)
    callback = SelectiveTraining(selector, irreducible, FRACTION, **settings)
    callbacks = [*options.pop("callbacks_before", []), callback, *options.pop("callbacks", [])]
    options = {
        "max_epochs": NUM_EPOCHS,
        "enable_checkpointing": any(isinstance(c, Checkpoint) for c in callbacks),
    } | options
    trainer = pl.Trainer(**QUIET | options, callbacks=callbacks)
    module = Classifier(net()) if module is None else module
    torch.manual_seed(SEED)
    trainer.fit(module, candidates_of(digits) if loader is None else loader, **dict(fit_options))
    return module, callback, trainer


def user_loop(
    digits, *, loader=None, num_batches=8, accumulate_steps=lambda epoch: 1, autocast=None, dropout=0.3, **rule_options
):
    """The same training in a loop of one's own, with ``SelectiveLoader``."""
    model = net(dropout)
    selector, irreducible = rule(digits, "reducr", **rule_options)
    torch.manual_seed(SEED)
    loader = reducr.SelectiveLoader(
        candidates_of(digits) if loader is None else loader,
        model.train(),
        selector,
        irreducible,
        FRACTION,
        holdout=holdout_of(digits),
        refresh_steps=REFRESH_STEPS,
        seed=SEED,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    picked = []
    for epoch in range(NUM_EPOCHS):
        every = loader.accumulate_steps = accumulate_steps(epoch)
        for number, (index, inputs, target, _) in enumerate(under_autocast(loader, autocast), start=1):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast is not None):
                loss = nn.functional.cross_entropy(model(inputs), target)
            (loss / every).backward()
            picked.append(index)
            if number % every == 0 or number == num_batches:
                optimizer.step()
                optimizer.zero_grad()
    return model, loader.downsampler, picked


def plain_downsampler(digits, selector, irreducible):
    holdout = Holdout(holdout_of(digits), REFRESH_STEPS)
    return Downsampler(selector, irreducible, fraction=FRACTION, holdout=holdout, seed=SEED)


def assert_same(module, selector, model, other_selector):
    for (key, value), other in zip(module.net.state_dict().items(), model.state_dict().values(), strict=True):
        assert torch.equal(value, other), key
    for key, value in selector.state_dict().items():
        torch.testing.assert_close(value, other_selector.state_dict()[key], rtol=0, atol=0, equal_nan=True)


def assert_same_training(found, expected):
    """Of the callback, and of ``user_loop``."""
    module, callback, trainer = found
    model, downsampler, picked = expected
    assert same_points(module.picked, picked)
    assert_same(module, callback.downsampler.selector, model, downsampler.selector)
    counts = [(report.num_steps, report.group_counts) for report in (callback.report(), downsampler.report())]
    assert counts[0] == counts[1]
    assert callback.report().num_steps == trainer.global_step


def same_points(first, second):
    return len(first) == len(second) and all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


@pytest.mark.parametrize("name", ["reducr", "rho_loss", "train_loss", "bald"])
def test_the_same_points_and_parameters_as_the_plain_loop(digits, name):
    model, plain = net(), []
    selector, irreducible = rule(digits, name)
    torch.manual_seed(SEED)
    loop.train(
        model,
        candidates_of(digits),
        plain_downsampler(digits, selector, irreducible),
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        num_steps=NUM_STEPS,
        on_step=lambda step, selected, selection, loss: plain.append(selected.index),
    )
    module, callback, trainer = fit(digits, name, max_epochs=-1, max_steps=NUM_STEPS)
    assert same_points(module.picked, plain)
    assert_same(module, callback.downsampler.selector, model, selector)
    report = callback.report()
    assert (report.num_steps, report.num_batches, trainer.global_step) == (NUM_STEPS, NUM_STEPS, NUM_STEPS)
    assert (report.num_candidates, report.num_selected, report.fraction) == (30 * 60, 30 * 12, 0.2)


class Weighting(Classifier):
    """Weights the losses of its points by what the callback says."""

    def training_step(self, batch, batch_idx):
        index, inputs, target, _ = batch
        self.picked.append(index)
        (selection,) = (callback for callback in self.trainer.callbacks if isinstance(callback, SelectiveTraining))
        return (nn.functional.cross_entropy(self(inputs), target, reduction="none") * selection.example_weights).mean()


def test_a_module_may_weight_points(digits):
    model, plain = net(), []
    selector, irreducible = rule(digits, "group_dro")
    torch.manual_seed(SEED)
    loop.train(
        model,
        candidates_of(digits),
        plain_downsampler(digits, selector, irreducible),
        torch.optim.AdamW(model.parameters(), lr=1e-2),
        num_steps=9,
        on_step=lambda step, selected, selection, loss: plain.append(selected.index),
    )
    options = {"module": Weighting(net()), "selection": {"weights_examples": True}}
    module, callback, _ = fit(digits, "group_dro", max_epochs=-1, max_steps=9, **options)
    assert same_points(module.picked, plain)
    assert_same(module, callback.downsampler.selector, model, selector)


class Stream(IterableDataset):
    """Points without a length, in a new order and with new noise every time."""

    def __init__(self, points):
        self.points = points

    def __iter__(self):
        for position in torch.randperm(len(self.points)).tolist():
            index, inputs, target, group = self.points[position]
            yield index, inputs + 0.01 * torch.randn(()), target, group


@pytest.mark.parametrize("kind", ["shuffled", "stream"])
def test_any_loader_whatever_it_draws(digits, kind):
    """A batch that Lightning has read ahead is scored with the parameters of its own step."""

    def batches():
        data = Stream(digits.train) if kind == "stream" else digits.train
        return DataLoader(data, batch_size=60, shuffle=kind == "shuffled")

    # dropout would draw between two batches, of which Lightning reads a stream's one ahead
    module = Classifier(net(dropout=0.0 if kind == "stream" else 0.3))
    found = fit(digits, loader=batches(), module=module)
    expected = user_loop(digits, loader=batches(), num_batches=9, dropout=0.0 if kind == "stream" else 0.3)
    assert_same_training(found, expected)


@pytest.mark.parametrize("holdout_weighting", ["per_point", "per_step"])
@pytest.mark.parametrize("is_scheduled", [False, True])
def test_accumulated_batches_update_the_selector_once_a_gradient_step(digits, is_scheduled, holdout_weighting):
    """Also where the number changes with the epoch; Lightning steps with the last batch of an epoch."""
    options = {"holdout_weighting": holdout_weighting}
    if is_scheduled:
        callbacks = {"callbacks": [GradientAccumulationScheduler({0: 1, 1: 3})]}
        found = fit(digits, rule_options=options, **callbacks)
        expected = user_loop(digits, accumulate_steps=lambda epoch: 3 if epoch else 1, **options)
        assert found[1].report().num_steps == 8 + 3 + 3
    else:
        found = fit(digits, rule_options=options, accumulate_grad_batches=3)
        expected = user_loop(digits, accumulate_steps=lambda epoch: 3, **options)
        assert found[1].report().num_steps == 3 * NUM_EPOCHS
    assert_same_training(found, expected)


def test_mixed_precision_is_that_of_a_loop_under_autocast(digits):
    found = fit(digits, precision="bf16-mixed")
    assert_same_training(found, user_loop(digits, autocast=torch.bfloat16))
    assert not same_points(found[0].picked, user_loop(digits)[2])


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_scores_stay_in_float32_or_better_in_any_precision(digits, precision):
    module, callback, _ = fit(digits, precision=precision, max_epochs=1)
    selection = callback.downsampler.selection
    assert {parameter.dtype for parameter in module.parameters()} == {
        torch.bfloat16 if precision == "bf16-true" else torch.float64
    }
    assert selection.scores.dtype == (torch.float32 if precision == "bf16-true" else torch.float64)
    assert selection.payoff.dtype == callback.downsampler.selector.group_weights.dtype == torch.float64


class Nested(pl.LightningModule):
    """One without ``forward``, whose dict of a loss has more in it."""

    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"head": net()})
        self.picked = []

    def training_step(self, batch, batch_idx):
        self.picked.append(batch[0])
        return {"loss": nn.functional.cross_entropy(self.parts["head"](batch[1]), batch[2]), "batch": batch}

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def head(module, inputs):
    return module.parts["head"](inputs)


@pytest.mark.parametrize("model", ["parts.head", head])
def test_a_part_of_the_module_or_a_function_of_it_may_score(digits, model):
    expected, _, _ = fit(digits)
    found, _, _ = fit(digits, module=Nested(), selection={"model": model})
    assert same_points(found.picked, expected.picked)
    assert all(torch.equal(one, two) for one, two in zip(found.parameters(), expected.parameters(), strict=True))


class Watched(Classifier):
    """Validates, tests and predicts, and notes the batches of every stage."""

    def __init__(self, net):
        super().__init__(net)
        self.seen = {}

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.seen.setdefault(self.trainer.state.stage.value, []).append(len(batch[0]))
        return batch

    def on_train_batch_start(self, batch, batch_idx):
        self.seen.setdefault("start", []).append(len(batch[0]))

    def on_train_batch_end(self, outputs, batch, batch_idx):
        self.seen.setdefault("end", []).append(len(batch[0]))

    def validation_step(self, batch, batch_idx):
        self.seen.setdefault("validation_step", []).append(len(batch[0]))
        self.log("holdout", nn.functional.cross_entropy(self(batch[1]), batch[2]))

    test_step = validation_step

    def predict_step(self, batch, batch_idx):
        return self(batch[1])


def test_only_training_batches_are_selected_from(digits):
    """Hooks see the candidates, then the selected points; holdout batches go through them as in validation."""
    module, callback, trainer = fit(
        digits,
        module=Watched(net()),
        fit_options={"val_dataloaders": DataLoader(digits.test, batch_size=250)},
        max_epochs=1,
    )
    assert module.seen["train"] == [60] * 8
    assert module.seen["start"] == module.seen["end"] == [12] * 8
    assert module.seen["sanity_check"] == [250, 250]
    assert module.seen["validation_step"] == [250] * 4
    # the holdout loss before the first step and after the seventh, then the Trainer's validation
    assert module.seen["validate"] == [40, 40, 20] * 2 + [250, 250]
    test = DataLoader(digits.test, batch_size=125)
    seen = callback.report().num_batches
    assert trainer.test(module, test, verbose=False)[0]["holdout"] == pytest.approx(
        nn.functional.cross_entropy(module.eval()(digits.test.input), digits.test.target).item(), abs=1e-5
    )
    assert sum(len(logits) for logits in trainer.predict(module, test)) == 500
    assert module.seen["test"] == module.seen["predict"] == [125] * 4
    assert callback.report().num_batches == seen
    assert not {"process_dataloader", "batch_to_device", "training_step"} & vars(trainer.strategy).keys()


def test_validation_and_saving_leave_the_training_as_it_is(digits, tmp_path):
    alone, callback, _ = fit(digits)
    module, other, _ = fit(
        digits,
        module=Watched(net()),
        fit_options={"val_dataloaders": candidates_of(digits)},
        val_check_interval=3,
        callbacks=[SaveAlways(tmp_path)],
    )
    assert same_points(alone.picked, module.picked)
    assert_same(module, other.downsampler.selector, alone.net, callback.downsampler.selector)


class SaveAlways(Checkpoint):
    """Saves wherever Lightning can."""

    def __init__(self, folder):
        self.folder = folder

    def _save(self, trainer, place):
        batches = trainer.fit_loop.total_batch_idx + 1
        if not (path := self.folder / f"{batches:03d}_{place}.ckpt").exists():
            trainer.save_checkpoint(path)

    def on_train_batch_end(self, trainer, *_):
        self._save(trainer, "batch")

    def on_validation_end(self, trainer, _):
        if not trainer.sanity_checking:
            self._save(trainer, "validation")

    def on_train_epoch_end(self, trainer, _):
        self._save(trainer, "epoch")

    def on_train_end(self, trainer, _):
        self._save(trainer, "end")


class SaveEarly(pl.Callback):
    """Saves after a batch, before the callbacks that come after it have noted it."""

    def __init__(self, folder):
        self.folder = folder

    def on_train_batch_end(self, trainer, *_):
        trainer.save_checkpoint(self.folder / f"{trainer.global_step:03d}_early.ckpt")


class Scheduled(Watched):
    """Its schedule asks for the number of steps before the training begins."""

    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        num_steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=num_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


LOADERS = {
    "shuffled": lambda points: DataLoader(points, batch_size=60, shuffle=True),
    "by a generator": lambda points: DataLoader(
        points, batch_size=60, shuffle=True, generator=torch.Generator().manual_seed(5)
    ),
    "with workers": lambda points: DataLoader(points, batch_size=60, shuffle=True, num_workers=1),
    "stateful": lambda points: reducr.data.ExampleLoader(points, batch_size=60, shuffle=True, seed=5),
    "stream": lambda points: DataLoader(Stream(points), batch_size=60),
}


def assert_goes_on(digits, folder, *, loader, saved, budget=None, **options):
    """From every checkpoint in ``saved`` of a whole training, to its very end."""

    def train(**more):
        return fit(
            digits,
            module=Scheduled(net()),
            loader=LOADERS[loader](digits.train),
            rule_options={"sampler": "softmax"},
            # a DataLoader draws from the global generator whenever it is iterated
            selection={
                "holdout": DataLoader(digits.holdout, batch_size=40),
                "refresh_steps": 4,
                "scoring": Scoring(budget=budget),
            },
            **options | more,
        )

    whole = folder / "whole"
    whole.mkdir()
    module, callback, _ = train(callbacks_before=[SaveEarly(whole)], callbacks=[SaveAlways(whole)])
    assert {path.stem for path in whole.iterdir()} >= set(saved)
    for stem in saved:
        path = whole / f"{stem}.ckpt"
        fit_options = options.get("fit_options", {}) | {"ckpt_path": path, "weights_only": True}
        rest, resumed, trainer = train(fit_options=fit_options)
        assert len(rest.picked) == len(module.picked) - int(stem[:3]), stem
        assert same_points(module.picked[len(module.picked) - len(rest.picked) :], rest.picked), stem
        assert_same(rest, resumed.downsampler.selector, module.net, callback.downsampler.selector)
        reports = [report.report() for report in (callback, resumed)]
        assert reports[0].num_steps == reports[1].num_steps == trainer.global_step
        assert reports[0].group_counts == reports[1].group_counts


EPOCHS, STEPS = {"max_epochs": NUM_EPOCHS}, {"max_epochs": -1, "max_steps": 24}


@pytest.mark.parametrize("has_validation", [False, True])
@pytest.mark.parametrize(
    ("loader", "limit"),
    [
        ("shuffled", EPOCHS),
        ("stateful", EPOCHS),
        ("stream", STEPS),
        *(
            pytest.param(*rest, marks=pytest.mark.long)
            for rest in [("shuffled", STEPS), ("stateful", STEPS), ("stream", EPOCHS)]
        ),
    ],
)
def test_a_resumed_training_goes_on_bit_for_bit(digits, tmp_path, loader, limit, has_validation):
    """Saved in the middle and at the end of an epoch, before the first callback and after the last; with dropout."""
    saved = ["001_batch", "004_early", "009_epoch", "013_batch", "018_epoch", "020_batch"]
    options = {}
    if has_validation:
        options = {"fit_options": {"val_dataloaders": DataLoader(digits.test, batch_size=250)}}
        saved += ["009_validation"]
    if loader != "stream" or not has_validation:
        saved += ["018_batch"]
    assert_goes_on(digits, tmp_path, loader=loader, saved=saved, **limit, **options)


@pytest.mark.parametrize(
    ("loader", "options", "saved"),
    [
        ("with workers", {}, ["007_batch", "009_epoch"]),
        ("by a generator", {}, ["007_batch", "009_epoch"]),
        ("stream", {"limit_train_batches": 5}, ["003_batch", "005_epoch", "010_batch", "011_batch"]),
        ("stream", {"accumulate_grad_batches": 2}, ["004_batch", "009_epoch", "011_batch"]),
        ("shuffled", {"budget": 0.4}, ["004_batch", "009_epoch", "013_batch"]),
        *(
            pytest.param("shuffled", options, saved, marks=pytest.mark.long)
            for options, saved in [
                ({"limit_train_batches": 5}, ["003_batch", "005_epoch", "010_batch", "011_batch"]),
                ({"accumulate_grad_batches": 2}, ["004_batch", "009_batch", "011_batch"]),
            ]
        ),
    ],
)
def test_so_does_one_with_other_loaders_and_options(digits, tmp_path, loader, options, saved):
    assert_goes_on(digits, tmp_path, loader=loader, saved=saved, **options)


def test_an_ended_training_is_made_longer(digits, tmp_path):
    """From what the Trainer saves when all is over."""
    whole, callback, _ = fit(digits)
    _, _, trainer = fit(digits, max_epochs=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    rest, resumed, _ = fit(digits, fit_options={"ckpt_path": tmp_path / "two.ckpt"})
    assert same_points(rest.picked, whole.picked[16:])
    assert_same(rest, resumed.downsampler.selector, whole.net, callback.downsampler.selector)


def test_a_checkpoint_between_two_steps_of_the_optimiser_is_warned_of(digits, tmp_path):
    fit(digits, accumulate_grad_batches=2, callbacks=[SaveAlways(tmp_path)])
    with pytest.warns(RuntimeWarning, match="Lightning does not save accumulated gradients"):
        fit(digits, accumulate_grad_batches=2, fit_options={"ckpt_path": tmp_path / "003_batch.ckpt"})


def test_a_checkpoint_serves_without_the_callback(digits, tmp_path):
    fit(digits, callbacks=[SaveAlways(tmp_path)])
    module = Classifier(net())
    trainer = pl.Trainer(**QUIET, max_epochs=NUM_EPOCHS)
    path = tmp_path / "016_epoch.ckpt"
    with pytest.warns(UserWarning, match="callbacks used to create the checkpoint need to be provided"):
        trainer.fit(module, candidates_of(digits), ckpt_path=path)
    assert [len(index) for index in module.picked] == [60] * 8


@pytest.mark.parametrize("evaluate", ["test", "validate"])
def test_an_evaluation_of_a_checkpoint_leaves_the_selection_alone(digits, tmp_path, evaluate):
    """The report after ``trainer.test(ckpt_path="best")`` is that of the whole training."""
    module, callback, trainer = fit(digits, module=Watched(net()), callbacks=[SaveAlways(tmp_path)])
    report, weights = str(callback.report()), callback.downsampler.selector.group_weights.clone()
    path = tmp_path / "008_batch.ckpt"
    getattr(trainer, evaluate)(module, holdout_of(digits), ckpt_path=path, verbose=False)
    assert callback.report().num_steps == NUM_EPOCHS * 8
    assert str(callback.report()) == report
    assert torch.equal(callback.downsampler.selector.group_weights, weights)


def test_a_checkpoint_without_a_selection_is_warned_of(digits, tmp_path):
    trainer = pl.Trainer(**QUIET, max_epochs=1)
    trainer.fit(Classifier(net()), candidates_of(digits))
    trainer.save_checkpoint(tmp_path / "plain.ckpt")
    with pytest.warns(
        RuntimeWarning, match="The checkpoint was saved without this callback, so it has no selection state"
    ):
        module, callback, _ = fit(digits, fit_options={"ckpt_path": tmp_path / "plain.ckpt"}, max_epochs=2)
    assert [len(index) for index in module.picked] == [12] * 8
    assert callback.report().num_steps == 8


def test_logged_keys_of_any_logger(digits, tmp_path):
    _, callback, _ = fit(digits, logger=CSVLogger(tmp_path, name="", version="csv"), log_every_n_steps=4)
    with (tmp_path / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["step"]) for row in rows] == [4, 8, 12, 16, 20, 24]
    assert [row["epoch"] for row in rows] == ["0", "0", "1", "1", "2", "2"]
    assert set(rows[0]) == callback.downsampler.metrics().keys() | {"epoch", "step"}
    assert [float(row["select/fraction"]) for row in rows] == pytest.approx([0.2] * 6)
    last = [float(rows[-1][f"group_weight/{group}"]) for group in range(10)]
    assert last == pytest.approx(callback.report().group_weights, abs=1e-6)
    assert max(last) > 0.11


def test_a_refused_batch_does_not_move_the_selector(digits):
    """One that the module leaves out, and the rest of the epoch with it."""

    class Refusing(Classifier):
        def on_train_batch_start(self, batch, batch_idx):
            return -1 if batch_idx == 3 else None

    module, callback, trainer = fit(digits, module=Refusing(net()), max_epochs=2)
    assert len(module.picked) == trainer.global_step == callback.report().num_steps == 6
    assert int(callback.downsampler.selector.step) == 6
    assert callback.report().num_batches == 6  # without the refused ones


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_step_without_a_loss_does_not_move_the_selector(digits):
    """Lightning counts it as a step, and trains on nothing."""

    class Skipping(Classifier):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return None if batch_idx == 3 else loss

    _, callback, trainer = fit(digits, module=Skipping(net()), max_epochs=1)
    assert trainer.global_step == 8
    assert int(callback.downsampler.selector.step) == callback.report().num_steps == 7
    assert callback.downsampler.num_waiting == 0


def test_a_broken_off_training_leaves_nothing_behind(digits):
    class Breaking(Classifier):
        def training_step(self, batch, batch_idx):
            if batch_idx == 2:
                raise RuntimeError("out of memory")
            return super().training_step(batch, batch_idx)

    module = Breaking(net())
    selector, irreducible = rule(digits, "reducr")
    callback = SelectiveTraining(selector, irreducible, FRACTION, holdout=holdout_of(digits))
    trainer = pl.Trainer(**QUIET, max_epochs=1, callbacks=[callback])
    with pytest.raises(RuntimeError, match="out of memory"):
        trainer.fit(module, candidates_of(digits))
    assert not {"process_dataloader", "batch_to_device", "training_step"} & vars(trainer.strategy).keys()
    assert (int(selector.step), callback.downsampler.state_dict()["waiting"]) == (2, [])


def test_workers_are_seeded_as_the_user_asked(digits, monkeypatch):
    monkeypatch.setenv("PL_SEED_WORKERS", "1")
    loader = DataLoader(digits.train, batch_size=60)
    _, _, trainer = fit(digits, loader=loader, max_epochs=1)
    assert loader.worker_init_fn.keywords == {"rank": 0}
    assert trainer.train_dataloader.batch_size == 60
    assert len(trainer.train_dataloader) == 9


class ByHand(Classifier):
    def __init__(self, net):
        super().__init__(net)
        self.automatic_optimization = False


class ReadsItself(Classifier):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


class Splitting(SingleDeviceStrategy):
    """In place of one that keeps a part of the model in every process."""

    def setup(self, trainer):
        super().setup(trainer)
        self.model = nn.Sequential(self.model)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"module": ByHand}, ValueError, r"ByHand uses manual optimization .*or SelectiveLoader"),
        ({"module": ReadsItself}, ValueError, r"ReadsItself got a batch that nothing .*: let it take `batch`"),
        ({"strategy": Splitting("cpu")}, ValueError, r"Splitting shards the model .*Use Trainer\(strategy='ddp'\)"),
        ({"module": lambda net: Nested()}, ValueError, r"no forward\(\).*pass `model=`.*\(there are: parts\), or a"),
        ({"selection": {"model": "nett"}}, ValueError, r"unknown model 'nett'. Did you mean 'net'"),
        ({"selection": {"model": "picked"}}, TypeError, r"model='picked' must name a torch.nn.Module in Classifier; "),
        ({"selection": {"model": nn.Identity()}}, TypeError, r"`model` must be the name of a part .*got Identity"),
        ({"selection": {"model": lambda module, inputs: inputs.sum()}}, ValueError, r"one number, which looks like a"),
        ({"selection": {"holdout": None, "refresh_steps": None}}, ValueError, r"Pass `holdout=`, batches of"),
        (
            {"selection": {"refresh_steps": "epoch"}, "loader": Stream},
            ValueError,
            r"The loader has no `__len__`.*refresh_",
        ),
        ({"selection": {"distributed": "globl"}}, ValueError, r"unknown distributed mode 'globl'. Did you mean"),
        ({"selection": {"spec": BatchSpec(target="y")}}, ValueError, r"The batch has no target at 'y'"),
        ({"name": "nothing"}, ValueError, r"unknown selector"),
        (
            {"name": "infobatch"},
            ValueError,
            r"'infobatch' weights the losses of the examples .*`weights_examples=True`",
        ),
    ],
)
def test_what_does_not_fit_is_said_before_the_first_step(digits, options, error, message):
    options = dict(options)
    module = options.pop("module", Classifier)(net())
    if "loader" in options:
        options["loader"] = DataLoader(options["loader"](digits.train), batch_size=60)
    with pytest.raises(error, match=message):
        fit(digits, module=module, **options)
    assert getattr(module, "picked", []) == []


@pytest.mark.long
def test_two_ranks_train_as_one_process_and_go_on_exactly(tmp_path):
    """With accumulated batches and ranks that have no selected point; the rest of a training with random states."""
    one, found = trainings(1, tmp_path / "one"), run_ranks(2, tmp_path)
    expected, of_ranks = one["accumulated"], [ranks["accumulated"] for ranks in found]
    for number, index in enumerate(expected["picked"]):
        parts = [part["picked"][number] for part in of_ranks if not part["is_dummy"][number]]
        assert sorted(torch.cat(parts).tolist()) == sorted(index.tolist())
    assert 0 < sum(sum(part["is_dummy"]) for part in of_ranks) < 24
    for part in of_ranks:
        torch.testing.assert_close(part["parameters"], expected["parameters"], rtol=0, atol=1e-5)
        weights = part["report"].group_weights
        assert weights == of_ranks[0]["report"].group_weights
        assert weights == pytest.approx(expected["report"].group_weights, abs=1e-5)
        assert torch.equal(part["parameters"], of_ranks[0]["parameters"])
    assert max(expected["report"].group_weights) > 0.12
    for part in (one, *found):
        whole, rest = part["whole"], part["rest"]
        assert torch.equal(whole["parameters"], rest["parameters"])
        assert same_points(whole["picked"][16:], rest["picked"])
        assert whole["report"].group_counts == rest["report"].group_counts
    # one process goes on where two were
    start = tmp_path / IN_SECOND_EPOCH["accumulated"]
    rest = trained(splits(), 1, tmp_path / "rest_of_one", go_on_from=start, **ACCUMULATED)
    assert same_points(expected["picked"][16:], rest["picked"])
    torch.testing.assert_close(rest["parameters"], expected["parameters"], rtol=0, atol=1e-5)
    assert rest["report"].group_weights == pytest.approx(expected["report"].group_weights, abs=1e-5)


@pytest.mark.long
def test_the_example_is_the_plain_one(capsys, monkeypatch):
    """From one seed the same accuracies, points and weights, to the last digit printed."""
    examples = Path(__file__).parents[2] / "examples"
    monkeypatch.syspath_prepend(examples)
    runpy.run_path(str(examples / "plain.py"))
    expected = [line for line in capsys.readouterr().out.splitlines() if " s selecting" not in line]
    command = [sys.executable, examples / "lightning_callback.py"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=True)
    assert [line for line in ended.stdout.splitlines() if " s selecting" not in line] == expected
    assert len(expected) == 16
    worst = {line.split()[0]: float(line.split()[3]) for line in expected[:3]}
    assert worst["reducr"] > worst["uniform"] + 0.4
