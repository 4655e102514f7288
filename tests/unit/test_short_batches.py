"""Batches of candidates that give a single example are skipped, counted and told of once, in every loop."""

import re
import warnings

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset
from transformers import TrainingArguments

import reducr
from reducr.batch import Batch
from reducr.downsampler import Downsampler
from reducr.hugging_face import SelectiveTrainer
from reducr.lightning import SelectiveTraining

TOLD = "A batch has 5 candidates where others have 20: fraction=0.1 of it is one example, with which layers such as"


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


def data(size):
    return TensorDataset(torch.randn(size, 4), torch.arange(size) % 3)


def loader_of(batches, model=None, **options):
    return reducr.SelectiveLoader(batches, model or network(), "train_loss", **options)


def train(loader, *, num_passes=1, accumulate_steps=1):
    """Steps as docs/loops.md says, and returns the sizes of the batches and the number of optimizer steps."""
    optimizer, sizes, num_steps = torch.optim.SGD(loader.model.parameters(), lr=0.1), [], 0
    for _ in range(num_passes):
        for inputs, targets in loader:
            nn.functional.cross_entropy(loader.model(inputs), targets).backward()
            sizes.append(len(targets))
            if loader.position % accumulate_steps == 0 or loader.position == len(loader):
                optimizer.step()
                optimizer.zero_grad()
                num_steps += 1
    return sizes, num_steps


@pytest.mark.parametrize("kind", ["loader", "list", "stream"])
def test_a_last_batch_that_gives_one_example_is_skipped_and_told_of_once(kind):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(data(65))

    batches = {
        "loader": lambda: DataLoader(data(65), batch_size=20, shuffle=True),
        "list": lambda: list(DataLoader(data(65), batch_size=20)),
        "stream": lambda: DataLoader(Stream(), batch_size=20),
    }[kind]()
    loader = loader_of(batches)
    if kind != "stream":
        assert len(loader) == 3
        accumulate_steps, num_steps = 2, 4  # the third batch of a pass makes a step by itself
    else:
        accumulate_steps, num_steps = 1, 6
    with pytest.warns(UserWarning, match=re.escape(TOLD)) as told:
        assert train(loader, num_passes=2, accumulate_steps=accumulate_steps) == ([2] * 6, num_steps)
    assert len(told) == 1
    report = loader.report()
    assert (report.num_skipped, report.num_batches, report.num_candidates) == (2, 6, 120)
    assert "2 batches skipped because they are too short" in str(report)


def test_what_else_can_be_done_with_a_short_batch():
    batches = DataLoader(data(65), batch_size=20)
    kept = loader_of(batches, nn.Linear(4, 3), short_batches="keep")
    assert (len(kept), train(kept)) == (4, ([2, 2, 2, 1], 4))
    with pytest.raises(ValueError, match=re.escape(TOLD)):
        train(loader_of(batches, short_batches="error"))
    with pytest.raises(ValueError, match="unknown short_batches 'drop'"):
        loader_of(batches, short_batches="drop")


@pytest.mark.parametrize(
    ("size", "batch_size", "fraction", "expected"),
    [
        (30, 10, 0.1, [1, 1, 1]),  # every batch gives one example
        (3, 1, 1.0, [1, 1, 1]),  # batches of one on purpose
        (15, 20, 0.1, [1]),  # one batch, which is short of nothing
        (50, 20, 0.1, [2, 2, 1]),  # of ten candidates: see below
        (50, 20, 0.2, [4, 4, 2]),
    ],
)
def test_batches_that_are_as_long_as_others_are_never_skipped(size, batch_size, fraction, expected):
    options = {"short_batches": "keep"} if expected == [2, 2, 1] else {}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loader = loader_of(DataLoader(data(size), batch_size=batch_size), nn.Linear(4, 3), fraction=fraction, **options)
        assert train(loader)[0] == expected
        assert len(loader) == len(expected)


def test_places_in_a_pass_count_what_was_yielded():
    """Short batches in the middle, and a state between them."""
    sizes = [20, 5, 20, 5, 20]
    batches = [(torch.randn(size, 4), torch.arange(size) % 3) for size in sizes]
    places, states = [], []
    loader = loader_of(batches)

    def read():
        for _ in loader:
            places.append((loader.position, len(loader)))
            states.append(loader.state_dict())

    with pytest.warns(UserWarning, match=re.escape(TOLD)):
        read()
    assert places == [(1, 3), (2, 3), (3, 3)]
    again = loader_of(batches)
    again.load_state_dict(states[1])
    assert [again.position for _ in again] == [3]


def test_the_plain_loop_skips_and_refreshes_at_the_end_of_an_epoch():
    torch.manual_seed(0)
    batches = [Batch(torch.arange(n), torch.randn(n, 4), torch.arange(n) % 3, torch.arange(n) % 3) for n in (20, 20, 5)]
    core = Downsampler("drop", fraction=0.1, holdout=[batches[0]], refresh_steps="epoch")
    seen = []
    model = network()
    with pytest.warns(UserWarning, match=re.escape(TOLD)):
        reducr.train(
            model, batches, core, torch.optim.SGD(model.parameters(), lr=0.1), num_steps=5,
            on_step=lambda step, *_: seen.append(step),
        )  # fmt: skip
    assert seen == [1, 2, 3, 4, 5]
    report = core.report()
    assert (report.num_steps, report.num_skipped, report.num_refreshes) == (5, 2, 2)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net, self.sizes = network(), []

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        self.sizes.append(len(batch[1]))
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_lightning_ends_the_epoch_before_a_short_batch():
    """With accumulated batches: the third batch makes a step by itself, as the last one does."""
    module, selection = Module(), SelectiveTraining("train_loss")
    quiet = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False)
    trainer = pl.Trainer(accelerator="cpu", max_epochs=2, callbacks=[selection], accumulate_grad_batches=2, **quiet)
    with pytest.warns(UserWarning, match=re.escape(TOLD)) as told:
        trainer.fit(module, DataLoader(data(65), batch_size=20, shuffle=True))
    assert len([warning for warning in told if "candidates where" in str(warning.message)]) == 1
    assert (module.sizes, trainer.global_step) == ([2] * 6, 4)
    assert (selection.report().num_steps, selection.report().num_skipped) == (4, 2)


class Classifier(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = network()

    def forward(self, x, labels=None):
        logits = self.net(x)
        return {"loss": None if labels is None else nn.functional.cross_entropy(logits, labels), "logits": logits}


@pytest.mark.parametrize("kind", ["map", "stream"])
def test_the_trainer_of_transformers_leaves_out_a_short_batch(tmp_path, kind):
    items = [{"x": inputs, "labels": int(target)} for inputs, target in data(65)]

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(items)

    arguments = TrainingArguments(
        str(tmp_path), per_device_train_batch_size=20, save_strategy="no", report_to=[], use_cpu=True,
        disable_tqdm=True, dataloader_pin_memory=False,
        **({"num_train_epochs": 2} if kind == "map" else {"max_steps": 8}),
    )  # fmt: skip
    data_set = items if kind == "map" else Stream()
    trainer = SelectiveTrainer(Classifier(), arguments, train_dataset=data_set, selector="train_loss")
    with pytest.warns(UserWarning, match=re.escape(TOLD)):
        trainer.train()
    assert trainer.state.global_step == (6 if kind == "map" else 8)
    report = trainer.report()
    assert (report.num_steps, report.num_selected, report.num_skipped) == (6, 12, 2)
    assert not arguments.dataloader_drop_last
