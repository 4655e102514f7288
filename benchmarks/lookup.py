"""Look up 320 examples in a table of ten million on disk: seconds and resident memory."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.harness import Effort, Figure, duration, ratios, time_alternately, timed
from benchmarks.synthetic import NUM_CANDIDATES, floor_step, synthetic_batches, synthetic_model
from reducr.irreducible import IrreducibleTable

NUM_EXAMPLES, NUM_CLASSES = 10_000_000, 14
NUM_LOOKUPS = 200  # per repetition


def lookup(effort: Effort) -> Iterator[Figure]:
    """Read random rows of a memory-mapped table, compared with the floor of the CNN's step, and the memory this takes.

    The file has just been written, so it is in the system's page cache. Private memory of the process and pages of the
    file are counted separately, because the system can reclaim the pages at any time.
    """
    num_examples, num_lookups = effort.of(NUM_EXAMPLES, tiny=1_000), effort.of(NUM_LOOKUPS, tiny=2)
    generator = torch.Generator().manual_seed(0)
    model = synthetic_model("cnn")
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    floor = floor_step(model, optimizer, synthetic_batches("cnn", effort.of(5, tiny=1)))
    with TemporaryDirectory() as folder:
        table = IrreducibleTable(_mapped(Path(folder) / "values.npy", num_examples), kind="logits")

        def rows() -> float:
            indices = torch.randint(num_examples, (num_lookups, NUM_CANDIDATES), generator=generator)
            seconds = timed(lambda: [table.rows(index) for index in indices], num_parts=num_lookups)()
            memory.append(_resident_megabytes())
            return seconds

        floor()
        memory = [_resident_megabytes()]
        baseline, seconds = time_alternately(floor, rows, repetitions=effort.num_repetitions(20))
    size = f"{NUM_EXAMPLES // 10**6} million x {NUM_CLASSES}"
    yield Figure(
        f"look-up of {NUM_CANDIDATES} rows, table of {size} on disk",
        ratios(seconds, baseline),
        at_most=0.01,
        over=f"floor of the three-layer CNN's step, {duration(baseline)}",
    )
    num_rows = len(memory[1:]) * num_lookups * NUM_CANDIDATES
    private, mapped = zip(*memory, strict=True)
    if max(mapped):
        # from the first repetition on, which allocates what is allocated once
        growth = max(megabytes - private[1] for megabytes in private[1:])
        what = f"after look-ups of {num_rows:,} rows"
        yield Figure(f"growth of the process's private memory {what}", [growth], unit="MB", at_most=1.0)
        pages = max(mapped) - mapped[0]
        file = f"file, {num_examples * NUM_CLASSES * 4 / 1e6:.0f} MB"
        yield Figure(f"pages of the file in use {what}", [pages], unit="MB", over=file)


def _mapped(path: Path, num_examples: int) -> np.ndarray:
    """A table on disk, memory-mapped as by ``load_table``."""
    values = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=(num_examples, NUM_CLASSES))
    part = np.random.default_rng(0).standard_normal((min(num_examples, 100_000), NUM_CLASSES), dtype=np.float32)
    for start in range(0, num_examples, len(part)):
        values[start : start + len(part)] = part
    values.flush()
    del values
    return np.load(path, mmap_mode="r")


def _resident_megabytes() -> tuple[float, float]:
    """Private memory and mapped pages of this process; zeros on systems without /proc."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return 0.0, 0.0
    sizes = re.findall(r"^Rss(\w+):\s+(\d+) kB", status.read_text(encoding="utf-8"), flags=re.MULTILINE)
    megabytes = {name: int(kilobytes) * 1024 / 1e6 for name, kilobytes in sizes}
    return megabytes["Anon"], megabytes["File"] + megabytes["Shmem"]
