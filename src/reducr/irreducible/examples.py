"""The examples of a holdout set by position, whatever loader gives them, for training on some and judging by others."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from reducr.batch import Batch, BatchReader, BatchSpec
from reducr.batch.nested import send_to_device
from reducr.irreducible.reading import loader_of

_BATCH_SIZE = 256
_SMALLEST_BATCH, _MOST_STEPS = 16, 20


class HoldoutExamples:
    """Batches of any of the examples of a holdout set.

    Examples of a map-style data set are read when they are needed, in new batches. The batches of any other loader are
    read once and kept in memory; parts of them are used.

    Args:
        loader: a DataLoader, a map-style data set, or other batches.
        spec: where the parts of a batch are; None for the usual places.
        device: to which batches are moved.

    Raises:
        ValueError: for a loader without examples, or batches that cannot be read.
    """

    def __init__(self, loader: Any, *, spec: BatchSpec | None, device: torch.device) -> None:
        self.device = device
        self._read = BatchReader(spec)
        self._order: list[list[int]] = []
        self._kept: list[Batch] = []
        self._loader: DataLoader[Any] | None = None
        if is_plain(loader):
            self._loader = loader_of(loader, batch_sampler=_Order(self._order))
            own_size = loader.batch_size if isinstance(loader, DataLoader) else None
            self.batch_size: int = _BATCH_SIZE if own_size is None else own_size
            num_examples = len(self._loader.dataset)  # type: ignore[arg-type]  # it is map-style
            starts = list(range(0, num_examples, self.batch_size))
            whole = [list(range(start, min(start + self.batch_size, num_examples))) for start in starts]
            parts: Iterable[Batch] = self._loaded(whole)
        else:
            self._kept = [self._read(batch) for batch in loader]
            self.batch_size = max((len(batch.target) for batch in self._kept), default=1)
            parts = self._kept
        seen = [(batch.target.cpu(), None if batch.group is None else batch.group.cpu()) for batch in parts]
        if not seen:
            raise ValueError("The holdout set has no examples. A reference model needs some to be trained on.")
        self.sizes = [len(target) for target, _ in seen]
        self.num_examples = sum(self.sizes)
        self.targets = _integers([target for target, _ in seen])
        """(N,) int64; None if they are not integers."""
        self.groups = _integers([group for _, group in seen])
        """(N,) int64; None if they are not integers."""

    def in_order(self, positions: Tensor) -> Iterator[Batch]:
        """Yield the examples at ``positions``, in large batches. Kept batches keep their own order."""
        return self._batches(positions, self.batch_size, None)

    def shuffled(self, positions: Tensor, generator: torch.Generator) -> Iterator[Batch]:
        """Yield the examples at ``positions`` in random order, for one epoch of training.

        Batches have the size of the loader's, or less, so that an epoch has about 20 steps with at least 16 examples
        each. Their sizes differ by one at most, so that no batch is left with a single example.
        """
        size = min(self.batch_size, max(_SMALLEST_BATCH, len(positions) // _MOST_STEPS))
        return self._batches(positions, size, generator)

    def _batches(self, positions: Tensor, size: int, generator: torch.Generator | None) -> Iterator[Batch]:
        if self._loader is not None:
            return self._loaded(_chunks(positions, size, generator))
        return self._of_kept(positions, size, generator)

    def _loaded(self, chunks: list[list[int]]) -> Iterator[Batch]:
        self._order[:] = chunks
        for batch in self._loader or ():
            yield self._read(send_to_device(batch, self.device))

    def _of_kept(self, positions: Tensor, size: int, generator: torch.Generator | None) -> Iterator[Batch]:
        parts: list[tuple[Batch, list[int]]] = []
        start = 0
        for batch, length in zip(self._kept, self.sizes, strict=True):
            inside = positions[(positions >= start) & (positions < start + length)] - start
            parts += [(batch, chunk) for chunk in _chunks(inside, size, generator)]
            start += length
        order = range(len(parts)) if generator is None else torch.randperm(len(parts), generator=generator).tolist()
        for number in order:
            batch, rows = parts[number]
            part: Batch = send_to_device(batch.take(torch.tensor(rows)), self.device)
            yield part


class _Order:
    """A batch sampler that yields what a list holds when a pass begins."""

    def __init__(self, chunks: list[list[int]]) -> None:
        self.chunks = chunks

    def __iter__(self) -> Iterator[list[int]]:
        return iter(list(self.chunks))

    def __len__(self) -> int:
        return len(self.chunks)


def is_plain(loader: Any) -> bool:
    """Whether ``loader`` gives every example of a map-style data set once, so that they can be read by position."""
    if not isinstance(loader, DataLoader):
        return isinstance(loader, Dataset) and not isinstance(loader, IterableDataset)
    if isinstance(loader.dataset, IterableDataset) or type(loader.batch_sampler) is not BatchSampler:
        return False
    sampler = loader.sampler
    if type(sampler) is RandomSampler:
        return not sampler.replacement and sampler.num_samples == len(loader.dataset)  # type: ignore[arg-type]
    return type(sampler) is SequentialSampler


def _chunks(positions: Tensor, size: int, generator: torch.Generator | None) -> list[list[int]]:
    """Split positions, in random order if there is a generator, into the fewest chunks of at most ``size``."""
    if not len(positions):
        return []
    if generator is not None:
        positions = positions[torch.randperm(len(positions), generator=generator)]
    return [chunk.tolist() for chunk in positions.tensor_split(math.ceil(len(positions) / size))]


def _integers(parts: list[Tensor | None]) -> Tensor | None:
    values = [part for part in parts if part is not None and part.ndim == 1 and not part.is_floating_point()]
    return torch.cat(values).long() if len(values) == len(parts) else None
