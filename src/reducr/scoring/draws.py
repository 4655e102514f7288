"""Holdout examples that are trained on beside the selected ones."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, RandomSampler, SequentialSampler

from reducr._internal.endless import EndlessBatches
from reducr._internal.seeds import mixed_seed
from reducr.batch import BatchReader, BatchSpec
from reducr.batch.nested import ListKinds, concatenate, index_batch, send_to_device
from reducr.scoring.holdout_groups import unhooked
from reducr.scoring.scorer import num_selected_of

_Block = tuple[list[int], Callable[[list[int]], Any]]
"""Numbers of examples in the order to draw them, and a function that reads the batch of some of them."""


def num_examples_of(fraction: float, holdout_fraction: float, num_candidates: int) -> tuple[int, int]:
    """Return how many examples of a step are selected, and how many are drawn from the holdout set.

    Their sum is ``fraction`` of the candidates, rounded down; at least one example is selected.

    Example:
        >>> num_examples_of(0.1, 0.25, 320), num_examples_of(0.1, 0.0, 320)
        ((24, 8), (32, 0))
    """
    total = num_selected_of(fraction, num_candidates)
    num_drawn = min(total - 1, math.floor(holdout_fraction * total + 0.5))
    return total - num_drawn, num_drawn


def num_selected_beside(fraction: float, holdout_fraction: float, num_candidates: int) -> int:
    """Return the first of ``num_examples_of``."""
    return num_examples_of(fraction, holdout_fraction, num_candidates)[0]


def check_holdout_fraction(fraction: float, holdout_fraction: float, num_candidates: int) -> None:
    """Raise ValueError if a share of the holdout set in each step rounds to no example, or leaves none to select."""
    total = num_selected_of(fraction, num_candidates)
    num_drawn = math.floor(holdout_fraction * total + 0.5)
    if holdout_fraction and num_drawn in (0, total):
        raise ValueError(
            f"holdout_fraction={holdout_fraction} draws {num_drawn} of the {total} examples per step from the holdout "
            f"set, so none would be {'selected' if num_drawn else 'drawn'}. Choose another share, or more candidates."
        )


class HoldoutDraws:
    """Draws holdout examples, each of them once before any is drawn again, and appends them to selected ones.

    The order depends only on ``seed``. A DataLoader over a map-style data set is not iterated: examples are read one by
    one, in this process, and put together by its ``collate_fn``. Lists are joined to one batch. Any other batches are
    drawn from one after the other, so their loader should shuffle.

    Args:
        batches: of the holdout set, in the structure of the candidates.
        spec: where the parts of a batch are; None for the usual places.
        seed: of the order.
    """

    def __init__(self, batches: Iterable[Any], spec: BatchSpec | None, *, seed: int) -> None:
        self.batches = batches
        self.spec = spec
        self.seed = seed
        self._kinds = ListKinds(None if spec is None else spec.lists)
        self.num_drawn = 0
        """Examples drawn so far."""
        self._blocks: Iterator[_Block] | None = None
        self._block: _Block = ([], list)

    def drawn_on(self, device: torch.device, num_examples: int) -> Any:
        """Return a batch of the next ``num_examples`` examples on ``device``, after the hook of an integration."""
        _, hook = unhooked(self.batches)
        return send_to_device(hook(self.draw(num_examples)), device)

    def draw(self, num_examples: int) -> Any:
        """Return a batch of the next ``num_examples`` examples."""
        drawn, size = None, 0
        while size < num_examples:
            numbers, read = self._next_block()
            taken = numbers[: num_examples - size]
            del numbers[: len(taken)]
            part = read(taken)
            drawn = part if drawn is None else concatenate(drawn, part, num_examples=size, kinds=self._kinds)
            size += len(taken)
        self.num_drawn += num_examples
        return drawn

    def seek(self, num_drawn: int) -> None:
        """Continue after ``num_drawn`` examples."""
        if num_drawn == self.num_drawn:
            return
        self.num_drawn, self._blocks, self._block = num_drawn, None, ([], list)
        while num_drawn:
            numbers, _ = self._next_block()
            num_passed = min(len(numbers), num_drawn)
            del numbers[:num_passed]
            num_drawn -= num_passed

    def _next_block(self) -> _Block:
        """The block that the next example comes from."""
        if self._blocks is None:
            self._blocks = self._all_blocks()
        while not self._block[0]:
            self._block = next(self._blocks)
        return self._block

    def _all_blocks(self) -> Iterator[_Block]:
        raw, _ = unhooked(self.batches)
        for number, (size, read) in enumerate(self._sources(raw)):
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, number))
            yield torch.randperm(size, generator=generator).tolist(), read

    def _sources(self, raw: Any) -> Iterator[tuple[int, Callable[[list[int]], Any]]]:
        """Number of examples and reader of each block, endlessly."""
        if _has_examples_by_number(raw):
            return itertools.repeat((len(raw.dataset), partial(_examples_of, raw)))
        if isinstance(raw, list | tuple) and raw:
            joined, size = self._joined(raw)
            return itertools.repeat((size, partial(_rows_of, joined, size, self._kinds)))
        return self._batch_by_batch(raw)

    def _joined(self, batches: list[Any] | tuple[Any, ...]) -> tuple[Any, int]:
        read = BatchReader(self.spec)
        joined, size = batches[0], len(read(batches[0]).target)
        for batch in batches[1:]:
            joined = concatenate(joined, batch, num_examples=size, kinds=self._kinds)
            size += len(read(batch).target)
        return joined, size

    def _batch_by_batch(self, raw: Any) -> Iterator[tuple[int, Callable[[list[int]], Any]]]:
        read, stream = BatchReader(self.spec), EndlessBatches(raw, name="Holdout batches")
        while True:
            batch = next(stream)
            size = len(read(batch).target)
            yield size, partial(_rows_of, batch, size, self._kinds)

    def __getstate__(self) -> dict[str, Any]:
        # iterators cannot be copied: a copy finds its place again
        return vars(self) | {"_blocks": None, "_block": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        num_drawn = state["num_drawn"]
        vars(self).update(state | {"num_drawn": 0, "_block": ([], list)})
        self.seek(num_drawn)


def _has_examples_by_number(loader: Any) -> bool:
    """Whether this is a DataLoader that reads each example of a data set once in a pass."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.batch_sampler) is BatchSampler
        and (
            type(loader.sampler) is SequentialSampler
            or (type(loader.sampler) is RandomSampler and not loader.sampler.replacement)
        )
    )


def _examples_of(loader: Any, numbers: list[int]) -> Any:
    data = loader.dataset
    examples = data.__getitems__(numbers) if hasattr(data, "__getitems__") else [data[number] for number in numbers]
    return loader.collate_fn(examples)


def _rows_of(batch: Any, size: int, kinds: ListKinds, numbers: list[int]) -> Any:
    return index_batch(batch, torch.tensor(numbers, dtype=torch.int64), num_examples=size, kinds=kinds)
