"""Data held in tensors: points with an index, and a loader that slices whole batches out of them."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from reducr.batch import Batch
from reducr.checks import check_range
from reducr.seeds import mixed_seed


class PointDataset:
    """N points in memory, yielding ``(index, input, target, group)``; point i has index i.

    Args:
        input: (N, ...) floats.
        target: (N,) integers in [0, num_classes).
        num_classes: C.
        group: (N,) integers in [0, num_groups); None where groups are the targets.
        num_groups: G; None where groups are the targets.
        is_corrupted: (N,) bool, which targets or inputs were corrupted on purpose; None where that is not known.

    Raises:
        ValueError: for tensors of different lengths, or a target or group out of range (with the first offender's
            index).
    """

    def __init__(
        self,
        input: Tensor,  # noqa: A002  (the field's name in Batch)
        target: Tensor,
        *,
        num_classes: int,
        group: Tensor | None = None,
        num_groups: int | None = None,
        is_corrupted: Tensor | None = None,
    ) -> None:
        if (group is None) != (num_groups is None):
            raise ValueError("give group and num_groups together, or neither where groups are the targets.")
        self.input = input
        self.target = target.long()
        self.group = self.target if group is None else group.long()
        self.num_classes = num_classes
        self.num_groups = num_classes if num_groups is None else num_groups
        self.is_corrupted = is_corrupted
        self.index = torch.arange(len(self.target))
        sizes = {"input": len(input), "target": len(self.target), "group": len(self.group)}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"input, target and group must have the same length; got {sizes}.")
        check_range("target", self.target, self.num_classes, place="index")
        check_range("group", self.group, self.num_groups, place="index")

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.index[position], self.input[position], self.target[position], self.group[position]

    def batch(self, positions: Tensor) -> Batch:
        """The points at ``positions`` (B,)."""
        return Batch(self.index[positions], self.input[positions], self.target[positions], self.group[positions])

    def concatenated(self, other: PointDataset) -> PointDataset:
        """This data set's points followed by ``other``'s, re-indexed."""
        known = self.is_corrupted is not None and other.is_corrupted is not None
        return PointDataset(
            torch.cat([self.input, other.input]),
            torch.cat([self.target, other.target]),
            num_classes=self.num_classes,
            group=torch.cat([self.group, other.group]),
            num_groups=self.num_groups,
            is_corrupted=torch.cat([self.is_corrupted, other.is_corrupted]) if known else None,  # type: ignore[list-item]
        )


class PointLoader:
    """Batches of a data set held in memory, sliced whole: no worker processes, no collation of single items.

    Every pass over the loader is one epoch. The order of epoch e depends on ``seed`` and e alone.

    Args:
        data: what to read.
        batch_size: B; the last batch may be shorter.
        shuffle: a new random order every epoch.
        drop_last: leave the last, shorter batch out.
        seed: of the orders.

    Raises:
        ValueError: if ``drop_last`` would leave no batch at all.
    """

    def __init__(
        self, data: PointDataset, *, batch_size: int, shuffle: bool = False, drop_last: bool = False, seed: int = 0
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
        if drop_last and len(data) < batch_size:
            raise ValueError(
                f"one batch needs {batch_size} points, but the data set has {len(data)}: choose at most {len(data)} "
                "candidates."
            )
        self.data = data
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; passes count on from there."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[Batch]:
        order = torch.arange(len(self.data))
        if self.shuffle:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, self.epoch))
            order = torch.randperm(len(self.data), generator=generator)
        self.epoch += 1
        for start in range(0, len(self) * self.batch_size, self.batch_size):
            yield self.data.batch(order[start : start + self.batch_size])
