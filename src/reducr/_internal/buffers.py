"""Buffers that keep their dtype when a model is cast, and that grow with the number of examples."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

MAX_EXAMPLES = 2**31
"""Upper bound on example indices; per-example buffers grow up to it."""


class FixedDtypeBuffers(nn.Module):
    """A module whose buffers follow the model across devices but never change dtype.

    ``model.half()`` and half-precision trainers cast every floating-point buffer. A running sum over a hundred thousand
    steps would lose its precision.
    """

    nan_before_use: ClassVar[frozenset[str]] = frozenset()
    """Buffers that are NaN until a value is set. All others must be finite in a state that is loaded."""
    growing: ClassVar[frozenset[str]] = frozenset()
    """Per-example buffers (N,), which grow with the largest index seen."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FixedDtypeBuffers:
        def move(tensor: Tensor) -> Tensor:
            moved = fn(tensor)
            return moved if moved.dtype == tensor.dtype else tensor.to(moved.device)

        super()._apply(move, recurse)  # type: ignore[no-untyped-call]  # torch leaves it untyped
        return self

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """Load a state completely or not at all.

        Raises:
            ValueError: for a state that does not fit or is not finite; names every difference.
        """
        own = self.state_dict()
        faults = [f"{name} is missing" for name in own if strict and name not in state_dict]
        faults += [f"{name} is not expected" for name in state_dict if strict and name not in own]
        faults += [
            f"{name} {fault}"
            for name, buffer in own.items()
            if name in state_dict and (fault := self._fault(name, state_dict[name], buffer))
        ]
        if faults:
            raise ValueError(f"the state does not fit this {type(self).__name__}: {'; '.join(faults)}.")
        return super().load_state_dict(state_dict, strict, assign)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name in self.growing:
            if f"{prefix}{name}" in state_dict:
                setattr(self, name, getattr(self, name).new_empty(state_dict[f"{prefix}{name}"].shape))
        super()._load_from_state_dict(state_dict, prefix, *arguments)

    def _fault(self, name: str, value: Any, buffer: Tensor) -> str | None:
        """What is wrong with ``value`` as the new content of ``buffer``, as the end of a sentence; None if it fits."""
        if not isinstance(value, Tensor):
            return f"must be a tensor, not {type(value).__name__}"
        has_other_shape = value.ndim != 1 if name in self.growing else value.shape != buffer.shape
        if has_other_shape or value.dtype != buffer.dtype:
            expected, shape = f"{buffer.dtype} {tuple(buffer.shape)}", tuple(value.shape)
            return f"must be {expected}, not {value.dtype} {shape}"
        is_unused = name in self.nan_before_use and bool(torch.isnan(value).all())
        return None if is_unused or bool(torch.isfinite(value).all()) else "is not finite"
