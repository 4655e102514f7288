"""A training step in a process that keeps freed memory, as the training commands do, and in one that does not."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from benchmarks.harness import Effort, Figure, Timed, duration, ratios, time_alternately
from benchmarks.synthetic import TITLES

CODE = """
import sys
import torch
from benchmarks.synthetic import floor_step, synthetic_batches, synthetic_model
from reducr._internal.memory import keep_freed_memory
keeps, is_tiny = (argument == "True" for argument in sys.argv[1:])
if keeps:
    keep_freed_memory()
model = synthetic_model("resnet18", is_tiny=is_tiny)
step = floor_step(model, torch.optim.SGD(model.parameters(), lr=0.01), synthetic_batches("resnet18", 1))
step()
print(min(step() for _ in range(3)))
"""


def kept_memory(effort: Effort) -> Iterator[Figure]:
    """Floor steps of a ResNet-18 in new processes."""
    freeing, keeping = time_alternately(
        _step(effort, keeps=False), _step(effort, keeps=True), repetitions=effort.num_repetitions(5)
    )
    yield Figure(
        f"step in a process that keeps freed memory, {TITLES['resnet18']}",
        ratios(keeping, freeing),
        over=f"in one that does not, {duration(freeing)}",
    )


def _step(effort: Effort, *, keeps: bool) -> Timed:
    command = [sys.executable, "-c", CODE, str(keeps), str(effort.is_tiny)]

    def seconds() -> float:
        done = subprocess.run(command, cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True)
        return float(done.stdout)

    return seconds
