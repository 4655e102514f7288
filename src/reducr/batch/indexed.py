"""A data set whose examples carry their index."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any

from torch.utils.data import Dataset, IterableDataset

from reducr.batch.carried import indices_of, with_index, without_index


def indexed(dataset: Any) -> IndexedDataset:
    """Return a data set that yields what ``dataset`` yields, with the index of each example.

    Tables of irreducible losses, scoring budgets and rules that remember examples find an example by its index, its
    position in ``dataset``. A loop does not see it: a sample ``(input, target)`` still unpacks into two, and so do the
    batches; ``SelectiveLoader`` reads the index and hands out batches without it. Samples that are dicts have one more
    key, ``"reducr_index"``, which ``SelectiveLoader`` takes away again.

    Subsets, as of ``random_split``, keep the index of the data set that was wrapped; if a subset is wrapped once more,
    its own positions count.

    Args:
        dataset: map-style, with samples that are tuples, lists or dicts. Its attributes can be read from the result.

    Raises:
        TypeError: for a stream, or samples of another kind.

    Example:
        >>> import torch
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = indexed(TensorDataset(torch.rand(4, 2), torch.tensor([0, 1, 1, 0])))
        >>> for inputs, targets in DataLoader(data, batch_size=4):
        ...     print(tuple(inputs.shape), targets)
        (4, 2) tensor([0, 1, 1, 0])
    """
    return IndexedDataset(dataset)


class IndexedDataset(Dataset[Any]):
    """What ``indexed`` returns."""

    def __init__(self, dataset: Any) -> None:
        is_map_style = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
        if isinstance(dataset, IterableDataset) or not is_map_style:
            raise TypeError(
                f"reducr.indexed needs a data set with a length and positions; got {type(dataset).__name__}. The "
                "examples of a stream have no fixed positions: let the stream yield an index of its own, or use a rule "
                "and a reference model that need none."
            )
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, position: Any) -> Any:
        try:
            index = operator.index(position)
        except TypeError:
            return self.dataset[position]  # a column or a slice of a Hugging Face data set
        return with_index(self.dataset[index], index + len(self) if index < 0 else index)

    def __getitems__(self, positions: Sequence[int]) -> list[Any]:
        """Return several samples at once, which is faster where ``dataset`` can."""
        read = getattr(self.dataset, "__getitems__", None)
        if not callable(read):
            return [self[position] for position in positions]
        samples = read(list(positions))
        return [with_index(sample, operator.index(index)) for sample, index in zip(samples, positions, strict=True)]

    def __getattr__(self, name: str) -> Any:
        if name == "dataset" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.dataset, name)

    @staticmethod
    def collating(collate_fn: Callable[[list[Any]], Any]) -> Collating:
        """Return ``collate_fn`` for samples that carry their index: it sees them without, and its batch carries it.

        A DataLoader's default collation keeps the index by itself.
        """
        return Collating(collate_fn)


class Collating:
    """A collator that carries the index of the samples around another one."""

    def __init__(self, collate_fn: Callable[[list[Any]], Any]) -> None:
        if not callable(collate_fn):
            raise TypeError(f"`collate_fn` must be a function of a list of samples; got {type(collate_fn).__name__}.")
        self.collate_fn = collate_fn

    def __call__(self, samples: list[Any]) -> Any:
        """Return the batch of ``samples``, with their index."""
        index = indices_of(samples)
        return with_index(self.collate_fn([without_index(sample) for sample in samples]), index)
