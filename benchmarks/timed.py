"""For training until seconds are spent: a clock, and what a method trains on, of the training program's own parts."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

import reducr
from reducr.batch import Batch
from reducr.data import ExampleLoader
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import Method, SeedData, make_scoring_budget, stream_seed
from reducr.training.auxiliary import ExtraBatches


class Stopwatch:
    """Seconds since it was made, without those while it was stopped.

    Args:
        clock: ``time.perf_counter`` for those of the wall, or ``time.process_time`` for those of a processor that this
            process has taken: on one thread what a core of its own would have taken, whatever runs beside it.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started = clock()

    @property
    def seconds(self) -> float:
        """So far."""
        return self._clock() - self._started

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """What is done inside takes no time."""
        started = self._clock()
        yield
        self._started += self._clock() - started


@dataclass
class Candidates:
    """What a method trains on.

    Args:
        batches: of an epoch.
        others: points that join those of every batch.
    """

    batches: Iterable[Batch]
    others: ExtraBatches | None = None

    def example_weights(self) -> Tensor | None:
        """Of the points of the last batch; None for 1."""
        return self.batches.example_weights if isinstance(self.batches, reducr.SelectiveLoader) else None


def shuffled(data: SeedData, train_on: str, batch_size: int) -> ExampleLoader:
    """Batches of the points of a part, or of as many as there are."""
    points = data.training_examples(train_on)
    order = stream_seed(data.seed, "order")
    return ExampleLoader(points, batch_size=min(batch_size, len(points)), shuffle=True, drop_last=True, seed=order)


def candidates_of(config: DictConfig, method: Method, data: SeedData, model: nn.Module) -> Candidates:
    """What ``model`` is trained on by a method; its irreducible losses, if it needs them, are made first.

    With a warm start the model gets the parameters of the irreducible model.
    """
    loader = shuffled(data, method.train_on, config.num_candidates)
    selector = method.make_selector(data.splits.train.num_groups)
    with tempfile.TemporaryDirectory() as folder, RunDisplay(1, console=Console(quiet=True)) as display:
        stage = IrreducibleStage(config, data, Path(folder), display)
        irreducible = stage.losses_for(selector).lookup
        if method.warm_start:
            model.load_state_dict(stage.plain_model().model.state_dict())
    num_selected, num_drawn = method.num_examples(config.fraction, config.num_candidates)
    holdout = data.splits.holdout
    options: dict[str, Any] = {}
    if selector.needs_group_holdout_loss:
        options["holdout"] = ExampleLoader(holdout, batch_size=config.holdout.batch_size)
        options["refresh_steps"] = config.holdout.refresh_steps
    selected = reducr.SelectiveLoader(
        loader,
        model,
        selector,
        irreducible,
        fraction=num_selected / config.num_candidates,
        scoring_mode=config.scoring_mode,
        scoring_budget=make_scoring_budget(config, selector, num_examples=len(data.training_examples(method.train_on))),
        weights_examples=True,
        seed=stream_seed(data.seed, "selection"),
        **options,
    )
    others = None
    if num_drawn:
        drawn = stream_seed(data.seed, "holdout")
        others = ExtraBatches(ExampleLoader(holdout, batch_size=num_drawn, shuffle=True, drop_last=True, seed=drawn))
    return Candidates(selected, others)
