"""Train with any method for a given number of seconds."""

from __future__ import annotations

import copy
import itertools
import math
import time
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks.timed import Stopwatch, TrainingBatches, shuffled_loader, training_batches
from reducr._internal.run_folder import CHECKPOINT_RULES
from reducr.auxiliary import selected_loss
from reducr.data import ExampleDataset, ExampleLoader
from reducr.metrics import worst
from reducr.pipeline.evaluation import evaluate
from reducr.pipeline.setup import SeedData, make_optimizer, methods_of, scoped_seed, stream_seed
from reducr.scoring import num_selected_of

_NUM_CHECKPOINTS = 12
_TEST_BATCH_SIZE = 1000
_MAX_HOLDOUT_EXAMPLES = 5000
HALVES = ("tuning", "report")


def train(config: DictConfig, data: SeedData, *, seconds: float, in_parts: bool) -> dict[str, Any]:
    """Train by the one method that ``config`` compares until ``seconds`` are spent, and test its checkpoints.

    The clock starts when the data is in memory, so it counts the irreducible stage. It counts holdout losses that the
    method needs, but stops while the model is evaluated to choose a checkpoint. The learning rate decays to zero as
    half a cosine of the seconds. Everything runs on one thread.

    Args:
        config: the configuration of an experiment.
        data: the data of the seed.
        seconds: seconds of one core.
        in_parts: whether to train on every example without scoring, in steps as small as those of selection methods.

    Returns:
        ``steps``; ``irreducible_seconds``, all seconds before the first step; ``corrupted``, the share of corrupted
        examples in the batches (without extra holdout examples), None if unknown; and for each half of the test part
        and each checkpoint rule the accuracies ``HALF/RULE/worst`` and ``HALF/RULE/mean``. Examples at even positions
        are the half for tuning, the others the half for the report.

    Raises:
        ValueError: if the seconds are spent before the first step.
    """
    method = methods_of(config)[0]
    seed = stream_seed(data.seed, "target")
    with scoped_seed(seed):
        clock = Stopwatch(time.process_time)
        model = data.make_model(config.model, num_outputs=data.splits.test.num_classes, seed=seed)
        if in_parts:
            size = num_selected_of(config.fraction, config.num_candidates)
            training = TrainingBatches(shuffled_loader(data, method.train_on, size))
        else:
            training = training_batches(config, method, data, model)
        irreducible_seconds = clock.seconds
        optimizer = make_optimizer(config.optimizer)(model.parameters())
        checkpoints = _Checkpoints(model, data)
        is_corrupted = data.training_examples(method.train_on).is_corrupted
        num_steps, corrupted = _train_for(
            seconds, clock, model, optimizer, training, is_corrupted=is_corrupted, checkpoints=checkpoints
        )
        if not num_steps:
            raise ValueError(
                f"{method.name}: the irreducible stage alone takes longer than {seconds} s. Give the runs more seconds."
            )
        return {
            "steps": num_steps,
            "irreducible_seconds": round(irreducible_seconds, 2),
            "corrupted": corrupted,
            **checkpoints.test(),
        }


def _train_for(
    seconds: float,
    clock: Stopwatch,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    training: TrainingBatches,
    *,
    is_corrupted: Tensor | None,
    checkpoints: _Checkpoints,
) -> tuple[int, float | None]:
    """Train until the clock is at ``seconds``; the number of steps, and the share of corrupted examples if known."""
    rates = [group["lr"] for group in optimizer.param_groups]
    counts = torch.zeros(2, dtype=torch.int64)  # corrupted, all
    num_steps = num_checkpoints = 0
    batches = itertools.chain.from_iterable(itertools.repeat(training.batches))
    while (spent := clock.seconds) < seconds:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * (1 + math.cos(math.pi * spent / seconds)) / 2
        batch = next(batches)
        extended, weights = training.extended(batch)
        optimizer.zero_grad()
        selected_loss(model, extended, weights).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        num_steps += 1
        with clock.stopped():
            if is_corrupted is not None:
                counts += torch.tensor([int(is_corrupted[batch.index].sum()), len(batch.index)])  # type: ignore[arg-type, index]
            if clock.seconds * _NUM_CHECKPOINTS >= (num_checkpoints + 1) * seconds:
                num_checkpoints = int(clock.seconds * _NUM_CHECKPOINTS / seconds)
                checkpoints.keep()
    is_known = is_corrupted is not None and num_steps > 0
    return num_steps, round(float(counts[0] / counts[1]), 4) if is_known else None


class _Checkpoints:
    """The states of a model that the checkpoint rules choose."""

    def __init__(self, model: nn.Module, data: SeedData) -> None:
        self.model = model
        self.data = data
        self._holdout = data.splits.holdout.take(torch.arange(min(_MAX_HOLDOUT_EXAMPLES, len(data.splits.holdout))))
        self._best: dict[str, float] = {}
        self._states: dict[str, dict[str, Tensor]] = {}

    def keep(self) -> None:
        """Evaluate on up to 5,000 holdout examples, and keep the state for each rule that prefers it."""
        worst_class, mean = _accuracies(self._predictions(self._holdout), self._holdout)
        state = copy.deepcopy(self.model.state_dict())
        scores = {"last": math.inf, "best_worst_group": worst_class, "best_mean": mean}
        for rule in CHECKPOINT_RULES:
            if scores[rule] >= self._best.get(rule, 0.0):
                self._best[rule] = scores[rule]
                self._states[rule] = state

    def test(self) -> dict[str, float]:
        """Worst-class and mean accuracy of each half of the test part and each rule."""
        self.keep()
        test = self.data.splits.test
        outcome, predictions = {}, {}
        for rule in CHECKPOINT_RULES:
            state = self._states[rule]
            if id(state) not in predictions:  # rules may choose the same state
                self.model.load_state_dict(state)
                predictions[id(state)] = self._predictions(test)
            prediction = predictions[id(state)]
            for first, half in enumerate(HALVES):
                index = torch.arange(first, len(test), 2)
                worst_class, mean = _accuracies(prediction[index], test.take(index))
                outcome |= {f"{half}/{rule}/worst": round(worst_class, 4), f"{half}/{rule}/mean": round(mean, 4)}
        return outcome

    def _predictions(self, examples: ExampleDataset) -> Tensor:
        batches = ExampleLoader(examples, batch_size=_TEST_BATCH_SIZE)
        return evaluate(self.model, batches, num_classes=examples.num_classes, num_groups=examples.num_groups)[
            "prediction"
        ]


def _accuracies(prediction: Tensor, examples: ExampleDataset) -> tuple[float, float]:
    """Worst-class and mean accuracy."""
    is_correct = (prediction == examples.target).double()
    counts = torch.bincount(examples.target, minlength=examples.num_classes)
    by_class = torch.bincount(examples.target, weights=is_correct, minlength=examples.num_classes) / counts
    return worst(by_class), float(is_correct.mean())
