"""Memory of a long stream: REDUCR on synthetic examples without indices, and its resident memory along the way.

    python benchmarks/stream.py --out results.json

The stream generates ten million examples as they are read: 16 features, ten classes, a fifth of the labels wrong, the
last class a tenth as frequent as the first. Irreducible losses come from a live model. It takes about a minute on one
thread. Growth is counted from 100,000 examples on, when everything that is allocated once has been allocated.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import reducr
from reducr._internal.files import write_text_atomically
from reducr._internal.seeds import mixed_seed
from reducr.irreducible import AdjustedIrreducibleLoss, LiveLogits
from reducr.models import MLP
from reducr.streaming import ShardedStream

NUM_FEATURES, NUM_CLASSES, WRONG_LABELS, IMBALANCE = 16, 10, 0.2, 10.0
SHARD_SIZE = 10_000
HOLDOUT_SIZE = 5_000
CENTRES = torch.randn(NUM_CLASSES, NUM_FEATURES, generator=torch.Generator().manual_seed(0))
FREQUENCIES = torch.logspace(0, -1, NUM_CLASSES, base=IMBALANCE)


def examples(size: int, frequencies: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """(size, F) inputs around the centres of their classes, and (size,) correct labels."""
    target = torch.multinomial(frequencies, size, replacement=True, generator=generator)
    return CENTRES[target] + 1.5 * torch.randn(size, NUM_FEATURES, generator=generator), target


def read_shard(shard: tuple[int, int]) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the examples of a shard (number, size); its number is the seed."""
    number, size = shard
    generator = torch.Generator().manual_seed(mixed_seed(1, number))
    inputs, target = examples(size, FREQUENCIES, generator)
    is_wrong = torch.rand(size, generator=generator) < WRONG_LABELS
    wrong = torch.randint(0, NUM_CLASSES, (size,), generator=generator)
    yield from zip(inputs, torch.where(is_wrong, wrong, target), strict=True)


def trained_reference(inputs: Tensor, target: Tensor) -> nn.Module:
    """A reference model trained on the clean holdout examples."""
    model = MLP(num_features=NUM_FEATURES, num_classes=NUM_CLASSES, hidden_sizes=[64])
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(100):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(inputs), target).backward()
        optimizer.step()
    return model


def resident_megabytes() -> float:
    """Resident memory of this process; its peak on systems without /proc."""
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS:"))
        return int(line.split()[1]) * 1024 / 1e6
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


def main(arguments: list[str] | None = None) -> None:
    """Run the stream, print the table and write the row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--points", type=int, default=10_000_000, help="number of examples")
    parser.add_argument("--batch-size", type=int, default=1_000, help="candidates per step")
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--refresh-steps", type=int, default=100)
    parser.add_argument("--out", type=Path, help="a JSON list of rows, to which one is added")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    torch.random.manual_seed(0)

    holdout = examples(HOLDOUT_SIZE, torch.ones(NUM_CLASSES), torch.Generator().manual_seed(2))
    model = MLP(num_features=NUM_FEATURES, num_classes=NUM_CLASSES, hidden_sizes=[64])
    loader = selective_loader(options, model, holdout)
    num_baseline = min(100_000, options.points // 10)
    seen, seconds, megabytes = train(loader, model, num_baseline)
    with torch.no_grad():
        is_right = model(holdout[0]).argmax(dim=1) == holdout[1]
    row = {
        "benchmark": "stream",
        "points": seen,
        "batch_size": options.batch_size,
        "fraction": options.fraction,
        "seconds": round(seconds, 1),
        "points_per_second": round(seen / seconds),
        "baseline_points": num_baseline,
        "baseline_megabytes": round(megabytes[0], 1),
        "peak_megabytes": round(max(megabytes), 1),
        "growth_megabytes": round(max(megabytes) - megabytes[0], 1),
        "worst_class_accuracy": round(
            min(float(is_right[holdout[1] == group].float().mean()) for group in range(NUM_CLASSES)), 3
        ),
        "torch": torch.__version__,
    }
    print(f"\n{loader.report()}")
    print(
        f"\n{row['growth_megabytes']} MB more after the first {num_baseline:,} examples; "
        f"{seen / seconds:,.0f} examples/s"
    )
    if options.out is not None:
        rows = json.loads(options.out.read_text()) if options.out.is_file() else []
        write_text_atomically(options.out, json.dumps([*rows, row], indent=2) + "\n")


def selective_loader(
    options: argparse.Namespace, model: nn.Module, holdout: tuple[Tensor, Tensor]
) -> reducr.SelectiveLoader:
    """The stream behind a ``SelectiveLoader`` with REDUCR."""
    shards = [
        (number, min(SHARD_SIZE, options.points - start))
        for number, start in enumerate(range(0, options.points, SHARD_SIZE))
    ]
    return reducr.SelectiveLoader(
        DataLoader(ShardedStream(shards, read_shard), batch_size=options.batch_size),
        model,
        reducr.make_selector("reducr", num_groups=NUM_CLASSES, step_size=1e-4, payoff_decay=0.999),
        AdjustedIrreducibleLoss(LiveLogits(trained_reference(*holdout))),
        fraction=options.fraction,
        holdout=[holdout],
        refresh_steps=options.refresh_steps,
    )


def train(loader: reducr.SelectiveLoader, model: nn.Module, interval: int) -> tuple[int, float, list[float]]:
    """Train on the stream; candidates seen, seconds, and resident megabytes after every ``interval`` candidates."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    due = itertools.count(interval, interval)
    next_due, seen, started = next(due), 0, time.perf_counter()
    megabytes: list[float] = []
    print("| examples | seconds | resident, MB |\n| ---: | ---: | ---: |")
    for inputs, target in loader:
        loss = nn.functional.cross_entropy(model(inputs), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seen = loader.report().num_candidates
        if seen >= next_due:
            next_due = next(due)
            megabytes.append(resident_megabytes())
            if len(megabytes) == 1 or len(megabytes) % 10 == 0:
                print(f"| {seen:,} | {time.perf_counter() - started:.1f} | {megabytes[-1]:.1f} |", flush=True)
    return seen, time.perf_counter() - started, megabytes


if __name__ == "__main__":
    main()
