"""Batches of any structure: tuples, dicts, dataclasses and lists, nested, with points along the first axis.

Tensors and arrays have one row for each point. A list or tuple inside a batch that has as many entries as there are
points holds one for each, such as strings, unless entries have one row for each point themselves: then it is a
container, as are named tuples, and lists of another length that hold a tensor or array. Numbers, strings, None and
tensors without axes belong to the batch as a whole.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

_OF_THE_BATCH = (str, bytes, int, float, complex, bool, type(None))
_OF_NUMPY = (np.ndarray, np.generic)
_SEQUENCES = (list, tuple)
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def index_batch(batch: Any, positions: Tensor, *, num_examples: int) -> Any:
    """The points at ``positions`` (b,) of a batch of ``num_examples``, in that order, in the batch's own structure.

    Tensors in channels-last order stay in it. The batch is not changed; what belongs to it as a whole is shared.

    Raises:
        ValueError: for a tensor, array or list of another length (named by its place in the batch).
        TypeError: for an entry that is none of the kinds above.

    Example:
        >>> index_batch({"x": torch.arange(3), "text": ["a", "b", "c"]}, torch.tensor([2, 0]), num_examples=3)
        {'x': tensor([2, 0]), 'text': ['c', 'a']}
    """
    return _Taken(positions, num_examples).of(batch, "batch")


def send_to_device(batch: Any, device: torch.device) -> Any:
    """The same batch with every tensor on ``device``; what is there already is not copied."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, _SEQUENCES) or _is_tree(batch):
        return _rebuilt(batch, lambda entry, _: send_to_device(entry, device))
    return batch


def zero_inputs(batch: Any) -> Any:
    """The same batch with zeros in place of all floating-point numbers in its tensors."""
    if isinstance(batch, Tensor):
        return torch.zeros_like(batch) if batch.is_floating_point() else batch
    if isinstance(batch, list | tuple) or _is_tree(batch):
        return _rebuilt(batch, lambda entry, _: zero_inputs(entry))
    return batch


class _Taken:
    """Walks a batch and takes the points at some positions."""

    def __init__(self, positions: Tensor, num_examples: int) -> None:
        self.positions = positions
        self.num_examples = num_examples
        self._places: list[int] | None = None

    @property
    def places(self) -> list[int]:
        """The positions as numbers, read from the device once and only where something needs them."""
        if self._places is None:
            self._places = self.positions.tolist()
        return self._places

    def of(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            return self.rows(value, name) if value.ndim else value
        if isinstance(value, _OF_THE_BATCH) or (isinstance(value, _OF_NUMPY) and not value.ndim):
            return value
        if isinstance(value, np.ndarray):
            self.check_length(value, name)
            return value[self.places]
        is_list = isinstance(value, _SEQUENCES)
        if is_list and name != "batch" and not self.is_container(value):
            self.check_length(value, name)
            return type(value)([value[place] for place in self.places])
        if is_list or _is_tree(value):
            return _rebuilt(value, lambda entry, place: self.of(entry, f"{name}{place}"))
        raise TypeError(
            f"{name} is a {type(value).__name__}; a batch is made of tensors, arrays, lists, tuples, dicts and "
            "dataclasses, nested. Give these, or change the loader's collate_fn."
        )

    def rows(self, value: Tensor, name: str) -> Tensor:
        if value.shape[0] != self.num_examples:
            self.check_length(value, name)
        positions = self.positions if value.device == self.positions.device else self.positions.to(value.device)
        rows = value.index_select(0, positions)
        if value.ndim in _CHANNELS_LAST and value.is_contiguous(memory_format=_CHANNELS_LAST[value.ndim]):
            return rows.contiguous(memory_format=_CHANNELS_LAST[value.ndim])
        return rows

    def is_container(self, entries: list[Any] | tuple[Any, ...]) -> bool:
        if hasattr(entries, "_fields"):
            return True
        has_rows = [self.has_rows(entry) for entry in entries]
        if len(entries) == self.num_examples:
            others = (entry for entry, has in zip(entries, has_rows, strict=True) if not has)
            return any(has_rows) and all(isinstance(entry, _OF_THE_BATCH) for entry in others)
        return any(has_rows) or any(_has_axes(entry) for entry in entries)

    def has_rows(self, entry: Any) -> bool:
        if _has_axes(entry):
            return len(entry) == self.num_examples
        if isinstance(entry, list | tuple):
            return len(entry) == self.num_examples or self.is_container(entry)
        return _is_tree(entry) and any(self.has_rows(value) for value in _entries(entry).values())

    def check_length(self, value: Any, name: str) -> None:
        if len(value) != self.num_examples:
            raise ValueError(
                f"{name} has {len(value)} rows, and the batch {self.num_examples} points: everything in a batch needs "
                "one row for each point. Change the loader's collate_fn, or say with a BatchSpec where the targets are."
            )


def _has_axes(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0


def _is_tree(value: Any) -> bool:
    """Whether ``value`` is a mapping or a dataclass."""
    return isinstance(value, Mapping) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _entries(tree: Any) -> Mapping[Any, Any]:
    if isinstance(tree, Mapping):
        return tree
    return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}


def _rebuilt(tree: Any, change: Callable[[Any, str], Any]) -> Any:
    """A mapping, dataclass, list or tuple of the same type, with every entry changed."""
    if isinstance(tree, _SEQUENCES):
        if hasattr(tree, "_fields"):
            return type(tree)(*(change(entry, f".{name}") for name, entry in zip(tree._fields, tree, strict=True)))
        return type(tree)([change(entry, f"[{number}]") for number, entry in enumerate(tree)])
    if isinstance(tree, Mapping):
        entries = {key: change(entry, f"[{key!r}]") for key, entry in tree.items()}
        try:
            rebuilt: Any = copy.copy(tree)
            for key, entry in entries.items():
                rebuilt[key] = entry
        except (AttributeError, TypeError):
            return entries  # a mapping that cannot be changed
        return rebuilt
    rebuilt = copy.copy(tree)
    for name, entry in _entries(tree).items():
        object.__setattr__(rebuilt, name, change(entry, f".{name}"))  # frozen ones too
    return rebuilt
