"""Score the next candidates while the model trains, compared with scoring before training.

The overlapped scoring uses a copy of the parameters, one step old, on a separate thread; scoring and training have half
the cores each. Selection is left out, because it costs the same in both.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import torch
import torch.nn.functional as F

from benchmarks.harness import Effort, Figure, duration, ratios, time_alternately
from benchmarks.synthetic import NUM_SELECTED, TITLES, floor_step, synthetic_batches, synthetic_model

STEPS = {"mlp": 100, "cnn": 12}
REPETITIONS = 20


def overlap(name: str, effort: Effort) -> Iterator[Figure]:
    """Time of a step with overlapped scoring, over a step with scoring before it."""
    num_steps = effort.of(STEPS[name], tiny=2)
    model, batches = synthetic_model(name), synthetic_batches(name, num_steps)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    scorer = copy.deepcopy(model)
    pairs = list(zip(scorer.parameters(), model.parameters(), strict=True))
    num_threads = torch.get_num_threads()
    halve_threads = partial(torch.set_num_threads, max(1, num_threads // 2))

    @torch.no_grad()
    def score(inputs: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = scorer(inputs)
        return logits

    with ThreadPoolExecutor(1, initializer=halve_threads) as scoring_thread:

        def overlapped() -> float:
            halve_threads()
            started = time.perf_counter()
            for batch in batches:
                with torch.no_grad():
                    for copied, parameter in pairs:
                        copied.copy_(parameter)
                scores = scoring_thread.submit(score, batch.input)
                loss = F.cross_entropy(model(batch.input[:NUM_SELECTED]), batch.target[:NUM_SELECTED])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                scores.result()
            seconds = time.perf_counter() - started
            torch.set_num_threads(num_threads)
            return seconds / num_steps

        baseline, seconds = time_alternately(
            floor_step(model, optimizer, batches), overlapped, repetitions=effort.num_repetitions(REPETITIONS)
        )
    yield Figure(
        f"step with the next candidates scored meanwhile, {TITLES[name]}",
        ratios(seconds, baseline),
        over=f"scored before it, {duration(baseline)}",
    )
