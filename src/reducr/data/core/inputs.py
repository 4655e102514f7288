"""Pools of inputs, read by position."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Inputs(Protocol):
    """A pool of P inputs: a tensor (P, ...), a memory-mapped array, files."""

    def __len__(self) -> int:
        """P."""

    def __getitem__(self, positions: Tensor, /) -> Tensor:
        """(B, ...), the inputs at ``positions`` (B,) int64 in [0, P)."""


def inputs_at(pool: Inputs, positions: Tensor) -> Tensor:
    """(B, ...), the inputs at ``positions`` (B,) int64 in [0, P).

    For a tensor, ``index_select`` copies whole rows and is several times faster than ``pool[positions]``.
    """
    return pool.index_select(0, positions) if isinstance(pool, Tensor) else pool[positions]


class Overlaid:
    """A pool of inputs with some of them replaced. The replacements are in memory, and the base is not changed.

    Args:
        base: P inputs of one shape.
        positions: (M,) int64 in [0, P), positions of the replaced inputs, each once.
        rows: (M, ...), the replacements.

    Example:
        >>> inputs = Overlaid(torch.zeros(4, 2), torch.tensor([2]), torch.ones(1, 2))
        >>> inputs[torch.tensor([2, 0])]
        tensor([[1., 1.],
                [0., 0.]])
    """

    def __init__(self, base: Inputs, positions: Tensor, rows: Tensor) -> None:
        self._base = base
        self._rows = rows
        self._row_of = torch.full((len(base),), -1)
        self._row_of[positions] = torch.arange(len(positions))

    def __len__(self) -> int:
        return len(self._base)

    def __getitem__(self, positions: Tensor) -> Tensor:
        row = self._row_of[positions]
        replaced = torch.nonzero(row >= 0).flatten()
        return inputs_at(self._base, positions).index_copy(0, replaced, self._rows[row[replaced]])
