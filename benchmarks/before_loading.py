"""Train on image files: selection before loading, from loaded candidates, and plain class-balanced sampling."""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, WeightedRandomSampler

import reducr
from benchmarks.harness import Effort, Figure, Timed, duration, ratios, time_alternately, timed
from benchmarks.synthetic import FRACTION, NUM_CANDIDATES, NUM_CLASSES, NUM_SELECTED, synthetic_model
from reducr.irreducible import IrreducibleTable, TableLoss

FILE_SIZE, IMAGE_SIZE, NUM_HOLDOUT = 224, 32, 500


class Photographs(Dataset[tuple[int, Tensor, Tensor]]):
    """JPEG files, decoded and shrunk when they are read.

    Args:
        folder: receives the files.
        num_examples: number of files.
    """

    def __init__(self, folder: Path, num_examples: int) -> None:
        random = np.random.default_rng(0)
        self.targets = torch.from_numpy(random.integers(0, NUM_CLASSES, num_examples))
        self.paths = [folder / f"{number}.jpg" for number in range(num_examples)]
        for path in self.paths:
            small = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
            small.resize((FILE_SIZE, FILE_SIZE), Image.Resampling.BICUBIC).save(path, quality=90)
        self.num_decoded = 0

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, position: int) -> tuple[int, Tensor, Tensor]:
        self.num_decoded += 1
        with Image.open(self.paths[position]) as image:
            pixels = np.array(image.resize((IMAGE_SIZE, IMAGE_SIZE)), dtype=np.float32)
        return position, torch.from_numpy(pixels).permute(2, 0, 1) / 255, self.targets[position]


def endless(loader: Iterable[Any]) -> Iterator[Any]:
    """The batches of ``loader``, again and again."""
    while True:
        yield from loader


def training(model: nn.Module, loader: Iterable[Any], *, num_steps: int) -> Timed:
    """Takes ``num_steps`` steps on the batches that come next, and returns the seconds of one."""
    optimizer, batches = torch.optim.SGD(model.parameters(), lr=0.01), endless(loader)

    def steps() -> None:
        for _ in range(num_steps):
            _, inputs, targets = next(batches)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(inputs), targets).backward()  # type: ignore[no-untyped-call]
            optimizer.step()

    return timed(steps, num_parts=num_steps)


def before_loading(effort: Effort) -> Iterator[Figure]:
    """Seconds per step and decoded files of ``priority_sampling``, in one process, holdout images in memory."""
    num_examples = effort.of(20, tiny=2) * NUM_CANDIDATES
    losses = torch.rand(num_examples, generator=torch.Generator().manual_seed(0))
    irreducible = TableLoss(IrreducibleTable(losses.numpy(), kind="loss"))
    num_holdout = effort.of(NUM_HOLDOUT, tiny=20)
    clean = [(torch.rand(num_holdout, 3, IMAGE_SIZE, IMAGE_SIZE), torch.arange(num_holdout) % NUM_CLASSES)]
    num_steps = effort.of(100, tiny=2)  # of the loader a tenth, whose steps take about ten times as long

    def rule() -> reducr.Selector:
        return reducr.make_selector("priority_sampling", num_groups=NUM_CLASSES)

    with tempfile.TemporaryDirectory() as folder:
        data = Photographs(Path(folder), num_examples)
        plain, before, after = (synthetic_model("cnn") for _ in range(3))
        weights = 1 / torch.bincount(data.targets)[data.targets]
        balanced = WeightedRandomSampler(weights.tolist(), num_examples)
        sampler = reducr.SelectiveBatchSampler(
            data, before, rule(), irreducible, batch_size=NUM_SELECTED, holdout=clean, refresh_steps=100
        )
        loader = reducr.SelectiveLoader(
            DataLoader(data, batch_size=NUM_CANDIDATES, shuffle=True),
            after, rule(), irreducible, FRACTION, holdout=clean, refresh_steps=100,
        )  # fmt: skip
        tasks = {
            "plain": training(plain, DataLoader(data, batch_size=NUM_SELECTED, sampler=balanced), num_steps=num_steps),
            "sampler": training(before, DataLoader(data, batch_sampler=sampler), num_steps=num_steps),
            "loader": training(after, loader, num_steps=effort.of(10, tiny=2)),
        }
        repetitions = effort.num_repetitions(7)
        plain_seconds, sampler_seconds, loader_seconds = time_alternately(*tasks.values(), repetitions=repetitions)
        decoded = []
        for name, steps in (("sampler", num_steps), ("loader", effort.of(10, tiny=2))):
            data.num_decoded = 0
            tasks[name]()
            decoded.append(data.num_decoded / steps)
    yield Figure(
        "step on JPEG files, `SelectiveBatchSampler` with `priority_sampling`",
        ratios(sampler_seconds, plain_seconds),
        at_most=1.1,
        over=f"`WeightedRandomSampler`, {duration(plain_seconds)}",
    )
    yield Figure(
        "step on JPEG files, `SelectiveLoader` with `priority_sampling`",
        ratios(loader_seconds, plain_seconds),
        over=f"`WeightedRandomSampler`, {duration(plain_seconds)}",
    )
    yield Figure("files decoded per step, `SelectiveBatchSampler`", [decoded[0]], unit="files")
    yield Figure("files decoded per step, `SelectiveLoader`", [decoded[1]], unit="files")
