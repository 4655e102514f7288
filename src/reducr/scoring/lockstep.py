"""Keep the ranks of a training in step: as many batches, and as many forward passes of a sharded model, on each."""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from reducr._internal.distributed import all_gather_stacked, is_main_rank, num_ranks
from reducr.batch import Batch

_BATCH, _STEP, _END_OF_PASS = range(3)
_NOTHING = object()


class Lockstep:
    """Check that all ranks are at the same point of the training before they exchange anything else.

    Without it a rank whose loader ends early would take part in the others' next exchange with other tensors, and they
    would read its numbers as theirs. The check is one exchange of five integers for each batch, by which all ranks also
    learn how many candidates the others have. In one process nothing is checked.

    Args:
        sync: whether the ranks select together.
    """

    def __init__(self, *, sync: bool) -> None:
        self.sync = sync
        self.num_batches = 0
        """Batches of this pass, since it began or was resumed."""
        self._has_compared = False
        self._announced: list[int] | None = None

    def begin(self) -> None:
        """Start counting the batches of a pass."""
        self.num_batches, self._announced = 0, None

    def announce(self, batch: Batch, full_size: int = 0) -> list[list[int]]:
        """Return the number of candidates of every rank, and ``full_size`` of every rank (R, 2).

        Raises:
            ValueError: on all ranks, if the loader of another has ended.
        """
        size = batch.target.shape[0]
        if not self._is_several:
            return [[size, full_size]]
        checksum = 0 if self._has_compared else _checksum(batch)
        facts = self._exchange(_BATCH, size, full_size, checksum)
        if not self._has_compared:
            self._has_compared = True
            _warn_of_equal_batches(facts[:, 4].tolist())
        self.num_batches += 1
        self._announced = facts[:, 2].tolist()
        sizes: list[list[int]] = facts[:, 2:4].tolist()
        return sizes

    def sizes(self, batch: Batch) -> list[int]:
        """Return the number of candidates of every rank, as the last ``announce`` did unless it has been read."""
        sizes = self._announced or [size for size, _ in self.announce(batch)]
        self._announced = None
        return sizes

    def step(self) -> None:
        """Call after a gradient step, before the ranks exchange anything else.

        Raises:
            ValueError: on all ranks, if another has not made the step.
        """
        if self._is_several:
            self._exchange(_STEP)

    def end(self) -> None:
        """Call at the end of a pass.

        Raises:
            ValueError: on all ranks, if the loader of one has ended and that of another has not.
        """
        if self._is_several:
            self._exchange(_END_OF_PASS)
        self.begin()

    @property
    def _is_several(self) -> bool:
        return self.sync and num_ranks() > 1

    def _exchange(self, point: int, size: int = 0, full_size: int = 0, checksum: int = 0) -> Tensor:
        """The point, number of batches, sizes and checksum of every rank (R, 5)."""
        try:
            facts = all_gather_stacked(torch.tensor([point, self.num_batches, size, full_size, checksum]))
        except RuntimeError as error:
            raise RuntimeError(
                f"Another process has ended or failed while this one was at batch {self.num_batches + 1} of its pass: "
                "see its own output. All processes must read the same number of batches, and leave the loop together."
            ) from error
        points = facts[:, 0].tolist()
        if len(set(points)) > 1:
            raise ValueError(_out_of_step(points, facts[:, 1].tolist()))
        return facts


def even_batches(batches: Iterable[Any], *, what: str) -> Iterator[tuple[Any, bool]]:
    """Yield every batch, then the last one again until all ranks have had theirs.

    A model whose forward pass is a collective, such as one sharded by FSDP, must be called equally often on every rank.

    Args:
        batches: of this rank.
        what: what they are, for the error.

    Yields:
        The batch, and whether it is a repeat, whose output is to be ignored.

    Raises:
        ValueError: on all ranks, if one has no batch at all.
    """
    iterator, last = iter(batches), _NOTHING
    while True:
        batch = next(iterator, _NOTHING)
        last, is_repeat = (last, True) if batch is _NOTHING else (batch, False)
        has_next, has_any = all_gather_stacked(torch.tensor([not is_repeat, last is not _NOTHING])).T.tolist()
        if not any(has_next):
            return
        if not all(has_any):
            raise ValueError(
                f"Rank {has_any.index(False)} has no {what}. The forward pass of a sharded model needs all ranks: give "
                "each rank at least one."
            )
        yield last, is_repeat


def _out_of_step(points: list[int], num_batches: list[int]) -> str:
    if _END_OF_PASS not in points:
        return (
            f"Rank {points.index(_STEP)} ends a gradient step while rank {points.index(_BATCH)} selects from its next "
            "batch. Accumulate over the same number of batches on all ranks."
        )
    ended, other = points.index(_END_OF_PASS), next(r for r, point in enumerate(points) if point != _END_OF_PASS)
    return (
        f"Rank {ended} ended its pass after batch {num_batches[ended]}, and rank {other} goes on. All ranks must "
        "read the same number of batches: use `drop_last=True` or a DistributedSampler (with accelerate, "
        "`even_batches=True`), and leave a pass early on all ranks or on none."
    )


def _checksum(batch: Batch) -> int:
    """Checksum of the targets, the index and the beginning of the inputs."""
    tensors = [batch.target, batch.index, *_tensors_in(batch.input)]
    parts = [tensor.detach().flatten()[:4096].tolist() for tensor in tensors if tensor is not None]
    return zlib.crc32(repr(parts).encode())


def _tensors_in(value: Any) -> list[Tensor]:
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [tensor for part in value for tensor in _tensors_in(part)]
    return [value] if isinstance(value, Tensor) else []


def _warn_of_equal_batches(checksums: list[int]) -> None:
    if len(set(checksums)) == 1 and is_main_rank():
        warnings.warn(
            "The first batches of all ranks hold the same candidates, so each example counts once for every rank. Give "
            "each rank its own part of the data: use a DistributedSampler or, with accelerate, prepare the loader "
            "before it is wrapped in a SelectiveLoader (`accelerator.prepare` does nothing to a SelectiveLoader).",
            RuntimeWarning,
            stacklevel=2,
        )
