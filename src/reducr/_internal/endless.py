"""Batches of a loader without end, from any position."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from reducr._internal.rng import random_state, set_random_state


class EndlessBatches:
    """Iterate over ``batches`` again and again.

    Global random states are restored after a pass has begun, so that a DataLoader, which draws a seed for every pass,
    does not change the draws of a training. A position is found again by reading from the start, once: that is exact
    for loaders whose order is fixed, or drawn from a freshly seeded generator of their own.

    Args:
        batches: anything that can be iterated more than once.
        name: of the batches, for messages.

    Raises:
        ValueError: for an iterator; when read, if there is no batch.
    """

    def __init__(self, batches: Iterable[Any], *, name: str) -> None:
        if isinstance(batches, Iterator):
            raise ValueError(  # noqa: TRY004  (it is iterable, but only once)
                f"{name} are read again and again, and a {type(batches).__name__} can be iterated only once. Pass a "
                "loader, or a list of batches."
            )
        self.batches = batches
        self.name = name
        self.position = 0
        """Batches read so far."""
        self._stream: Iterator[Any] | None = None
        self._last: Any = None
        self._is_taken_back = False

    def seek(self, position: int) -> None:
        """Continue after ``position`` batches."""
        self.position, self._stream, self._is_taken_back = position, None, False

    def take_back(self) -> None:
        """Give the last batch again."""
        self.position -= 1
        self._is_taken_back = True

    def __next__(self) -> Any:
        if self._is_taken_back:
            self._is_taken_back = False
            self.position += 1
            return self._last
        if self._stream is None:
            self._stream = self._passes()
            for _ in range(self.position):
                next(self._stream)
        self._last = next(self._stream)
        self.position += 1
        return self._last

    def _passes(self) -> Iterator[Any]:
        end = object()
        while True:
            before = random_state()
            batches = iter(self.batches)
            batch = next(batches, end)
            set_random_state(before)
            if batch is end:
                raise ValueError(f"{self.name} hold no batch. Pass at least one, or leave them out.")
            while batch is not end:
                yield batch
                batch = next(batches, end)

    def __getstate__(self) -> dict[str, Any]:
        # iterators of loaders cannot be copied; the place is found again
        return vars(self) | {"_stream": None, "_last": None, "_is_taken_back": False}
