"""The tensors a selector sees of a batch of candidates, and what it returns."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class LazyGroupLoss(Protocol):
    """Group-irreducible losses (B, G) that are computed some rows at a time, so that B x G numbers are never held."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, G)."""

    @property
    def device(self) -> torch.device:
        """Where the rows are made."""

    @property
    def dtype(self) -> torch.dtype:
        """Of the rows."""

    def rows(self, positions: Tensor | slice) -> Tensor:
        """(n, G) losses in nats of the points at ``positions``."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """What a selector may see of a large batch of B points: tensors, never a model or a data set.

    Every field is optional but what the selector needs (``selector.needs``). All are read without gradients.

    Args:
        model_loss: (B,) cross-entropy of the model on each point, nats.
        irreducible_loss: (B,) cross-entropy of the irreducible model on each point, nats.
        group_irreducible_loss: (B, G) cross-entropy of each group-irreducible model on each point, nats; or a
            ``LazyGroupLoss``, such as ``irreducible.AdjustedGroupLoss``.
        logits: (B, C) outputs of the model, or (S, B, C) for S MC-dropout samples.
        features: (B, D) what the last layer of the model makes the logits of.
        targets: (B,) integers in [0, C).
        groups: (B,) integers in [0, G).
        index: (B,) integers >= 0, the id of each point in its data set.

    Raises:
        TypeError: if a field is no dense tensor, a loss, the logits or features are not floating point, or targets,
            groups or the index not integers.
        ValueError: if no field is given, shapes disagree, or logits have no classes or samples.

    Example:
        >>> Candidates(model_loss=torch.tensor([0.1, 2.0, 0.3])).num_candidates
        3
    """

    model_loss: Tensor | None = None
    irreducible_loss: Tensor | None = None
    group_irreducible_loss: Tensor | LazyGroupLoss | None = None
    logits: Tensor | None = None
    features: Tensor | None = None
    targets: Tensor | None = None
    groups: Tensor | None = None
    index: Tensor | None = None

    _AXES: ClassVar[dict[str, tuple[int, ...]]] = {
        "model_loss": (1,),
        "irreducible_loss": (1,),
        "group_irreducible_loss": (2,),
        "logits": (2, 3),
        "features": (2,),
        "targets": (1,),
        "groups": (1,),
        "index": (1,),
    }

    def __post_init__(self) -> None:
        given = self._given
        sizes = {}
        for name, field in given.items():
            _check_candidate_field(name, field, self._AXES[name])
            sizes[name] = _num_examples(name, field)
        if not given:
            raise ValueError(
                "Candidates need at least one tensor to know how many points there are; got none. "
                f"Give one of {', '.join(self._AXES)}."
            )
        if len(set(sizes.values())) > 1:
            raise ValueError(f"Candidates must agree on the number of points; got {sizes}.")

    @cached_property
    def _given(self) -> dict[str, Any]:
        values = self.__dict__
        return {name: values[name] for name in self._AXES if values[name] is not None}

    def given(self) -> Mapping[str, Any]:
        """The fields that are not None, by name; to be read only."""
        return self._given

    @cached_property
    def num_candidates(self) -> int:
        """B, the number of points."""
        return _num_examples(*next(iter(self._given.items())))

    @property
    def device(self) -> torch.device:
        """Device of the first given field."""
        device: torch.device = next(iter(self._given.values())).device
        return device

    @property
    def group_losses(self) -> Tensor:
        """``group_irreducible_loss``, computed now if it is lazy.

        Raises:
            ValueError: if there is none.
        """
        losses = self.group_irreducible_loss
        if losses is None:
            raise ValueError("these Candidates have no group_irreducible_loss.")
        return losses if isinstance(losses, Tensor) else losses.rows(slice(None))

    @cached_property
    def chunk_size(self) -> int:
        """How many points at a time keep what has G numbers for each of them small."""
        losses = self.group_irreducible_loss
        if losses is None:
            return self.num_candidates
        elements = _CHUNK_ELEMENTS if losses.device.type == "cpu" else _DEVICE_CHUNK_ELEMENTS
        return max(1, elements // max(1, losses.shape[1]))

    def chunks(self) -> Iterator[Candidates]:
        """The candidates in order, ``chunk_size`` at a time, without lazy fields."""
        size, num_candidates = self.chunk_size, self.num_candidates
        if size >= num_candidates and isinstance(self.group_irreducible_loss, Tensor | None):
            yield self
            return
        for start in range(0, num_candidates, size):
            yield self._at(slice(start, start + size), self._AXES)

    def take(self, positions: Tensor, *, names: Container[str] | None = None) -> Candidates:
        """The candidates at ``positions`` (b,), in that order, without lazy fields; of ``names`` only, if given."""
        return self._at(positions, self._AXES if names is None else names)

    def _at(self, positions: Tensor | slice, names: Container[str]) -> Candidates:
        part = object.__new__(Candidates)  # whose fields have been checked
        taken = {name: _examples_at(name, field, positions) for name, field in self._given.items() if name in names}
        part.__dict__.update(dict.fromkeys(self._AXES) | taken)
        return part


# so many numbers stay in the cache of a processor; a GPU is kept busy by more
_CHUNK_ELEMENTS = 2**18
_DEVICE_CHUNK_ELEMENTS = 2**24


def _num_examples(name: str, field: Tensor | LazyGroupLoss) -> int:
    """(S, B, C) logits carry their points along the last axis but one, everything else along the first."""
    return field.shape[-2] if name == "logits" else field.shape[0]


def _examples_at(name: str, field: Tensor | LazyGroupLoss, positions: Tensor | slice) -> Tensor:
    if not isinstance(field, Tensor):
        return field.rows(positions)
    if name == "logits":
        return field[..., positions, :]
    return field[positions] if isinstance(positions, slice) else field.index_select(0, positions)


_FLOATS = frozenset((torch.float16, torch.bfloat16, torch.float32, torch.float64))


def _check_candidate_field(name: str, tensor: Any, axes: tuple[int, ...]) -> None:
    if name == "group_irreducible_loss" and hasattr(tensor, "rows"):
        return
    if not isinstance(tensor, Tensor):
        raise TypeError(f"Candidates.{name} must be a tensor; got {type(tensor).__name__}.")
    if tensor.layout != torch.strided:
        raise TypeError(f"Candidates.{name} must be a dense tensor; got {tensor.layout}. Give its to_dense().")
    if tensor.ndim not in axes:
        raise ValueError(
            f"Candidates.{name} must have {' or '.join(map(str, axes))} axes; got shape {tuple(tensor.shape)}."
        )
    if name in ("targets", "groups", "index"):
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool:
            raise TypeError(f"Candidates.{name} must be integers; got {tensor.dtype}.")
    elif tensor.dtype not in _FLOATS:
        raise TypeError(f"Candidates.{name} must be floating point; got {tensor.dtype}.")
    if name == "logits" and 0 in (*tensor.shape[:-2], tensor.shape[-1]):
        raise ValueError(f"Candidates.logits need at least one class and sample; got shape {tuple(tensor.shape)}.")


@dataclass(frozen=True)
class Selection:
    """What a selector chose, and all that ``selector.update`` needs to know of it.

    Args:
        positions: (b,) int64 rows of the candidates, best first (or in the order drawn).
        scores: (B,) float, the score of every candidate; minus infinity where a point was not finite, NaN where it was
            not scored, within a ``scoring.ScoringBudget``.
        payoff: (G,) float, what the selected points add to each group's cumulative payoff; zeros for selectors
            without group weights.
        num_non_finite: how many candidates were left out because a loss was NaN or infinite.
        loss_weight: what the mean loss of the selected points must be multiplied with before the backward pass: 1 in
            one process; see docs/loops.md for several.
        example_weights: (b,) float >= 0, what the loss of each selected point must be multiplied with before their mean
            is taken; None for 1. Rules that have them say ``weights_examples``.
        index: (b,) int64, the ids of the selected points, of all ranks; None for rules that do not remember points.
    """

    positions: Tensor
    scores: Tensor
    payoff: Tensor
    num_non_finite: int
    loss_weight: float = 1.0
    example_weights: Tensor | None = None
    index: Tensor | None = None

    @property
    def is_dummy(self) -> bool:
        """Whether the position is not selected, but keeps a rank in step that has no selected point."""
        return self.loss_weight == 0

    @property
    def has_nonfinite_loss(self) -> bool:
        """Whether the stand-in's loss is not finite, as 0 times it would not be: its inputs are then set to zero."""
        return self.is_dummy and bool((self.scores[self.positions] == -torch.inf).any())
