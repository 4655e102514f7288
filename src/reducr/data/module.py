"""From raw arrays to the three disjoint parts of an experiment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass

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
    """

    train: PointDataset
    holdout: PointDataset
    test: PointDataset
    class_names: tuple[str, ...]
    train_source: Tensor
    holdout_source: Tensor


@dataclass(frozen=True)
class RawData:
    """A data set as its publisher ships it.

    Args:
        input: (N, ...) floats, ready for a model.
        target: (N,) integers.
        test_input: (T, ...) floats; None where the publisher has no test part, and one is drawn.
        test_target: (T,) integers; None likewise.
        class_names: (C,).
    """

    input: Tensor
    target: Tensor
    test_input: Tensor | None
    test_target: Tensor | None
    class_names: tuple[str, ...]


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

    @abstractmethod
    def read(self) -> RawData:
        """The data as published."""

    def splits(self, *, seed: int) -> Splits:
        """The parts for one seed, which decides every draw: split, imbalance and noise.

        Raises:
            ValueError: for sizes or options out of range, a label outside 0..C-1, or a class without a holdout
                point (named).
        """
        raw = self.read()
        num_classes = len(raw.class_names)
        generator = torch.Generator().manual_seed(seed)
        PointDataset(raw.input, raw.target, num_classes=num_classes)  # refuses labels out of range, by index
        rest, test = self._test_part(raw, num_classes, generator)
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
        holdout_target = raw.target[holdout_source]
        check_every_group_has_points(torch.bincount(holdout_target, minlength=num_classes))
        return Splits(
            train=PointDataset(raw.input[train_source], noisy, num_classes=num_classes, is_corrupted=is_corrupted),
            holdout=PointDataset(
                raw.input[holdout_source],
                holdout_target,
                num_classes=num_classes,
                is_corrupted=torch.zeros(len(holdout_source), dtype=torch.bool),
            ),
            test=test,
            class_names=raw.class_names,
            train_source=train_source,
            holdout_source=holdout_source,
        )

    def _test_part(self, raw: RawData, num_classes: int, generator: torch.Generator) -> tuple[Tensor, PointDataset]:
        """Positions that are left for training and holdout, and the test part."""
        if raw.test_input is not None and raw.test_target is not None:
            if self.test_size is not None:
                raise ValueError(
                    f"test_size={self.test_size} changes nothing: this data set has a published test part of "
                    f"{len(raw.test_target)} points. Leave it out."
                )
            everything = torch.arange(len(raw.target))
            return everything, PointDataset(raw.test_input, raw.test_target, num_classes=num_classes)
        if self.test_size is None:
            raise ValueError("this data set has no published test part: give test_size, the points to draw for it.")
        test_positions, rest = stratified_split(raw.target, size=self.test_size, generator=generator)
        test = PointDataset(raw.input[test_positions], raw.target[test_positions], num_classes=num_classes)
        return rest, test
