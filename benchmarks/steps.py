"""A step of selection and training over its floor, in the plain loop and through ``SelectiveLoader``.

All models train with SGD, the cheapest optimiser, and the MLP also with AdamW, the optimiser of the published
experiments. The holdout loss is set before the first step and not refreshed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch.optim import Optimizer

import reducr
from benchmarks.harness import Effort, Figure, duration, ratios, time_alternately, timed
from benchmarks.synthetic import (
    FRACTION,
    NUM_CLASSES,
    TITLES,
    floor_step,
    synthetic_batches,
    synthetic_irreducible,
    synthetic_model,
)
from reducr.downsampler import Downsampler
from reducr.training.loop import train

TARGETS = {"mlp": 1.30, "cnn": 1.05, "resnet18": 1.02}
STEPS = {"mlp": 100, "cnn": 12, "resnet18": 1}  # per repetition
OPTIMIZERS = {  # by their suffix to the row's title
    "mlp": {"": partial(torch.optim.SGD, lr=0.01), ", AdamW": torch.optim.AdamW},
    "cnn": {"": partial(torch.optim.SGD, lr=0.01)},
    "resnet18": {"": partial(torch.optim.SGD, lr=0.01)},
}
REPETITIONS = {"mlp": 40, "cnn": 40, "resnet18": 6}


def steps(name: str, effort: Effort) -> Iterator[Figure]:
    """Plain loop and ``SelectiveLoader`` over the floor, with each optimiser."""
    for title, make_optimizer in OPTIMIZERS[name].items():
        yield from _steps(name, effort, f"{TITLES[name]}{title}", make_optimizer)


def _steps(name: str, effort: Effort, title: str, make_optimizer: Callable[[Any], Optimizer]) -> Iterator[Figure]:
    num_steps = effort.of(STEPS[name], tiny=1)
    model = synthetic_model(name, is_tiny=effort.is_tiny)
    optimizer = make_optimizer(model.parameters())
    batches = synthetic_batches(name, num_steps)
    irreducible = synthetic_irreducible(batches)
    selector = reducr.make_selector("reducr", num_groups=NUM_CLASSES, step_size=1e-4)

    def loop() -> float:
        ends: list[float] = []
        train(
            model,
            batches,
            Downsampler(selector, irreducible, fraction=FRACTION),
            optimizer,
            num_steps=num_steps + 1,  # the first one starts the clock
            on_step=lambda *_: ends.append(time.perf_counter()),
        )
        return (ends[-1] - ends[0]) / num_steps

    selector.set_group_holdout_loss(torch.ones(NUM_CLASSES))
    loader = reducr.SelectiveLoader(batches, model, selector, irreducible, fraction=FRACTION)

    def selective_loader() -> None:
        for _, inputs, target, _ in loader:
            loss = F.cross_entropy(model(inputs), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    baseline, *loop_seconds = time_alternately(
        floor_step(model, optimizer, batches),
        loop,
        timed(selective_loader, num_parts=num_steps),
        repetitions=effort.num_repetitions(REPETITIONS[name]),
    )
    for what, seconds in zip(("plain loop", "`SelectiveLoader`"), loop_seconds, strict=True):
        yield Figure(
            f"step of the {what}, {title}",
            ratios(seconds, baseline),
            at_most=TARGETS[name],
            over=f"floor, {duration(baseline)}",
        )
