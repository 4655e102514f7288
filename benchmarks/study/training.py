"""Training by any method until its seconds are spent."""

from __future__ import annotations

import copy
import itertools
import math
import time
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn

from benchmarks.timed import Candidates, Stopwatch, candidates_of, shuffled
from reducr._internal.run_folder import CHECKPOINT_RULES
from reducr.data import ExampleDataset, ExampleLoader
from reducr.metrics import worst
from reducr.pipeline.setup import SeedData, make_optimizer, methods_of, scoped_seed, stream_seed
from reducr.pipeline.target_stage import evaluate
from reducr.scoring.scorer import num_selected_of
from reducr.training.auxiliary import selected_loss

_NUM_CHECKPOINTS = 12
_TEST_BATCH_SIZE = 1000
_MOST_HOLDOUT_POINTS = 5000
HALVES = ("tuning", "report")


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
        ``steps``; ``irreducible_seconds``, all before the first step; ``corrupted``, the share among the points of the
        batches, without holdout points drawn beside them, null where not known; and for each half of the test part and
        each checkpoint rule ``HALF/RULE/worst`` and ``HALF/RULE/mean`` accuracy. Points at even places are the half for
        tuning, the others that for the report.

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
            candidates = Candidates(shuffled(data, method.train_on, size))
        else:
            candidates = candidates_of(config, method, data, model)
        before_training = clock.seconds
        optimizer = make_optimizer(config.optimizer)(model.parameters())
        rates = [group["lr"] for group in optimizer.param_groups]
        checkpoints = _Checkpoints(model, data)
        counts = torch.zeros(2, dtype=torch.int64)
        is_corrupted = data.training_examples(method.train_on).is_corrupted
        due = steps = 0
        batches = itertools.chain.from_iterable(itertools.repeat(candidates.batches))
        while (spent := clock.seconds) < seconds:
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * (1 + math.cos(math.pi * spent / seconds)) / 2
            batch = next(batches)
            trained_on = batch if candidates.others is None else candidates.others.append_to(batch)
            optimizer.zero_grad()
            selected_loss(model, trained_on, candidates.example_weights()).backward()  # type: ignore[no-untyped-call]
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
            "irreducible_seconds": round(before_training, 2),
            "corrupted": None if is_corrupted is None else round(float(counts[0] / counts[1]), 4),
            **checkpoints.tested(),
        }


class _Checkpoints:
    """The state of a model that each checkpoint rule chooses."""

    def __init__(self, model: nn.Module, data: SeedData) -> None:
        self.model = model
        self.data = data
        self._holdout = data.splits.holdout.take(torch.arange(min(_MOST_HOLDOUT_POINTS, len(data.splits.holdout))))
        self._best: dict[str, float] = {}
        self._states: dict[str, dict[str, Tensor]] = {}

    def keep(self) -> None:
        """Evaluate the holdout part, or 5,000 of it, and keep the state for each rule that chooses it."""
        class_accuracy, mean = _accuracies(self._predicted(self._holdout), self._holdout)
        state = copy.deepcopy(self.model.state_dict())
        scores = {"last": math.inf, "best_worst_group": class_accuracy, "best_mean": mean}
        for rule in CHECKPOINT_RULES:
            if scores[rule] >= self._best.get(rule, 0.0):
                self._best[rule] = scores[rule]
                self._states[rule] = state

    def tested(self) -> dict[str, float]:
        """Worst-class and mean accuracy of each half of the test part and each rule."""
        self.keep()
        test = self.data.splits.test
        outcome, predictions = {}, {}
        for rule in CHECKPOINT_RULES:
            state = self._states[rule]
            if id(state) not in predictions:  # rules that chose the same
                self.model.load_state_dict(state)
                predictions[id(state)] = self._predicted(test)
            prediction = predictions[id(state)]
            for first, half in enumerate(HALVES):
                index = torch.arange(first, len(test), 2)
                worst_class, mean = _accuracies(prediction[index], test.take(index))
                outcome |= {f"{half}/{rule}/worst": round(worst_class, 4), f"{half}/{rule}/mean": round(mean, 4)}
        return outcome

    def _predicted(self, points: ExampleDataset) -> Tensor:
        batches = ExampleLoader(points, batch_size=_TEST_BATCH_SIZE)
        return evaluate(self.model, batches, num_classes=points.num_classes, num_groups=points.num_groups)["prediction"]


def _accuracies(prediction: Tensor, points: ExampleDataset) -> tuple[float, float]:
    """Worst-class and mean accuracy."""
    is_correct = (prediction == points.target).double()
    counts = torch.bincount(points.target, minlength=points.num_classes)
    by_class = torch.bincount(points.target, weights=is_correct, minlength=points.num_classes) / counts
    return worst(by_class), float(is_correct.mean())
