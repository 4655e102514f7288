"""A batch of examples, and how to read one from any structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reducr._internal.names import unknown_name
from reducr.batch.carried import index_of, with_index, without_index
from reducr.batch.nested import Arguments, index_batch, replace_entry, send_to_device


class Batch(NamedTuple):
    """One batch; examples lie along the first axis of everything in it.

    The order of the fields is that of the tuples that the training program's data sets yield: ``Batch(*item)`` reads
    one.
    """

    index: Tensor  # type: ignore[assignment]  # the id of an example; tuple.index is not needed
    """(B,) int64, the id of each example in its data set; None where a stream gives none."""
    input: Any
    """What the model is called with: a tensor (B, ...), a dict of arguments by name, or a tuple of arguments. A list
    with one entry per example, such as strings, is a single argument, ``(list,)``."""
    target: Tensor
    """(B,) int64, what cross-entropy predicts."""
    group: Tensor
    """(B,) int64, the partition whose worst member matters; equals ``target`` unless the data says otherwise."""

    def take(self, positions: Tensor | slice) -> Batch:
        """Return the examples at ``positions`` (b,), in that order."""
        batch: Batch = index_batch(self, positions, num_examples=self.target.shape[0])
        return batch

    def to(self, device: torch.device) -> Batch:
        """Return the batch with every tensor on ``device``."""
        batch: Batch = send_to_device(self, device)
        return batch


Entry = int | str | tuple[int | str, ...] | Callable[[Any], Any]
_INDEX_NAMES = ("index", "idx")
_INPUT_NAMES = ("input", "inputs")
_TARGET_NAMES = ("target", "targets", "label", "labels")
_GROUP_NAMES = ("group", "groups")


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """Where the parts of a batch are in the structure that its loader yields.

    An entry is a position, a key or an attribute's name, a tuple of these for nested batches, or a function of the
    batch. ``BatchSpec.of`` finds the usual places.

    Args:
        target: the targets.
        input: what the model is called with; None for every tensor of a dict that is not one of the other parts, passed
            to the model by name.
        index: ids of the examples, which tables of irreducible losses need; None where there are none.
        group: the groups; None where they are the targets.
        lists: what a list of B entries with B rows each holds in a batch of B examples: ``examples``, one entry per
            example, or ``columns``. Only needed if the first batches do not show it by another size.

    Raises:
        ValueError: for another value of ``lists``.

    Example:
        >>> batch = {"pixels": torch.zeros(2, 4), "label": torch.tensor([1, 0]), "site": torch.tensor([0, 2])}
        >>> BatchSpec(input="pixels", target="label", group="site").read(batch).group
        tensor([0, 2])
    """

    target: Entry
    input: Entry | None = None
    index: Entry | None = None
    group: Entry | None = None
    lists: str | None = None

    def __post_init__(self) -> None:
        if self.lists not in (None, "examples", "columns"):
            raise unknown_name("lists", self.lists, ("examples", "columns"))

    @classmethod
    def of(cls, batch: Any) -> BatchSpec:
        """Return the spec of a batch in one of the usual structures.

        Tuples and lists are ``(input, target)``, ``(index, input, target)`` or ``(index, input, target, group)``. In
        dicts, named tuples and dataclasses the target is called ``target``, ``targets``, ``label`` or ``labels``, the
        index ``index`` or ``idx``, the group ``group`` or ``groups``, and the input ``input`` or ``inputs``; in a dict
        without an input, the input is everything else.

        Raises:
            ValueError: for any other structure, which it describes.
        """
        names = _names_in(batch)
        if names is not None:
            index, target, group, inputs = (
                next((name for name in names if name in usual), None)
                for usual in (_INDEX_NAMES, _TARGET_NAMES, _GROUP_NAMES, _INPUT_NAMES)
            )
            if target is not None and (inputs is not None or isinstance(batch, Mapping)):
                return cls(target=target, input=inputs, index=index, group=group)
            description = f"a {type(batch).__name__} with {', '.join(map(str, names))}"
        elif isinstance(batch, tuple | list):
            if len(batch) == 2:
                return cls(input=0, target=1)
            description = f"a {type(batch).__name__} of {len(batch)}"
            if len(batch) in (3, 4):
                if _is_index(batch[0]):
                    return cls(index=0, input=1, target=2, group=3 if len(batch) == 4 else None)
                raise ValueError(
                    f"{description.capitalize()} is read as (index, input, target{', group' * (len(batch) == 4)}), and "
                    f"this one begins with {_kind(batch[0])}, which is no index of its examples. Pass `spec=reducr."
                    "BatchSpec(input=0, target=1)` if it begins with input and target, with `group=2` if the groups "
                    "come third."
                )
        else:
            description = f"a {type(batch).__name__}"
        raise ValueError(
            f"Cannot tell which part of the batch is the target: it is {description}. Pass `spec=reducr.BatchSpec("
            "input=..., target=..., index=..., group=...)`."
        )

    def read(self, batch: Any) -> Batch:
        """Return the parts of ``batch``.

        Raises:
            ValueError: if an entry is missing, or the index, target or group is not a tensor with one row per example.
        """
        target = self._tensor("target", batch)
        inputs = self._rest(batch) if self.input is None else self._entry("input", batch)
        index = None if self.index is None else self._numbers("index", batch, target.shape[0])
        group = target if self.group is None else self._numbers("group", batch, target.shape[0])
        return Batch(index, inputs, target, group)  # type: ignore[arg-type]  # a stream has no index

    def with_target(self, batch: Any, target: Tensor) -> Any:
        """Return ``batch`` with another target; the batch is not changed.

        Raises:
            ValueError: if the entry of the target is a function, which cannot be written to.
        """
        entry = self.target
        if callable(entry):
            raise ValueError(  # noqa: TRY004  (a fault of the spec)
                "A selection by token changes the labels in the batch, and the `target` of this BatchSpec is a "
                "function, which tells where to read them only. Pass their position, key or path."
            )
        return replace_entry(batch, entry if isinstance(entry, tuple) else (entry,), target)

    def _numbers(self, name: str, batch: Any, size: int) -> Tensor:
        numbers = self._tensor(name, batch)
        if numbers.shape != (size,):
            raise ValueError(
                f"A batch's {name} must hold one number for each of its {size} examples; got shape "
                f"{tuple(numbers.shape)}."
            )
        return numbers

    def _tensor(self, name: str, batch: Any) -> Tensor:
        value = self._entry(name, batch)
        if not isinstance(value, Tensor) or not value.ndim:
            kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            advice = (
                "If this is a single example, put a DataLoader around the data set."
                if isinstance(value, Tensor | int | float | str)
                else "Let the loader's `collate_fn` make it one, or pass a function, `spec=reducr.BatchSpec("
                f"{name}=lambda batch: torch.tensor(...), ...)`."
            )
            raise ValueError(f"A batch's {name} must be a tensor with one row per example; got {kind}. {advice}")
        return value

    def _entry(self, name: str, batch: Any) -> Any:
        entry: Any = getattr(self, name)
        if callable(entry):
            return entry(batch)
        for key in entry if isinstance(entry, tuple) else (entry,):
            try:
                batch = batch[key] if isinstance(key, int) or isinstance(batch, Mapping) else getattr(batch, key)
            except (KeyError, IndexError, TypeError, AttributeError) as error:
                raise ValueError(
                    f"The batch has no {name} at {entry!r}: there is no {key!r} in a {type(batch).__name__} with "
                    f"{_names_in(batch) or 'no names'}. Say where it is with `spec=BatchSpec(...)`."
                ) from error
        return batch

    def _rest(self, batch: Any) -> dict[str, Any]:
        if not isinstance(batch, Mapping):
            raise ValueError(  # noqa: TRY004  (a fault of the spec)
                f"BatchSpec needs an `input` unless batches are dicts, whose other entries it then is; got a "
                f"{type(batch).__name__}."
            )
        others = (self.target, self.index, self.group)
        return {name: value for name, value in batch.items() if name not in others and isinstance(value, Tensor)}


class BatchReader:
    """Reads batches of one source, which all have the structure of the first.

    Args:
        spec: where the parts are; None for the usual places in the first batch.
    """

    def __init__(self, spec: BatchSpec | None = None) -> None:
        self.spec = spec
        self._is_usual = spec is None
        self._arguments = Arguments(None if spec is None else spec.lists)

    def __call__(self, batch: Any) -> Batch:
        """Return the parts of ``batch``; errors as for ``BatchSpec.of`` and ``BatchSpec.read``."""
        if type(batch) is Batch and (self._is_usual or batch.input is None):
            return batch  # without an input it holds the candidates of a batch sampler
        index = index_of(batch)
        if index is not None:
            batch = without_index(batch)
        if self.spec is None:
            self.spec = _usual_spec(batch, index)
        elif self._is_usual:
            self._check_structure(batch, index)
        parts = self.spec.read(batch)
        parts = parts._replace(input=self._arguments(parts.input, parts.target.shape[0]))
        if index is None or (self.spec.index is not None and not self._is_usual):
            return parts
        return parts._replace(index=index)

    def with_target(self, batch: Any, target: Tensor) -> Any:
        """Return a ``batch`` that has been read, with another target; errors as for ``BatchSpec.with_target``."""
        if self._is_usual and type(batch) is Batch:
            return batch._replace(target=target)
        index = index_of(batch)
        plain = batch if index is None else without_index(batch)
        spec = BatchSpec.of(plain) if self.spec is None else self.spec
        changed = spec.with_target(plain, target)
        return changed if index is None else with_index(changed, index)

    def _check_structure(self, batch: Any, index: Tensor | None) -> None:
        """Raise ValueError if the parts of ``batch`` are in other places than those of the first batch."""
        spec = _usual_spec(batch, index)
        if spec != self.spec:
            raise ValueError(
                "Every batch must have the structure of the first. Its parts were read at "
                f"{_places(self.spec)}; this {type(batch).__name__} has them at {_places(spec)}. Change the loader's "
                "`collate_fn`, or pass `spec=reducr.BatchSpec(...)`."
            )


def _usual_spec(batch: Any, index: Tensor | None) -> BatchSpec:
    """The spec of a batch that carries its ``index``, so that ``(input, target, group)`` has no index in front."""
    is_plain = isinstance(batch, tuple | list) and _names_in(batch) is None
    if index is None or not is_plain or len(batch) != 3:
        return BatchSpec.of(batch)
    first = batch[0]
    has_own = isinstance(first, Tensor) and first.shape == index.shape and bool((first == index.to(first.device)).all())
    return BatchSpec.of(batch) if has_own else BatchSpec(input=0, target=1, group=2)


def _is_index(value: Any) -> bool:
    if not isinstance(value, Tensor) or value.ndim != 1:
        return False
    return not (value.is_floating_point() or value.is_complex() or value.dtype == torch.bool)


def _kind(value: Any) -> str:
    return f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"


def _places(spec: BatchSpec | None) -> str:
    places = {name: getattr(spec, name) for name in ("index", "input", "target", "group")}
    return ", ".join(f"{name} {place!r}" for name, place in places.items() if place is not None)


def _names_in(batch: Any) -> list[str] | None:
    """The names of a batch's entries; None for a structure without any."""
    if isinstance(batch, Mapping):
        return list(batch)
    if dataclasses.is_dataclass(batch):
        return [field.name for field in dataclasses.fields(batch)]
    names = getattr(batch, "_fields", None)
    return None if names is None else list(names)
