"""Samples and batches that carry the index of their examples beside their own content."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.utils.data._utils.collate import collate, default_collate_fn_map

INDEX_KEY = "reducr_index"
"""Key of the index in samples and batches that are dicts."""


class Indexed:
    """A tuple, list or named tuple that carries ``example_index`` and is otherwise what it was.

    It unpacks, prints and compares as before. Collation by torch, pinned memory, ``to(device)`` and pickling keep the
    index.
    """

    example_index: Any
    """The index of a sample, or (B,) int64 of a batch."""

    def to(self, device: Any, *_: Any, **__: Any) -> Any:
        """Return this batch with every tensor on ``device``."""
        from reducr.batch.nested import send_to_device

        return send_to_device(self, torch.device(device))

    def pin_memory(self, *_: Any) -> Any:
        """Return this batch in pinned memory."""
        from torch.utils.data._utils.pin_memory import pin_memory

        pin: Any = pin_memory
        return with_index(pin(without_index(self)), pin(self.example_index))

    def __reduce__(self) -> tuple[Any, ...]:
        return with_index, (without_index(self), self.example_index)

    def __reduce_ex__(self, _: Any) -> tuple[Any, ...]:
        return self.__reduce__()


@cache
def _class_of(base: type) -> type:
    return type(f"Indexed{base.__name__}", (Indexed, base), {"base": base})


def with_index(value: Any, index: Any) -> Any:
    """Return a sample or batch with ``index`` beside its content, in place of one that it carries.

    A dict gets one more key, ``INDEX_KEY``, which collators of other libraries keep.

    Args:
        value: a tuple, list, named tuple or dict; not changed.
        index: an integer for a sample, (B,) integers for a batch.

    Raises:
        TypeError: for a value of another kind.

    Example:
        >>> inputs, target = sample = with_index(([0.5], 1), 7)
        >>> sample.example_index, sample == ([0.5], 1), with_index({"x": 0.5}, 7)
        (7, True, {'x': 0.5, 'reducr_index': 7})
    """
    if isinstance(value, Mapping):
        try:
            carrier: Any = copy.copy(value)
            carrier[INDEX_KEY] = index
        except TypeError:
            return {**value, INDEX_KEY: index}
        return carrier
    if not isinstance(value, tuple | list):
        raise TypeError(
            f"reducr.indexed reads samples that are tuples, lists or dicts, such as (input, target); got a "
            f"{type(value).__name__}. Let the data set yield one of these."
        )
    value = without_index(value)
    base: Any = type(value)
    kind = _class_of(base)
    carrier = tuple.__new__(kind, value) if isinstance(value, tuple) else kind(value)
    carrier.example_index = index
    return carrier


def index_of(value: Any) -> Any:
    """Return the index that a sample or batch carries; None if there is none."""
    if isinstance(value, Indexed):
        return value.example_index
    return value.get(INDEX_KEY) if isinstance(value, Mapping) else None


def without_index(value: Any) -> Any:
    """Return a sample or batch without the index that it carries, in its own type."""
    if isinstance(value, Indexed):
        base: Any = type(value).base  # type: ignore[attr-defined]  # of every class that _class_of makes
        return base._make(value) if hasattr(base, "_make") else base(value)
    if isinstance(value, Mapping) and INDEX_KEY in value:
        try:
            plain: Any = copy.copy(value)
            del plain[INDEX_KEY]
        except TypeError:
            return {name: entry for name, entry in value.items() if name != INDEX_KEY}
        return plain
    return value


def _collated(samples: list[Any], *, collate_fn_map: Any = None) -> Any:
    """Collate samples that carry their index; torch calls this for them."""
    batch = collate([without_index(sample) for sample in samples], collate_fn_map=collate_fn_map)
    return with_index(batch, indices_of(samples))


def indices_of(samples: list[Any]) -> Tensor:
    """Return the index (B,) int64 of each sample.

    Raises:
        ValueError: if a sample carries none.
    """
    indices = [index_of(sample) for sample in samples]
    if any(index is None for index in indices):
        raise ValueError(
            f"{sum(index is None for index in indices)} of {len(samples)} samples of a batch carry no index. Wrap the "
            "whole data set: reducr.indexed(dataset)."
        )
    return torch.tensor(indices, dtype=torch.int64)


default_collate_fn_map[Indexed] = _collated  # the way that torch documents for types of one's own
