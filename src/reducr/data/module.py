"""From raw arrays to the three disjoint parts of an experiment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from reducr.checks import check_every_group_has_points
from reducr.data.corruption import uniform_label_noise
from reducr.data.dataset import PointDataset
from reducr.data.imbalance import long_tail_positions, stratified_split


@dataclass(frozen=True)
class Splits:
    """The three disjoint parts of an experiment.

    Args:
        train: the noisy, imbalanced stream's points; ``is_corrupted`` says which labels were changed.
        holdout: small and clean.
        test: untouched.
        class_names: (C,) for tables and plots.
        train_source: (N,) int64, the place of every training point in the original data.
        holdout_source: (M,) int64, likewise.
        test_source: (T,) int64, likewise; None for a published test part.
    """

    train: PointDataset
    holdout: PointDataset
    test: PointDataset
    class_names: tuple[str, ...]
    train_source: Tensor
    holdout_source: Tensor
    test_source: Tensor | None = None


@dataclass(frozen=True)
class RawData:
    """A data set as its publisher ships it.

    Args:
        input: (N, ...) floats, ready for a model.
        target: (N,) integers.
        test_input: (T, ...) floats; None where the publisher has no test part, and one is drawn.
        test_target: (T,) integers; None likewise.
        class_names: (C,).
        group: (N,) integers in [0, num_groups); None where groups are the targets.
        test_group: (T,) integers; None where groups are the targets, or there is no test part.
        num_groups: G; None where groups are the targets.
    """

    input: Tensor
    target: Tensor
    test_input: Tensor | None
    test_target: Tensor | None
    class_names: tuple[str, ...]
    group: Tensor | None = None
    test_group: Tensor | None = None
    num_groups: int | None = None

    def points(self, positions: Tensor) -> PointDataset:
        """The published points at ``positions`` (M,), clean."""
        return PointDataset(
            self.input[positions],
            self.target[positions],
            num_classes=len(self.class_names),
            group=None if self.group is None else self.group[positions],
            num_groups=self.num_groups,
            is_corrupted=torch.zeros(len(positions), dtype=torch.bool),
        )


class DataModule(ABC):
    """Reads a data set and makes its parts: test, clean holdout, and an imbalanced, noisy training part.

    The order is: draw the test part (where the publisher has none), draw the holdout part, thin the remaining
    training points out to the imbalance by their clean targets, then put in label noise. The parts are disjoint.

    Args:
        holdout_size: points in the clean holdout part, stratified over the classes.
        test_size: points in the test part, stratified; only for data without a published one.
        label_noise: share of training targets replaced by another class, in [0, 1].
        imbalance_ratio: most frequent over rarest class of the training part, >= 1.
        class_order: the classes, most frequent first; None for 0, 1, 2, ...
    """

    def __init__(
        self,
        *,
        holdout_size: int,
        test_size: int | None = None,
        label_noise: float = 0.0,
        imbalance_ratio: float = 1.0,
        class_order: Sequence[int] | None = None,
    ) -> None:
        self.holdout_size = holdout_size
        self.test_size = test_size
        self.label_noise = label_noise
        self.imbalance_ratio = imbalance_ratio
        self.class_order = class_order

    @cached_property
    def _raw(self) -> RawData:
        """What ``read`` gave, read once for all seeds."""
        return self.read()

    @abstractmethod
    def read(self) -> RawData:
        """The data as published."""

    def splits(self, *, seed: int) -> Splits:
        """The parts for one seed, which decides every draw: split, imbalance and noise.

        Raises:
            ValueError: for sizes or options out of range, a label outside 0..C-1, or a class without a holdout
                point (named).
        """
        raw = self._raw
        num_classes = len(raw.class_names)
        generator = torch.Generator().manual_seed(seed)
        everything = raw.points(torch.arange(len(raw.target)))  # refuses labels out of range, by index
        rest, test, test_source = self._test_part(raw, generator)
        holdout_drawn, train_drawn = stratified_split(raw.target[rest], size=self.holdout_size, generator=generator)
        holdout_source, train_source = rest[holdout_drawn], rest[train_drawn]
        kept = long_tail_positions(
            raw.target[train_source],
            imbalance_ratio=self.imbalance_ratio,
            class_order=range(num_classes) if self.class_order is None else self.class_order,
            generator=generator,
        )
        train_source = train_source[kept]
        noisy, is_corrupted = uniform_label_noise(
            raw.target[train_source], fraction=self.label_noise, num_classes=num_classes, generator=generator
        )
        holdout = raw.points(holdout_source)
        check_every_group_has_points(torch.bincount(holdout.target, minlength=num_classes))
        check_every_group_has_points(torch.bincount(holdout.group, minlength=holdout.num_groups))
        train = PointDataset(
            raw.input[train_source],
            noisy,
            num_classes=num_classes,
            group=None if raw.group is None else everything.group[train_source],
            num_groups=raw.num_groups,
            is_corrupted=is_corrupted,
        )
        return Splits(
            train,
            holdout,
            test,
            raw.class_names,
            train_source=train_source,
            holdout_source=holdout_source,
            test_source=test_source,
        )

    def _test_part(self, raw: RawData, generator: torch.Generator) -> tuple[Tensor, PointDataset, Tensor | None]:
        """Positions left for training and holdout, the test part, and its positions where it was drawn."""
        if raw.test_input is not None and raw.test_target is not None:
            if self.test_size is not None:
                raise ValueError(
                    f"test_size={self.test_size} changes nothing: this data set has a published test part of "
                    f"{len(raw.test_target)} points. Leave it out."
                )
            test = PointDataset(
                raw.test_input,
                raw.test_target,
                num_classes=len(raw.class_names),
                group=raw.test_group,
                num_groups=raw.num_groups,
            )
            return torch.arange(len(raw.target)), test, None
        if self.test_size is None:
            raise ValueError("this data set has no published test part: give test_size, the points to draw for it.")
        test_positions, rest = stratified_split(raw.target, size=self.test_size, generator=generator)
        return rest, raw.points(test_positions), test_positions
