"""Label noise put in on purpose, with a record of where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reducr.data.core.options import (
    check_classes,
    check_classes_exist,
    check_fraction,
    is_class,
    is_number,
    make_of_kind,
)


class LabelNoise(Protocol):
    """Changes targets of a part on purpose."""

    def noisy(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The noisy targets (N,) int64, and (N,) bool, True where one differs from ``targets`` (N,)."""


@dataclass(frozen=True)
class UniformNoise:
    """Another class, all others equally likely, for a share of the points: see ``uniform_label_noise``.

    Args:
        fraction: in [0, 1].

    Raises:
        ValueError: for a fraction out of range.
    """

    fraction: float

    def __post_init__(self) -> None:
        check_fraction(self.fraction, noisy="labels")

    def noisy(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The noisy targets (N,) int64, and (N,) bool, True where a target was changed."""
        return uniform_label_noise(targets, fraction=self.fraction, num_classes=num_classes, generator=generator)


@dataclass(frozen=True)
class PairwiseNoise:
    """The next class, ``(c + 1) mod C``, for exactly ``round(fraction * N)`` random points.

    Args:
        fraction: in [0, 1].

    Raises:
        ValueError: for a fraction out of range.

    Source: the "pair flipping" of Han et al. 2018 (arXiv 1804.06872), which changes each point with that probability.
    """

    fraction: float

    def __post_init__(self) -> None:
        check_fraction(self.fraction, noisy="labels")

    def noisy(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The noisy targets (N,) int64, and (N,) bool, True where a target was changed."""
        _check_other_class(num_classes)
        is_corrupted = drawn_points(len(targets), fraction=self.fraction, generator=generator)
        return torch.where(is_corrupted, (targets.long() + 1) % num_classes, targets.long()), is_corrupted


@dataclass(frozen=True)
class StructuredNoise:
    """Classes that are mistaken for a similar one: ``round(fraction * n_c)`` random points of each named class c.

    Args:
        fraction: of the points of each named class, in [0, 1]; points of all other classes keep their target.
        confused_with: class -> the class that its changed points get.

    Raises:
        ValueError: for a fraction out of range, no class at all, or a class confused with itself.

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
            raise ValueError(f"confused_with must be {expected}, never itself; got {self.confused_with!r}.")

    def noisy(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The noisy targets (N,) int64, and (N,) bool, True where a target was changed.

        Raises:
            ValueError: for a class that the data does not have.
        """
        named = [*self.confused_with, *self.confused_with.values()]
        check_classes_exist("confused_with", named, num_classes=num_classes)
        noisy = targets.long().clone()
        for target in sorted(self.confused_with):
            positions = torch.nonzero(targets == target).flatten()
            is_drawn = drawn_points(len(positions), fraction=self.fraction, generator=generator)
            noisy[positions[is_drawn]] = self.confused_with[target]
        return noisy, noisy != targets


@dataclass(frozen=True)
class MatrixNoise:
    """Every point's class is drawn anew: class c becomes class k with probability ``matrix[c][k]``.

    Args:
        matrix: C rows, one for each clean class, of C probabilities, one for each class it may become.

    Raises:
        ValueError: unless the matrix is square, with rows of numbers of at least 0 that sum to 1 (within 1e-6).

    Source: the transition matrix of Patrini et al. 2017 (arXiv 1609.03683), section 2.
    """

    matrix: Sequence[Sequence[float]]

    def __post_init__(self) -> None:
        try:
            matrix = torch.as_tensor(self.matrix, dtype=torch.float64)
        except (RuntimeError, TypeError, ValueError) as error:
            raise ValueError(f"matrix must be rows of numbers, all of one length; got {self.matrix!r}.") from error
        if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
            raise ValueError(f"matrix must have a row and a column for each class; got shape {tuple(matrix.shape)}.")
        is_right = (matrix >= 0).all(dim=1) & ((matrix.sum(dim=1) - 1).abs() <= 1e-6)
        if not bool(is_right.all()):
            target = int(torch.nonzero(~is_right)[0])
            raise ValueError(
                f"each row of matrix must hold probabilities that sum to 1; row {target} is {matrix[target].tolist()}."
            )

    def noisy(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The noisy targets (N,) int64, and (N,) bool, True where the class drawn is another one.

        Raises:
            ValueError: if the matrix is not for ``num_classes`` classes.
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
    """The label noise that an option asks for.

    Args:
        value: None for none; a number for the fraction of uniform noise; or a mapping with ``kind`` and the arguments
            of that kind: ``uniform`` (``UniformNoise``), ``pairwise`` (``PairwiseNoise``), ``structured``
            (``StructuredNoise``), ``matrix`` (``MatrixNoise``).
        name: dotted name of the option, for messages.

    Raises:
        ValueError: for an unknown kind or option (with the nearest ones), a missing option, or a value out of range.

    Example:
        >>> make_label_noise({"kind": "pairwise", "fraction": 0.2}, name="label_noise")
        PairwiseNoise(fraction=0.2)
        >>> make_label_noise(0.3, name="label_noise")
        UniformNoise(fraction=0.3)
    """
    if value is None:
        return None
    if is_number(value):
        value = {"kind": "uniform", "fraction": value}
    return make_of_kind(value, name=name, kinds=_KINDS, number="the fraction of uniform noise")


def uniform_label_noise(
    targets: Tensor, *, fraction: float, num_classes: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Replace the target of a random share of the points by another class, all others equally likely.

    Exactly ``round(fraction * N)`` points change, every one of them to a class that is not its own.

    Args:
        targets: (N,) integers in [0, num_classes); not changed.
        fraction: in [0, 1].
        num_classes: C >= 2.
        generator: source of randomness.

    Returns:
        The noisy targets (N,) int64, and (N,) bool, True where a target was changed.

    Raises:
        ValueError: if ``fraction`` is outside [0, 1], or there is no other class.

    Example:
        >>> generator = torch.Generator().manual_seed(0)
        >>> noisy, is_corrupted = uniform_label_noise(
        ...     torch.zeros(10, dtype=torch.int64), fraction=0.3, num_classes=5, generator=generator
        ... )
        >>> int(is_corrupted.sum()), bool((noisy[is_corrupted] > 0).all())
        (3, True)
    """
    check_fraction(fraction, noisy="labels")
    _check_other_class(num_classes)
    is_corrupted = drawn_points(len(targets), fraction=fraction, generator=generator)
    shifts = torch.randint(1, num_classes, (len(targets),), generator=generator)
    noisy = torch.where(is_corrupted, (targets.long() + shifts) % num_classes, targets.long())
    return noisy, is_corrupted


def drawn_points(num_examples: int, *, fraction: float, generator: torch.Generator) -> Tensor:
    """(N,) bool, True for exactly ``round(fraction * N)`` random points of N."""
    is_drawn = torch.zeros(num_examples, dtype=torch.bool)
    is_drawn[torch.randperm(num_examples, generator=generator)[: round(fraction * num_examples)]] = True
    return is_drawn


def _check_other_class(num_classes: int) -> None:
    if num_classes < 2:
        raise ValueError(f"label noise needs another class to change to; got num_classes={num_classes}.")
