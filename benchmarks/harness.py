"""Measuring: two or more things timed in turn, and the figures that come of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

Value = TypeVar("Value")
Timed = Callable[[], float]
"""Does something and says how many seconds it took."""


@dataclass(frozen=True)
class Effort:
    """How much to measure.

    Args:
        repetitions: of every comparison; None for as many as the benchmark has of its own.
        is_tiny: only see that everything works; the figures mean nothing.
    """

    repetitions: int | None = None
    is_tiny: bool = False

    def of(self, full: Value, *, tiny: Value) -> Value:
        """``full``, or ``tiny`` where the figures mean nothing."""
        return tiny if self.is_tiny else full

    def repeated(self, times: int) -> int:
        """How often to repeat what a benchmark would repeat this many times."""
        return self.of(times, tiny=1) if self.repetitions is None else self.repetitions


@dataclass(frozen=True)
class Figure:
    """One line of the table.

    Args:
        what: is measured, over what.
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
        """Of the values."""
        return median(self.values)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The lower and the upper one."""
        if len(self.values) == 1:
            return self.values[0], self.values[0]
        lower, _, upper = quantiles(self.values, n=4, method="inclusive")
        return lower, upper

    @property
    def is_met(self) -> bool | None:
        """Whether the median is within the target; None where there is none."""
        if self.at_most is not None:
            return self.median <= self.at_most
        return None if self.at_least is None else self.median >= self.at_least


def alternated(*things: Timed, repetitions: int) -> list[list[float]]:
    """The seconds of each thing at every repetition, the things done in turn; before that once each, not counted.

    Every other repetition goes through them backwards, so that none always comes after the same one.
    """
    for thing in things:
        thing()
    seconds: list[list[float]] = [[] for _ in things]
    for repetition in range(repetitions):
        places = range(len(things))
        for place in reversed(places) if repetition % 2 else places:
            seconds[place].append(things[place]())
    return seconds


def ratios(seconds: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """``seconds`` over ``baseline``, repetition by repetition."""
    return [one / other for one, other in zip(seconds, baseline, strict=True)]


def timed(function: Callable[[], object], *, num_parts: int = 1) -> Timed:
    """``function``, by the seconds of one of the equal parts that it is made of."""

    def seconds() -> float:
        started = time.perf_counter()
        function()
        return (time.perf_counter() - started) / num_parts

    return seconds


def duration(seconds: Sequence[float]) -> str:
    """The median in words: ``0.62 ms``, ``1.8 s``."""
    value = median(seconds)
    for unit, scale in (("s", 1.0), ("ms", 1e3)):
        if value * scale >= 1:
            return f"{value * scale:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"
