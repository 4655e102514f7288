"""Deliberate class imbalance: drop examples so that classes differ in size."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from reducr.data.core.draws import draw_per_class
from reducr.data.core.options import build_kind, check_classes, check_classes_exist, is_number


class Imbalance(Protocol):
    """Reduces each class of a part to a size of its own."""

    def positions(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> Tensor:
        """(M,) int64, ascending positions of the examples to keep, given their clean ``targets`` (N,)."""


@dataclass(frozen=True)
class LongTail:
    """Exponentially decreasing class sizes: the k-th of C classes keeps ``ratio^(-k / (C - 1))`` of its examples.

    The first class keeps all its examples and the last one ``1 / ratio`` of them. Every class keeps at least one.

    Args:
        ratio: share kept of the first class over share kept of the last class, >= 1; 1 keeps everything.
        class_order: all classes, most frequent first; None for 0, 1, 2, ...

    Raises:
        ValueError: if the ratio is below 1, or ``class_order`` is not a permutation of the classes.

    Source: the long-tailed CIFAR of Cao et al. 2019 (arXiv 1906.07413).
    """

    ratio: float
    class_order: Sequence[int] | None = None

    def __post_init__(self) -> None:
        if not (is_number(self.ratio) and math.isfinite(self.ratio) and self.ratio >= 1):
            raise ValueError(
                "the imbalance ratio, of the most frequent class to the rarest, must be at least 1; "
                f"got {self.ratio!r}."
            )
        if self.class_order is not None:
            expected = "a list of all classes, each once, most frequent first"
            check_classes("class_order", self.class_order, expected=expected)
            _check_class_order(self.class_order, num_classes=max(*self.class_order, len(self.class_order) - 1) + 1)

    def positions(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> Tensor:
        """(M,) int64, ascending positions of the examples to keep.

        Raises:
            ValueError: if ``class_order`` is not a permutation of the ``num_classes`` classes.
        """
        class_order = range(num_classes) if self.class_order is None else self.class_order
        _check_class_order(class_order, num_classes=num_classes)
        counts = torch.bincount(targets, minlength=num_classes).tolist()
        sizes = {
            target: _size(counts[target], self.ratio ** (-rank / max(num_classes - 1, 1)) * counts[target])
            for rank, target in enumerate(class_order)
        }
        return draw_per_class(targets, sizes, generator=generator)


@dataclass(frozen=True)
class KeepFractions:
    """Some classes keep a share of their examples, at least one each. All other classes keep every example.

    Args:
        fractions: class -> share of its examples to keep, in (0, 1].

    Raises:
        ValueError: if a share is out of range or there are no classes.
    """

    fractions: Mapping[int, float]

    def __post_init__(self) -> None:
        expected = "a mapping from class to the share of its examples to keep, such as {1: 0.22}"
        check_classes("fractions", self.fractions, expected=expected, container=Mapping)
        for target, fraction in self.fractions.items():
            if not (is_number(fraction) and 0 < fraction <= 1):
                raise ValueError(f"fractions must be in (0, 1]; got {fraction!r} for class {target}.")

    def positions(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> Tensor:
        """(M,) int64, ascending positions of the examples to keep.

        Raises:
            ValueError: if ``fractions`` names a class that does not exist.
        """
        check_classes_exist("fractions", list(self.fractions), num_classes=num_classes)
        counts = torch.bincount(targets, minlength=num_classes).tolist()
        sizes = {target: _size(count, self.fractions.get(target, 1) * count) for target, count in enumerate(counts)}
        return draw_per_class(targets, sizes, generator=generator)


@dataclass(frozen=True)
class ClassProbability:
    """Each of k named classes has the share p of the examples, and each other class ``q = (1 - k p) / (C - k)``.

    The largest subset with these shares is kept: ``p_c M`` examples of class c, rounded and at least one. ``M`` is the
    smallest ``n_c / p_c`` over the classes with ``n_c > 0`` examples.

    Args:
        classes: the named classes.
        probability: p of each named class; > 0 and k p < 1.

    Raises:
        ValueError: if the probability is out of range or there are no classes.

    Source: the imbalance runs on CIFAR-10 of Bankes et al. 2024 (arXiv 2312.00486), class 3 or 5 with p = 0.1, 0.025
    or 0.01. Here the subset is drawn once, without replacement.
    """

    classes: Sequence[int]
    probability: float

    def __post_init__(self) -> None:
        check_classes("classes", self.classes, expected="a list of different classes, such as [3]")
        num_named = len(self.classes)
        if not (is_number(self.probability) and 0 < self.probability * num_named < 1):
            raise ValueError(
                f"probability must be above 0 and below 1 / {num_named}, one over the number of named classes; "
                f"got {self.probability!r}."
            )

    def positions(self, targets: Tensor, *, num_classes: int, generator: torch.Generator) -> Tensor:
        """(M,) int64, ascending positions of the examples to keep.

        Raises:
            ValueError: if ``classes`` names a class that does not exist, or all of them.
        """
        check_classes_exist("classes", self.classes, num_classes=num_classes)
        num_named = len(self.classes)
        if num_named == num_classes:
            raise ValueError(
                f"classes must leave out at least one class, which gets the remaining probability; got all "
                f"{num_classes} classes."
            )
        other_share = (1 - num_named * self.probability) / (num_classes - num_named)
        shares = [self.probability if target in self.classes else other_share for target in range(num_classes)]
        counts = torch.bincount(targets, minlength=num_classes).tolist()
        total = min((count / share for count, share in zip(counts, shares, strict=True) if count), default=0.0)
        sizes = {target: _size(count, shares[target] * total) for target, count in enumerate(counts)}
        return draw_per_class(targets, sizes, generator=generator)


_KINDS: dict[str, Callable[..., Imbalance]] = {
    "long_tail": LongTail,
    "keep_fractions": KeepFractions,
    "probability": ClassProbability,
}


def make_imbalance(value: Any, *, name: str) -> Imbalance | None:
    """Build the imbalance that an option describes.

    Args:
        value: None for no imbalance; a number for the ratio of a long tail; or a mapping with ``kind`` and the
            arguments of ``long_tail`` (``LongTail``), ``keep_fractions`` (``KeepFractions``) or ``probability``
            (``ClassProbability``).
        name: dotted name of the option, for messages.

    Raises:
        ValueError: if a kind or option is unknown or missing, or a value is out of range.

    Example:
        >>> make_imbalance({"kind": "probability", "classes": [3], "probability": 0.01}, name="imbalance")
        ClassProbability(classes=[3], probability=0.01)
        >>> make_imbalance(10, name="imbalance")
        LongTail(ratio=10, class_order=None)
    """
    return build_kind(
        value, name=name, kinds=_KINDS, shorthand=("long_tail", "ratio"), meaning="the ratio of a long tail"
    )


def _size(count: int, exact: float) -> int:
    """``exact`` rounded, at most ``count`` and at least one if the class has an example."""
    return min(count, max(1, round(exact)))


def _check_class_order(class_order: Sequence[int], *, num_classes: int) -> None:
    if sorted(class_order) != list(range(num_classes)):
        raise ValueError(
            f"class_order must contain each of the classes 0..{num_classes - 1} once, most frequent first; "
            f"got {list(class_order)}."
        )
