"""A data set whose examples carry their index."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset, IterableDataset

from reducr.batch.carried import indices_of, with_index, without_index

GROUP_COLUMNS, INDEX_COLUMNS = ("group", "groups"), ("index", "idx")


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
    def collating(
        collate_fn: Callable[[list[Any]], Any], *, columns: Sequence[str] = GROUP_COLUMNS
    ) -> CarryingCollator:
        """Return ``collate_fn`` for samples that carry their index: it sees them without, and its batch carries it.

        A DataLoader's default collation keeps the index by itself. Collators of other libraries drop what they do not
        know; of samples that are dicts, the group is carried around them, too.

        Args:
            collate_fn: a function of a list of samples.
            columns: names of the further columns of integers to carry, where the samples have them.
        """
        return CarryingCollator(collate_fn, columns=columns, has_index=True)


class CarryingCollator:
    """A collator that carries the index of the samples, and columns of integers, around another one.

    Args:
        collate_fn: sees the samples without these.
        columns: names of columns, carried where samples and batch are dicts.
        has_index: whether the samples carry an index, as those of ``indexed`` do.
    """

    def __init__(
        self, collate_fn: Callable[[list[Any]], Any], *, columns: Sequence[str], has_index: bool = False
    ) -> None:
        if not callable(collate_fn):
            raise TypeError(f"`collate_fn` must be a function of a list of samples; got {type(collate_fn).__name__}.")
        self.collate_fn = collate_fn
        self.columns = tuple(columns)
        self.has_index = has_index

    def __call__(self, samples: list[Any]) -> Any:
        """Return the batch of ``samples``, with their index and columns."""
        index = indices_of(samples) if self.has_index else None
        if index is not None:
            samples = [without_index(sample) for sample in samples]
        columns = self._columns_of(samples)
        if columns:
            samples = [{key: value for key, value in sample.items() if key not in columns} for sample in samples]
        batch = self.collate_fn(samples)
        if columns or index is not None:
            _check_rows(batch, len(samples))
        if columns:
            batch = _with_columns(batch, columns)
        return batch if index is None else with_index(batch, index)

    def __getattr__(self, name: str) -> Any:
        if name == "collate_fn" or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.collate_fn, name)  # such as the tokenizer that a Trainer saves

    def _columns_of(self, samples: list[Any]) -> dict[str, Tensor]:
        """The columns to carry, (B,) int64 each."""
        if not samples or not isinstance(samples[0], Mapping):
            return {}
        columns = {}
        for name in self.columns:
            values = [sample[name] for sample in samples if name in sample]
            if len(values) == len(samples):
                column = _integers(name, values)
                if column is not None:
                    columns[name] = column
        return columns


def _integers(name: str, values: list[Any]) -> Tensor | None:
    """The values (B,) int64; None for an index of another kind, which is left to the collator."""
    try:
        return torch.tensor([operator.index(value) for value in values], dtype=torch.int64)
    except TypeError:
        if name in INDEX_COLUMNS:
            return None
        raise ValueError(
            f"Column {name!r} must hold one integer per example; got {values[0]!r}. Number its values from 0."
        ) from None


def _check_rows(batch: Any, num_samples: int) -> None:
    """Raise ValueError if the tensors of a dict have another number of rows than there are samples."""
    if not isinstance(batch, Mapping):
        return
    rows = [len(value) for value in batch.values() if isinstance(value, Tensor) and value.ndim]
    if rows and rows[0] != num_samples:
        raise ValueError(
            f"The collator made {rows[0]} rows of {num_samples} examples, as packing and padding-free collators do. A "
            "selection needs one row per example: use a collator that pads."
        )


def _with_columns(batch: Any, columns: dict[str, Tensor]) -> Any:
    if not isinstance(batch, Mapping):
        raise ValueError(  # noqa: TRY004  (a fault of the collator)
            f"The collator returned a {type(batch).__name__}, which cannot carry the columns {', '.join(columns)}. Let "
            "it return a dict."
        )
    try:
        carrier: Any = copy.copy(batch)
        for name, column in columns.items():
            carrier[name] = column
    except TypeError:
        return {**batch, **columns}
    return carrier
