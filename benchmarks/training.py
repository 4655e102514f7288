"""A whole training by `reducr train`, with metrics, checkpoints, progress and validation, over its floor."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from benchmarks.harness import Effort, Figure, duration, ratios, time_alternately
from benchmarks.program import composed, opened
from benchmarks.synthetic import NUM_CANDIDATES, TITLES, floor_step, synthetic_batches, synthetic_model
from reducr.pipeline.setup import make_optimizer
from reducr.pipeline.target_stage import train_method

TARGETS = {"mlp": 3.0, "cnn": 1.10}
STEPS = {"mlp": 500, "cnn": 300}
REPETITIONS = {"mlp": 7, "cnn": 5}
STEPS_PER_EPOCH, NUM_HOLDOUT, REFRESH_STEPS = 50, 1_000, 100


def training(name: str, effort: Effort) -> Iterator[Figure]:
    """Time per step of ``reducr train``, from the start of the Trainer to its last checkpoint."""
    num_steps = effort.of(STEPS[name], tiny=2)
    num_batches = effort.of(STEPS_PER_EPOCH, tiny=1)
    config = composed(
        name,
        f"num_steps={num_steps}",
        f"holdout.refresh_steps={REFRESH_STEPS}",
        "irreducible.num_epochs=1",
        num_train=num_batches * NUM_CANDIDATES,
        num_holdout=effort.of(NUM_HOLDOUT, tiny=100),
    )
    with opened(config) as program:
        stage, training_numbers = program.stage("irreducible"), itertools.count()

        def fit() -> float:
            folder = program.folder / f"training_{next(training_numbers)}"
            last, *_ = train_method(config, program.method, program.data, stage, folder=folder)
            return (last.total_seconds - last.irreducible_seconds) / last.steps

        model = synthetic_model(name)
        optimizer = make_optimizer(config.optimizer)(model.parameters())
        floor = floor_step(model, optimizer, synthetic_batches(name, num_batches) * (num_steps // num_batches))
        baseline, seconds = time_alternately(floor, fit, repetitions=effort.num_repetitions(REPETITIONS[name]))
    yield Figure(
        f"step of `reducr train`, whole fit, {TITLES[name]}",
        ratios(seconds, baseline),
        at_most=TARGETS[name],
        over=f"floor, {duration(baseline)}",
    )
