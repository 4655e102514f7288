"""Progress on the terminal: one bar for the whole run, one for what is being trained, and how it is doing."""

from __future__ import annotations

import logging
import time
import warnings
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text

from reducr._internal.distributed import is_main_rank
from reducr.reports import make_console

_DRAWN_PER_SECOND = 4  # drawing takes time from training
_NUM_NAMED = 3
_LONGEST_NAME = 16


class RunDisplay:
    """Two progress bars with time left and a line below; quiet text when the output is not a terminal.

    The line says the worst group's accuracy on the holdout set, now and at best, and the groups with the largest
    weights where these are not all equal.

    Args:
        num_parts: trainings in the whole run; a run of methods is as far as the steps of these.
        console: where to draw; None for the terminal, on rank 0 alone.
    """

    def __init__(self, num_parts: int, *, console: Console | None = None) -> None:
        self.console = console or (make_console() if is_main_rank() else Console(quiet=True))
        self._progress = _WithNote(
            TextColumn("{task.description:<38}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            refresh_per_second=_DRAWN_PER_SECOND,
        )
        self._warnings = warnings.catch_warnings()
        self._run = self._progress.add_task("run", total=num_parts)
        self._part = self._progress.add_task("", total=None, visible=False)
        self._num_finished = 0
        self._num_steps: int | None = None  # of the method being trained
        self._names: Sequence[str] = ()
        self._best: float | None = None
        self._weights = ""
        self._drawn_at = 0.0

    def __enter__(self) -> RunDisplay:
        # Lightning announces devices and tips at every fit; a comparison makes dozens of fits
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        self._warnings.__enter__()
        # Lightning 2.6 calls a part of torch that newer releases have renamed
        warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.note = ""
        self._progress.stop()
        self._warnings.__exit__(kind, error, trace)

    @property
    def note(self) -> str:
        """The line below the bars."""
        return self._progress.note

    def begin(self, description: str, num_steps: int, *, group_names: Sequence[str] | None = None) -> None:
        """Start the bar of one training; with ``group_names`` that of a method, whose steps move the whole run."""
        self._num_steps = None if group_names is None else num_steps
        self._names = group_names or ()
        self._best, self._weights, self._progress.note = None, "", ""
        self._progress.reset(self._part, description=description, total=num_steps, visible=True)

    def advance(self, step: int, worst_group_accuracy: float | None) -> None:
        """Move the bar of the training to ``step``."""
        self._progress.update(self._part, completed=step)
        if worst_group_accuracy is not None:
            self._best = max(worst_group_accuracy, self._best or 0.0)
        now = time.monotonic()
        if now - self._drawn_at < 1 / _DRAWN_PER_SECOND and step != self._num_steps:
            return
        self._drawn_at = now
        if self._num_steps is not None:
            self._progress.update(self._run, completed=self._num_finished + step / self._num_steps)
        if worst_group_accuracy is not None:
            self._progress.note = (
                f"worst group (holdout) {worst_group_accuracy:.3f}, best so far {self._best:.3f}{self._weights}"
            )

    def show_weights(self, weights: Sequence[float]) -> None:
        """Name the groups with the largest weights, one for each name that the training began with."""
        if len(self._names) != len(weights) or max(weights) - min(weights) < 1e-6:
            self._weights = ""
            return
        largest = sorted(range(len(weights)), key=lambda group: -weights[group])[:_NUM_NAMED]
        named = ", ".join(f"{self._names[group][:_LONGEST_NAME]} {weights[group]:.2f}" for group in largest)
        self._weights = f" · largest weights: {named}"

    def finish(self, note: str) -> None:
        """End one training, with a line that stays."""
        self._num_finished += 1
        self._num_steps = None
        self._progress.update(self._run, completed=self._num_finished)
        self.console.print(note, highlight=False)


class _WithNote(Progress):
    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, overflow="ellipsis", no_wrap=True)
