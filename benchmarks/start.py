"""Time of ``import reducr`` over ``import torch``, in new processes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

from benchmarks.harness import Effort, Figure, Timed, duration, ratios, time_alternately


def start(effort: Effort) -> Iterator[Figure]:
    """Seconds of the import statement, without the start of the interpreter."""
    baseline, seconds = time_alternately(
        _importing("torch"), _importing("reducr"), repetitions=effort.num_repetitions(11)
    )
    yield Figure(
        "`import reducr`", ratios(seconds, baseline), at_most=1.15, over=f"`import torch`, {duration(baseline)}"
    )


def _importing(package: str) -> Timed:
    code = f"import time; t = time.perf_counter(); import {package}; print(time.perf_counter() - t)"

    def seconds() -> float:
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        return float(done.stdout)

    return seconds
