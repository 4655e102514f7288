"""A loader that can go on in the middle of an epoch, with the batches it would have yielded."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset, Sampler

from reducr._internal.rng import random_state, set_random_state


class Resumable:
    """Any loader, with its place in the epoch as state.

    A loader with a state of its own, such as torchdata's ``StatefulDataLoader`` and ``ExampleLoader``, is asked for it.
    Of any other the batches that were seen are read again and dropped, from the random states that the epoch began
    with; global random states are then put back. That is exact wherever a loader draws from these states alone. Workers
    that persist draw on from one epoch to the next, so only the order of their points is. A stream whose data set says
    ``has_exact_state`` is not read again.

    Loaders that ``accelerate`` has prepared read one batch ahead. What that batch was drawn from is kept too, so that
    they go on as exactly; a stream in one of them is always read again.

    Every pass is an epoch, of which samplers and data sets with ``set_epoch`` are told.

    Args:
        loader: of batches.
        skips_finished: begin the next epoch where all batches of one had been seen, but its end had not been reached,
            as Lightning expects; else the rest of that epoch, which is empty, comes first.

    Raises:
        ValueError: for a loader that ``accelerate`` has prepared with ``use_stateful_dataloader``.

    Example:
        >>> loader = Resumable([10, 11, 12])
        >>> passed = iter(loader)
        >>> next(passed), next(passed)
        (10, 11)
        >>> again = Resumable([10, 11, 12])
        >>> again.load_state_dict(loader.state_dict())
        >>> list(again), again.epoch
        ([12], 1)
    """

    def __init__(self, loader: Any, *, skips_finished: bool = False) -> None:
        self.loader = loader
        self.skips_finished = skips_finished
        self.epoch = 0
        """Of the pass that is under way, or of the next one."""
        self.position = 0
        """Batches yielded in this epoch."""
        self._start: dict[str, Any] | None = None
        self._before_last: dict[str, Any] | None = None
        self._to_load: dict[str, Any] | None = None
        self._had_workers = False
        if self._reads_ahead and loader.use_stateful_dataloader:
            raise ValueError(
                "accelerate has prepared this loader with use_stateful_dataloader=True, so that it keeps its place "
                "itself, but not the order of shuffled points. Leave that out: the place is kept here, exactly."
            )

    def __len__(self) -> int:
        return len(self.loader)

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass as this epoch."""
        if epoch != self.epoch:
            self.epoch, self.position, self._start, self._to_load = epoch, 0, None, None

    def __iter__(self) -> Iterator[Any]:
        iterator = self._begun() if self._to_load is None else self._resumed(self._to_load)
        while True:
            if self._reads_ahead:
                self._before_last = random_state()
            batch = next(iterator, _END)
            if batch is _END:
                break
            self.position += 1
            yield batch
        self.epoch, self.position, self._start = self.epoch + 1, 0, None

    def state_dict(self) -> dict[str, Any]:
        """Epoch, place in it, and what the loader needs to get there again."""
        if self._to_load is not None:
            return self._to_load
        state: dict[str, Any] = {"epoch": self.epoch, "position": self.position, "start": self._start}
        state |= {"generators": self._generator_states(), "has_workers": self._has_workers}
        if self._start is not None and self._reads_ahead:
            state["before_last"] = self._before_last
        stateful = self._stateful
        if stateful is not None and self._start is not None:
            state["own"] = stateful.state_dict()
            state["has_ended"] = getattr(stateful, "has_ended", False)
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Make the next pass the rest of the one that ``state`` was taken in."""
        self.epoch, self.position, self._start = state["epoch"], state["position"], state["start"]
        self._to_load = None if state["start"] is None else state
        self._had_workers = state["has_workers"]
        self._set_generators(state["generators"])
        if self.skips_finished and self.position == len(self.loader):
            self.set_epoch(self.epoch + 1)

    @property
    def _stateful(self) -> Any:
        """What keeps a place of its own: the loader, or a stream read by this very process; else None."""
        if self._reads_ahead:
            return None
        if hasattr(self.loader, "state_dict") and hasattr(self.loader, "load_state_dict"):
            return self.loader
        data = getattr(self.loader, "dataset", None)
        is_here = isinstance(self.loader, DataLoader) and self.loader.num_workers == 0
        return (
            data if is_here and isinstance(data, IterableDataset) and getattr(data, "has_exact_state", False) else None
        )

    @property
    def _reads_ahead(self) -> bool:
        """Whether ``accelerate`` has prepared the loader, which has a state in name only then."""
        return hasattr(self.loader, "use_stateful_dataloader")

    def _begun(self) -> Iterator[Any]:
        if self._start is not None:  # the pass before was left early
            self.epoch += 1
        self.position = 0
        tell_epoch(self.loader, self.epoch)
        if self._had_workers:
            now, own = random_state(), self._generator_states()
            self._start_workers()
            set_random_state(now)
            self._set_generators(own)
        self._start = {
            "global": random_state(),
            "generators": self._generator_states(),
            "has_workers": self._has_workers,
        }
        return iter(self.loader)

    def _resumed(self, state: dict[str, Any]) -> Iterator[Any]:
        self._to_load = None
        tell_epoch(self.loader, self.epoch)
        if state.get("has_ended", False):
            return iter(())
        now = random_state()
        if state["start"]["has_workers"]:
            self._start_workers()
        set_random_state(state["start"]["global"])
        self._set_generators(state["start"]["generators"])
        if "own" in state:
            self._load_own(state["own"])
        iterator: Iterator[Any] = iter(self.loader)
        for number in range(0 if "own" in state else self.position):
            if number == self.position - 1 and "before_last" in state:
                set_random_state(state["before_last"])
            if next(iterator, _END) is _END:
                raise ValueError(
                    f"the loader ended after {number} batches, but {self.position} of this epoch have been seen: the "
                    "data is not that of the run that goes on. Give the loader the same data and batch size."
                )
        set_random_state(now)
        self._set_generators(state["generators"])
        return iterator

    @property
    def _has_workers(self) -> bool:
        """Whether workers of an earlier pass go on in the next one."""
        return getattr(self.loader, "persistent_workers", False) and self.loader._iterator is not None

    def _start_workers(self) -> None:
        """Begin a pass in vain if there are none: what a loader draws for them must not be drawn in the next one."""
        self._had_workers = False
        if not self._has_workers:
            iter(getattr(self.loader, "base_dataloader", self.loader))

    def _generator_states(self) -> list[Tensor]:
        return [generator.get_state() for generator in self._generators()]

    def _set_generators(self, states: list[Tensor]) -> None:
        generators = self._generators()
        if len(generators) != len(states):
            raise ValueError(
                f"the loader and its samplers have {len(generators)} generators of their own, and had {len(states)} in "
                "the run that goes on. Give them generator= as there."
            )
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)

    def _load_own(self, state: Any) -> None:
        stateful = self._stateful
        if stateful is None:
            raise ValueError(
                f"the state holds the place of a loader that keeps its own; this {type(self.loader).__name__} keeps "
                "none. Give the loader of the run that goes on, with the same num_workers."
            )
        stateful.load_state_dict(state)

    def _generators(self) -> list[torch.Generator]:
        """The generators that the loader and its samplers own, each once; not of those that draw by their epoch."""
        parts = (part for part in _parts(self.loader) if not (isinstance(part, Sampler) and hasattr(part, "set_epoch")))
        found = [getattr(part, "generator", None) for part in parts]
        return list({id(one): one for one in found if isinstance(one, torch.Generator)}.values())


def tell_epoch(loader: Any, epoch: int) -> None:
    """Tell a loader, its samplers and its data set which epoch begins, those of them that have ``set_epoch``."""
    for part in (*_parts(loader), getattr(loader, "dataset", None)):
        if hasattr(part, "set_epoch"):
            part.set_epoch(epoch)


def _parts(loader: Any) -> list[Any]:
    """The loader and the samplers in it, each once."""
    parts, found = [loader], {id(loader)}
    for part in parts:
        inner = {
            id(one): one for name in ("sampler", "batch_sampler") if (one := getattr(part, name, None)) is not None
        }
        parts += [one for key, one in inner.items() if key not in found]
        found |= inner.keys()
    return parts


_END = object()
