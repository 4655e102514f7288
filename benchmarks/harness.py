"""Time tasks alternately, and summarise the results as figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

Value = TypeVar("Value")
Timed = Callable[[], float]
"""Performs a task and returns its seconds."""


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Args:
        repetitions: of every comparison; None for each benchmark's own number.
        is_tiny: whether to check only that everything works; the figures mean nothing then.
    """

    repetitions: int | None = None
    is_tiny: bool = False

    def of(self, full: Value, *, tiny: Value) -> Value:
        """``tiny`` for a tiny run, else ``full``."""
        return tiny if self.is_tiny else full

    def num_repetitions(self, default: int) -> int:
        """The number of repetitions of a benchmark that has ``default`` of its own."""
        return self.of(default, tiny=1) if self.repetitions is None else self.repetitions


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Args:
        what: the quantity.
        values: one for each repetition.
        unit: of the values; empty for ratios.
        at_most: the target, if it is an upper bound.
        at_least: the target, if it is a lower bound.
        over: the denominator of a ratio in words, such as ``0.62 ms``.
    """

    what: str
    values: Sequence[float]
    unit: str = ""
    at_most: float | None = None
    at_least: float | None = None
    over: str = ""

    @property
    def median(self) -> float:
        """Median of the values."""
        return median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """Lower and upper quartile of the values."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        lower, _, upper = quantiles(self.values, n=4, method="inclusive")
        return lower, upper

    @property
    def is_met(self) -> bool | None:
        """Whether the median meets the target; None without a target."""
        if self.at_most is not None:
            return self.median <= self.at_most
        return None if self.at_least is None else self.median >= self.at_least


def time_alternately(*tasks: Timed, repetitions: int) -> list[list[float]]:
    """Seconds of each task at each repetition.

    The tasks run in turn, in reverse order at every other repetition, so that none always follows the same one. Before
    that each runs once without being counted.
    """
    for task in tasks:
        task()
    seconds: list[list[float]] = [[] for _ in tasks]
    for repetition in range(repetitions):
        order = range(len(tasks))
        for i in reversed(order) if repetition % 2 else order:
            seconds[i].append(tasks[i]())
    return seconds


def ratios(seconds: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """``seconds / baseline``, repetition by repetition."""
    return [numerator / denominator for numerator, denominator in zip(seconds, baseline, strict=True)]


def timed(function: Callable[[], object], *, num_parts: int = 1) -> Timed:
    """A task that calls ``function`` and returns the seconds of one of its ``num_parts`` equal parts."""

    def seconds() -> float:
        started = time.perf_counter()
        function()
        return (time.perf_counter() - started) / num_parts

    return seconds


def duration(seconds: Sequence[float]) -> str:
    """The median with a unit, such as ``0.62 ms`` or ``1.8 s``."""
    value = median(seconds)
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"
