"""The inputs of all points of a data set, read by position."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor


class Inputs(Protocol):
    """A pool of P inputs, anywhere: a tensor (P, ...), memory-mapped arrays, files."""

    def __len__(self) -> int:
        """P."""

    def __getitem__(self, positions: Tensor, /) -> Tensor:
        """(B, ...), the inputs at ``positions`` (B,) int64 in [0, P)."""


def inputs_at(pool: Inputs, positions: Tensor) -> Tensor:
    """(B, ...), the inputs at ``positions`` (B,) int64 in [0, P).

    Of a tensor, whole rows are copied, several times faster than ``pool[positions]``, which copies number by number.
    """
    return pool.index_select(0, positions) if isinstance(pool, Tensor) else pool[positions]


class Overlaid:
    """A pool of inputs with some of them replaced; the replaced ones are held in memory, the pool is not changed.

    Args:
        base: the pool, P inputs of one shape.
        positions: (M,) int64 in [0, P), each once: which inputs are replaced.
        rows: (M, ...), what they are replaced with.

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
