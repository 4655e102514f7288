"""Samplers: choose candidates by their scores.

A sampler has options but no state. Its choice depends only on the scores, the epoch and the generator.
"""

from __future__ import annotations

import math
from typing import Any, Protocol

import torch
from torch import Tensor

from reducr import functional
from reducr._internal.checks import check_count, is_finite_number
from reducr._internal.names import check_options, unknown_name


class Sampler(Protocol):
    """A function that chooses ``num_selected`` of the scores (B,) and returns their positions (b,)."""

    def __call__(self, scores: Tensor, num_selected: int, *, epoch: int, generator: torch.Generator | None) -> Tensor:
        """Positions (b,) int64, best first or in the order drawn."""


class TopK:
    """The largest scores; of equal scores the earlier position wins."""

    def __call__(self, scores: Tensor, num_selected: int, *, epoch: int, generator: torch.Generator | None) -> Tensor:
        """See ``functional.top_k``; not random."""
        return functional.top_k(scores, num_selected)


class Softmax:
    """Boltzmann draw without replacement: ``p_i`` proportional to ``exp(score_i / temperature)``.

    Args:
        temperature: temperature in epoch 0, > 0, in units of the score.
        temperature_schedule: ``fixed``, or ``linear`` or ``geometric`` from ``temperature`` in the first to
            ``final_temperature`` in the last of ``num_epochs`` epochs.
        final_temperature: > 0, for ``linear`` and ``geometric`` only.
        num_epochs: >= 2, for ``linear`` and ``geometric`` only.

    Raises:
        ValueError: for a value outside its range, or an incomplete schedule.
    """

    def __init__(
        self,
        *,
        temperature: float = 1.0,
        temperature_schedule: str = "fixed",
        final_temperature: float | None = None,
        num_epochs: int | None = None,
    ) -> None:
        if temperature_schedule not in ("fixed", "linear", "geometric"):
            raise unknown_name("temperature_schedule", temperature_schedule, ("fixed", "linear", "geometric"))
        _check_positive("temperature", temperature)
        is_scheduled = temperature_schedule != "fixed"
        if is_scheduled != (final_temperature is not None) or is_scheduled != (num_epochs is not None):
            raise ValueError(
                "temperature_schedule 'linear' or 'geometric' needs final_temperature and num_epochs; 'fixed' takes "
                f"neither. Got temperature_schedule={temperature_schedule!r}, final_temperature={final_temperature}, "
                f"num_epochs={num_epochs}."
            )
        if final_temperature is not None:
            _check_positive("final_temperature", final_temperature)
        if num_epochs is not None:
            check_count("num_epochs", num_epochs, least=2)
        self.temperature = temperature
        self.schedule = temperature_schedule
        self.final_temperature = temperature if final_temperature is None else final_temperature
        self.num_epochs = num_epochs or 1

    def temperature_at(self, epoch: int) -> float:
        """Temperature in an epoch, counted from 0; constant after the last."""
        if self.schedule == "fixed":
            return self.temperature
        progress = min(epoch / (self.num_epochs - 1), 1.0)
        if self.schedule == "linear":
            return self.temperature + progress * (self.final_temperature - self.temperature)
        return self.temperature * math.pow(self.final_temperature / self.temperature, progress)

    def __call__(self, scores: Tensor, num_selected: int, *, epoch: int, generator: torch.Generator | None) -> Tensor:
        """Draw at the temperature of ``epoch``."""
        # a lower temperature gives the same draw, but quotients overflow
        log_probabilities = scores.double() / max(self.temperature_at(epoch), 1e-250)
        return functional.gumbel_top_k(log_probabilities, num_selected, generator=generator)


class Power:
    """Draw without replacement: ``p_i`` proportional to ``max(score_i, 0)^beta``.

    Args:
        beta: >= 0.

    Raises:
        ValueError: if ``beta`` is negative or not finite.
    """

    def __init__(self, *, beta: float = 1.0) -> None:
        _check_not_negative("beta", beta)
        self.beta = beta

    def __call__(self, scores: Tensor, num_selected: int, *, epoch: int, generator: torch.Generator | None) -> Tensor:
        """Draw with a power of the scores."""
        log_probabilities = functional.power_log_probabilities(scores, beta=self.beta)
        return functional.gumbel_top_k(log_probabilities, num_selected, generator=generator)


class Rank:
    """Draw without replacement: ``p_i`` proportional to ``rank_i^-beta``, rank 1 being the largest score.

    Args:
        beta: >= 0.

    Raises:
        ValueError: if ``beta`` is negative or not finite.
    """

    def __init__(self, *, beta: float = 1.0) -> None:
        _check_not_negative("beta", beta)
        self.beta = beta

    def __call__(self, scores: Tensor, num_selected: int, *, epoch: int, generator: torch.Generator | None) -> Tensor:
        """Draw with a power of the ranks."""
        log_probabilities = functional.rank_log_probabilities(scores, beta=self.beta)
        return functional.gumbel_top_k(log_probabilities, num_selected, generator=generator)


class ExponentialRank:
    """Draw without replacement: ``p_i`` proportional to ``pressure^(-rank_i / B)`` (Loshchilov & Hutter 2016).

    Args:
        pressure: s_e >= 1, ratio of the probabilities of the best and the worst candidate.

    Raises:
        ValueError: if ``pressure`` is below 1 or not finite.
    """

    def __init__(self, *, pressure: float = 100.0) -> None:
        if not (is_finite_number(pressure) and pressure >= 1):
            raise ValueError(f"pressure must be a finite number of at least 1; got {pressure}.")
        self.pressure = pressure

    def __call__(self, scores: Tensor, num_selected: int, *, epoch: int, generator: torch.Generator | None) -> Tensor:
        """Draw with an exponential of the ranks."""
        log_probabilities = functional.exponential_rank_log_probabilities(scores, pressure=self.pressure)
        return functional.gumbel_top_k(log_probabilities, num_selected, generator=generator)


class UniformAtEnds:
    """Another sampler, with a uniform draw in the first and the last epochs.

    Args:
        sampler: sampler of the epochs in between.
        uniform_first_epochs: >= 0.
        uniform_last_epochs: >= 0; needs ``num_epochs``.
        num_epochs: length of training in epochs.

    Raises:
        ValueError: for a negative number, or a last phase without ``num_epochs``.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        uniform_first_epochs: int = 0,
        uniform_last_epochs: int = 0,
        num_epochs: int | None = None,
    ) -> None:
        check_count("uniform_first_epochs", uniform_first_epochs, least=0)
        check_count("uniform_last_epochs", uniform_last_epochs, least=0)
        if num_epochs is not None:
            check_count("num_epochs", num_epochs)
        if uniform_last_epochs and num_epochs is None:
            raise ValueError("uniform_last_epochs needs num_epochs, the length of training.")
        self.sampler = sampler
        self.uniform_until = uniform_first_epochs
        self.uniform_from = math.inf if num_epochs is None else num_epochs - uniform_last_epochs

    def is_uniform(self, epoch: int) -> bool:
        """Whether the draw in ``epoch`` is uniform."""
        return epoch < self.uniform_until or epoch >= self.uniform_from

    def __call__(self, scores: Tensor, num_selected: int, *, epoch: int, generator: torch.Generator | None) -> Tensor:
        """Draw uniformly, or with the sampler in between."""
        if self.is_uniform(epoch):
            return functional.gumbel_top_k(torch.zeros_like(scores), num_selected, generator=generator)
        return self.sampler(scores, num_selected, epoch=epoch, generator=generator)


SAMPLERS: dict[str, type] = {
    "top_k": TopK,
    "softmax": Softmax,
    "power": Power,
    "rank": Rank,
    "exponential_rank": ExponentialRank,
}

PHASE_OPTIONS = ("uniform_first_epochs", "uniform_last_epochs", "num_epochs")


def make_sampler(name: str, **options: Any) -> Sampler:
    """Make a sampler by name.

    Args:
        name: a key of ``SAMPLERS``.
        options: options of that sampler, and of ``UniformAtEnds``: ``uniform_first_epochs``, ``uniform_last_epochs``,
            ``num_epochs``.

    Raises:
        ValueError: for an unknown name or option (with the nearest ones), or a value outside its range.

    Example:
        >>> make_sampler("power", beta=2.0).beta
        2.0
    """
    if not isinstance(name, str) or name not in SAMPLERS:
        raise unknown_name("sampler", name, SAMPLERS)
    build = SAMPLERS[name]
    check_options(f"sampler {name!r}", build, options, also=PHASE_OPTIONS)
    phases = {name: options.pop(name) for name in PHASE_OPTIONS[:2] if name in options}
    num_epochs = options.get("num_epochs")
    if options.get("temperature_schedule", "fixed") == "fixed":
        options.pop("num_epochs", None)
        if num_epochs is not None and not phases.get("uniform_last_epochs"):
            raise ValueError(
                f"num_epochs={num_epochs} has no effect without uniform_last_epochs or a temperature schedule. Set one "
                "of these, or leave it out."
            )
    sampler: Sampler = build(**options)
    phased = UniformAtEnds(sampler, num_epochs=num_epochs, **phases)
    return phased if any(phases.values()) else sampler


def _check_positive(name: str, value: float) -> None:
    if not (is_finite_number(value) and value > 0):
        raise ValueError(f"{name} must be a finite number above 0; got {value}.")


def _check_not_negative(name: str, value: float) -> None:
    if not (is_finite_number(value) and value >= 0):
        raise ValueError(f"{name} must be a finite number of at least 0; got {value}.")
