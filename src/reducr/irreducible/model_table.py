"""A table of what reference models return for every example of a data set, in order, read by the index."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from reducr.batch import Batch, BatchReader, BatchSpec
from reducr.batch.nested import send_to_device
from reducr.irreducible.reading import dataset_of, is_random, loader_of
from reducr.irreducible.table import IrreducibleTable


class ModelTable:
    """Rows of a data set's examples, read by their index.

    Args:
        table: one row per example, in the order of the data set.
        index: (N,) int64, the index of each example; None if it is the position in the data set.
        targets: (N,) integers, the targets that the examples had; None if they are not integers.
    """

    def __init__(self, table: IrreducibleTable, *, index: Tensor | None, targets: Tensor | None) -> None:
        self.table = table
        self.targets = targets
        self._sorted: tuple[Tensor, Tensor] | None = None
        if index is not None and not torch.equal(index, torch.arange(len(index))):
            ids, positions = index.sort()
            repeated = torch.nonzero(ids[1:] == ids[:-1]).flatten()
            if len(repeated):
                raise ValueError(
                    f"index {int(ids[repeated[0]])} belongs to several examples of this data set. Number them anew: "
                    "reducr.indexed(dataset)."
                )
            self._sorted = ids, positions
        self._num_batches = 0

    def __len__(self) -> int:
        return len(self.table)

    @property
    def index(self) -> Tensor | None:
        """(N,) int64, the index of each example; None if it is the position in the data set."""
        if self._sorted is None:
            return None
        ids, positions = self._sorted
        return torch.empty_like(ids).index_copy(0, positions, ids)

    def rows(self, batch: Batch) -> Tensor:
        """Return the rows of the examples of ``batch``, on its device.

        Raises:
            ValueError: if the batch has no index, or an index has no row.
        """
        index: Tensor | None = batch.index
        if index is not None and self._sorted is not None:
            index = self._positions(index)
        rows = self.table.rows(index)
        self._compare_targets(batch, index)
        return rows.to(batch.target.device)

    def _positions(self, index: Tensor) -> Tensor:
        ids, positions = self._sorted  # type: ignore[misc]  # the caller has seen that it is there
        wanted = index.to("cpu", torch.int64)
        places = torch.searchsorted(ids, wanted).clamp(max=len(ids) - 1)
        missing = torch.nonzero(ids[places] != wanted).flatten()
        if len(missing):
            raise ValueError(
                f"index {int(wanted[missing[0]])} has no row in this table of {len(self)} examples with indices from "
                f"{int(ids[0])} to {int(ids[-1])}. Tabulate the data set that you train on."
            )
        return positions[places].to(index.device)

    def _compare_targets(self, batch: Batch, positions: Tensor | None) -> None:
        """Warn if the targets are not those of the data set; at batches 1, 2, 4, 8, ... only."""
        self._num_batches += 1
        if self.targets is None or positions is None or self._num_batches & (self._num_batches - 1):
            return
        target = batch.target
        if target.shape != positions.shape or target.is_floating_point():
            return
        expected = self.targets[positions.to("cpu", torch.int64)]
        num_differing = int((expected != target.cpu()).sum())
        if num_differing:
            self.targets = None
            warnings.warn(
                f"{num_differing} of {len(target)} targets of this batch differ from those that the examples with the "
                "same index had in the tabulated data set. If that is another data set, or another order, its rows "
                "belong to other examples: tabulate the data set that you train on.",
                RuntimeWarning,
                stacklevel=2,
            )


def tabulated(
    rows: Callable[[Batch], tuple[str, Tensor]],
    data: Any,
    *,
    batch_size: int | None,
    spec: BatchSpec | None,
    device: torch.device,
) -> ModelTable:
    """Compute the rows of every example of ``data`` once.

    Args:
        rows: gives the kind of table (see ``IrreducibleTable``) and the rows of a batch on ``device``.
        data: a map-style data set, or a DataLoader of one, which is read in the order of the data set.
        batch_size: None for that of the DataLoader, else 256.
        spec: where the parts of a batch are; None for the usual places.
        device: of the models.

    Raises:
        TypeError: for a stream.
        ValueError: for a data set without examples, with repeated indices, or whose batches do not have every example.
    """
    if not len(dataset_of(data)):
        raise ValueError("The data set has no examples, so there is nothing to tabulate.")
    if is_random(data, spec):
        warnings.warn(
            "The first examples differ when they are read twice, as with random augmentation. The table holds the "
            "losses of one draw. Tabulate the data set without augmentation, or use the reference model itself.",
            RuntimeWarning,
            stacklevel=4,
        )
    num_examples, read, position, kind = len(dataset_of(data)), BatchReader(spec), 0, ""
    values: Tensor | None = None
    index: list[Tensor | None] = []
    targets: list[Tensor] = []
    for batch in loader_of(data, batch_size=batch_size):
        parts = read(batch)
        kind, part = rows(send_to_device(parts, device))
        if values is None:
            values = torch.zeros(num_examples, *part.shape[1:])
        end = position + len(part)
        if end <= num_examples:
            values[position:end] = part
        position = end
        index.append(None if parts.index is None else parts.index.long())
        targets.append(parts.target)
    if values is None or position != num_examples:
        raise ValueError(
            f"The data set has {num_examples} examples, and its batches {position}. Every example needs a row: use a "
            "`collate_fn` that keeps them all."
        )
    ids = [part for part in index if part is not None]
    is_plain = all(part.ndim == 1 and not part.is_floating_point() for part in targets)
    return ModelTable(
        IrreducibleTable(values.numpy(), kind=kind),
        index=torch.cat(ids) if ids else None,
        targets=torch.cat(targets).long() if is_plain else None,
    )
