"""State that outlives a step: buffers that keep their precision."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class FixedDtypeBuffers(nn.Module):
    """A module whose buffers follow the model across devices but never change dtype.

    ``model.half()`` or a half-precision trainer casts every floating buffer it finds; a running sum over a hundred
    thousand steps must not be among them.
    """

    nan_before_use: ClassVar[frozenset[str]] = frozenset()
    """The buffers that are NaN until they are given a value; any other must be finite."""
    growing: ClassVar[frozenset[str]] = frozenset()
    """The buffers (N,) that hold a number for every point seen, and grow with the largest index."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedDtypeBuffers:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As in torch, but all or nothing.

        Raises:
            ValueError: for a state that does not fit, or is not finite; says what differs, and nothing is loaded.
        """
        own = self.state_dict()
        faults = [f"it has no {name}" for name in own if strict and name not in state_dict]
        faults += [f"{name} is unknown here" for name in state_dict if strict and name not in own]
        faults += [
            f"{name} {fault}"
            for name, buffer in own.items()
            if name in state_dict and (fault := self._fault(name, state_dict[name], buffer))
        ]
        if faults:
            raise ValueError(f"this is not the state of such a {type(self).__name__}: {'; '.join(faults)}.")
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name in self.growing:
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, getattr(self, name).new_empty(state_dict[f"{prefix}{name}"].shape))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _fault(self, name: str, value: Any, buffer: Tensor) -> str | None:
        if not isinstance(value, Tensor):
            return f"is a {type(value).__name__}"
        has_other_shape = value.ndim != 1 if name in self.growing else value.shape != buffer.shape
        if has_other_shape or value.dtype != buffer.dtype:
            return f"is {value.dtype} {tuple(value.shape)}, and {buffer.dtype} {tuple(buffer.shape)} here"
        is_unused = name in self.nan_before_use and bool(torch.isnan(value).all())
        return None if is_unused or bool(torch.isfinite(value).all()) else "is not finite"
