"""The groups of the holdout set: how many there are, and an equal part of each to evaluate a model on."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, SequentialSampler, Subset

from reducr._internal.distributed import all_gather_objects
from reducr._internal.loaders import undisturbed
from reducr.batch import Batch, BatchReader, BatchSpec, PerExampleLoss
from reducr.batch.nested import ListKinds, index_batch


def without_groups(batch: Batch) -> Batch:
    """Return the batch with all examples in group 0."""
    target = batch.target
    return batch._replace(group=torch.zeros(target.shape[0], dtype=torch.int64, device=target.device))


def usable_parts(batch: Batch, *, num_groups: int, loss: PerExampleLoss | None) -> Batch:
    """Return the parts with integers in place of bool groups, and of bool targets of the cross-entropy.

    Args:
        batch: as it was read.
        num_groups: 1 for no groups, whatever the batch has.
        loss: None for the cross-entropy.
    """
    target, group = batch.target, batch.group
    if loss is None and target.dtype == torch.bool:
        batch = batch._replace(target=target.long())
    if num_groups == 1:
        return without_groups(batch)
    return batch._replace(group=group.long()) if group.dtype == torch.bool else batch


def unhooked(batches: Any) -> tuple[Any, Callable[[Any], Any]]:
    """Return the batches that an integration passes through ``hook``, and the hook."""
    if hasattr(batches, "hook"):
        return batches.batches, batches.hook
    return batches, lambda batch: batch


class HoldoutGroups:
    """Reads the group of every holdout example, once, when it is first needed.

    The pass reads data only. It leaves the global random states, and those of the loader, as they were.

    Args:
        batches: of the holdout set.
        spec: where the parts of a batch are; None for the usual places.
    """

    def __init__(self, batches: Iterable[Any], spec: BatchSpec | None) -> None:
        self.batches = batches
        self.spec = spec
        self._groups: Tensor | None = None

    def num_groups(self, *, sync: bool) -> int:
        """Return the largest group plus one; on several ranks the largest of all, if ``sync``.

        Raises:
            ValueError: if there is no example, or the groups are not integers of at least 0.
        """
        groups = self.groups()
        smallest, largest = (int(value) for value in torch.aminmax(groups))
        if smallest < 0:
            raise ValueError(
                f"Groups are counted from 0, and the holdout set has group {smallest}. Say where the groups are with "
                "`spec=reducr.BatchSpec(group=...)`, or leave such examples out of it."
            )
        return 1 + max(all_gather_objects(largest) if sync else [largest])

    def groups(self) -> Tensor:
        """Return the groups (n,) int64 on the CPU, in the order of a pass.

        Raises:
            ValueError: if there is no example, or the groups are not integers.
        """
        if self._groups is None:
            read, (raw, _) = BatchReader(self.spec), unhooked(self.batches)
            with undisturbed(raw):
                parts = [_checked_groups(read(batch).group) for batch in raw]
            if not sum(map(len, parts)):
                raise ValueError("The holdout set has no examples. Pass batches with at least one of each group.")
            self._groups = torch.cat(parts)
        return self._groups

    def part(self, per_group: int, *, num_groups: int) -> Iterable[Any]:
        """Return batches of at most ``per_group`` examples of each group, spread evenly over the set.

        A loader that reads a data set in its order reads only these examples. Of any other batches, all are read at
        every pass, and indexed.
        """
        groups = self.groups() if num_groups > 1 else torch.zeros_like(self._sizes())
        counts = torch.bincount(groups, minlength=num_groups)
        if bool((counts <= per_group).all()):
            return self.batches
        raw, hook = unhooked(self.batches)
        if _reads_in_order(raw):
            positions = torch.nonzero(_is_in_part(groups, _ranks(groups, {}), counts, per_group)).flatten()
            return _Hooked(_loader_of(raw, positions.tolist()), hook)
        return _EvenPart(self, counts, per_group)

    def _sizes(self) -> Tensor:
        """A number for every example of a set without groups."""
        read, (raw, _) = BatchReader(self.spec), unhooked(self.batches)
        if self._groups is None:
            with undisturbed(raw):
                self._groups = torch.zeros(sum(len(read(batch).target) for batch in raw), dtype=torch.int64)
        return self._groups


class _Hooked:
    """Batches after a hook."""

    def __init__(self, batches: Iterable[Any], hook: Callable[[Any], Any]) -> None:
        self.batches = batches
        self.hook = hook

    def __iter__(self) -> Iterator[Any]:
        return map(self.hook, self.batches)


class _EvenPart:
    """Takes examples at equal distances from each group, over all batches of a pass, in whatever order they come."""

    def __init__(self, source: HoldoutGroups, counts: Tensor, per_group: int) -> None:
        self.source = source
        self.counts = counts
        self.per_group = per_group

    def __iter__(self) -> Iterator[Any]:
        spec = self.source.spec
        read, seen = BatchReader(spec), dict[int, int]()
        kinds = ListKinds(None if spec is None else spec.lists)
        for batch in self.source.batches:
            parts = read(batch)
            groups = parts.group.long().cpu() if len(self.counts) > 1 else without_groups(parts).group.cpu()
            groups = groups.clamp(max=len(self.counts) - 1)
            is_taken = _is_in_part(groups, _ranks(groups, seen), self.counts, self.per_group)
            if bool(is_taken.any()):
                yield index_batch(batch, torch.nonzero(is_taken).flatten(), num_examples=len(groups), kinds=kinds)


def _checked_groups(group: Tensor) -> Tensor:
    if group.ndim != 1 or group.is_floating_point() or group.is_complex():
        raise ValueError(
            f"The groups of the holdout set must be one integer per example; got {group.dtype} {tuple(group.shape)}. "
            "Say where they are with `spec=reducr.BatchSpec(input=..., target=..., group=...)`; a function makes them, "
            "such as `group=lambda batch: (batch[1] > 0.5).long()`."
        )
    return group.long().cpu()


def _ranks(groups: Tensor, seen: dict[int, int]) -> Tensor:
    """How many examples of its group come before each of ``groups`` (B,); ``seen`` counts those of earlier batches."""
    order = torch.argsort(groups, stable=True)
    sorted_groups = groups[order]
    present, counts = torch.unique_consecutive(sorted_groups, return_counts=True)
    starts = torch.cumsum(counts, dim=0) - counts
    offsets = torch.tensor([seen.get(int(group), 0) for group in present])
    ranks = torch.arange(len(groups)) + torch.repeat_interleave(offsets - starts, counts)
    for group, count in zip(present.tolist(), counts.tolist(), strict=True):
        seen[group] = seen.get(group, 0) + count
    return torch.empty_like(ranks).index_copy_(0, order, ranks)


def _is_in_part(groups: Tensor, ranks: Tensor, counts: Tensor, per_group: int) -> Tensor:
    """Whether each example is one of ``per_group`` that are spread evenly over its group; the first one always is."""
    sizes = counts[groups].clamp(min=1)
    share = sizes.clamp(max=per_group)
    return torch.div(ranks * share, sizes, rounding_mode="floor") != torch.div(
        (ranks - 1) * share, sizes, rounding_mode="floor"
    )


def _reads_in_order(loader: Any) -> bool:
    """Whether this is a DataLoader that reads a whole data set in its order."""
    return (
        isinstance(loader, DataLoader)
        and not isinstance(loader.dataset, IterableDataset)
        and type(loader.sampler) is SequentialSampler
        and type(loader.batch_sampler) is BatchSampler
    )


def _loader_of(loader: DataLoader[Any], positions: list[int]) -> DataLoader[Any]:
    """A loader of some examples of the data set of ``loader``, which draws no global random numbers."""
    names = ("num_workers", "collate_fn", "pin_memory", "timeout", "worker_init_fn", "multiprocessing_context")
    options = {name: getattr(loader, name) for name in names}
    if loader.num_workers:
        options |= {name: getattr(loader, name) for name in ("prefetch_factor", "persistent_workers")}
    return DataLoader(
        Subset(loader.dataset, positions), batch_size=loader.batch_size, generator=torch.Generator(), **options
    )
