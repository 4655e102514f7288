"""Select, move and concatenate batches of any structure: tuples, dicts, dataclasses and lists, nested.

Tensors and arrays have one row per example. A list or tuple inside a batch that has as many entries as the batch has
examples holds one entry per example (strings, for instance), unless its entries have one row per example themselves:
then it is a container. Named tuples are containers, and so are lists of another length that hold a tensor or array.
Numbers, strings, None and tensors without axes belong to the batch as a whole.

A list of B entries with B rows each, in a batch of B examples, may be either. ``ListKinds`` decides it by the batches
of other sizes that came before.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from reducr.batch.carried import Indexed, with_index, without_index
from reducr.batch.deferred import DeferredInput

_CONSTANTS = (str, bytes, int, float, complex, bool, type(None))
_NUMPY = (np.ndarray, np.generic)
_SEQUENCES = (list, tuple)
_CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class ListKinds:
    """What the lists in the batches of one source hold: one entry per example, or columns with one row per example.

    Args:
        lists: ``examples`` or ``columns``, for the lists that may be either; None to learn it from other batches.
    """

    def __init__(self, lists: str | None = None) -> None:
        self.lists = lists
        self._is_container: dict[str, bool] = {}

    def is_container(self, place: str, entries: Any, *, looks_like: bool, num_examples: int) -> bool:
        """Whether the list at ``place`` holds columns.

        Args:
            place: in the batch.
            entries: the list.
            looks_like: whether its entries look like columns.
            num_examples: of the batch.

        Raises:
            ValueError: if it may be either, and no batch before has shown which.
        """
        if not looks_like or len(entries) != num_examples or num_examples == 1:
            if looks_like or len(entries) == num_examples:
                self._is_container.setdefault(place, looks_like)
            return looks_like
        if self.lists is not None:
            return self.lists == "columns"
        if place not in self._is_container:
            raise ValueError(
                f"{place} is a {type(entries).__name__} of {num_examples} entries with {num_examples} rows each, in a "
                f"batch of {num_examples} examples: it may hold one entry per example, or columns. Say which with "
                "`spec=reducr.BatchSpec(..., lists='examples')` or `lists='columns'`, or use another batch size."
            )
        return self._is_container[place]


class Arguments:
    """Makes the inputs of one source what a model is called with: a list with one entry per example is one argument.

    Args:
        lists: as for ``ListKinds``; what the inputs that may be either are taken for until another batch shows it.
    """

    def __init__(self, lists: str | None = None) -> None:
        self._is_one = lists == "examples"

    def __call__(self, inputs: Any, num_examples: int) -> Any:
        """Return ``inputs``, or ``(inputs,)`` if it is a list or tuple that holds one entry per example."""
        if isinstance(inputs, PackedSequence):
            raise _packed("The input")
        if not isinstance(inputs, _SEQUENCES) or hasattr(inputs, "_fields"):
            return inputs
        has_entries = len(inputs) == num_examples
        looks_like_columns = _Indexing(slice(None), num_examples, None).looks_like_container(inputs)
        if not (has_entries and looks_like_columns):
            self._is_one = has_entries
        return (inputs,) if self._is_one and has_entries else inputs


def _packed(name: str) -> ValueError:
    return ValueError(
        f"{name} is a PackedSequence, which has no row per example to select. Let the loader yield padded sequences "
        "and their lengths, and pack them in the model's `forward`."
    )


def index_batch(batch: Any, positions: Tensor | slice, *, num_examples: int, kinds: ListKinds | None = None) -> Any:
    """Return the examples at ``positions`` in the batch's own structure.

    Tensors in channels-last order stay in it. The batch is not changed. Entries that belong to it as a whole are
    shared, and so is the memory of tensors where ``positions`` is a slice.

    Args:
        batch: nested tensors, arrays, lists, tuples, dicts and dataclasses.
        positions: (b,) int64 in [0, B), in the order wanted, or a slice.
        num_examples: B.
        kinds: of the source of the batch; None to take a list that may be either for columns.

    Raises:
        ValueError: for a tensor, array or list of another length; names its place in the batch.
        TypeError: for an entry of another kind.

    Example:
        >>> index_batch({"x": torch.arange(3), "text": ["a", "b", "c"]}, torch.tensor([2, 0]), num_examples=3)
        {'x': tensor([2, 0]), 'text': ['c', 'a']}
    """
    return _Indexing(positions, num_examples, kinds)(batch, "batch")


def send_to_device(batch: Any, device: torch.device) -> Any:
    """Return the batch with every tensor on ``device``; tensors that are there already are not copied."""
    if isinstance(batch, Tensor):
        return batch if batch.device == device else batch.to(device, non_blocking=True)
    if isinstance(batch, _SEQUENCES) or _is_tree(batch):
        return _rebuilt(batch, lambda entry, _: send_to_device(entry, device))
    return batch


def replace_entry(batch: Any, path: tuple[int | str, ...], value: Any) -> Any:
    """Return the batch with ``value`` at ``path``; everything else is shared, and the batch is not changed.

    Example:
        >>> replace_entry({"x": 1, "y": (2, 3)}, ("y", 0), 5)
        {'x': 1, 'y': (5, 3)}
    """
    if not path:
        return value
    key, rest = path[0], path[1:]
    if hasattr(batch, "_fields"):
        key = batch._fields[key] if isinstance(key, int) else key
        return batch._replace(**{key: replace_entry(getattr(batch, key), rest, value)})
    if isinstance(batch, _SEQUENCES):
        entries: Any = list(batch)
        entries[key] = replace_entry(entries[key], rest, value)
        return type(batch)(entries)
    if isinstance(batch, Mapping):
        return _with_key(batch, key, replace_entry(batch[key], rest, value))
    replaced = copy.copy(batch)
    object.__setattr__(replaced, str(key), replace_entry(getattr(batch, str(key)), rest, value))  # frozen ones, too
    return replaced


def _with_key(mapping: Mapping[Any, Any], key: Any, entry: Any) -> Any:
    if isinstance(mapping, dict) or hasattr(mapping, "__copy__"):  # else a copy could share its entries
        try:
            replaced: Any = copy.copy(mapping)
            replaced[key] = entry
        except (AttributeError, TypeError):
            pass  # a read-only mapping
        else:
            return replaced
    return {**mapping, key: entry}


def zero_inputs(batch: Any) -> Any:
    """Return the batch with zeros in place of every floating-point number in its tensors."""
    if isinstance(batch, Tensor):
        return torch.zeros_like(batch) if batch.is_floating_point() else batch
    if isinstance(batch, _SEQUENCES) or _is_tree(batch):
        return _rebuilt(batch, lambda entry, _: zero_inputs(entry))
    return batch


def concatenate(first: Any, second: Any, *, num_examples: int, kinds: ListKinds | None = None) -> Any:
    """Return the examples of ``first`` followed by those of ``second``, a batch of the same structure.

    Args:
        first: a batch of ``num_examples`` examples; entries that belong to it as a whole are kept.
        second: a batch of any number of examples. Lists and tuples may stand for each other.
        num_examples: of ``first``.
        kinds: of its source; None to take a list that may be either for columns.

    Raises:
        ValueError: if structures or dtypes differ, or entries of ``second`` differ in length; names the place.

    Example:
        >>> concatenate({"x": torch.zeros(1), "id": ["a"]}, {"x": torch.ones(1), "id": ["b"]}, num_examples=1)
        {'x': tensor([0., 1.]), 'id': ['a', 'b']}
    """
    return _Concatenation(num_examples, kinds)(first, second, "batch")


class _Concatenation:
    """Walks two batches of the same structure and joins everything that has one row per example."""

    def __init__(self, num_examples: int, kinds: ListKinds | None) -> None:
        self.num_examples = num_examples
        self.kinds = kinds
        self.lengths: dict[str, int] = {}

    def __call__(self, first: Any, second: Any, place: str) -> Any:
        if isinstance(first, _CONSTANTS) or (isinstance(first, Tensor | np.ndarray) and not first.ndim):
            return first
        if isinstance(first, Tensor | np.ndarray):
            return self.join_rows(first, second, place)
        if isinstance(first, _SEQUENCES) != isinstance(second, _SEQUENCES) or _is_tree(first) != _is_tree(second):
            raise self.mismatch(place, type(first).__name__, type(second).__name__)
        if isinstance(first, _SEQUENCES) and self.holds_examples(first, place):
            self.check_length(second, place)
            return type(first)([*first, *second])
        entries, others = _entries(first), _entries(second)
        if isinstance(first, _SEQUENCES) and len(first) != len(second):
            raise self.mismatch(
                place, f"{type(first).__name__} of {len(first)}", f"{type(second).__name__} of {len(second)}"
            )
        keys = iter(entries)
        return _rebuilt(first, lambda entry, at: self.join_entry(entry, others, next(keys), f"{place}{at}"))

    def join_entry(self, entry: Any, others: Mapping[Any, Any], key: Any, place: str) -> Any:
        if key not in others:
            raise ValueError(f"Extra batches need the structure of the candidates: {place} is missing in one.")
        return self(entry, others[key], place)

    def join_rows(self, first: Any, second: Any, place: str) -> Any:
        kinds = [
            f"{type(value).__name__} of {value.dtype}" if _has_axes(value) else type(value).__name__
            for value in (first, second)
        ]
        if kinds[0] != kinds[1]:
            raise self.mismatch(place, *kinds)
        if first.shape[1:] != second.shape[1:]:
            raise self.mismatch(place, *(f"{type(value).__name__} {tuple(value.shape)}" for value in (first, second)))
        self.check_length(second, place)
        return torch.cat([first, second]) if isinstance(first, Tensor) else np.concatenate([first, second])

    def holds_examples(self, entries: Any, place: str) -> bool:
        return _Indexing(slice(None), self.num_examples, self.kinds).holds_examples(entries, place)

    def check_length(self, value: Any, place: str) -> None:
        self.lengths[place] = len(value)
        if len(set(self.lengths.values())) > 1:
            (other, length), *_ = self.lengths.items()
            raise ValueError(
                f"An extra batch has {length} rows in {other} and {len(value)} in {place}. They must agree."
            )

    def mismatch(self, place: str, expected: str, actual: str) -> ValueError:
        return ValueError(
            f"Extra batches need the structure of the candidates: {place} is a {expected} there and a {actual} in an "
            "extra batch."
        )


class _Indexing:
    """Walks a batch and indexes everything that has one row per example."""

    def __init__(self, positions: Tensor | slice, num_examples: int, kinds: ListKinds | None) -> None:
        self.positions = positions
        self.num_examples = num_examples
        self.kinds = kinds
        self._rows: list[int] | slice | None = positions if isinstance(positions, slice) else None

    @property
    def rows(self) -> list[int] | slice:
        """The positions on the host, read from the device once and only if something needs them."""
        if self._rows is None:
            self._rows = self.positions.tolist()  # type: ignore[union-attr]  # a slice is there from the start
        return self._rows

    def __call__(self, value: Any, name: str) -> Any:
        if isinstance(value, Tensor):
            return self.tensor_rows(value, name) if value.ndim else value
        if isinstance(value, DeferredInput):
            return value.take(self.positions)
        if isinstance(value, _CONSTANTS) or (isinstance(value, _NUMPY) and not value.ndim):
            return value
        if isinstance(value, np.ndarray):
            self.check_length(value, name)
            return value[self.rows]
        if isinstance(value, PackedSequence):
            raise _packed(name)
        is_sequence = isinstance(value, _SEQUENCES)
        if is_sequence and self.holds_examples(value, name):
            self.check_length(value, name)
            rows = self.rows
            return type(value)(value[rows] if isinstance(rows, slice) else [value[row] for row in rows])
        if is_sequence or _is_tree(value):
            return _rebuilt(value, lambda entry, place: self(entry, f"{name}{place}"))
        raise TypeError(
            f"{name} is a {type(value).__name__}. A batch is made of tensors, arrays, lists, tuples, dicts and "
            "dataclasses, nested. Change the loader's `collate_fn`."
        )

    def tensor_rows(self, value: Tensor, name: str) -> Tensor:
        if value.shape[0] != self.num_examples:
            self.check_length(value, name)
        positions = self.positions
        if isinstance(positions, slice):
            return value[positions]
        rows = value.index_select(0, positions if value.device == positions.device else positions.to(value.device))
        if value.ndim in _CHANNELS_LAST and value.is_contiguous(memory_format=_CHANNELS_LAST[value.ndim]):
            return rows.contiguous(memory_format=_CHANNELS_LAST[value.ndim])
        return rows

    def holds_examples(self, entries: list[Any] | tuple[Any, ...], place: str) -> bool:
        """Whether a list has one entry per example. The batch itself has if these are dicts, not put together."""
        if place != "batch":
            return not self.is_container(entries, place)
        is_raw = len(entries) == self.num_examples and all(map(_is_tree, entries))
        return is_raw and not self.looks_like_container(entries)

    def is_container(self, entries: list[Any] | tuple[Any, ...], place: str) -> bool:
        looks_like = self.looks_like_container(entries)
        if self.kinds is None or hasattr(entries, "_fields"):
            return looks_like
        return self.kinds.is_container(place, entries, looks_like=looks_like, num_examples=self.num_examples)

    def looks_like_container(self, entries: list[Any] | tuple[Any, ...]) -> bool:
        if hasattr(entries, "_fields"):
            return True
        has_rows = [self.has_rows(entry) for entry in entries]
        if len(entries) == self.num_examples:
            others = (entry for entry, has in zip(entries, has_rows, strict=True) if not has)
            return any(has_rows) and all(isinstance(entry, _CONSTANTS) for entry in others)
        return any(has_rows) or any(_has_axes(entry) for entry in entries)

    def has_rows(self, entry: Any) -> bool:
        if _has_axes(entry):
            return len(entry) == self.num_examples
        if isinstance(entry, _SEQUENCES):
            return len(entry) == self.num_examples or self.looks_like_container(entry)
        return _is_tree(entry) and any(self.has_rows(value) for value in _entries(entry).values())

    def check_length(self, value: Any, name: str) -> None:
        if len(value) != self.num_examples:
            raise ValueError(
                f"{name} has {len(value)} rows, and the batch {self.num_examples} examples. Everything in a batch "
                "needs one row per example: change the loader's `collate_fn`, or say with `spec=BatchSpec(...)` where "
                "the targets are."
            )


def _has_axes(value: Any) -> bool:
    return isinstance(value, Tensor | np.ndarray) and value.ndim > 0


def _is_tree(value: Any) -> bool:
    """Whether ``value`` is a mapping or a dataclass."""
    return isinstance(value, Mapping) or (dataclasses.is_dataclass(value) and not isinstance(value, type))


def _entries(tree: Any) -> Mapping[Any, Any]:
    if isinstance(tree, _SEQUENCES):
        return dict(enumerate(tree))
    if isinstance(tree, Mapping):
        return tree
    return {field.name: getattr(tree, field.name) for field in dataclasses.fields(tree)}


def _rebuilt(tree: Any, change: Callable[[Any, str], Any]) -> Any:
    """Return a mapping, dataclass, list or tuple of the same type with every entry changed."""
    if isinstance(tree, Indexed):
        return with_index(_rebuilt(without_index(tree), change), change(tree.example_index, ".example_index"))
    return _rebuilt_plain(tree, change)


def _rebuilt_plain(tree: Any, change: Callable[[Any, str], Any]) -> Any:
    if isinstance(tree, _SEQUENCES):
        if hasattr(tree, "_fields"):
            return type(tree)(*(change(entry, f".{name}") for name, entry in zip(tree._fields, tree, strict=True)))
        return type(tree)([change(entry, f"[{number}]") for number, entry in enumerate(tree)])
    if isinstance(tree, Mapping):
        entries = {key: change(entry, f"[{key!r}]") for key, entry in tree.items()}
        if not isinstance(tree, dict) and not hasattr(tree, "__copy__"):
            return entries  # a copy could share its entries with the original
        try:
            rebuilt: Any = copy.copy(tree)
            for key, entry in entries.items():
                rebuilt[key] = entry
        except (AttributeError, TypeError):
            return entries  # a read-only mapping
        return rebuilt
    rebuilt = copy.copy(tree)
    for name, entry in _entries(tree).items():
        object.__setattr__(rebuilt, name, change(entry, f".{name}"))  # also in frozen dataclasses
    return rebuilt
