"""Irreducible losses of 320 points from a table on disk of ten million: seconds and resident memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.harness import Effort, Figure, alternated, duration, ratios, timed
from benchmarks.synthetic import NUM_CANDIDATES, floor_step, made_batches, made_model
from reducr.irreducible import IrreducibleTable

NUM_POINTS, NUM_CLASSES = 10_000_000, 14
LOOKUPS = 200
"""Of one repetition."""


def lookup(effort: Effort) -> Iterator[Figure]:
    """Random rows of a memory-mapped table, over the floor of the CNN's step; growth of memory over all look-ups.

    The file has just been written, so it is in the page cache of the system. Memory that the process has for itself
    is told apart from pages of the file, which the system shares with the page cache and takes back when it needs
    them.
    """
    num_examples, num_lookups = effort.of(NUM_POINTS, tiny=1_000), effort.of(LOOKUPS, tiny=2)
    generator = torch.Generator().manual_seed(0)
    model = made_model("cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    bare = floor_step(model, optimizer, made_batches("cnn", effort.of(5, tiny=1)))
    with TemporaryDirectory() as folder:
        table = IrreducibleTable(_mapped(Path(folder) / "values.npy", num_examples), kind="logits")

        def rows() -> float:
            indices = torch.randint(num_examples, (num_lookups, NUM_CANDIDATES), generator=generator)
            seconds = timed(lambda: [table.rows(index) for index in indices], num_parts=num_lookups)()
            memory.append(_resident_megabytes())
            return seconds

        bare()
        memory = [_resident_megabytes()]
        baseline, seconds = alternated(bare, rows, repetitions=effort.repeated(20))
    size = f"{NUM_POINTS // 10**6} million x {NUM_CLASSES}"
    yield Figure(
        f"look-up of {NUM_CANDIDATES} rows, table of {size} on disk",
        ratios(seconds, baseline),
        at_most=0.01,
        over=f"floor of the three-layer CNN's step, {duration(baseline)}",
    )
    num_rows = len(memory[1:]) * num_lookups * NUM_CANDIDATES
    own, mapped = zip(*memory, strict=True)
    if max(mapped):
        # the first repetition makes what is made once
        growth = max(later - own[1] for later in own[1:])
        what = f"after look-ups of {num_rows:,} rows"
        yield Figure(f"growth of the process's own memory {what}", [growth], unit="MB", at_most=1.0)
        pages = max(mapped) - mapped[0]
        file = f"file, {num_examples * NUM_CLASSES * 4 / 1e6:.0f} MB"
        yield Figure(f"pages of the file in use {what}", [pages], unit="MB", over=file)


def _mapped(path: Path, num_examples: int) -> np.ndarray:
    """A written table, opened as ``load_table`` opens it."""
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(num_examples, NUM_CLASSES))
    part = np.random.default_rng(0).standard_normal((min(num_examples, 100_000), NUM_CLASSES), dtype=np.float32)
    for start in range(0, num_examples, len(part)):
        values[start : start + len(part)] = part
    values.flush()
    del values
    return np.load(path, mmap_mode="r")


def _resident_megabytes() -> tuple[float, float]:
    """Memory of the process's own, and pages of files that it has mapped; zeros where the system does not say."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0, 0.0
    found = re.findall(r"^Rss(\w+):\s+(\d+) kB", status.read_text(encoding="utf-8"), flags=re.MULTILINE)
    megabytes = {name: int(kilobytes) * 1024 / 1e6 for name, kilobytes in found}
    return megabytes["Anon"], megabytes["File"] + megabytes["Shmem"]
