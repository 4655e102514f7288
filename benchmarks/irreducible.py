"""Cost of the irreducible stage: one model for all classes, ten at once, and the table."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import torch
from omegaconf import OmegaConf

import reducr
from benchmarks.harness import Effort, Figure, Timed, duration, ratios, time_alternately, timed
from benchmarks.program import Program, composed, opened
from benchmarks.synthetic import INPUT_SHAPES, NUM_CANDIDATES, NUM_CLASSES, TITLES, synthetic_model
from reducr.data import ExampleDataset, ExampleLoader
from reducr.irreducible import build_logit_table
from reducr.selectors import Selector

REPETITIONS = {"mlp": 5, "cnn": 3}
NUM_EPOCHS, NUM_HOLDOUT, NUM_TRAIN = {"mlp": 10, "cnn": 5}, 1_000, {"mlp": 16_000, "cnn": 8_000}
ENSEMBLE_TARGETS = {"mlp": 0.5, "cnn": None}
TABLE_EXAMPLES = {"mlp": 200_000, "cnn": 20_000}
TABLE_BATCH_SIZE = 1_000


def stages(name: str, effort: Effort) -> Iterator[Figure]:
    """Train on the holdout part and build the table over the training part, as `reducr irreducible` does.

    The closed form for all classes is compared with the one plain model of RHO-LOSS, an ensemble with models in turn.
    """
    config = composed(
        name,
        f"irreducible.num_epochs={effort.of(NUM_EPOCHS[name], tiny=1)}",
        num_train=effort.of(NUM_TRAIN[name], tiny=NUM_CANDIDATES),
        num_holdout=effort.of(NUM_HOLDOUT, tiny=100),
    )
    group_losses = reducr.make_selector("reducr", num_groups=NUM_CLASSES)
    plain_losses = reducr.make_selector("rho_loss", num_groups=NUM_CLASSES)
    with opened(config) as program:
        stage_numbers = itertools.count()
        plain, adjusted, ensemble, in_turn = time_alternately(
            _stage(program, "adjusted", plain_losses, stage_numbers),
            _stage(program, "adjusted", group_losses, stage_numbers),
            _stage(program, "ensemble", group_losses, stage_numbers),
            _stage(program, "trained", group_losses, stage_numbers),
            repetitions=effort.num_repetitions(REPETITIONS[name]),
        )
    yield Figure(
        f"irreducible stage for {NUM_CLASSES} classes, `adjusted`, {TITLES[name]}",
        ratios(adjusted, plain),
        at_most=1.15,
        over=f"one plain model and its table, {duration(plain)}",
    )
    yield Figure(
        f"irreducible stage for {NUM_CLASSES} classes, `ensemble`, {TITLES[name]}",
        ratios(ensemble, in_turn),
        at_most=ENSEMBLE_TARGETS[name],
        over=f"{NUM_CLASSES} models in turn, {duration(in_turn)}",
    )


def _stage(program: Program, kind: str, selector: Selector, stage_numbers: Iterator[int]) -> Timed:
    """Makes the losses that ``selector`` needs from scratch, in a new folder."""
    config = OmegaConf.merge(program.config, {"irreducible": {"kind": kind}})

    def seconds() -> float:
        stage = program.stage(f"stage_{next(stage_numbers)}", config=config)
        return timed(lambda: stage.losses_for(selector))()

    return seconds


def table_building(name: str, effort: Effort) -> Iterator[Figure]:
    """Examples per second of ``build_logit_table``, over bare forward passes of batches of the same size."""
    num_examples = effort.of(TABLE_EXAMPLES[name], tiny=100)
    inputs = torch.randn(num_examples, *INPUT_SHAPES[name], generator=torch.Generator().manual_seed(0))
    target = torch.zeros(num_examples, dtype=torch.int64)
    batches = ExampleLoader(ExampleDataset(inputs, target, num_classes=NUM_CLASSES), batch_size=TABLE_BATCH_SIZE)
    model = synthetic_model(name).eval()

    @torch.no_grad()
    def forward_passes() -> None:
        for batch in inputs.split(TABLE_BATCH_SIZE):
            model(batch)

    raw, building = time_alternately(
        timed(forward_passes),
        timed(lambda: build_logit_table(model, batches, num_examples=num_examples)),
        repetitions=effort.num_repetitions(11),
    )
    yield Figure(
        f"examples per second, table building, {TITLES[name]}",
        ratios(raw, building),
        at_least=0.95,
        over=f"forward passes alone, {num_examples / np.median(raw):,.0f} examples/s",
    )
