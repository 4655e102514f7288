"""Training by any method until its seconds are spent."""

from __future__ import annotations

import copy
import itertools
import math
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

import reducr
from reducr.batch import Batch
from reducr.companions import OtherPoints, selected_loss
from reducr.data import PointDataset, PointLoader
from reducr.metrics import worst
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import (
    SeedData,
    make_optimizer,
    make_scoring_budget,
    methods_of,
    scoped_seed,
    stream_seed,
)
from reducr.pipeline.target_stage import evaluate
from reducr.runs import CHECKPOINT_RULES

_NUM_CHECKPOINTS = 12
_TEST_BATCH_SIZE = 1000
HALVES = ("tuning", "report")


class ProcessorClock:
    """Seconds of a processor that this process has taken since the clock was made, without those while it stood.

    On one thread these are the wall-clock seconds that a core of its own would have taken, whatever runs beside it.
    """

    def __init__(self) -> None:
        self._started = time.process_time()

    @property
    def seconds(self) -> float:
        """So far."""
        return time.process_time() - self._started

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done inside takes no time."""
        started = time.process_time()
        yield
        self._started += time.process_time() - started


@dataclass
class _Candidates:
    """What a method trains on."""

    batches: Iterable[Batch]
    others: OtherPoints | None = None
    irreducible_seconds: float = 0.0

    def point_weights(self) -> Tensor | None:
        """Of the points selected last."""
        return self.batches.point_weights if isinstance(self.batches, reducr.SelectiveLoader) else None


def train(config: DictConfig, data: SeedData, *, seconds: float, in_parts: bool) -> dict[str, Any]:
    """Train by the one method that ``config`` compares until ``seconds`` are spent, and test its checkpoints.

    The clock begins when the data is in memory, so the irreducible stage is on it, and stands while the model is
    evaluated for the choice of a checkpoint: the holdout losses that a rule needs are on it. The learning rate falls
    from the optimiser's to zero as half a cosine of the seconds. Everything is on one thread.

    Args:
        config: of an experiment.
        data: of the seed.
        seconds: of one core.
        in_parts: train on every point, in steps as small as those of the methods that select, and score nothing.

    Returns:
        ``steps``, ``irreducible_seconds``, ``corrupted`` (share of the points trained on; null where not known) and
        for each half of the test part and each checkpoint rule ``HALF/RULE/worst`` and ``HALF/RULE/mean`` accuracy.
        Points at even places are the half for tuning, the others that for the report.
    """
    method = methods_of(config)[0]
    seed = stream_seed(data.seed, "target")
    with scoped_seed(seed), tempfile.TemporaryDirectory() as folder:
        clock = ProcessorClock()
        model = data.make_model(config.model, num_outputs=data.splits.test.num_classes, seed=seed)
        candidates = _candidates(config, data, model, folder=Path(folder), clock=clock, in_parts=in_parts)
        optimizer = make_optimizer(config.optimizer)(model.parameters())
        rates = [group["lr"] for group in optimizer.param_groups]
        checkpoints = _Checkpoints(model, data)
        counts = torch.zeros(2, dtype=torch.int64)
        is_corrupted = data.training_points(method.train_on).is_corrupted
        due = steps = 0
        batches = itertools.chain.from_iterable(itertools.repeat(candidates.batches))
        while (spent := clock.seconds) < seconds:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * spent / seconds)) / 2
            batch = next(batches)
            trained_on = batch if candidates.others is None else candidates.others.joined_to(batch)
            optimizer.zero_grad()
            selected_loss(model, trained_on, candidates.point_weights()).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
            steps += 1
            with clock.stopped():
                if is_corrupted is not None:
                    counts += torch.tensor([int(is_corrupted[batch.index].sum()), len(batch.index)])  # type: ignore[arg-type, index]
                if clock.seconds * _NUM_CHECKPOINTS >= (due + 1) * seconds:
                    due = int(clock.seconds * _NUM_CHECKPOINTS / seconds)
                    checkpoints.keep()
        if not steps:
            raise ValueError(f"{method.name}: the irreducible stage alone takes longer than {seconds} s: give it more.")
        return {
            "steps": steps,
            "irreducible_seconds": round(candidates.irreducible_seconds, 2),
            "corrupted": None if is_corrupted is None else round(float(counts[0] / counts[1]), 4),
            **checkpoints.tested(),
        }


def _candidates(
    config: DictConfig, data: SeedData, model: nn.Module, *, folder: Path, clock: ProcessorClock, in_parts: bool
) -> _Candidates:
    """What a method trains on; the irreducible losses, if it needs them, are made."""
    method = methods_of(config)[0]
    points = data.training_points(method.train_on)
    num_selected, num_drawn = method.num_points(config.fraction, config.num_candidates)
    size = num_selected if in_parts else config.num_candidates
    order = stream_seed(data.seed, "order")
    loader = PointLoader(points, batch_size=min(size, len(points)), shuffle=True, drop_last=True, seed=order)
    if in_parts:
        return _Candidates(loader)
    selector = method.make_selector(points.num_groups)
    with RunDisplay(1, console=Console(quiet=True)) as display:
        stage = IrreducibleStage(config, data, folder, display)
        irreducible = stage.losses_for(selector)
        if method.warm_start:
            model.load_state_dict(stage.plain_model().model.state_dict())
    irreducible_seconds = clock.seconds
    holdout = data.splits.holdout
    options: dict[str, Any] = {}
    if selector.needs_group_holdout_loss:
        options["holdout"] = PointLoader(holdout, batch_size=config.holdout.batch_size)
        options["refresh_steps"] = config.holdout.refresh_steps
    selected = reducr.SelectiveLoader(
        loader,
        model,
        selector,
        irreducible.lookup,
        fraction=num_selected / config.num_candidates,
        scoring_mode=config.scoring_mode,
        scoring_budget=make_scoring_budget(config, selector, num_points=len(points)),
        weights_points=True,
        seed=stream_seed(data.seed, "selection"),
        **options,
    )
    others = None
    if num_drawn:
        drawn = stream_seed(data.seed, "holdout")
        others = OtherPoints(PointLoader(holdout, batch_size=num_drawn, shuffle=True, drop_last=True, seed=drawn))
    return _Candidates(selected, others, irreducible_seconds)


class _Checkpoints:
    """The state of a model that each checkpoint rule chooses."""

    def __init__(self, model: nn.Module, data: SeedData) -> None:
        self.model = model
        self.data = data
        self._best: dict[str, float] = {}
        self._states: dict[str, dict[str, Tensor]] = {}

    def keep(self) -> None:
        """Evaluate the holdout part, and keep the state for each rule that chooses it."""
        class_accuracy, mean = _accuracies(self._predicted(self.data.splits.holdout), self.data.splits.holdout)
        scores = {"last": math.inf, "best_worst_group": class_accuracy, "best_mean": mean}
        for rule in CHECKPOINT_RULES:
            if scores[rule] >= self._best.get(rule, 0.0):
                self._best[rule] = scores[rule]
                self._states[rule] = copy.deepcopy(self.model.state_dict())

    def tested(self) -> dict[str, float]:
        """Worst-class and mean accuracy of each half of the test part and each rule."""
        self.keep()
        test = self.data.splits.test
        outcome = {}
        for rule in CHECKPOINT_RULES:
            self.model.load_state_dict(self._states[rule])
            prediction = self._predicted(test)
            for first, half in enumerate(HALVES):
                index = torch.arange(first, len(test), 2)
                worst_class, mean = _accuracies(prediction[index], test.take(index))
                outcome |= {f"{half}/{rule}/worst": round(worst_class, 4), f"{half}/{rule}/mean": round(mean, 4)}
        return outcome

    def _predicted(self, points: PointDataset) -> Tensor:
        batches = PointLoader(points, batch_size=_TEST_BATCH_SIZE)
        return evaluate(self.model, batches, num_classes=points.num_classes, num_groups=points.num_groups)["prediction"]


def _accuracies(prediction: Tensor, points: PointDataset) -> tuple[float, float]:
    """Worst-class and mean accuracy."""
    is_correct = (prediction == points.target).double()
    counts = torch.bincount(points.target, minlength=points.num_classes)
    by_class = torch.bincount(points.target, weights=is_correct, minlength=points.num_classes) / counts
    return worst(by_class), float(is_correct.mean())
