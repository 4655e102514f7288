"""Read a data set in the order of its examples, whatever loader it came in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Subset

from reducr._internal.checks import check_count
from reducr.batch import BatchReader, BatchSpec

_BATCH_SIZE = 256
_NUM_COMPARED = 8


def dataset_of(data: Any) -> Any:
    """Return the map-style data set of a loader, or the data set itself.

    Raises:
        TypeError: for a stream, or anything else without a length and positions.
    """
    dataset = data.dataset if isinstance(data, DataLoader) else data
    is_map_style = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")
    if isinstance(dataset, IterableDataset) or not is_map_style:
        raise TypeError(
            f"A table needs a data set with a length and positions, or a DataLoader of one; got "
            f"{type(dataset).__name__}. For a stream, use the reference model itself: reducr.Reference(model)."
        )
    if isinstance(data, DataLoader) and data.batch_size is None and data.batch_sampler is None:
        raise TypeError(
            "This DataLoader does not batch (batch_size=None), so its examples cannot be told apart. Pass a loader or "
            "a data set of single examples."
        )
    return dataset


def loader_of(
    data: Any,
    *,
    batch_size: int | None = None,
    positions: Sequence[int] | None = None,
    batch_sampler: Any = None,
    has_workers: bool = True,
) -> DataLoader[Any]:
    """Return a loader of the data set of ``data`` in the order of its examples, or of chosen examples.

    Collation and workers are those of ``data`` if it is a DataLoader. The global random state is not drawn from to
    begin a pass.

    Args:
        data: a map-style data set, or a DataLoader of one.
        batch_size: None for that of a DataLoader, else 256.
        positions: of the examples to read; None for all.
        batch_sampler: gives the positions of each batch, in place of ``batch_size`` and ``positions``.
        has_workers: use the workers of a DataLoader that has some.
    """
    dataset, options = dataset_of(data), {}
    if isinstance(data, DataLoader):
        batch_size = data.batch_size if batch_size is None else batch_size
        names = ["collate_fn"]
        if has_workers:
            names += ["num_workers", "worker_init_fn", "multiprocessing_context", "timeout"]
        options = {name: getattr(data, name) for name in names}
    batch_size = _BATCH_SIZE if batch_size is None else batch_size
    check_count("batch_size", batch_size)
    generator = torch.Generator()
    if batch_sampler is not None:
        keeps_workers = options.get("num_workers", 0) > 0
        return DataLoader(
            dataset, batch_sampler=batch_sampler, generator=generator, persistent_workers=keeps_workers, **options
        )
    if positions is not None:
        dataset = Subset(dataset, positions)
    return DataLoader(dataset, batch_size=batch_size, generator=generator, **options)


def is_random(data: Any, spec: BatchSpec | None) -> bool:
    """Whether the inputs of the first examples differ when they are read twice, as with random augmentation."""
    num_compared = min(_NUM_COMPARED, len(dataset_of(data)))
    loader = loader_of(data, batch_size=num_compared, positions=range(num_compared), has_workers=False)
    read = BatchReader(spec)
    first, second = (read(next(iter(loader))).input for _ in range(2))
    return not _is_equal(first, second)


def _is_equal(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return first.shape == second.shape and torch.allclose(first, second, rtol=0.0, atol=0.0, equal_nan=True)
    if isinstance(first, dict):
        return all(_is_equal(value, second[name]) for name, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(_is_equal, first, second))
    return True
