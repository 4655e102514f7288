"""A whole training of `reducr train` over its floor: metrics of every step, checkpoints, progress, validations."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from benchmarks.harness import Effort, Figure, alternated, duration, ratios
from benchmarks.program import configured, program
from benchmarks.synthetic import NUM_CANDIDATES, TITLES, floor_step, made_batches, made_model
from reducr.pipeline.setup import make_optimizer
from reducr.pipeline.target_stage import train_method

TARGETS = {"mlp": 3.0, "cnn": 1.10}
STEPS = {"mlp": 500, "cnn": 300}
REPETITIONS = {"mlp": 7, "cnn": 5}
STEPS_OF_EPOCH, NUM_HOLDOUT, REFRESH_STEPS = 50, 1_000, 100


def training(name: str, effort: Effort) -> Iterator[Figure]:
    """The fit of ``reducr train``, from the start of the Trainer to its last checkpoint, by the step."""
    num_steps = effort.of(STEPS[name], tiny=2)
    num_batches = effort.of(STEPS_OF_EPOCH, tiny=1)
    config = configured(
        name,
        f"num_steps={num_steps}",
        f"holdout.refresh_steps={REFRESH_STEPS}",
        "irreducible.num_epochs=1",
        num_train=num_batches * NUM_CANDIDATES,
        num_holdout=effort.of(NUM_HOLDOUT, tiny=100),
    )
    with program(config) as made:
        stage, numbers = made.stage("irreducible"), itertools.count()

        def fit() -> float:
            folder = made.folder / f"training_{next(numbers)}"
            last, *_ = train_method(config, made.method, made.data, stage, folder=folder)
            return (last.total_seconds - last.irreducible_seconds) / last.steps

        model = made_model(name)
        optimizer = make_optimizer(config.optimizer)(model.parameters())
        bare = floor_step(model, optimizer, made_batches(name, num_batches) * (num_steps // num_batches))
        baseline, seconds = alternated(bare, fit, repetitions=effort.repeated(REPETITIONS[name]))
    yield Figure(
        f"step of `reducr train`, whole fit, {TITLES[name]}",
        ratios(seconds, baseline),
        at_most=TARGETS[name],
        over=f"floor, {duration(baseline)}",
    )
