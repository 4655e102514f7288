"""Indexed examples, and a loader that reads them in whole batches."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial

import torch
from torch import Tensor

from reducr._internal.checks import check_range
from reducr._internal.distributed import num_ranks, rank
from reducr._internal.seeds import epoch_order
from reducr.batch import Batch
from reducr.batch.deferred import DeferredInput
from reducr.data.core.inputs import Inputs, inputs_at


class ExampleDataset:
    """N examples, yielding ``(index, input, target, group)``. Example i has index i.

    It is a view: the parts of an experiment share one pool of inputs, which is never copied.

    Args:
        input: a pool of P inputs, read by position: a tensor (P, ...), a memory-mapped array, files.
        target: (N,) integers in [0, num_classes).
        num_classes: C.
        source: (N,) int64, position of each example in ``input``; None for 0..N-1.
        group: (N,) integers in [0, num_groups); None if groups are the targets.
        num_groups: G; None if groups are the targets.
        is_corrupted: (N,) bool, whether the target or input of each example is known to be wrong; None if unknown.

    Raises:
        ValueError: if tensors differ in length, or a target, group or source is out of range (with the index of the
            first one).
    """

    def __init__(
        self,
        input: Inputs,  # noqa: A002  (the field's name in Batch)
        target: Tensor,
        *,
        num_classes: int,
        source: Tensor | None = None,
        group: Tensor | None = None,
        num_groups: int | None = None,
        is_corrupted: Tensor | None = None,
    ) -> None:
        if (group is None) != (num_groups is None):
            raise ValueError("group and num_groups must be given together, or neither if groups are the targets.")
        self.pool = input
        self.source = torch.arange(len(input)) if source is None else source.long()
        self.target = target.long()
        self.group = self.target if group is None else group.long()
        self.num_classes = num_classes
        self.num_groups = num_classes if num_groups is None else num_groups
        self.is_corrupted = is_corrupted
        self.index = torch.arange(len(self.target))
        sizes = {"input": len(self.source), "target": len(self.target), "group": len(self.group)}
        if len(set(sizes.values())) > 1:
            raise ValueError(f"input, target and group must have the same length; got {sizes}.")
        check_range("target", self.target, self.num_classes, place="index")
        check_range("group", self.group, self.num_groups, place="index")
        check_range("source", self.source, len(input), place="index")

    @property
    def input(self) -> Tensor:
        """(N, ...), the inputs of all examples, read now."""
        return inputs_at(self.pool, self.source)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        position = range(len(self))[position]
        return tuple(tensor[0] for tensor in self.batch(torch.tensor([position])))  # type: ignore[return-value]

    def batch(self, positions: Tensor) -> Batch:
        """The examples at ``positions`` (B,) int64 in [0, N)."""
        columns = (self.source, self.index, self.target, self.group)
        source, index, target, group = (column.index_select(0, positions) for column in columns)
        return Batch(index, inputs_at(self.pool, source), target, group)

    def deferred_batch(self, positions: Tensor) -> Batch:
        """As ``batch``, but inputs are read only for the examples that are taken from it."""
        source, index, target, group = (
            column.index_select(0, positions) for column in (self.source, self.index, self.target, self.group)
        )
        return Batch(index, DeferredInput(partial(inputs_at, self.pool), source), target, group)

    def take(self, positions: Tensor) -> ExampleDataset:
        """A data set of the examples at ``positions`` (M,), re-indexed."""
        return ExampleDataset(
            self.pool,
            self.target[positions],
            num_classes=self.num_classes,
            source=self.source[positions],
            group=self.group[positions],
            num_groups=self.num_groups,
            is_corrupted=None if self.is_corrupted is None else self.is_corrupted[positions],
        )

    def concatenated(self, other: ExampleDataset) -> ExampleDataset:
        """This data set's examples followed by those of ``other``, re-indexed.

        If ``is_corrupted`` is known for only one of the two, the examples of the other count as not corrupted.

        Raises:
            ValueError: if they are not views of the same pool of inputs.
        """
        if self.pool is not other.pool:
            raise ValueError("Only parts of the same data set can be concatenated; these have different input pools.")
        flags = [
            torch.zeros(len(part), dtype=torch.bool) if part.is_corrupted is None else part.is_corrupted
            for part in (self, other)
        ]
        is_unknown = self.is_corrupted is None and other.is_corrupted is None
        return ExampleDataset(
            self.pool,
            torch.cat([self.target, other.target]),
            num_classes=self.num_classes,
            source=torch.cat([self.source, other.source]),
            group=torch.cat([self.group, other.group]),
            num_groups=self.num_groups,
            is_corrupted=None if is_unknown else torch.cat(flags),
        )


class ExampleLoader:
    """Reads a data set in whole batches, without worker processes or collation of single items.

    Every pass over the loader is one epoch. The order of epoch e depends on ``seed`` and e only. Inputs that are not in
    memory are read one batch ahead in a thread. ``state_dict`` holds the position after the last batch that was
    yielded. After ``load_state_dict``, the next pass yields the remaining batches of that epoch and reads nothing else.

    Args:
        data: the data set.
        batch_size: B; the last batch may be smaller.
        shuffle: whether every epoch has a new random order.
        drop_last: whether to drop a last batch that is smaller.
        seed: determines the random orders.
        sync: whether this rank reads its shard of every batch only. The shards of ranks 0, 1, ... in this order make up
            the batch.
        defers_inputs: whether inputs are read only for the examples that are taken from a batch (``DeferredInput``).

    Raises:
        ValueError: if ``drop_last`` would leave no batch.
    """

    def __init__(
        self,
        data: ExampleDataset,
        *,
        batch_size: int,
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        sync: bool = False,
        defers_inputs: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
        if drop_last and len(data) < batch_size:
            raise ValueError(
                f"A batch needs {batch_size} examples, but the data set has {len(data)}. Set `num_candidates` to at "
                f"most {len(data)}."
            )
        self.data = data
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.sync = sync
        self.defers_inputs = defers_inputs
        self.epoch = 0
        """Epoch of the next pass."""
        self._start = 0
        self._position = (0, 0)

    def __len__(self) -> int:
        num_full, rest = divmod(len(self.data), self.batch_size)
        return num_full + bool(rest and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass. A position loaded for another epoch is discarded."""
        if epoch != self.epoch:
            self.epoch, self._start, self._position = epoch, 0, (epoch, 0)

    def state_dict(self) -> dict[str, int]:
        """The epoch, the number of its batches that were yielded, and the layout that a resuming loader must have."""
        epoch, position = self._position
        return {"epoch": epoch, "position": position, **self._layout()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Resume: the next pass yields the remaining batches of the epoch in which ``state`` was saved.

        Raises:
            ValueError: if the state is from a loader with different batches; says what differs.
        """
        differences = [
            f"{name} is {state.get(name)} in the state and {value} here"
            for name, value in self._layout().items()
            if state.get(name) != value
        ]
        if differences:
            raise ValueError(
                f"The state is from a loader with different batches: {', '.join(differences)}. Use the same data and "
                "options, or restart the epoch with `set_epoch`."
            )
        self.epoch, self._start = state["epoch"], state["position"]
        self._position = (self.epoch, self._start)

    def __iter__(self) -> Iterator[Batch]:
        epoch, position = self.epoch, self._start
        self.epoch, self._start = epoch + 1, 0
        for batch in self._batches(epoch, position):
            position += 1
            self._position = (epoch, position)
            yield batch
        self._position = (epoch + 1, 0)

    def _layout(self) -> dict[str, int]:
        """What determines the batches of an epoch."""
        return {
            "num_points": len(self.data),
            "batch_size": self.batch_size,
            "shuffle": int(self.shuffle),
            "drop_last": int(self.drop_last),
            "seed": self.seed,
        }

    def _batches(self, epoch: int, position: int) -> Iterator[Batch]:
        """Yield the batches of an epoch from the one at ``position`` on."""
        order = torch.arange(len(self.data))
        if self.shuffle:
            order = epoch_order(len(self.data), seed=self.seed, epoch=epoch)
        batches = (order[number * self.batch_size :][: self.batch_size] for number in range(position, len(self)))
        if self.sync:
            batches = (positions.tensor_split(num_ranks())[rank()] for positions in batches)
        if self.defers_inputs or isinstance(self.data.pool, Tensor):
            yield from map(self.data.deferred_batch if self.defers_inputs else self.data.batch, batches)
            return
        with ThreadPoolExecutor(max_workers=1) as reader:
            pending: Future[Batch] | None = None
            for positions in batches:
                batch, pending = pending, reader.submit(self.data.batch, positions)
                if batch is not None:
                    yield batch.result()
            if pending is not None:
                yield pending.result()
