"""A step of selection and training over its floor: in the plain loop, and through ``SelectiveLoader``.

All train one model in turn with SGD, the optimiser that hides least, and the MLP also with AdamW, that of the published
experiments. The holdout loss is there before the first step
and is not refreshed in between.
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
from benchmarks.harness import Effort, Figure, alternated, duration, ratios, timed
from benchmarks.synthetic import (
    FRACTION,
    NUM_CLASSES,
    TITLES,
    floor_step,
    made_batches,
    made_irreducible,
    made_model,
)
from reducr.training.loop import train

TARGETS = {"mlp": 1.30, "cnn": 1.05, "resnet18": 1.02}
STEPS = {"mlp": 100, "cnn": 12, "resnet18": 1}
"""Of one repetition."""
OPTIMIZERS = {
    "mlp": {"": partial(torch.optim.SGD, lr=0.01), ", AdamW": torch.optim.AdamW},
    "cnn": {"": partial(torch.optim.SGD, lr=0.01)},
    "resnet18": {"": partial(torch.optim.SGD, lr=0.01)},
}
"""By what they are called in the table."""
REPETITIONS = {"mlp": 40, "cnn": 40, "resnet18": 6}


def steps(name: str, effort: Effort) -> Iterator[Figure]:
    """Plain loop and ``SelectiveLoader`` over the floor, with each of the optimisers."""
    for title, make_optimizer in OPTIMIZERS[name].items():
        yield from _steps(name, effort, f"{TITLES[name]}{title}", make_optimizer)


def _steps(name: str, effort: Effort, title: str, make_optimizer: Callable[[Any], Optimizer]) -> Iterator[Figure]:
    num_steps = effort.of(STEPS[name], tiny=1)
    model = made_model(name, is_tiny=effort.is_tiny)
    optimizer = make_optimizer(model.parameters())
    batches = made_batches(name, num_steps)
    irreducible = made_irreducible(batches)
    selector = reducr.make_selector("reducr", num_groups=NUM_CLASSES, step_size=1e-4)

    def loop() -> float:
        ends: list[float] = []
        train(
            model,
            batches,
            selector,
            irreducible,
            optimizer,
            holdout=batches[:1],
            num_steps=num_steps + 1,  # the first begins the clock
            fraction=FRACTION,
            refresh_steps=num_steps + 2,
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

    baseline, *measured = alternated(
        floor_step(model, optimizer, batches),
        loop,
        timed(selective_loader, num_parts=num_steps),
        repetitions=effort.repeated(REPETITIONS[name]),
    )
    for what, seconds in zip(("plain loop", "`SelectiveLoader`"), measured, strict=True):
        yield Figure(
            f"step of the {what}, {title}",
            ratios(seconds, baseline),
            at_most=TARGETS[name],
            over=f"floor, {duration(baseline)}",
        )
