"""A loader that resumes in the middle of an epoch with exactly the batches that would have come next."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from reducr._internal.loaders import loader_parts
from reducr._internal.rng import random_state, set_random_state


class Resumable:
    """Wrap any loader so that its position in the epoch can be saved and restored.

    A loader with its own state, such as torchdata's ``StatefulDataLoader`` or ``ExampleLoader``, saves and restores
    that state. Any other loader is replayed: the batches already seen are read again and dropped, starting from the
    random states at the beginning of the epoch; then the global random states are restored. Replay is exact if the
    loader draws from these states only. Persistent workers keep their random states across epochs, so for them only
    the order of examples is exact. A stream whose data set sets ``has_exact_state`` is not replayed. A shuffled stream
    of the Hugging Face library is replayed in a ``StatefulDataLoader`` too, because its own state lacks the content of
    its shuffle buffer.

    Loaders prepared by ``accelerate`` read one batch ahead. The random state before that batch is saved too, so they
    resume just as exactly; a stream in such a loader is always replayed.

    Each pass is an epoch. Samplers and data sets with ``set_epoch`` are told its number.

    Args:
        loader: any iterable of batches.
        skip_finished_epoch: if the state was saved after the last batch of an epoch but before its end, start with the
            next epoch, as Lightning expects. Otherwise the first pass is the empty rest of that epoch.

    Raises:
        ValueError: if ``accelerate`` has prepared the loader with ``use_stateful_dataloader``, or its
            ``skip_first_batches`` has made it.

    Example:
        >>> loader = Resumable([10, 11, 12])
        >>> iterator = iter(loader)
        >>> next(iterator), next(iterator)
        (10, 11)
        >>> resumed = Resumable([10, 11, 12])
        >>> resumed.load_state_dict(loader.state_dict())
        >>> list(resumed), resumed.epoch
        ([12], 1)
    """

    def __init__(self, loader: Any, *, skip_finished_epoch: bool = False) -> None:
        self.loader = loader
        self.skip_finished_epoch = skip_finished_epoch
        self.epoch = 0
        """Epoch of the current pass, or of the next one between passes."""
        self.position = 0
        """Number of batches yielded in this epoch."""
        self._start: dict[str, Any] | None = None
        self._before_last: dict[str, Any] | None = None
        self._to_load: dict[str, Any] | None = None
        self._resumed_from: dict[str, Any] | None = None
        self._had_workers = False
        if self._reads_ahead and loader.use_stateful_dataloader:
            raise ValueError(
                "accelerate has prepared this loader with use_stateful_dataloader=True, which does not restore the "
                "order of shuffled examples. Remove that option; the position is saved exactly without it."
            )

        skipped = [getattr(part, "skip_batches", 0) for part in loader_parts(loader)]
        if any(isinstance(count, int) and count > 0 for count in skipped):
            raise ValueError(
                f"skip_first_batches has made this loader, which skips {max(skipped)} batches in every epoch. Wrap the "
                "loader itself: its place is part of the state, and load_state_dict() or accelerator.load_state() "
                "returns to it."
            )

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Start the next pass as epoch ``epoch``; keeps the position if that is the current epoch."""
        if epoch != self.epoch:
            self.epoch, self.position, self._start, self._to_load = epoch, 0, None, None

    def forget_pass(self) -> None:
        """Let the next pass begin where the current one began, in the same epoch."""
        if self._resumed_from is not None:
            self.load_state_dict(self._resumed_from)
        else:
            self.position, self._start = 0, None

    def __iter__(self) -> Iterator[Any]:
        self._resumed_from = self._to_load
        iterator = self._start_epoch() if self._to_load is None else self._resume(self._to_load)
        while True:
            if self._reads_ahead:
                self._before_last = random_state()
            batch = next(iterator, _END)
            if batch is _END:
                break
            self.position += 1
            yield batch
        self.epoch, self.position, self._start, self._resumed_from = self.epoch + 1, 0, None, None

    def state_dict(self) -> dict[str, Any]:
        """The epoch, the position in it, and the random states or loader state needed to return there."""
        if self._to_load is not None:
            return self._to_load
        state: dict[str, Any] = {"epoch": self.epoch, "position": self.position, "start": self._start}
        state |= {"generators": self._generator_states(), "has_workers": self._has_workers, **self._sizes()}
        if self._start is not None and self._reads_ahead:
            state["before_last"] = self._before_last
        stateful = self._stateful
        if stateful is not None and self._start is not None:
            state["own"] = stateful.state_dict()
            state["has_ended"] = getattr(stateful, "has_ended", False)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue, in the next pass, the pass in which ``state`` was saved."""
        self.epoch, self.position, self._start = state["epoch"], state["position"], state["start"]
        self._to_load = None if state["start"] is None else state
        self._had_workers = state["has_workers"]
        self._set_generators(state["generators"])
        if self.skip_finished_epoch and self.position == len(self.loader):
            self.set_epoch(self.epoch + 1)

    def check_sizes(self, state: dict[str, Any]) -> None:
        """Raise ValueError if ``state`` is in the middle of a pass with another number or size of batches."""
        if state["start"] is None or not state["position"]:
            return
        for name, what in (("batch_size", "examples in a batch"), ("length", "batches in an epoch")):
            saved, own = state.get(name), self._sizes()[name]
            if saved is not None and own is not None and saved != own:
                raise ValueError(
                    f"The state was saved after batch {state['position']} of an epoch with {saved} {what}; this loader "
                    f"has {own}, so it would go on at another place. Use the data, batch size and number of processes "
                    "of the saved run, or save at the end of an epoch."
                )

    def _sizes(self) -> dict[str, int | None]:
        """Number of batches in a pass, and examples in a batch, where the loader says so."""
        try:
            length = len(self.loader)
        except (TypeError, NotImplementedError):
            length = None
        size = getattr(self.loader, "batch_size", None)
        return {"length": length, "batch_size": size if isinstance(size, int) else None}

    @property
    def _stateful(self) -> Any:
        """The object with an exact state of its own: the loader, a stream read in this process, or None."""
        if self._reads_ahead:
            return None
        data = getattr(self.loader, "dataset", None)
        if hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict"):
            return None if _has_shuffle_buffer(data) else self.loader
        reads_here = isinstance(self.loader, DataLoader) and self.loader.num_workers == 0
        is_exact = isinstance(data, IterableDataset) and getattr(data, "has_exact_state", False)
        return data if reads_here and is_exact else None

    @property
    def _reads_ahead(self) -> bool:
        """Whether ``accelerate`` has prepared the loader; its ``state_dict`` then holds no exact position."""
        return hasattr(self.loader, "use_stateful_dataloader")

    def _start_epoch(self) -> Iterator[Any]:
        if self._start is not None:  # the previous pass was abandoned
            self.epoch += 1
        self.position = 0
        _set_epoch(self.loader, self.epoch)
        if self._had_workers:
            global_state, generator_states = random_state(), self._generator_states()
            self._start_workers()
            set_random_state(global_state)
            self._set_generators(generator_states)
        self._start = {
            "global": random_state(),
            "generators": self._generator_states(),
            "has_workers": self._has_workers,
        }
        return iter(self.loader)

    def _resume(self, state: dict[str, Any]) -> Iterator[Any]:
        self._to_load = None
        _set_epoch(self.loader, self.epoch)
        if state.get("has_ended", False):
            return iter(())
        current_state = random_state()
        if state["start"]["has_workers"]:
            self._start_workers()
        set_random_state(state["start"]["global"])
        self._set_generators(state["start"]["generators"])
        if "own" in state:
            self._load_stateful(state["own"])
        iterator: Iterator[Any] = iter(self.loader)
        for number in range(0 if "own" in state else self.position):
            if number == self.position - 1 and "before_last" in state:
                set_random_state(state["before_last"])
            if next(iterator, _END) is _END:
                raise ValueError(
                    f"the loader ended after {number} batches, but the state is after batch {self.position} of this "
                    "epoch. Use the same data and batch size as the saved run."
                )
        set_random_state(current_state)
        self._set_generators(state["generators"])
        return iterator

    @property
    def _has_workers(self) -> bool:
        """Whether persistent workers of an earlier pass are running."""
        return getattr(self.loader, "persistent_workers", False) and self.loader._iterator is not None

    def _start_workers(self) -> None:
        """Start persistent workers, if none run, so that the next pass does not draw their seeds."""
        self._had_workers = False
        if not self._has_workers:
            iter(getattr(self.loader, "base_dataloader", self.loader))

    def _generator_states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _set_generators(self, states: list[Tensor]) -> None:
        generators = self._generators()
        if len(generators) != len(states):
            raise ValueError(
                f"the loader and its samplers have {len(generators)} generators; the saved run had {len(states)}. Pass "
                "the same generator= arguments."
            )
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)

    def _load_stateful(self, state: Any) -> None:
        stateful = self._stateful
        if stateful is None:
            raise ValueError(
                f"the state comes from a loader with a state of its own; this {type(self.loader).__name__} has none. "
                "Use the loader of the saved run, with the same num_workers."
            )
        stateful.load_state_dict(state)

    def _generators(self) -> list[torch.Generator]:
        """Generators of the loader and its samplers, without duplicates; samplers with ``set_epoch`` draw by epoch."""
        parts = (
            part for part in loader_parts(self.loader) if not (isinstance(part, Sampler) and hasattr(part, "set_epoch"))
        )
        generators = (getattr(part, "generator", None) for part in parts)
        return list({id(item): item for item in generators if isinstance(item, torch.Generator)}.values())


def _set_epoch(loader: Any, epoch: int) -> None:
    """Call ``set_epoch`` of the loader, its samplers and its data set, where they have it."""
    for part in (*loader_parts(loader), getattr(loader, "dataset", None)):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def _has_shuffle_buffer(data: Any) -> bool:
    """Whether a stream of the Hugging Face library, or one in ``data``, is shuffled through a buffer."""
    if type(data).__name__ == "BufferShuffledExamplesIterable":
        return True
    parts = [getattr(data, name, None) for name in ("_ex_iterable", "ex_iterable", "dataset")]
    for name in ("ex_iterables", "datasets"):
        several = getattr(data, name, None)
        parts += several if isinstance(several, list | tuple) else []
    return any(_has_shuffle_buffer(part) for part in parts if part is not None)


_END = object()
