"""One core in every loop: the same examples, parameters, states and log keys, in float32 and in bfloat16."""

import csv
import logging
from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn
from torch.utils.data import Dataset, SequentialSampler
from transformers import TrainingArguments

import reducr
from reducr.data import ExampleLoader
from reducr.data.published.digits import Digits
from reducr.downsampler import Downsampler
from reducr.hugging_face import SelectiveTrainer
from reducr.irreducible import AdjustedIrreducibleLoss, LiveLogits, PlainIrreducibleLoss
from reducr.lightning import CSVMetrics, SelectionRecorder, SelectiveTraining, TargetModule, fit_target
from reducr.models import MLP
from reducr.scoring import Holdout, Scoring
from reducr.training import loop
from selecting import under_autocast

NUM_STEPS, REFRESH_STEPS, FRACTION, SEED, BATCH_SIZE = 12, 5, 0.2, 3, 60
BF16 = torch.bfloat16
PRECISIONS = {"float32": (None, None), "scoring in bfloat16": (BF16, None), "all in bfloat16": (None, BF16)}
# Rules that differ in what they read: the default lane tries only these in bfloat16.
DIFFERENT = ("reducr", "rho_loss", "train_loss", "group_dro", "entropy", "priority_sampling")
PAIRS = [
    pytest.param(name, precision, marks=() if precision == "float32" or name in DIFFERENT else pytest.mark.long)
    for name in reducr.SELECTORS
    for precision in PRECISIONS
]


@pytest.fixture(scope="module")
def digits():
    return Digits(holdout_size=100, test_size=500, label_noise={"train": 0.3}, imbalance={"train": 10.0}).splits(seed=0)


@pytest.fixture(autouse=True)
def _quiet():
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)


class SeededDropout(nn.Dropout):
    """Dropout that draws from a generator of its own: loaders of some loops draw from the global one."""

    def __init__(self, p):
        super().__init__(p)
        self.source = torch.Generator().manual_seed(SEED)

    def forward(self, input):  # noqa: A002  (torch's name)
        if not self.training or not self.p:
            return input
        keep = torch.rand(input.shape, generator=self.source) >= self.p
        return input * keep.to(input.dtype) / (1 - self.p)


class Net(nn.Module):
    """A classifier that every loop can call: by position or by name, with or without labels."""

    def __init__(self, dropout):
        super().__init__()
        self.net = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), SeededDropout(dropout), nn.Linear(32, 10))

    def forward(self, input, labels=None):  # noqa: A002  (the column's name)
        logits = self.net(input)
        if labels is None:
            return logits
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


class Parts:
    """What every loop is made of, afresh: model, rule, live reference model, holdout set and options."""

    def __init__(self, digits, name, precision, decay=None):
        self.decay = decay
        scoring_dtype, self.dtype = PRECISIONS[precision]
        torch.random.manual_seed(SEED)
        source = LiveLogits(MLP(num_features=64, num_classes=10, hidden_sizes=[16]))
        options = {
            "reducr": {"step_size": 0.05},
            "priority_sampling": {"step_size": 0.05},
            "fixed_weights": {"group_weights": [2.0] + [1.0] * 9},
        }.get(name, {})
        self.selector = reducr.make_selector(name, num_groups=10, **options)
        self.model = Net(dropout=0.3)
        is_plain = "irreducible_loss" in self.selector.needs
        self.irreducible = PlainIrreducibleLoss(source) if is_plain else AdjustedIrreducibleLoss(source)
        self.holdout = ExampleLoader(digits.holdout, batch_size=40)
        self.candidates = ExampleLoader(digits.train, batch_size=BATCH_SIZE, drop_last=True)
        self.scoring = Scoring(autocast=scoring_dtype)
        self.optimizer = partial(torch.optim.SGD, lr=0.05)

    def options(self, *, refresh_steps=REFRESH_STEPS, holdout=None):
        """Of every loop."""
        batches = self.holdout if holdout is None else holdout
        holdout = Holdout(batches, refresh_steps if self.decay is None else None, self.decay)
        return {"fraction": FRACTION, "holdout": holdout, "scoring": self.scoring, "seed": SEED}

    def autocast(self):
        return torch.autocast("cpu", dtype=BF16, enabled=self.dtype is not None)


def loop_of_ones_own(parts):
    loader = reducr.SelectiveLoader(
        parts.candidates,
        parts.model.train(),
        parts.selector,
        parts.irreducible,
        weights_examples=True,
        **parts.options(),
    )
    optimizer, picked, metrics = parts.optimizer(parts.model.parameters()), [], []
    while len(picked) < NUM_STEPS:
        for batch in under_autocast(loader, parts.dtype):
            if picked:  # the step before has ended
                metrics.append(loader.downsampler.metrics())
            with parts.autocast():
                losses = nn.functional.cross_entropy(parts.model(batch.input), batch.target, reduction="none")
                loss = (losses * loader.example_weights).mean() if parts.selector.weights_examples else losses.mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            picked.append(batch.index)
            if len(picked) == NUM_STEPS:
                break
    with parts.autocast():
        loader.state_dict()  # the last batch counts now, too
    return picked, [*metrics, loader.downsampler.metrics()]


def plain_loop(parts, monkeypatch):
    """``training.train``; under autocast by what it calls."""
    downsampler = Downsampler(parts.selector, parts.irreducible, **parts.options())
    picked, metrics = [], []

    def note(step, selected, selection, loss):
        picked.append(selected.index)
        metrics.append(downsampler.metrics())

    if parts.dtype is not None:
        for name in ("prepare", "select", "step"):
            monkeypatch.setattr(downsampler, name, parts.autocast()(getattr(downsampler, name)))
        monkeypatch.setattr(loop, "selected_loss", parts.autocast()(loop.selected_loss))
    optimizer = parts.optimizer(parts.model.parameters())
    loop.train(parts.model, parts.candidates, downsampler, optimizer, num_steps=NUM_STEPS, on_step=note)
    return picked, metrics


def program(parts, folder, num_examples):
    """The module of the training program."""
    downsampler = Downsampler(parts.selector, parts.irreducible, **parts.options(refresh_steps=None))
    module = TargetModule(parts.model, downsampler, optimizer=parts.optimizer, num_classes=10)
    recorder = SelectionRecorder(folder / "selected.npz", num_examples=num_examples)
    fit_target(
        module,
        parts.candidates,
        num_steps=NUM_STEPS,
        refresh_steps=REFRESH_STEPS,
        folder=folder,
        callbacks=[recorder],
        loggers=[CSVMetrics(save_dir=folder, name="", version="csv")],
        trainer_options={"accelerator": "cpu", "precision": "32-true" if parts.dtype is None else "bf16-mixed"},
    )
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    assert [row["step"] for row in rows] == [str(step) for step in range(1, NUM_STEPS + 1)]
    return list(recorder.index_by_step), [{key: float(value or "nan") for key, value in row.items()} for row in rows]


class Classifier(pl.LightningModule):
    """A user's module."""

    def __init__(self, parts):
        super().__init__()
        self.net, self.optimizer, self.picked = parts.model, parts.optimizer, []

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        self.picked.append(batch.index)
        losses = nn.functional.cross_entropy(self(batch.input), batch.target, reduction="none")
        (selection,) = (callback for callback in self.trainer.callbacks if isinstance(callback, SelectiveTraining))
        weights = selection.example_weights
        return (losses * weights).mean() if selection.downsampler.selector.weights_examples else losses.mean()

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class ListLogger(DummyLogger):
    """Keeps what is logged, by step."""

    def __init__(self):
        super().__init__()
        self.logged = {}

    def log_metrics(self, metrics, step):
        self.logged.setdefault(step, {}).update(metrics)


def callback_of_lightning(parts):
    callback = SelectiveTraining(
        parts.selector,
        parts.irreducible,
        weights_examples=True,
        **parts.options(),
    )
    logger, module = ListLogger(), Classifier(parts)
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=NUM_STEPS,
        log_every_n_steps=1,
        logger=logger,
        callbacks=[callback],
        precision="32-true" if parts.dtype is None else "bf16-mixed",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, parts.candidates)
    assert list(logger.logged) == list(range(1, NUM_STEPS + 1))
    return module.picked, list(logger.logged.values())


class Columns(Dataset):
    """The digits as a Trainer reads them."""

    def __init__(self, points):
        self.points = points

    def __len__(self):
        return len(self.points) // BATCH_SIZE * BATCH_SIZE if len(self.points) > 200 else len(self.points)

    def __getitem__(self, position):
        index, inputs, target, _ = self.points[position]
        return {"input": inputs, "labels": int(target), "idx": int(index)}


class InOrder(SelectiveTrainer):
    """Reads the examples in order, and keeps what it trains on."""

    picked = None

    def _get_train_sampler(self, *_, **__):
        return SequentialSampler(self.train_dataset)

    def training_step(self, *arguments, **options):
        loss = super().training_step(*arguments, **options)
        self.picked = [*(self.picked or []), self.downsampler.selected.index]
        return loss


def hugging_face(parts, digits, folder):
    options = parts.options(holdout=Columns(digits.holdout))
    trainer = InOrder(
        model=parts.model,
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=BATCH_SIZE,
            per_device_eval_batch_size=40,
            max_steps=NUM_STEPS,
            max_grad_norm=0.0,
            lr_scheduler_type="constant",
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            bf16=parts.dtype is not None,
            seed=SEED,
        ),
        train_dataset=Columns(digits.train),
        optimizers=(parts.optimizer(parts.model.parameters()), None),
        selector=parts.selector,
        irreducible=parts.irreducible,
        fraction=FRACTION,
        holdout_dataset=options["holdout"],
        scoring=parts.scoring,
    )
    trainer.train()
    logs = [entry for entry in trainer.state.log_history if "select/fraction" in entry]
    assert [entry["step"] for entry in logs] == list(range(1, NUM_STEPS + 1))
    return trainer.picked, logs


def assert_same(name, result, parts, expected, expected_parts):
    (picked, metrics), (expected_picked, expected_metrics) = result, expected
    assert len(picked) == NUM_STEPS, name
    assert all(torch.equal(one, other) for one, other in zip(picked, expected_picked, strict=True)), name
    for (key, value), other in zip(
        parts.model.state_dict().items(), expected_parts.model.state_dict().values(), strict=True
    ):
        assert torch.equal(value, other), (name, key)
    for key, value in parts.selector.state_dict().items():
        torch.testing.assert_close(value, expected_parts.selector.state_dict()[key], rtol=0, atol=0, equal_nan=True)
    for row, other in zip(metrics, expected_metrics, strict=True):
        assert other.keys() <= row.keys(), name
        for key, value in other.items():
            if "seconds" not in key:
                assert row[key] == pytest.approx(value, rel=1e-12, nan_ok=True), (name, key)


def compare(digits, name, precision, tmp_path, monkeypatch, *, decay=None):
    expected_parts = Parts(digits, name, precision, decay)
    torch.manual_seed(SEED)
    expected = plain_loop(expected_parts, monkeypatch)
    assert len({tuple(index.tolist()) for index in expected[0]}) >= 8  # batches in an epoch
    loops = {
        "loader": loop_of_ones_own,
        "module": lambda parts: program(parts, tmp_path / "module", len(digits.train)),
        "callback": callback_of_lightning,
        "Trainer": lambda parts: hugging_face(parts, digits, tmp_path / "trainer"),
    }
    for loop_name, run in loops.items():
        parts = Parts(digits, name, precision, decay)
        torch.manual_seed(SEED)
        assert_same(loop_name, run(parts), parts, expected, expected_parts)


@pytest.mark.parametrize(("name", "precision"), PAIRS)
def test_every_loop_selects_trains_and_logs_the_same(digits, name, precision, tmp_path, monkeypatch):
    compare(digits, name, precision, tmp_path, monkeypatch)


def test_every_loop_follows_a_moving_holdout_loss(digits, tmp_path, monkeypatch):
    compare(digits, "reducr", "float32", tmp_path, monkeypatch, decay=0.8)
