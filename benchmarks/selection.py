"""Selection without a model: many candidates of many groups, and how its time grows."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn

import reducr
from benchmarks.harness import Effort, Figure, Timed, duration, ratios, time_alternately, timed
from benchmarks.synthetic import FRACTION
from reducr.batch import Batch
from reducr.downsampler import Downsampler
from reducr.irreducible import AdjustedGroupLoss, AdjustedIrreducibleLoss, IrreducibleTable, TableLogits

NUM_CANDIDATES, NUM_GROUPS = 65_536, 1_000


class SelectionTask:
    """``select`` and ``update`` of REDUCR, with irreducible losses in closed form from logits in memory.

    Args:
        num_candidates: B.
        num_groups: G.
    """

    def __init__(self, num_candidates: int, num_groups: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.logits = torch.empty(num_candidates, num_groups).normal_(generator=generator)
        self.targets = torch.randint(num_groups, (num_candidates,), generator=generator)
        self.model_loss = torch.rand(num_candidates, generator=generator)
        self.selector = reducr.make_selector("reducr", num_groups=num_groups, step_size=1e-4)
        self.selector.set_group_holdout_loss(torch.ones(num_groups))

    def __call__(self) -> None:
        """Select a tenth of the candidates and update the weights."""
        losses = AdjustedGroupLoss(self.logits, self.targets)
        candidates = reducr.Candidates(model_loss=self.model_loss, group_irreducible_loss=losses)
        selection = self.selector.select(candidates, num_selected=max(1, int(FRACTION * len(self.targets))))
        self.selector.update(selection)


def settle_allocator() -> None:
    """Free 16 MB at once, as every training does after its first step.

    Until then glibc returns each freed megabyte to the system and requests it again, which doubles the time.
    """
    torch.zeros(4_000_000)


def choosing(effort: Effort) -> Iterator[Figure]:
    """Seconds and memory of one selection."""
    settle_allocator()
    sizes = effort.of((NUM_CANDIDATES, NUM_GROUPS), tiny=(64, 10))
    task = SelectionTask(*sizes)
    baseline, seconds = time_alternately(
        timed(lambda: torch.log_softmax(task.logits, dim=1)),
        timed(task),
        repetitions=effort.num_repetitions(15),
    )
    what = f"`select` and `update`, B = {NUM_CANDIDATES:,}, G = {NUM_GROUPS:,}"
    yield Figure(what, seconds, unit="s", at_most=0.5)
    yield Figure(what, ratios(seconds, baseline), over=f"`log_softmax` of the same logits, {duration(baseline)}")
    command = [sys.executable, "-m", "benchmarks.selection", *map(str, sizes)]
    peaks = [
        subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
        for _ in range(effort.num_repetitions(3))
    ]
    if all(peaks):
        megabytes = [float(peak) for peak in peaks]
        yield Figure(f"peak memory beyond the inputs of {what}", megabytes, unit="MB", at_most=128.0)


def growth(effort: Effort) -> Iterator[Figure]:
    """Exponents with which the time of a step, without the model, grows in B, G and N."""
    settle_allocator()
    sizes = effort.of([2**power for power in range(10, 17, 2)], tiny=[16, 32])
    yield _exponent("B", sizes, [_Step(size, 10, 2 * size) for size in sizes], effort, at_most=1.05)
    sizes = effort.of([10, 32, 100, 316, 1_000], tiny=[2, 4])
    yield _exponent("G", sizes, [_Step(effort.of(4_096, tiny=16), size, 8_192) for size in sizes], effort, at_most=1.0)
    sizes = effort.of([10**power for power in range(4, 8)], tiny=[100, 200])
    yield _exponent("N", sizes, [_Step(effort.of(320, tiny=16), 10, size) for size in sizes], effort, at_most=0.05)


class _Step:
    """Look-up in a table of logits, ``select`` and ``update``, with a model that costs nothing."""

    def __init__(self, num_candidates: int, num_groups: int, num_examples: int) -> None:
        generator = torch.Generator().manual_seed(0)
        values = np.empty((num_examples, num_groups), dtype=np.float32)
        torch.from_numpy(values).normal_(generator=generator)
        target = torch.randint(num_groups, (num_candidates,), generator=generator)
        logits = torch.randn(num_candidates, num_groups, generator=generator)
        self.batches = [
            Batch(torch.randint(num_examples, (num_candidates,), generator=generator), logits, target, target)
            for _ in range(min(100, max(1, 2_000_000 // (num_candidates * num_groups))))
        ]
        selector = reducr.make_selector("reducr", num_groups=num_groups, step_size=1e-4)
        selector.set_group_holdout_loss(torch.ones(num_groups))
        irreducible = AdjustedIrreducibleLoss(TableLogits(IrreducibleTable(values, kind="logits")))
        self.downsampler = Downsampler(selector, irreducible, fraction=FRACTION)
        self.model = nn.Identity()

    def __call__(self) -> float:
        """Seconds of a step."""
        return timed(self._steps, num_parts=len(self.batches))()

    def _steps(self) -> None:
        for batch in self.batches:
            self.downsampler.select(batch, self.model)
            self.downsampler.step(self.model)


def _exponent(name: str, sizes: Sequence[int], steps: Sequence[Timed], effort: Effort, *, at_most: float) -> Figure:
    """Least-squares slope of log seconds over log size, at each repetition."""
    seconds = time_alternately(*steps, repetitions=effort.num_repetitions(15))
    slopes = [
        float(np.polyfit(np.log(sizes), np.log(repetition), deg=1)[0]) for repetition in zip(*seconds, strict=True)
    ]
    return Figure(
        f"exponent in {name} of a step's time without the model, {sizes[0]:,} to {sizes[-1]:,}",
        slopes,
        at_most=at_most,
        over=f"{duration(seconds[0])} to {duration(seconds[-1])}",
    )


def _peak_megabytes(num_candidates: int, num_groups: int) -> float | None:
    """Peak resident memory of a selection beyond its inputs; None on systems without /proc."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    settle_allocator()
    SelectionTask(16, num_groups)()  # allocates what is allocated once
    task = SelectionTask(num_candidates, num_groups)

    def peak() -> float:
        match = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(encoding="utf-8"), flags=re.MULTILINE)
        return int(match[1]) * 1024 / 1e6 if match else 0.0

    before = peak()  # includes the inputs
    task()
    return peak() - before


if __name__ == "__main__":
    megabytes = _peak_megabytes(*map(int, sys.argv[1:]))
    print("" if megabytes is None else round(megabytes, 1))
