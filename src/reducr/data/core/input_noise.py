"""Noise on inputs put in on purpose, with a record of where."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reducr.data.core.inputs import Inputs, Overlaid
from reducr.data.core.noise import drawn_points
from reducr.data.core.options import check_fraction, is_number, make_from_options


@dataclass(frozen=True)
class InputNoise:
    """Gaussian noise on the inputs of exactly ``round(fraction * N)`` random points, drawn once: a point never changes.

    Args:
        fraction: in [0, 1].
        standard_deviation: > 0, in units of the input: of 0..255 for uint8 pixels, which are rounded and stay in that
            range; floats get the noise as it is.

    Raises:
        ValueError: for a value out of range.
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
            input: the inputs of all points; not changed.
            source: (N,) int64, the positions of the part's points in it, each once.
            generator: source of randomness.

        Returns:
            The new pool, which holds the noisy inputs alone, and (N,) bool, True where a point's input was changed.

        Raises:
            ValueError: if inputs are neither uint8 nor floats.
        """
        is_corrupted = drawn_points(len(source), fraction=self.fraction, generator=generator)
        changed = source[is_corrupted]
        if len(changed) == 0:
            return input, is_corrupted
        clean = input[changed]
        if not (clean.dtype == torch.uint8 or clean.is_floating_point()):
            raise ValueError(
                "input noise is for images and numbers, which are uint8 or floats; these inputs are "
                f"{str(clean.dtype).removeprefix('torch.')}, such as token ids. Leave input_noise out."
            )
        noisy = self.standard_deviation * torch.randn(clean.shape, generator=generator) + clean
        if clean.dtype == torch.uint8:
            noisy = noisy.round().clamp(0, 255)
        return Overlaid(input, changed, noisy.to(clean.dtype)), is_corrupted


def make_input_noise(value: Any, *, name: str) -> InputNoise | None:
    """The input noise that an option asks for.

    Args:
        value: None for none, or a mapping with the arguments of ``InputNoise``.
        name: dotted name of the option, for messages.

    Raises:
        ValueError: for anything else, an unknown option (with the nearest ones), a missing option, or a value out of
            range.

    Example:
        >>> make_input_noise({"fraction": 0.1, "standard_deviation": 25}, name="input_noise")
        InputNoise(fraction=0.1, standard_deviation=25)
    """
    if value is None:
        return None
    if not isinstance(value, Mapping) or not value:
        raise ValueError(
            f"{name} must be null or a mapping with fraction, the share of noisy points, and standard_deviation, in "
            f"units of the input, such as {{fraction: 0.1, standard_deviation: 25}}; got {value!r}."
        )
    return make_from_options(InputNoise, value, name=name)
