"""Load and augment whole batches of images in memory, compared with single items in two worker processes."""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from benchmarks.harness import Effort, Figure, ratios, time_alternately, timed
from benchmarks.synthetic import NUM_CANDIDATES, NUM_CLASSES
from reducr.data import ExampleDataset, ExampleLoader
from reducr.data.core.transforms import Augment

PADDING = 4
NUM_WORKERS = 2


class SingleImages(Dataset[tuple[int, Tensor, Tensor]]):
    """Images that are randomly cropped and mirrored one by one when they are read."""

    def __init__(self, images: Tensor, target: Tensor) -> None:
        self.images = images
        self.target = target

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, position: int) -> tuple[int, Tensor, Tensor]:
        padded = F.pad(self.images[position], [PADDING] * 4)
        top, left = torch.randint(2 * PADDING + 1, (2,)).tolist()
        image = padded[:, top : top + 32, left : left + 32]
        return position, image.flip(2) if torch.rand(()) < 0.5 else image, self.target[position]


def loading(effort: Effort) -> Iterator[Figure]:
    """Examples per second with a random crop (padding 4) and a random flip; the workers are warm."""
    num_examples = effort.of(64, tiny=1) * NUM_CANDIDATES
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (num_examples, 3, 32, 32), dtype=torch.uint8, generator=generator)
    target = torch.randint(NUM_CLASSES, (num_examples,), generator=generator)
    augment = Augment(crop_padding=PADDING, flip=True)
    resident = ExampleLoader(
        ExampleDataset(images, target, num_classes=NUM_CLASSES), batch_size=NUM_CANDIDATES, shuffle=True
    )
    single = DataLoader(
        SingleImages(images, target),
        batch_size=NUM_CANDIDATES,
        shuffle=True,
        num_workers=NUM_WORKERS,
        persistent_workers=True,
        multiprocessing_context="spawn",
        generator=generator,
    )

    def whole_batches() -> None:
        for batch in resident:
            augment(batch.input)

    def single_items() -> None:
        for _ in single:
            pass

    single_seconds, resident_seconds = time_alternately(
        timed(single_items), timed(whole_batches), repetitions=effort.num_repetitions(5)
    )
    examples_per_second = num_examples / sorted(single_seconds)[len(single_seconds) // 2]
    yield Figure(
        "examples per second, `ExampleLoader` with `Augment` on whole batches",
        ratios(single_seconds, resident_seconds),
        at_least=5.0,
        over=f"single items in a `DataLoader` with {NUM_WORKERS} workers, {examples_per_second:,.0f} examples/s",
    )
