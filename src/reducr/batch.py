"""The tensors that flow through selection: a batch, the candidates, a selection."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from typing import ClassVar, NamedTuple

import torch
from torch import Tensor


class Batch(NamedTuple):
    """One batch of the training program, points along the first axis of every tensor.

    The order is that of the tuples which its data sets yield, so ``Batch(*item)`` reads one.
    """

    index: Tensor  # type: ignore[assignment]  # the id of a point; tuple.index is not needed
    """(B,) int64, the id of each point in its data set."""
    input: Tensor
    """(B, ...) what the model is called with."""
    target: Tensor
    """(B,) int64, what cross-entropy predicts."""
    group: Tensor
    """(B,) int64, the partition whose worst member matters; equals ``target`` unless the data says otherwise."""

    def take(self, positions: Tensor) -> Batch:
        """The points at ``positions`` (b,), in that order."""
        return Batch(*(tensor[positions] for tensor in self))

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on ``device``."""
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in self))


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What a selector may see of a large batch of B points: tensors, never a model or a data set.

    Every field is optional but what the selector needs (``selector.needs``). All are read without gradients.

    Args:
        model_loss: (B,) cross-entropy of the model on each point, nats.
        irreducible_loss: (B,) cross-entropy of the irreducible model on each point, nats.
        group_irreducible_loss: (B, G) cross-entropy of each group-irreducible model on each point, nats.
        logits: (B, C) outputs of the model, or (S, B, C) for S MC-dropout samples.
        targets: (B,) integers in [0, C).
        groups: (B,) integers in [0, G).

    Raises:
        TypeError: if a loss or the logits are not floating point, or targets or groups not integers.
        ValueError: if no field is given, or shapes disagree.

    Example:
        >>> Candidates(model_loss=torch.tensor([0.1, 2.0, 0.3])).num_candidates
        3
    """

    model_loss: Tensor | None = None
    irreducible_loss: Tensor | None = None
    group_irreducible_loss: Tensor | None = None
    logits: Tensor | None = None
    targets: Tensor | None = None
    groups: Tensor | None = None

    _AXES: ClassVar[dict[str, tuple[int, ...]]] = {
        "model_loss": (1,),
        "irreducible_loss": (1,),
        "group_irreducible_loss": (2,),
        "logits": (2, 3),
        "targets": (1,),
        "groups": (1,),
    }

    def __post_init__(self) -> None:
        sizes: dict[str, int] = {}
        for name, tensor in self.given().items():
            _check_candidate_field(name, tensor, self._AXES[name])
            # (S, B, C) logits carry their points along the last axis but one, everything else along the first
            sizes[name] = tensor.shape[-2] if name == "logits" else tensor.shape[0]
        if not sizes:
            raise ValueError(
                "Candidates need at least one tensor to know how many points there are; got none. "
                f"Give one of {', '.join(self._AXES)}."
            )
        if len(set(sizes.values())) > 1:
            raise ValueError(f"Candidates must agree on the number of points; got {sizes}.")

    def given(self) -> dict[str, Tensor]:
        """The fields that are not None, by name."""
        values = ((field.name, getattr(self, field.name)) for field in fields(self))
        return {name: value for name, value in values if value is not None}

    @property
    def num_candidates(self) -> int:
        """B, the number of points."""
        name, tensor = next(iter(self.given().items()))
        return tensor.shape[-2] if name == "logits" else tensor.shape[0]

    @property
    def device(self) -> torch.device:
        """Device of the first given field."""
        return next(iter(self.given().values())).device

    def take(self, positions: Tensor) -> Candidates:
        """The candidates at ``positions`` (b,), in that order."""
        return replace(
            self,
            **{
                name: tensor[..., positions, :] if name == "logits" else tensor[positions]
                for name, tensor in self.given().items()
            },
        )


def _check_candidate_field(name: str, tensor: Tensor, axes: tuple[int, ...]) -> None:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"Candidates.{name} must be a tensor; got {type(tensor).__name__}.")
    if tensor.ndim not in axes:
        raise ValueError(
            f"Candidates.{name} must have {' or '.join(map(str, axes))} axes; got shape {tuple(tensor.shape)}."
        )
    if name in ("targets", "groups"):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"Candidates.{name} must be integers; got {tensor.dtype}.")
    elif not tensor.is_floating_point():
        raise TypeError(f"Candidates.{name} must be floating point; got {tensor.dtype}.")


@dataclass(frozen=True)
class Selection:
    """What a selector chose, and all that ``selector.update`` needs to know of it.

    Args:
        positions: (b,) int64 rows of the candidates, best first (or in the order drawn).
        scores: (B,) float, the score of every candidate; minus infinity where a point was not finite.
        payoff: (G,) float, what the selected points add to each group's cumulative payoff; zeros for selectors
            without group weights.
        num_non_finite: how many candidates were left out because a loss was NaN or infinite.
    """

    positions: Tensor
    scores: Tensor
    payoff: Tensor
    num_non_finite: int
