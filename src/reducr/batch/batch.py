"""A batch of examples, and how to read one from any structure."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from reducr.batch.nested import index_batch, send_to_device


class Batch(NamedTuple):
    """One batch, points along the first axis of everything in it.

    The order is that of the tuples which the training program's data sets yield, so ``Batch(*item)`` reads one.
    """

    index: Tensor  # type: ignore[assignment]  # the id of a point; tuple.index is not needed
    """(B,) int64, the id of each point in its data set; None in a stream whose points have none."""
    input: Any
    """What the model is called with: a tensor (B, ...), a dict of arguments by name, or a tuple of arguments."""
    target: Tensor
    """(B,) int64, what cross-entropy predicts."""
    group: Tensor
    """(B,) int64, the partition whose worst member matters; equals ``target`` unless the data says otherwise."""

    def take(self, positions: Tensor) -> Batch:
        """The points at ``positions`` (b,), in that order."""
        batch: Batch = index_batch(self, positions, num_examples=self.target.shape[0])
        return batch

    def concatenated(self, other: Batch) -> Batch:
        """These points followed by those of ``other``, where inputs are single tensors (B, ...)."""
        return Batch(*(torch.cat(both) for both in zip(self, other, strict=True)))

    def to(self, device: torch.device) -> Batch:
        """The same batch with every tensor on ``device``."""
        batch: Batch = send_to_device(self, device)
        return batch


Entry = int | str | tuple[int | str, ...] | Callable[[Any], Any]
_INDEX_NAMES = ("index", "idx")
_INPUT_NAMES = ("input", "inputs")
_TARGET_NAMES = ("target", "targets", "label", "labels")
_GROUP_NAMES = ("group", "groups")


@dataclass(frozen=True, kw_only=True)
class BatchSpec:
    """Where the parts of a batch are, in the structure that its loader yields.

    An entry is a position, a key or the name of an attribute, a tuple of these for nested batches, or a function of the
    batch. ``BatchSpec.of`` finds the usual places.

    Args:
        target: the targets.
        input: what the model is called with; None for all entries of a dict that hold tensors and are none of the
            others, given to the model by their names.
        index: ids of the points; None where they have none, which tables of irreducible losses need.
        group: the groups; None where they are the targets.

    Example:
        >>> batch = {"pixels": torch.zeros(2, 4), "label": torch.tensor([1, 0]), "site": torch.tensor([0, 2])}
        >>> BatchSpec(input="pixels", target="label", group="site").read(batch).group
        tensor([0, 2])
    """

    target: Entry
    input: Entry | None = None
    index: Entry | None = None
    group: Entry | None = None

    @classmethod
    def of(cls, batch: Any) -> BatchSpec:
        """The spec of a batch in one of the usual structures.

        Tuples and lists are ``(input, target)``, ``(index, input, target)`` or ``(index, input, target, group)``. In
        dicts, named tuples and dataclasses the target is called ``target``, ``targets``, ``label`` or ``labels``, the
        index ``index`` or ``idx``, the group ``group`` or ``groups``, and the input ``input`` or ``inputs``, or is all
        the rest of a dict.

        Raises:
            ValueError: for any other structure; says what came.
        """
        names = _names_in(batch)
        if names is not None:
            index, target, group, given = (
                next((name for name in names if name in known), None)
                for known in (_INDEX_NAMES, _TARGET_NAMES, _GROUP_NAMES, _INPUT_NAMES)
            )
            if target is not None and (given is not None or isinstance(batch, Mapping)):
                return cls(target=target, input=given, index=index, group=group)
            found = f"a {type(batch).__name__} with {', '.join(map(str, names))}"
        elif isinstance(batch, tuple | list):
            if len(batch) == 2:
                return cls(input=0, target=1)
            if len(batch) in (3, 4):
                return cls(index=0, input=1, target=2, group=3 if len(batch) == 4 else None)
            found = f"a {type(batch).__name__} of {len(batch)}"
        else:
            found = f"a {type(batch).__name__}"
        raise ValueError(
            f"the parts of a batch are not where they usually are: it is {found}. Say where with spec=BatchSpec("
            "input=..., target=..., index=..., group=...), from reducr.batch."
        )

    def read(self, batch: Any) -> Batch:
        """The parts of ``batch``.

        Raises:
            ValueError: if an entry is not there, or index, target or group is no tensor of one row for each point.
        """
        target = self._tensor("target", batch)
        inputs = self._rest(batch) if self.input is None else self._entry("input", batch)
        index = None if self.index is None else self._numbers("index", batch, target.shape[0])
        group = target if self.group is None else self._numbers("group", batch, target.shape[0])
        return Batch(index, inputs, target, group)  # type: ignore[arg-type]  # a stream has no index

    def _numbers(self, name: str, batch: Any, size: int) -> Tensor:
        numbers = self._tensor(name, batch)
        if numbers.shape != (size,):
            raise ValueError(
                f"a batch's {name} must hold one number for each of its {size} points; got shape "
                f"{tuple(numbers.shape)}."
            )
        return numbers

    def _tensor(self, name: str, batch: Any) -> Tensor:
        value = self._entry(name, batch)
        if not isinstance(value, Tensor) or not value.ndim:
            kind = f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            raise ValueError(f"a batch's {name} must be a tensor with one row for each point; got {kind}.")
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
                    f"a batch has no {name} at {entry!r}: there is no {key!r} in "
                    f"a {type(batch).__name__} with {_names_in(batch) or 'no names'}. Say where it is with "
                    "spec=BatchSpec(...)."
                ) from error
        return batch

    def _rest(self, batch: Any) -> dict[str, Any]:
        if not isinstance(batch, Mapping):
            raise ValueError(  # noqa: TRY004  (a fault of the spec)
                f"BatchSpec.input can be left out for dicts only, whose other entries it then is; got a "
                f"{type(batch).__name__}."
            )
        others = (self.target, self.index, self.group)
        return {name: value for name, value in batch.items() if name not in others and isinstance(value, Tensor)}


def _names_in(batch: Any) -> list[str] | None:
    """The names of a batch's entries; None for a structure without any."""
    if isinstance(batch, Mapping):
        return list(batch)
    if dataclasses.is_dataclass(batch):
        return [field.name for field in dataclasses.fields(batch)]
    names = getattr(batch, "_fields", None)
    return None if names is None else list(names)
