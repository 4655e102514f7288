"""State that outlives a step: buffers that keep their precision."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn


class ExactState(nn.Module):
    """A module whose buffers follow the model across devices but never change dtype.

    ``model.half()`` or a half-precision trainer casts every floating buffer it finds; a running sum over a hundred
    thousand steps must not be among them.
    """

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ExactState:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self
