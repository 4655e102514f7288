"""Deliberate label noise, with a record of the changed labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reducr.data.core.draws import random_mask
from reducr.data.core.options import build_kind, check_classes, check_classes_exist, check_fraction, is_class


class LabelNoise(Protocol):
    """Changes some targets of a part."""

    def noisy(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The noisy targets (N,) int64, and (N,) bool, whether each differs from ``targets`` (N,).

        ``targets`` is not changed.
        """


@dataclass(frozen=True)
class _ShiftNoise(ABC):
    """Adds a shift to exactly ``round(fraction * N)`` random targets, modulo C."""

    fraction: float

    def __post_init__(self) -> None:
        check_fraction(self.fraction, noisy="labels")

    def noisy(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The noisy targets (N,) int64, and (N,) bool, whether each was changed.

        Raises:
            ValueError: if there are fewer than two classes.
        """
        if num_classes < 2:
            raise ValueError(f"label noise needs at least two classes; got num_classes={num_classes}.")
        is_changed = random_mask(len(targets), fraction=self.fraction, generator=generator)
        shifts = self._shifts(len(targets), num_classes=num_classes, generator=generator)
        return torch.where(is_changed, (targets.long() + shifts) % num_classes, targets.long()), is_changed

    @abstractmethod
    def _shifts(self, num_examples: int, *, num_classes: int, generator: torch.Generator) -> Tensor | int:
        """(N,) integers in [1, C), or one for all."""


@dataclass(frozen=True)
class UniformNoise(_ShiftNoise):
    """Another class, all equally likely, for exactly ``round(fraction * N)`` random examples.

    Args:
        fraction: in [0, 1].

    Raises:
        ValueError: if the fraction is out of range.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> targets = torch.zeros(10, dtype=torch.int64)
        >>> noisy, is_changed = UniformNoise(0.3).noisy(targets, num_classes=5, generator=generator)
        >>> int(is_changed.sum()), bool((noisy[is_changed] > 0).all())
        (3, True)
    """

    def _shifts(self, num_examples: int, *, num_classes: int, generator: torch.Generator) -> Tensor:
        return torch.randint(1, num_classes, (num_examples,), generator=generator)


@dataclass(frozen=True)
class PairwiseNoise(_ShiftNoise):
    """The next class, ``(c + 1) mod C``, for exactly ``round(fraction * N)`` random examples.

    Args:
        fraction: in [0, 1].

    Raises:
        ValueError: if the fraction is out of range.

    Source: the "pair flipping" of Han et al. 2018 (arXiv 1804.06872), which changes each example with that probability.
    """

    def _shifts(self, num_examples: int, *, num_classes: int, generator: torch.Generator) -> int:
        return 1


@dataclass(frozen=True)
class StructuredNoise:
    """A similar class, for ``round(fraction * n_c)`` random examples of each named class c.

    Args:
        fraction: share of each named class, in [0, 1]. Examples of all other classes keep their target.
        confused_with: class -> the class that its changed examples get.

    Raises:
        ValueError: if the fraction is out of range, there are no classes, or a class is confused with itself.

    Source: Patrini et al. 2017 (arXiv 1609.03683), section 5; on CIFAR-10 truck -> automobile, bird -> airplane,
    deer -> horse, cat <-> dog, which is ``{9: 1, 2: 0, 4: 7, 3: 5, 5: 3}``.
    """

    fraction: float
    confused_with: Mapping[int, int]

    def __post_init__(self) -> None:
        check_fraction(self.fraction, noisy="labels")
        expected = "a mapping from class to the class it is confused with, such as {9: 1}"
        check_classes("confused_with", self.confused_with, expected=expected, container=Mapping)
        if not all(is_class(other) and other != target for target, other in self.confused_with.items()):
            raise ValueError(f"confused_with must be {expected}, never with itself; got {self.confused_with!r}.")

    def noisy(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The noisy targets (N,) int64, and (N,) bool, whether each was changed.

        Raises:
            ValueError: if ``confused_with`` contains a class that does not exist.
        """
        classes = [*self.confused_with, *self.confused_with.values()]
        check_classes_exist("confused_with", classes, num_classes=num_classes)
        noisy = targets.long().clone()
        for target in sorted(self.confused_with):
            positions = torch.nonzero(targets == target).flatten()
            is_changed = random_mask(len(positions), fraction=self.fraction, generator=generator)
            noisy[positions[is_changed]] = self.confused_with[target]
        return noisy, noisy != targets


@dataclass(frozen=True)
class MatrixNoise:
    """A redrawn class for every example: class c becomes class k with probability ``matrix[c][k]``.

    Args:
        matrix: (C, C) probabilities, with a row for each clean class and a column for each noisy class.

    Raises:
        ValueError: if the matrix is not square, or a row has a negative number or does not sum to 1 (within 1e-6).

    Source: the transition matrix of Patrini et al. 2017 (arXiv 1609.03683), section 2.
    """

    matrix: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        try:
            matrix = torch.as_tensor(self.matrix, dtype=torch.float64)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"matrix must be rows of numbers, all of the same length; got {self.matrix!r}.") from error
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must have a row and a column for each class; got shape {tuple(matrix.shape)}.")
        is_valid = (matrix >= 0).all(dim=1) & ((matrix.sum(dim=1) - 1).abs() <= 1e-6)
        if not bool(is_valid.all()):
            target = int(torch.nonzero(~is_valid)[0])
            raise ValueError(
                f"each row of matrix must be probabilities that sum to 1; row {target} is {matrix[target].tolist()}."
            )

    def noisy(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The noisy targets (N,) int64, and (N,) bool, whether each was changed.

        Raises:
            ValueError: if the matrix is not (num_classes, num_classes).
        """
        if len(self.matrix) != num_classes:
            raise ValueError(
                f"matrix must have a row and a column for each of the {num_classes} classes; got {len(self.matrix)}."
            )
        cumulative = torch.as_tensor(self.matrix, dtype=torch.float64).cumsum(dim=1)
        cumulative /= cumulative[:, -1:].clone()
        uniform = torch.rand(len(targets), dtype=torch.float64, generator=generator)
        noisy = targets.long().clone()
        for target, row in enumerate(cumulative):
            positions = torch.nonzero(targets == target).flatten()
            noisy[positions] = torch.searchsorted(row, uniform[positions], right=True)
        return noisy, noisy != targets


_KINDS: dict[str, Callable[..., LabelNoise]] = {
    "uniform": UniformNoise,
    "pairwise": PairwiseNoise,
    "structured": StructuredNoise,
    "matrix": MatrixNoise,
}


def make_label_noise(value: Any, *, name: str) -> LabelNoise | None:
    """Build the label noise that an option describes.

    Args:
        value: None for no noise; a number for the fraction of uniform noise; or a mapping with ``kind`` and the
            arguments of ``uniform`` (``UniformNoise``), ``pairwise`` (``PairwiseNoise``), ``structured``
            (``StructuredNoise``) or ``matrix`` (``MatrixNoise``).
        name: dotted name of the option, for messages.

    Raises:
        ValueError: if a kind or option is unknown or missing, or a value is out of range.

    Example:
        >>> make_label_noise({"kind": "pairwise", "fraction": 0.2}, name="label_noise")
        PairwiseNoise(fraction=0.2)
        >>> make_label_noise(0.3, name="label_noise")
        UniformNoise(fraction=0.3)
    """
    return build_kind(
        value, name=name, kinds=_KINDS, shorthand=("uniform", "fraction"), meaning="the fraction of uniform noise"
    )
