"""Targets and groups of a whole data set, without reading a single input."""

from __future__ import annotations

from collections.abc import Sequence, Sized
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Subset, TensorDataset

from reducr.batch.indexed import IndexedDataset

_NAMES = {
    "targets": ("targets", "target", "labels", "label"),
    "groups": ("groups", "group"),
    "index": ("index", "idx"),
}
_PLACES = {"targets": {2: 1, 3: 2, 4: 2}, "groups": {4: 3}, "index": {3: 0, 4: 0}}
"""Places in the tuples of a TensorDataset, by the number of tensors, as in ``BatchSpec.of``."""


def length_of(dataset: Any) -> int:
    """Return the number of examples of a map-style data set.

    Raises:
        TypeError: for a stream.
        ValueError: if there is no example.
    """
    if not isinstance(dataset, Sized) or not hasattr(dataset, "__getitem__"):
        raise TypeError(
            f"`dataset` must be a map-style data set, with a length and positions; got {type(dataset).__name__}. For a "
            "stream, use SelectiveLoader."
        )
    if not len(dataset):
        raise ValueError("The data set is empty.")
    return len(dataset)


class Columns(NamedTuple):
    """What is known of all examples of a data set."""

    index: Tensor  # type: ignore[assignment]  # tuple.index is not needed
    """(N,) int64, the index of each example."""
    targets: Tensor | None
    groups: Tensor | None


def columns_of(dataset: Any, targets: Any, groups: Any, *, size: int) -> Columns:
    """Return the indices, targets and groups of ``size`` examples.

    The index of an example is the one that the data set yields, else its position. Groups default to the targets.

    Args:
        dataset: searched for what is not given; see ``column_of``.
        targets: one row per example; None to find them.
        groups: one integer per example; None to find them.
        size: N.

    Raises:
        ValueError: for targets or groups of another kind or number.
    """
    columns = {}
    for kind, values in (("targets", targets), ("groups", groups), ("index", None)):
        columns[kind] = column_of(dataset, kind) if values is None else column_tensor(values, kind, size=size)
    found, index = columns["targets"], columns["index"]
    if columns["groups"] is None and found is not None and found.ndim == 1 and found.dtype == torch.int64:
        columns["groups"] = found
    return Columns(torch.arange(size) if index is None else index, found, columns["groups"])


def missing_column(kind: str, rule: str) -> ValueError:
    """Return the error for a rule that reads targets or groups, which are not known."""
    names = "targets, target, labels or label" if kind == "targets" else "groups or group, or integer targets"
    return ValueError(
        f"{rule!r} chooses examples by their {kind} before they are loaded, and the data set has no attribute or "
        f"column {names}. Pass `{kind}=`, a tensor with one entry per example."
    )


def column_of(dataset: Any, kind: str) -> Tensor | None:
    """Return the targets, groups or indices of ``dataset``, in its order; None if it does not have them as a whole.

    They are looked for in the attributes ``targets``, ``target``, ``labels`` and ``label``, or ``groups`` and
    ``group``, or ``index`` and ``idx``; in columns of these names of a Hugging Face data set; in the tensors of a
    TensorDataset; and in the parts of a Subset, a ConcatDataset or ``reducr.indexed(dataset)``.

    Args:
        dataset: with a length and positions.
        kind: ``targets``, ``groups`` or ``index``.

    Raises:
        ValueError: if there are several such attributes, or a ``target_transform`` changes the targets when read.
    """
    if isinstance(dataset, IndexedDataset):
        return torch.arange(len(dataset)) if kind == "index" else column_of(dataset.dataset, kind)
    if isinstance(dataset, Subset):
        whole = column_of(dataset.dataset, kind)
        return None if whole is None else whole[torch.as_tensor(list(dataset.indices), dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
        parts = [column_of(part, kind) for part in dataset.datasets]
        found = [part for part in parts if part is not None]
        return torch.cat(found) if len(found) == len(parts) else None
    if isinstance(dataset, TensorDataset):
        return _tensor_of(dataset.tensors, kind)
    names = getattr(dataset, "column_names", None)
    if isinstance(names, list) and hasattr(dataset, "with_format"):
        found_names = [name for name in _NAMES[kind] if name in names]
        # without the transform of the rows, which may need their other columns
        values = [dataset.with_format(None)[name][:] for name in found_names]
    else:
        attributes = {name: getattr(dataset, name, None) for name in _NAMES[kind]}
        # a list has a method called index
        found_names = [name for name, value in attributes.items() if value is not None and not callable(value)]
        values = [attributes[name] for name in found_names]
    if len(values) > 1:
        raise ValueError(
            f"{type(dataset).__name__} has {' and '.join(found_names)}: which are the {kind}? Pass `{kind}=`, a tensor "
            "with one entry per example."
        )
    if values and kind == "targets" and getattr(dataset, "target_transform", None) is not None:
        raise ValueError(
            f"{type(dataset).__name__}.target_transform changes the targets when an example is read. Pass `targets=`, "
            "a tensor of the targets that the loader yields."
        )
    if not values or (kind == "targets" and _is_ragged(values[0])):
        return None  # the labels of sequences, which are padded when a batch is collated
    return column_tensor(values[0], kind, size=len(dataset))


def _is_ragged(values: Any) -> bool:
    """Whether ``values`` is a list of lists of different lengths."""
    rows = values if isinstance(values, list) else ()
    return len({len(row) if isinstance(row, list) else None for row in rows}) > 1


def column_tensor(values: Any, kind: str, *, size: int) -> Tensor:
    """Return ``values`` as a tensor with ``size`` rows.

    Raises:
        ValueError: for something else; groups and indices must be one integer per example.
    """
    try:
        tensor = torch.as_tensor(values if isinstance(values, Tensor | np.ndarray) else np.asarray(values))
    except (TypeError, ValueError, RuntimeError) as error:
        raise ValueError(
            f"`{kind}` must hold one number per example; got {type(values).__name__} of other things ({error})."
        ) from error
    tensor = tensor.detach().cpu()
    if not tensor.ndim or len(tensor) != size:
        raise ValueError(f"`{kind}` must have one row for each of the {size} examples; got {tuple(tensor.shape)}.")
    if kind != "targets":
        if tensor.ndim != 1 or not _is_integer(tensor):
            raise ValueError(f"`{kind}` must hold one integer per example; got {tensor.dtype} {tuple(tensor.shape)}.")
        return tensor.long()
    return tensor.long() if tensor.dtype != torch.int64 and _is_integer(tensor) else tensor


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex())


def _tensor_of(tensors: Sequence[Tensor], kind: str) -> Tensor | None:
    has_index = tensors[0].ndim == 1 and _is_integer(tensors[0])
    place = _PLACES[kind].get(len(tensors))
    if place is None or (len(tensors) > 2 and not has_index):
        return None
    return column_tensor(tensors[place], kind, size=len(tensors[0]))
