"""A training loop that stops by the clock, and the draws and losses of the rivals."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.rivals.problems import Examples, Problem

Loss = Callable[[Tensor, Tensor], Tensor]
"""(logits (B, C), labels (B,)) -> a scalar."""
_EVALUATION_SIZE = 1000


class NominalClock:
    """Seconds by what steps and forward passes take on a free core, so that runs do not depend on what else runs.

    Args:
        step: seconds of a gradient step.
        example: seconds of an example in a forward pass.
    """

    def __init__(self, step: float, example: float) -> None:
        self._step, self._example = step, example
        self.seconds = 0.0
        """Seconds so far."""

    def charge_steps(self, num: int) -> None:
        """Add the seconds of gradient steps."""
        self.seconds += num * self._step

    def charge_examples(self, num: int) -> None:
        """Add the seconds of examples in a forward pass."""
        self.seconds += num * self._example


@dataclass
class Run:
    """The clock, the random state and the counts of one run.

    Args:
        problem: what is trained on.
        seconds: seconds of the run.
        clock: counts them.
    """

    problem: Problem
    seconds: float
    clock: NominalClock
    steps: int = 0
    notes: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.random = torch.Generator().manual_seed(1000 + self.problem.seed)

    @property
    def spent(self) -> float:
        """Share of the seconds that is spent."""
        return self.clock.seconds / self.seconds

    def logits(self, model: nn.Module, x: Tensor) -> Tensor:
        """Logits (N, C) in eval mode, on the clock."""
        self.clock.charge_examples(len(x))
        return logits_of(model, x)


Batches = Iterator[tuple[Tensor, Tensor]]


def descend(
    run: Run,
    model: nn.Module,
    batches: Batches,
    *,
    until: float,
    rate: float,
    loss: Loss = cross_entropy,
    average: float = 0.0,
    after_step: Callable[[float], None] | None = None,
) -> nn.Module:
    """Train ``model`` until a share of the seconds is spent; returns it, or the average of its parameters.

    AdamW with weight decay 0.01. The learning rate falls from ``rate`` to zero as half a cosine.

    Args:
        run: of the clock.
        model: trained in place.
        batches: inputs and labels; endless.
        until: share of the seconds of the run.
        rate: learning rate at the start.
        loss: of logits and labels.
        average: decay of the moving average of the parameters; 0 for none.
        after_step: called with the share of this training that is over.
    """
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.01, fused=True)
    parameters = list(model.parameters())
    averages = [parameter.detach().clone() for parameter in parameters] if average else []
    started, step = run.spent, 0
    while (spent := run.spent) < until:
        progress = (spent - started) / (until - started)
        for group in optimizer.param_groups:
            group["lr"] = rate * (1 + math.cos(math.pi * progress)) / 2
        x, y = next(batches)
        optimizer.zero_grad()
        loss(model(x), y).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        step += 1
        run.clock.charge_steps(getattr(model, "num_models", 1))
        if averages:
            decay = min(average, step / (step + 10))
            torch._foreach_lerp_(averages, [parameter.detach() for parameter in parameters], 1 - decay)
        if after_step is not None:
            after_step(progress)
    run.steps += step
    if not averages:
        return model
    averaged = copy.deepcopy(model)
    for parameter, value in zip(averaged.parameters(), averages, strict=True):
        parameter.data.copy_(value)
    return averaged


@torch.no_grad()
def logits_of(model: nn.Module, x: Tensor) -> Tensor:
    """Logits (N, C) in eval mode."""
    was_training = model.training
    model.eval()
    parts = [model(part) for part in x.split(_EVALUATION_SIZE)]
    model.train(was_training)
    return torch.cat(parts)


# ---- draws


def passes(run: Run, examples: Examples) -> Batches:
    """Random passes over the examples."""
    size = run.problem.batch_size
    while True:
        order = torch.randperm(examples.num, generator=run.random)
        for index in order[: max(size, examples.num // size * size)].split(size):
            yield examples.x.index_select(0, index), examples.y.index_select(0, index)


class Balanced:
    """Draws positions with replacement: a group by its weight, then an example of it by its own weight.

    Args:
        group: (N,) groups.
        num_groups: G.
        random: of the draws.
        weight: (N,) weights of the examples; None for equal ones.
    """

    def __init__(self, group: Tensor, num_groups: int, random: torch.Generator, weight: Tensor | None = None) -> None:
        self.group, self.num_groups, self.random = group, num_groups, random
        self.order = torch.sort(group, stable=True).indices
        self.is_there = torch.bincount(group, minlength=num_groups) > 0
        self.quota = self.is_there.double()
        self.reweigh(torch.ones(len(group)) if weight is None else weight)

    def reweigh(self, weight: Tensor) -> None:
        """Take other weights of the examples."""
        weight = weight.double().clamp(min=1e-12)
        self.mass = torch.bincount(self.group, weights=weight, minlength=self.num_groups)
        self.cumulative = weight[self.order].cumsum(0)
        ends = self.mass.cumsum(0)
        self.begins = ends - self.mass

    def draw(self, num: int) -> Tensor:
        """Positions (num,)."""
        quota = self.quota * self.is_there
        groups = torch.multinomial(quota, num, replacement=True, generator=self.random)
        uniform = torch.rand(num, generator=self.random, dtype=torch.float64)
        at = torch.searchsorted(self.cumulative, self.begins[groups] + uniform * self.mass[groups])
        return self.order[at.clamp(max=len(self.order) - 1)]


def balanced(run: Run, examples: Examples) -> Batches:
    """Draws of every group alike."""
    draws = Balanced(examples.group, run.problem.num_groups, run.random)
    while True:
        index = draws.draw(run.problem.batch_size)
        yield examples.x.index_select(0, index), examples.y.index_select(0, index)


def together(parts: Sequence[tuple[Examples, Balanced, int]]) -> Batches:
    """Batches of several parts, each with its draws and their number, one after another."""
    while True:
        drawn = [(part, draws.draw(num)) for part, draws, num in parts]
        yield (
            torch.cat([part.x.index_select(0, index) for part, index in drawn]),
            torch.cat([part.y.index_select(0, index) for part, index in drawn]),
        )
