"""The batches of a pass that have been drawn, and how many of them the training loop has got."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reducr.training.reader import Reader


class DrawnBatches:
    """The place in a pass, and its batches from the first that may be needed again on.

    A reader with worker processes asks for batches ahead. Those that it has been given, but has not yielded to the
    training loop, are part of the state: a resumed pass gives them again.

    Args:
        num_batches: batches per pass.
    """

    def __init__(self, num_batches: int) -> None:
        self.num_batches = num_batches
        self.reset(epoch=0)

    def reset(self, epoch: int) -> None:
        """Go to the beginning of an epoch."""
        self.pass_epoch = epoch
        """Epoch of the current pass."""
        self.is_open = True
        """Whether the next reader goes on with the current pass; if not, it begins another one."""
        self.has_ended = False
        """Whether the end of the pass has been dealt with."""
        self.had_workers = False
        """Whether the pass was saved by a reader whose workers stay."""
        self.reader = Reader()
        self._num_requests = 0
        self._first = 0
        self._num_given = 0
        self._batches: list[Tensor] = []

    def begin(self, reader: Reader) -> None:
        """Let ``reader`` read the current pass on."""
        self.is_open, self.reader = False, reader

    @property
    def num_drawn(self) -> int:
        """Batches of the pass drawn so far."""
        return self._first + len(self._batches)

    @property
    def num_given(self) -> int:
        """Batches of the pass that the reader has got so far."""
        return self._num_given

    @property
    def position(self) -> int | None:
        """Batches of the pass that the training loop has got; None if the reader does not show it."""
        num_yielded = self.reader.num_yielded(self._num_requests)
        return None if num_yielded is None else min(self._first + num_yielded, self._num_given)

    @property
    def is_over(self) -> bool:
        """Whether the training loop has got every batch of the pass."""
        position = self.position
        return (self._num_given if position is None else position) == self.num_batches

    @property
    def epoch(self) -> int:
        """Epoch of the current pass, or of the next one if it is over."""
        return self.pass_epoch + self.is_over

    def request(self) -> bool:
        """Count a request of the reader; returns whether the pass has a batch for it."""
        self._num_requests += 1
        return self._num_given < self.num_batches

    @property
    def needs_draw(self) -> bool:
        """Whether the next batch must be drawn first."""
        return self._num_given == self.num_drawn

    def add(self, index: Tensor) -> None:
        """Add a batch that was drawn."""
        self._batches.append(index)

    def give(self) -> Tensor:
        """Return the next batch."""
        index = self._batches[self._num_given - self._first]
        self._num_given += 1
        return index

    def state_dict(self, *, num_batches: int | None) -> dict[str, Any]:
        """Return the place after ``num_batches`` of the pass, None for those that the training loop has got.

        Raises:
            ValueError: if the place is unknown, or ``num_batches`` is not among the batches drawn.
        """
        position = self.position if num_batches is None else num_batches
        if position is None:
            raise ValueError(
                "The loader that reads this batch sampler does not show how many batches it has yielded. Pass "
                "`num_batches=`, the batches of this pass that were trained on."
            )
        if not self._first <= position <= self.num_drawn:
            raise ValueError(
                f"`num_batches` must be in {self._first}..{self.num_drawn}, the batches of this pass drawn so far; got "
                f"{position}."
            )
        return {
            "epoch": self.pass_epoch,
            "position": position,
            "ahead": [index.clone() for index in self._batches[position - self._first :]],
            "has_ended": self.has_ended,
            "has_workers": self.reader.keeps_workers,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self.reset(state["epoch"])
        self._first = self._num_given = state["position"]
        self._batches = [index.clone() for index in state["ahead"]]
        self.has_ended, self.had_workers = state["has_ended"], state["has_workers"]
