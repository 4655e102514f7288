"""A user's LightningModule, and a training of it that two processes run together: ``run_ranks``."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler

import reducr
from reducr.data import ExampleLoader
from reducr.data.published.digits import Digits
from reducr.irreducible import AdjustedIrreducibleLoss, IrreducibleTable, PlainIrreducibleLoss, TableLogits
from reducr.lightning import SelectiveTraining
from reducr.models import MLP

FRACTION, SEED = 0.2, 3
QUIET = {
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


class Classifier(pl.LightningModule):
    """What a user has: knows nothing of selection. Notes the indices of what it is given."""

    def __init__(self, net, optimizer=torch.optim.AdamW, **options):
        super().__init__()
        self.net = net
        self.optimizer = partial(optimizer, **{"lr": 1e-2} | options)
        self.picked = []

    def forward(self, inputs):
        return self.net(inputs)

    def training_step(self, batch, batch_idx):
        index, inputs, target, _ = batch
        self.picked.append(index)
        return nn.functional.cross_entropy(self(inputs), target)

    def configure_optimizers(self):
        return self.optimizer(self.parameters())


class StandIns(pl.Callback):
    """Notes at which batches this rank has no selected point."""

    def __init__(self, selective):
        self.selective = selective
        self.noted = []

    def on_train_batch_end(self, *_):
        self.noted.append(self.selective.downsampler.selection.is_dummy)


def splits():
    return Digits(holdout_size=100, test_size=500, label_noise={"train": 0.3}, imbalance={"train": 10.0}).splits(seed=0)


def net(dropout=0.3):
    torch.random.manual_seed(SEED)
    return MLP(num_features=64, num_classes=10, hidden_sizes=[32], dropout=dropout)


def rule(digits, name, **options):
    """Selector and irreducible losses: made afresh."""
    logits = torch.randn(len(digits.train), 10, generator=torch.Generator().manual_seed(1))
    source = TableLogits(IrreducibleTable(logits.numpy(), kind="logits"))
    irreducible = PlainIrreducibleLoss(source) if name == "rho_loss" else AdjustedIrreducibleLoss(source)
    if name == "reducr":
        options = {"step_size": 0.05} | options
    return reducr.make_selector(name, num_groups=10, **options), irreducible


def candidates_of(digits):
    return ExampleLoader(digits.train, batch_size=60, shuffle=True, drop_last=True, seed=SEED)


def holdout_of(digits):
    return ExampleLoader(digits.holdout, batch_size=40)


def trained(digits, devices, folder, *, dropout=0.0, go_on_from=None, **options):
    """Two epochs of twelve batches of 40, shared out over ``devices`` processes that select together."""
    data = digits.train.take(torch.arange(480))
    sampler = DistributedSampler(data, 1, 0, seed=0) if devices == 1 else None  # Lightning's own on several
    candidates = DataLoader(data, batch_size=40 // devices, sampler=sampler, shuffle=sampler is None)
    module = Classifier(net(dropout), torch.optim.SGD, lr=0.05, momentum=0.9)
    selector, irreducible = rule(digits, "reducr")
    callback = SelectiveTraining(
        selector,
        irreducible,
        0.1,
        holdout=holdout_of(digits),
        refresh_steps=5,
        distributed="global" if devices > 1 else None,
    )
    stand_ins = StandIns(callback)
    save = ModelCheckpoint(folder, filename="{step}", every_n_train_steps=8, save_top_k=-1)
    trainer = pl.Trainer(
        **QUIET | {"enable_checkpointing": True},
        strategy="ddp" if devices > 1 else "auto",
        devices=devices,
        max_epochs=2,
        callbacks=[callback, stand_ins, save],
        **options,
    )
    torch.manual_seed(int(os.environ.get("LOCAL_RANK", "0")) if go_on_from is None else SEED)
    trainer.fit(module, candidates, ckpt_path=go_on_from)
    return {
        "picked": module.picked,
        "is_dummy": stand_ins.noted,
        "parameters": torch.cat([parameter.detach().flatten() for parameter in module.parameters()]),
        "selector": selector.state_dict(),
        "report": callback.report(),
    }


ACCUMULATED = {"accumulate_grad_batches": 2}
IN_SECOND_EPOCH = {"accumulated": "accumulated/step=8.ckpt", "whole": "whole/step=16.ckpt"}


def trainings(devices, folder):
    """Two whole ones, the second with dropout, and what goes on from the middle of its second epoch."""
    digits = splits()
    start = folder / IN_SECOND_EPOCH["whole"]
    return {
        "accumulated": trained(digits, devices, folder / "accumulated", **ACCUMULATED),
        "whole": trained(digits, devices, folder / "whole", dropout=0.3),
        "rest": trained(digits, devices, folder / "rest", dropout=0.3, go_on_from=start),
    }


def run_ranks(count, folder):
    """What ``trainings`` gives on each of ``count`` ranks, which Lightning starts by itself."""
    command = [sys.executable, __file__, str(count), folder]
    ended = subprocess.run(
        command, env=os.environ | {"OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE, text=True, timeout=300, check=False
    )
    assert ended.returncode == 0, ended.stderr
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in range(count)]


if __name__ == "__main__":
    count, folder = int(sys.argv[1]), Path(sys.argv[2])
    results = trainings(count, folder)
    torch.save(results, folder / f"{os.environ.get('LOCAL_RANK', '0')}.pt")
