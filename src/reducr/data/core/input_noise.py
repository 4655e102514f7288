"""Deliberate input noise, with a record of the changed inputs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reducr.data.core.draws import random_mask
from reducr.data.core.inputs import Inputs, Overlaid
from reducr.data.core.options import build_from_options, check_fraction, is_number


@dataclass(frozen=True)
class InputNoise:
    """Gaussian noise on exactly ``round(fraction * N)`` random inputs, drawn once and then fixed.

    Args:
        fraction: in [0, 1].
        standard_deviation: > 0, in units of the input. uint8 pixels are in units of 0..255; they are rounded and
            clamped to that range. Floats are not clamped.

    Raises:
        ValueError: if a value is out of range.
    """

    fraction: float
    standard_deviation: float

    def __post_init__(self) -> None:
        check_fraction(self.fraction, noisy="inputs")
        deviation = self.standard_deviation
        if not (is_number(deviation) and math.isfinite(deviation) and deviation > 0):
            raise ValueError(f"standard_deviation must be a finite number above 0; got {deviation!r}.")

    def noisy(
        self,
        input: Inputs,  # noqa: A002  (the field's name in Batch)
        source: Tensor,
        *,
        generator: torch.Generator,
    ) -> tuple[Inputs, Tensor]:
        """A pool in which some inputs of a part are noisy.

        Args:
            input: the inputs of all examples; not changed.
            source: (N,) int64, positions of the part's examples in the pool, each once.
            generator: source of randomness.

        Returns:
            The new pool, which stores only the noisy inputs, and (N,) bool, whether each input was changed.

        Raises:
            ValueError: if inputs are neither uint8 nor floats.
        """
        is_changed = random_mask(len(source), fraction=self.fraction, generator=generator)
        changed = source[is_changed]
        if len(changed) == 0:
            return input, is_changed
        clean = input[changed]
        if not (clean.dtype == torch.uint8 or clean.is_floating_point()):
            raise ValueError(
                "Input noise needs uint8 or float inputs, such as images or numbers; got "
                f"{str(clean.dtype).removeprefix('torch.')}, such as token ids. Remove `input_noise`."
            )
        noisy = self.standard_deviation * torch.randn(clean.shape, generator=generator) + clean
        if clean.dtype == torch.uint8:
            noisy = noisy.round().clamp(0, 255)
        return Overlaid(input, changed, noisy.to(clean.dtype)), is_changed


def make_input_noise(value: Any, *, name: str) -> InputNoise | None:
    """Build the input noise that an option describes.

    Args:
        value: None for no noise, or a mapping with the arguments of ``InputNoise``.
        name: dotted name of the option, for messages.

    Raises:
        ValueError: if the value is of another type, an option is unknown or missing, or a value is out of range.

    Example:
        >>> make_input_noise({"fraction": 0.1, "standard_deviation": 25}, name="input_noise")
        InputNoise(fraction=0.1, standard_deviation=25)
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"{name} must be null or a mapping with fraction, the share of noisy inputs, and standard_deviation, in "
            f"units of the input, such as {{fraction: 0.1, standard_deviation: 25}}; got {value!r}."
        )
    return build_from_options(InputNoise, value, name=name)
