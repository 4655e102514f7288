"""The share of the holdout set in the batches of a batch sampler."""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    ConcatDataset,
    DataLoader,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    SequentialSampler,
)

from reducr._internal.rng import same_random_state
from reducr._internal.seeds import epoch_order
from reducr.batch.carried import index_of
from reducr.scoring import Holdout, check_holdout_fraction, num_examples_of

_PLAIN = (Tensor, np.ndarray, np.generic, Mapping, list, tuple, str, bytes, int, float)


class HoldoutShare:
    """Draws holdout examples by their numbers, each of them once before any is drawn again.

    These are the draws that ``SelectiveLoader`` makes with the same seed. In ``dataset`` the holdout examples follow
    the training examples.

    Args:
        holdout: with a ``fraction``; None, or a fraction of 0, to draw nothing.
        dataset: the training data.
        fraction: share of the candidates in a batch, selected and drawn examples together.
        seed: of the order.

    Raises:
        ValueError: for a holdout set whose examples have no numbers, or another structure than training examples.
    """

    def __init__(self, holdout: Holdout | None, dataset: Any, *, fraction: float, seed: int) -> None:
        self.fraction = fraction
        self.holdout_fraction = 0.0 if holdout is None else holdout.fraction
        self.seed = seed
        self.num_drawn = 0
        """Examples drawn so far."""
        self._first = len(dataset)
        self._number = -1
        self._order = torch.empty(0, dtype=torch.int64)
        self.num_examples = 0
        """Holdout examples to draw from."""
        self.dataset = dataset
        """What the batches index."""
        if holdout is not None and holdout.fraction:
            clean = _numbered_examples(holdout.batches)
            check_same_structure(dataset, clean, holdout.batches)
            self.num_examples = len(clean)
            self.dataset = TrainingAndHoldout([dataset, clean])

    def check(self, num_candidates: int) -> None:
        """Raise ValueError if the share of a full batch rounds to no example, or leaves none to select."""
        check_holdout_fraction(self.fraction, self.holdout_fraction, num_candidates)

    def draw(self, num_candidates: int) -> Tensor:
        """Return the positions (d,) in ``dataset`` of the next examples, for a batch of so many candidates."""
        if not self.num_examples:
            return self._order
        _, size = num_examples_of(self.fraction, self.holdout_fraction, num_candidates)
        parts, stop = [], self.num_drawn + size
        while self.num_drawn < stop:
            number, start = divmod(self.num_drawn, self.num_examples)
            if number != self._number:
                order = epoch_order(self.num_examples, seed=self.seed, epoch=number)
                self._number, self._order = number, order + self._first
            parts.append(self._order[start : start + stop - self.num_drawn])
            self.num_drawn += len(parts[-1])
        return parts[0] if len(parts) == 1 else torch.cat([self._order[:0], *parts])

    def layout(self) -> dict[str, Any]:
        """Return what decides the draws; empty if there are none."""
        if not self.num_examples:
            return {}
        return {"holdout_fraction": self.holdout_fraction, "num_holdout_examples": self.num_examples}

    def check_reader(self, dataset: Any) -> None:
        """See that a DataLoader reads the examples that the indices stand for.

        Args:
            dataset: of the DataLoader; None if a loop reads the indices by itself.

        Raises:
            ValueError: if it has another length than ``self.dataset``.
        """
        if not isinstance(dataset, Sized) or len(dataset) == len(self.dataset):
            return
        holdout = f", followed by {self.num_examples} of the holdout set" if self.num_examples else ""
        raise ValueError(
            f"The indices of this batch sampler stand for {self._first} training examples{holdout}, and the DataLoader "
            f"that reads it has a data set of {len(dataset)}. Use DataLoader(sampler.dataset, batch_sampler=sampler)."
        )


class TrainingAndHoldout(ConcatDataset[Any]):
    """Training examples followed by holdout examples, read in batches where their data sets can."""

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        """Return the examples at ``positions``."""
        examples: list[Any] = [None] * len(positions)
        start = 0
        for dataset, stop in zip(self.datasets, self.cumulative_sizes, strict=True):
            places = [place for place, position in enumerate(positions) if start <= position < stop]
            numbers = [positions[place] - start for place in places]
            start, data = stop, dataset
            several = getattr(data, "__getitems__", None)
            found = several(numbers) if numbers and callable(several) else [data[number] for number in numbers]
            for place, example in zip(places, found, strict=True):
                examples[place] = example
        return examples


def _numbered_examples(loader: Any) -> Any:
    """The data set of a loader that reads each of its examples once in a pass."""
    dataset = getattr(loader, "dataset", None)
    if not isinstance(loader, DataLoader) or isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        kind = "a DataLoader over a stream" if isinstance(loader, DataLoader) else type(loader).__name__
        raise ValueError(  # noqa: TRY004  (batches of any other kind are refused with this option only)
            "With `holdout_fraction` a batch holds the indices of holdout examples, so `holdout` must be a DataLoader "
            f"over a map-style data set; got {kind}. Pass DataLoader(holdout_dataset, batch_size=...), or use "
            "SelectiveLoader."
        )
    sampler = loader.sampler
    reads_each_once = type(loader.batch_sampler) is BatchSampler and (
        type(sampler) in (SequentialSampler, DistributedSampler)
        or (type(sampler) is RandomSampler and not sampler.replacement)
    )
    if not reads_each_once:
        own = sampler if type(loader.batch_sampler) is BatchSampler else loader.batch_sampler
        raise ValueError(
            "With `holdout_fraction` every example of the holdout data set is drawn in turn, and the "
            f"{type(own).__name__} of this loader may leave some out. Pass a loader without a sampler of its own; for "
            "a part of a data set, one over torch.utils.data.Subset."
        )
    return dataset


def check_same_structure(dataset: Any, holdout: Any, loader: Any) -> None:
    """See that one example of each data set can be in the same batch; leaves the global random states as they were.

    Args:
        dataset: the training data.
        holdout: the holdout data set.
        loader: of the latter, whose ``collate_fn`` makes the batches.

    Raises:
        ValueError: says what differs.
    """
    if not len(holdout):
        raise ValueError("The holdout set has no examples. Pass batches with at least one of each group.")
    with same_random_state():
        example, other = dataset[0], holdout[0]
        difference = _difference(example, other, "the example")
        if (index_of(example) is None) != (index_of(other) is None):
            difference = "one of them comes from reducr.indexed(...), and the other does not"
        if difference is None:
            try:
                loader.collate_fn([example, other])
            except Exception as error:
                difference = f"`collate_fn` of the holdout loader cannot put one of each together ({error})"
    if difference is not None:
        raise ValueError(
            "Training and holdout examples are in the same batch with `holdout_fraction`, so they must have the same "
            f"structure: {difference}. Let the holdout data set yield what the training data set yields."
        )


def _difference(first: Any, second: Any, place: str) -> str | None:
    """The first place where a training example and a holdout example differ in structure, in words."""
    if isinstance(first, Mapping) and isinstance(second, Mapping):
        if set(first) != set(second):
            keys = [", ".join(map(str, entry)) for entry in (first, second)]
            return f"{place} has the keys {keys[0]} in the training data and {keys[1]} in the holdout set"
        pairs = [(first[key], second[key], f"{place}[{key!r}]") for key in first]
    elif _is_container(first) and _is_container(second):
        if len(first) != len(second):
            return f"{place} has {len(first)} parts in the training data and {len(second)} in the holdout set"
        pairs = [(*both, f"{place}[{number}]") for number, both in enumerate(zip(first, second, strict=True))]
    else:
        kinds = [_kind(value) for value in (first, second)]
        if kinds[0] == kinds[1] or all(_is_opaque(value) for value in (first, second)):
            return None
        return f"{place} is {kinds[0]} in the training data and {kinds[1]} in the holdout set"
    return next(filter(None, (_difference(*pair) for pair in pairs)), None)


def _is_container(value: Any) -> bool:
    """Whether this is a tuple, or a list of other things than numbers, such as token ids of any length."""
    return isinstance(value, tuple) or (isinstance(value, list) and not all(map(_is_number, value)))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float | np.generic)


def _is_opaque(value: Any) -> bool:
    """Whether this is an object that only a ``collate_fn`` understands, such as an image that is not decoded yet."""
    return value is not None and not isinstance(value, _PLAIN)


def _kind(value: Any) -> str:
    if not _is_number(value) and not isinstance(value, Tensor | np.ndarray):
        return "None" if value is None else f"a {type(value).__name__}"
    dtype = value.dtype if isinstance(value, Tensor) else torch.as_tensor(value).dtype
    axes = getattr(value, "ndim", 0)
    if axes:
        return f"an array of {str(dtype).removeprefix('torch.')} with {axes} {'axis' if axes == 1 else 'axes'}"
    if dtype == torch.bool:
        return "a bool"
    return "a float" if dtype.is_floating_point or dtype.is_complex else "an integer"
