"""Scoring the next candidates while the model trains, over one after the other.

What overlaps scores with a copy of the parameters, one step old, on a thread of its own; each of the two has half the
cores. Selection is left out: it is the same for both.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.harness import Effort, Figure, alternated, duration, ratios
from benchmarks.synthetic import NUM_SELECTED, TITLES, floor_step, made_batches, made_model

STEPS = {"mlp": 100, "cnn": 12}
REPETITIONS = 20


def overlap(name: str, effort: Effort) -> Iterator[Figure]:
    """Steps with scoring beside them over steps with scoring before them."""
    num_steps = effort.of(STEPS[name], tiny=2)
    model, batches = made_model(name), made_batches(name, num_steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scorer = copy.deepcopy(model)
    pairs = list(zip(scorer.parameters(), model.parameters(), strict=True))
    num_threads = torch.get_num_threads()
    halved = partial(torch.set_num_threads, max(1, num_threads // 2))

    @torch.no_grad()
    def score(inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = scorer(inputs)
        return logits

    with ThreadPoolExecutor(1, initializer=halved) as beside:

        def overlapped() -> float:
            halved()
            started = time.perf_counter()
            for batch in batches:
                with torch.no_grad():
                    for copied, parameter in pairs:
                        copied.copy_(parameter)
                scores = beside.submit(score, batch.input)
                loss = F.cross_entropy(model(batch.input[:NUM_SELECTED]), batch.target[:NUM_SELECTED])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scores.result()
            seconds = time.perf_counter() - started
            torch.set_num_threads(num_threads)
            return seconds / num_steps

        baseline, seconds = alternated(
            floor_step(model, optimizer, batches), overlapped, repetitions=effort.repeated(REPETITIONS)
        )
    yield Figure(
        f"step with the next candidates scored beside it, {TITLES[name]}",
        ratios(seconds, baseline),
        over=f"scored before it, {duration(baseline)}",
    )
