"""The tensors a selector sees of a batch of candidates, and what it returns."""

from __future__ import annotations

from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Protocol

import torch
from torch import Tensor


class LazyGroupLoss(Protocol):
    """Group-irreducible losses (B, G) computed a few rows at a time, so that B x G numbers are never held."""

    @property
    def shape(self) -> tuple[int, ...]:
        """(B, G)."""

    @property
    def device(self) -> torch.device:
        """Device of the rows."""

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the rows."""

    def rows(self, positions: Tensor | slice) -> Tensor:
        """Return the losses (n, G), in nats, of the examples at ``positions``."""


@dataclass(frozen=True, kw_only=True)
class Candidates:
    """The tensors that a selector sees of a large batch of B examples; never a model or a data set.

    A selector needs the fields that it names in ``selector.needs``; the others may be None. No field carries gradients.

    Args:
        model_loss: (B,) loss of the model on each example, nats.
        irreducible_loss: (B,) loss of the reference model (the paper's irreducible model) on each example, nats.
        group_irreducible_loss: (B, G) loss of each group's reference model on each example, nats; or a
            ``LazyGroupLoss``, such as ``irreducible.AdjustedGroupLoss``.
        logits: (B, C) outputs of the model, or (S, B, C) for S MC-dropout samples.
        features: (B, D) inputs of the model's last layer.
        targets: (B,) integers in [0, C).
        groups: (B,) integers in [0, G).
        index: (B,) integers >= 0, the id of each example in its data set.

    Raises:
        TypeError: if a field is not a dense tensor, if a loss, logits or features are not floating point, or if
            targets, groups or index are not integers.
        ValueError: if every field is None, if shapes disagree, or if logits have no classes or samples.

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
            raise ValueError(f"Candidates need at least one tensor; got none. Pass one of {', '.join(self._AXES)}.")
        if len(set(sizes.values())) > 1:
            raise ValueError(f"All fields of Candidates must have the same number of examples; got {sizes}.")

    @cached_property
    def _given(self) -> dict[str, Any]:
        values = self.__dict__
        return {name: values[name] for name in self._AXES if values[name] is not None}

    def given(self) -> Mapping[str, Any]:
        """Return the fields that are not None, by name. Do not change the mapping."""
        return self._given

    @cached_property
    def num_candidates(self) -> int:
        """B, the number of examples."""
        return _num_examples(*next(iter(self._given.items())))

    @property
    def device(self) -> torch.device:
        """Device of the first field that is not None."""
        device: torch.device = next(iter(self._given.values())).device
        return device

    @property
    def group_losses(self) -> Tensor:
        """``group_irreducible_loss`` as a tensor (B, G).

        Raises:
            ValueError: if it is None.
        """
        losses = self.group_irreducible_loss
        if losses is None:
            raise ValueError("Candidates.group_irreducible_loss is None.")
        return losses if isinstance(losses, Tensor) else losses.rows(slice(None))

    @cached_property
    def chunk_size(self) -> int:
        """Number of examples per chunk that keeps tensors (chunk, G) small."""
        losses = self.group_irreducible_loss
        if losses is None:
            return self.num_candidates
        elements = _CHUNK_ELEMENTS if losses.device.type == "cpu" else _DEVICE_CHUNK_ELEMENTS
        return max(1, elements // max(1, losses.shape[1]))

    def chunks(self) -> Iterator[Candidates]:
        """Yield the candidates in order, ``chunk_size`` at a time, without lazy fields."""
        size, num_candidates = self.chunk_size, self.num_candidates
        if size >= num_candidates and isinstance(self.group_irreducible_loss, Tensor | None):
            yield self
            return
        for start in range(0, num_candidates, size):
            yield self._at(slice(start, start + size), self._AXES)

    def take(self, positions: Tensor, *, names: Container[str] | None = None) -> Candidates:
        """Return the candidates at ``positions`` (b,), in that order, without lazy fields; only ``names``, if given."""
        return self._at(positions, self._AXES if names is None else names)

    def _at(self, positions: Tensor | slice, names: Container[str]) -> Candidates:
        part = object.__new__(Candidates)  # the fields have been checked
        rows = {name: _examples_at(name, field, positions) for name, field in self._given.items() if name in names}
        part.__dict__.update(dict.fromkeys(self._AXES) | rows)
        return part


# fits the cache of a processor; a GPU needs more to be kept busy
_CHUNK_ELEMENTS = 2**18
_DEVICE_CHUNK_ELEMENTS = 2**24


def _num_examples(name: str, field: Tensor | LazyGroupLoss) -> int:
    """Examples lie along the last axis but one of (S, B, C) logits, and along the first axis of everything else."""
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
        raise TypeError(f"Candidates.{name} must be a dense tensor; got {tensor.layout}. Pass tensor.to_dense().")
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
    """What a selector chose, and everything that ``selector.update`` reads.

    Args:
        positions: (b,) int64 rows of the candidates, best first (or in the order drawn).
        scores: (B,) float, the score of every candidate; minus infinity where a loss is not finite, NaN where a
            ``ScoringBudget`` left the candidate unscored.
        payoff: (G,) float, what the selected examples add to each group's cumulative payoff; zeros for rules without
            group weights.
        num_non_finite: number of candidates left out because a loss is NaN or infinite.
        loss_weight: factor of the mean loss of the selected examples before the backward pass. 1 in one process; see
            ``selectors.distributed`` for several.
        example_weights: (b,) float >= 0, factor of each selected example's loss before the mean; None for 1. Rules that
            give them have ``weights_examples``.
        index: (b,) int64, ids of the examples that all ranks selected; None for rules that keep no state per example.
        num_selected: examples selected on all ranks together; None for the number of positions.
        num_candidates: candidates of all ranks together; None for the number of scores.
    """

    positions: Tensor
    scores: Tensor
    payoff: Tensor
    num_non_finite: int
    loss_weight: float = 1.0
    example_weights: Tensor | None = None
    index: Tensor | None = None
    num_selected: int | None = None
    num_candidates: int | None = None

    def __post_init__(self) -> None:
        if self.num_selected is None:
            object.__setattr__(self, "num_selected", self.positions.shape[0])
        if self.num_candidates is None:
            object.__setattr__(self, "num_candidates", self.scores.shape[0])

    @property
    def is_dummy(self) -> bool:
        """Whether nothing was selected on this rank; its one position keeps the rank in step and has weight 0."""
        return self.loss_weight == 0

    @property
    def has_nonfinite_loss(self) -> bool:
        """Whether this is a dummy whose loss is not finite. Its inputs are zeroed, because 0 * NaN is NaN."""
        return self.is_dummy and bool((self.scores[self.positions] == -torch.inf).any())
