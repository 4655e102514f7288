"""A training loader whose position ``SelectiveTraining`` saves in the Trainer's checkpoints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from reducr._internal.distributed import num_ranks
from reducr._internal.rng import random_state, set_random_state
from reducr.scoring import known_sizes
from reducr.training.resumable import Resumable

_END = object()


class ResumedLoader:
    """A training loader whose position the callback saves, because Lightning's own is not exact.

    Lightning reads loaders without a length one batch ahead, and does not restore a position at the end of an epoch.
    A last batch that is known to be too short to select two examples from does not count in the length, so that the
    Trainer ends the epoch before it.

    Args:
        loader: anything that the Trainer takes; this one passes its attributes on.
        callback: of the training.
        place: position to continue from; None to start.
    """

    batches: Resumable
    callback: Any
    before_last: dict[str, Any] | None
    place_to_begin_at: dict[str, Any] | None
    sizes: list[int]

    def __init__(self, loader: Any, callback: Any, place: dict[str, Any] | None) -> None:
        is_resumable = isinstance(loader, Resumable)
        vars(self).update(
            loader=loader,
            batches=loader if is_resumable else Resumable(loader),
            callback=callback,
            before_last=None,
            place_to_begin_at=place,
            sizes=known_sizes(loader.loader if is_resumable else loader) or [],
        )
        if place is not None:
            self.batches.check_sizes(place["batches"])
            self.batches.load_state_dict(place["batches"])
        elif not is_resumable:
            self.batches.set_epoch(callback.trainer.current_epoch)

    def __len__(self) -> int:
        num_skipped: int = self.callback.downsampler.short_batches.num_skipped(self.sizes)
        return len(self.batches) - num_skipped

    def count_skipped(self) -> None:
        """Count the last batch of an epoch if it was left out; tells once."""
        downsampler = self.callback.downsampler
        if self.sizes and self.callback.trainer.num_training_batches == len(self) < len(self.batches):
            sizes = [[self.sizes[-1], max(self.sizes)]] * num_ranks()
            downsampler.short_batches.skips(sizes, downsampler.counts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in vars(self):
            vars(self)[name] = value
        else:
            setattr(self.loader, name, value)

    def __iter__(self) -> Iterator[Any]:
        place, self.place_to_begin_at = self.place_to_begin_at, None
        if place is not None and place["has_ended"] and (place["is_open"] or self.callback.trainer.max_steps != -1):
            return iter(())  # Lightning continues in the epoch that had ended
        return self._iterated(place)

    def state_dict(self) -> dict[str, Any]:
        """Return nothing: see ``place``."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Do nothing: see ``place``."""

    def place(self) -> dict[str, Any]:
        """Return the position of the first batch that has not been trained on, and how Lightning will read it."""
        fit_loop = self.callback.trainer.fit_loop
        batches: Any = fit_loop.epoch_loop.batch_progress
        epochs: Any = fit_loop.epoch_progress.current
        place = {
            "batches": self.batches.state_dict(),
            "random_state": None,
            "has_ended": batches.is_last_batch and batches.total.completed == batches.total.processed,
            "is_open": epochs.ready != epochs.processed,
        }
        if batches.is_last_batch:
            if place["batches"]["start"] is not None:
                place["batches"] = _next_epoch(place["batches"])
        elif self._is_read_ahead and self.before_last is not None:
            place |= self.before_last
        return place

    @property
    def _is_read_ahead(self) -> bool:
        return bool(self.callback.trainer.num_training_batches == math.inf)

    def _iterated(self, place: dict[str, Any] | None) -> Iterator[Any]:
        drawn_from = None if place is None else place["random_state"]
        batches = iter(self.batches)
        while True:
            resumed = self.callback.random_state
            if resumed is not None:  # reading ahead, before the training begins
                set_random_state(drawn_from or resumed)
            if self._is_read_ahead:
                self.before_last = {"batches": self.batches.state_dict(), "random_state": random_state()}
            batch = next(batches, _END)
            if resumed is not None and drawn_from is None:
                self.callback.random_state = random_state()
            if batch is _END:
                return
            drawn_from = None
            yield batch


def _next_epoch(state: dict[str, Any]) -> dict[str, Any]:
    """The state of a ``Resumable`` at the start of the epoch after ``state``."""
    kept = {name: state[name] for name in ("generators", "has_workers")}
    return {"epoch": state["epoch"] + 1, "position": 0, "start": None, **kept}
