"""Points with an index, and a loader that reads whole batches of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

import torch
from torch import Tensor

from reducr._internal.checks import check_range
from reducr._internal.distributed import num_ranks, rank
from reducr._internal.seeds import mixed_seed
from reducr.batch import Batch
from reducr.data.core.inputs import Inputs, inputs_at


class ExampleDataset:
    """N points, yielding ``(index, input, target, group)``; point i has index i.

    The points are a view: parts of one experiment share the inputs of all its points, which are never copied.

    Args:
        input: the inputs of all points, read by position: a tensor (P, ...), a memory-mapped array, files.
        target: (N,) integers in [0, num_classes).
        num_classes: C.
        source: (N,) int64, where in ``input`` each point is; None for 0..N-1.
        group: (N,) integers in [0, num_groups); None where groups are the targets.
        num_groups: G; None where groups are the targets.
        is_corrupted: (N,) bool, which targets or inputs were corrupted on purpose; None where that is not known.

    Raises:
        ValueError: for tensors of different lengths, or a target, group or source out of range (with the first
            offender's index).
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
            raise ValueError("give group and num_groups together, or neither where groups are the targets.")
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
        """(N, ...), the inputs of all points, read now."""
        return inputs_at(self.pool, self.source)

    def __len__(self) -> int:
        return len(self.target)

    def __getitem__(self, position: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        position = range(len(self))[position]
        return tuple(tensor[0] for tensor in self.batch(torch.tensor([position])))  # type: ignore[return-value]

    def batch(self, positions: Tensor) -> Batch:
        """The points at ``positions`` (B,) int64 in [0, N)."""
        of_points = (self.source, self.index, self.target, self.group)
        source, index, target, group = (tensor.index_select(0, positions) for tensor in of_points)
        return Batch(index, inputs_at(self.pool, source), target, group)

    def take(self, positions: Tensor) -> ExampleDataset:
        """A data set of the points at ``positions`` (M,), re-indexed."""
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
        """This data set's points followed by ``other``'s, re-indexed.

        Where it is known of one of them alone which points were corrupted, those of the other count as left alone.

        Raises:
            ValueError: if they are not views of the same inputs.
        """
        if self.pool is not other.pool:
            raise ValueError("only parts of one data set can be concatenated; these two have inputs of their own.")
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
    """Whole batches of a data set, read by position: no worker processes, no collation of single items.

    Every pass over the loader is one epoch. The order of epoch e depends on ``seed`` and e alone. Inputs that are not
    in memory are read one batch ahead in a thread, while the batch before is in use. ``state_dict`` is the place after
    the batch given last; the next pass after ``load_state_dict`` is the rest of that one, and reads nothing else.

    Args:
        data: what to read.
        batch_size: B; the last batch may be shorter.
        shuffle: a new random order every epoch.
        drop_last: leave the last, shorter batch out.
        seed: of the orders.
        sync: whether this rank reads its part of every batch alone: one after another, those of ranks 0, 1, ...
            are the batch.

    Raises:
        ValueError: if ``drop_last`` would leave no batch at all.
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
    ) -> None:
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1; got {batch_size}.")
        if drop_last and len(data) < batch_size:
            raise ValueError(
                f"one batch needs {batch_size} points, but the data set has {len(data)}: choose at most {len(data)} "
                "candidates."
            )
        self.data = data
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = seed
        self.sync = sync
        self.epoch = 0
        """Of the next pass."""
        self._start = 0
        self._place = (0, 0)

    def __len__(self) -> int:
        whole, rest = divmod(len(self.data), self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; passes count on from there. A loaded place in another epoch is dropped."""
        if epoch != self.epoch:
            self.epoch, self._start, self._place = epoch, 0, (epoch, 0)

    def state_dict(self) -> dict[str, int]:
        """Epoch and batches given of it, and what a loader must agree on to go on there."""
        epoch, position = self._place
        return {"epoch": epoch, "position": position, **self._layout()}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        """Let the next pass be the rest of the one that ``state`` was taken in.

        Raises:
            ValueError: if it is the state of a loader of other batches; says what differs.
        """
        differences = [
            f"{name} is {state.get(name)} in the state and {value} here"
            for name, value in self._layout().items()
            if state.get(name) != value
        ]
        if differences:
            raise ValueError(
                f"the state is of a loader of other batches: {', '.join(differences)}. Give the same data and options, "
                "or begin the epoch anew with set_epoch."
            )
        self.epoch, self._start = state["epoch"], state["position"]
        self._place = (self.epoch, self._start)

    def __iter__(self) -> Iterator[Batch]:
        epoch, position = self.epoch, self._start
        self.epoch, self._start = epoch + 1, 0
        for batch in self._batches(epoch, position):
            position += 1
            self._place = (epoch, position)
            yield batch
        self._place = (epoch + 1, 0)

    def _layout(self) -> dict[str, int]:
        """What decides which points are in which batch, beside the epoch."""
        return {
            "num_points": len(self.data),
            "batch_size": self.batch_size,
            "shuffle": int(self.shuffle),
            "drop_last": int(self.drop_last),
            "seed": self.seed,
        }

    def _batches(self, epoch: int, position: int) -> Iterator[Batch]:
        """Those of an epoch from the one at ``position`` on."""
        order = torch.arange(len(self.data))
        if self.shuffle:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            order = torch.randperm(len(self.data), generator=generator)
        parts = (order[number * self.batch_size :][: self.batch_size] for number in range(position, len(self)))
        if self.sync:
            parts = (part.tensor_split(num_ranks())[rank()] for part in parts)
        if isinstance(self.data.pool, Tensor):
            yield from map(self.data.batch, parts)
            return
        with ThreadPoolExecutor(max_workers=1) as reader:
            ahead: Future[Batch] | None = None
            for positions in parts:
                batch, ahead = ahead, reader.submit(self.data.batch, positions)
                if batch is not None:
                    yield batch.result()
            if ahead is not None:
                yield ahead.result()
