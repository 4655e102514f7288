"""A training script as anyone might write it, for ``test_kill.py``: ``python killed_loop.py FOLDER``.

It goes on from the checkpoints in FOLDER, and leaves ``result.pt`` there at its end. Where it is at any moment stands
in the file ``phase``: one byte for the phase, and the steps that this process has made.
"""

import os
import random
import struct
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.irreducible import AdjustedIrreducibleLoss, LiveLogits
from reducr.training.checkpoints import Checkpoints

NUM_CLASSES, NUM_FEATURES, NUM_STEPS = 5, 32, 240
STARTING, SCORING, TRAINING, VALIDATION, CHECKPOINTING = range(5)
PHASE = struct.Struct("<BI")


class Phase:
    """Says in a file, which outlives the process, what it is doing."""

    def __init__(self, path):
        self.file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        self.now, self.num_steps = STARTING, 0

    def enter(self, phase):
        self.now = phase
        os.pwrite(self.file, PHASE.pack(phase, self.num_steps), 0)

    @contextmanager
    def during(self, phase):
        before = self.now
        self.enter(phase)
        yield
        self.enter(before)


class Holdout:
    """Batches of the holdout set."""

    def __init__(self, inputs, targets, phase):
        self.batches = list(zip(inputs.split(200), targets.split(200), strict=True))
        self.phase = phase

    def __iter__(self):
        with self.phase.during(VALIDATION):
            yield from self.batches


class Record:
    """What was selected and how well it went, a part of every checkpoint."""

    def __init__(self):
        self.indices, self.losses, self.holdout_losses = [], [], []

    def state_dict(self):
        return dict(vars(self))

    def load_state_dict(self, state):
        vars(self).update(state)


def points(num_examples, seed):
    """Overlapping clouds, the last of which is rare."""
    generator = torch.Generator().manual_seed(seed)
    targets = torch.multinomial(
        torch.tensor([4.0, 4.0, 4.0, 4.0, 1.0]), num_examples, replacement=True, generator=generator
    )
    centres = torch.randn(NUM_CLASSES, NUM_FEATURES, generator=torch.Generator().manual_seed(1))
    return centres[targets] + 2 * torch.randn(num_examples, NUM_FEATURES, generator=generator), targets


def network(width):
    return nn.Sequential(
        nn.Linear(NUM_FEATURES, width), nn.BatchNorm1d(width), nn.ReLU(), nn.Dropout(0.3), nn.Linear(width, width),
        nn.BatchNorm1d(width), nn.ReLU(), nn.Linear(width, NUM_CLASSES),
    )  # fmt: skip


def main(folder):
    torch.set_num_threads(1)
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(0)
    phase = Phase(folder / "phase")
    inputs, targets = points(3000, seed=2)
    candidates = DataLoader(TensorDataset(torch.arange(3000), inputs, targets), batch_size=200, shuffle=True)
    model, irreducible = network(400), network(50)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=NUM_STEPS)
    selector = reducr.make_selector("reducr", num_groups=NUM_CLASSES, step_size=0.02)
    loader = reducr.SelectiveLoader(
        candidates,
        model.train(),
        selector,
        AdjustedIrreducibleLoss(LiveLogits(irreducible)),
        fraction=0.2,
        holdout=Holdout(*points(1000, seed=3), phase),
        refresh_steps=5,
    )
    record = Record()
    parts = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader, "record": record}
    checkpoints = Checkpoints(folder / "checkpoints")
    step = checkpoints.resume(**parts)
    while step < NUM_STEPS:
        phase.enter(SCORING)
        for index, x, y in loader:
            phase.enter(TRAINING)
            loss = nn.functional.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            phase.num_steps += 1
            record.indices.append(index)
            record.losses.append(loss.item())
            record.holdout_losses.append(selector.group_holdout_loss.clone())
            if step % 4 == 0:
                with phase.during(CHECKPOINTING):
                    checkpoints.save(step, **parts)
            if step == NUM_STEPS:
                break
            phase.enter(SCORING)
    states = {name: part.state_dict() for name, part in parts.items()}
    states["loader"]["downsampler"].pop("seconds")
    states["weights"] = selector.group_weights
    torch.save(states, folder / "result.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
