"""Train for a given number of seconds: a stopwatch, and the batches that a method trains on."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from torch import Tensor, nn

import reducr
from reducr.auxiliary import ExtraBatches
from reducr.batch import Batch
from reducr.data import ExampleLoader
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import Method, SeedData, make_scoring, stream_seed


class Stopwatch:
    """Seconds since its creation, except while it was stopped.

    Args:
        clock: ``time.perf_counter`` for wall-clock seconds, or ``time.process_time`` for processor seconds of this
            process. With one thread, the latter do not depend on what else runs on the machine.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self._clock = clock
        self._started = clock()

    @property
    def seconds(self) -> float:
        """Seconds so far."""
        return self._clock() - self._started

    @contextmanager
    def stopped(self) -> Iterator[None]:
        """Do not count the time inside the block."""
        started = self._clock()
        yield
        self._started += self._clock() - started


@dataclass
class TrainingBatches:
    """The batches that a method trains on.

    Args:
        batches: the batches of one epoch.
        extra: examples that are appended to every batch; None for none.
    """

    batches: Iterable[Batch]
    extra: ExtraBatches | None = None

    def extended(self, batch: Batch) -> tuple[Batch, Tensor | None]:
        """A batch followed by the next extra examples, and the loss weights of all of them; None for 1."""
        num_examples = len(batch.target)
        extended: Batch = batch
        if self.extra is not None:
            extended = self.extra.append_to(batch, num_examples=num_examples, device=batch.target.device)
        if not isinstance(self.batches, reducr.SelectiveLoader):
            return extended, None
        weights = self.batches.example_weights
        return extended, torch.cat([weights, weights.new_ones(len(extended.target) - num_examples)])


def shuffled_loader(data: SeedData, train_on: str, batch_size: int, *, defers_inputs: bool = False) -> ExampleLoader:
    """Shuffled batches of a part, smaller than ``batch_size`` only if the part is."""
    examples = data.training_examples(train_on)
    return ExampleLoader(
        examples,
        batch_size=min(batch_size, len(examples)),
        shuffle=True,
        drop_last=True,
        seed=stream_seed(data.seed, "order"),
        defers_inputs=defers_inputs,
    )


def training_batches(config: DictConfig, method: Method, data: SeedData, model: nn.Module) -> TrainingBatches:
    """The batches that a method trains ``model`` on; makes its irreducible losses first, if it needs them.

    With a warm start, ``model`` gets the parameters of the reference model (the paper's irreducible model).
    """
    selector = method.make_selector(data.splits.train.num_groups)
    has_table = config.irreducible.lookup == "table" or not any("irreducible_loss" in need for need in selector.needs)
    loader = shuffled_loader(
        data, method.train_on, config.num_candidates, defers_inputs=has_table and not selector.reads_model
    )
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
        scoring=make_scoring(config, selector, num_examples=len(data.training_examples(method.train_on))),
        weights_examples=True,
        seed=stream_seed(data.seed, "selection"),
        **options,
    )
    extra = None
    if num_drawn:
        seed = stream_seed(data.seed, "holdout")
        extra = ExtraBatches(ExampleLoader(holdout, batch_size=num_drawn, shuffle=True, drop_last=True, seed=seed))
    return TrainingBatches(selected, extra)
