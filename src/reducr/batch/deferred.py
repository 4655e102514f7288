"""Inputs that are read only for the examples of a batch that are kept."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor


class DeferredInput:
    """The inputs of B candidates, in the place of a tensor. Selecting from the batch reads those that are selected.

    For rules that read neither the model nor anything else of the inputs.

    Args:
        read: returns the inputs (b, ...) at positions (b,) int64.
        positions: (B,) int64 of the candidates, on the CPU.

    Example:
        >>> import torch
        >>> from reducr.batch import Batch
        >>> index = torch.arange(3)
        >>> batch = Batch(index, DeferredInput(torch.tensor([5.0, 6.0, 7.0]).__getitem__, index), index, index)
        >>> batch.take(torch.tensor([2, 0])).input
        tensor([7., 5.])
    """

    def __init__(self, read: Callable[[Tensor], Tensor], positions: Tensor) -> None:
        self.read = read
        self.positions = positions

    def __len__(self) -> int:
        return len(self.positions)

    def take(self, rows: Tensor | slice) -> Tensor | DeferredInput:
        """Read the inputs at ``rows``, onto the device of ``rows``. A slice is read later."""
        if isinstance(rows, slice):
            return DeferredInput(self.read, self.positions[rows])
        return self.read(self.positions.index_select(0, rows.cpu())).to(rows.device)
