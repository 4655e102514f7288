"""Progress in the terminal: a bar for the whole run, a bar for the current training, and its accuracy."""

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
from reducr._internal.text import one_line
from reducr.reports import make_console, print_line

_REFRESHES_PER_SECOND = 4  # Drawing takes time from training.
_NUM_NAMED_GROUPS = 3
_MAX_NAME_LENGTH = 16


class RunDisplay:
    """Two progress bars with the time left and a line below them; plain text if the output is not a terminal.

    The line shows the worst group's accuracy on the holdout set, now and at best, and the groups with the largest
    weights if the weights differ.

    Args:
        num_trainings: number of trainings in the whole run.
        console: where to draw; None for the terminal, on rank 0 only.
    """

    def __init__(self, num_trainings: int, *, console: Console | None = None) -> None:
        self.console = console or (make_console() if is_main_rank() else Console(quiet=True))
        self._progress = _WithNote(
            TextColumn("{task.description:<38}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            refresh_per_second=_REFRESHES_PER_SECOND,
        )
        self._warnings = warnings.catch_warnings()
        self._run = self._progress.add_task("run", total=num_trainings)
        self._training = self._progress.add_task("", total=None, visible=False)
        self._num_finished = 0
        self._num_steps: int | None = None  # of the method in training
        self._names: Sequence[str] = ()
        self._best: float | None = None
        self._weights = ""
        self._drawn_at = 0.0

    def __enter__(self) -> RunDisplay:
        # Lightning logs devices and tips at every fit, and a comparison makes dozens of fits.
        logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)
        self._warnings.__enter__()
        # Lightning 2.6 uses a name that newer torch releases deprecate.
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
        """Start the bar of a training. With ``group_names`` it is a method, and its steps move the bar of the run."""
        self._num_steps = None if group_names is None else num_steps
        self._names = group_names or ()
        self._best, self._weights, self._progress.note = None, "", ""
        description = one_line(description)
        self._progress.reset(self._training, description=description, total=num_steps, visible=True)

    def advance(self, step: int, worst_group_accuracy: float | None) -> None:
        """Move the bar of the training to ``step``."""
        self._progress.update(self._training, completed=step)
        if worst_group_accuracy is not None:
            self._best = max(worst_group_accuracy, self._best or 0.0)
        now = time.monotonic()
        if now - self._drawn_at < 1 / _REFRESHES_PER_SECOND and step != self._num_steps:
            return
        self._drawn_at = now
        if self._num_steps is not None:
            self._progress.update(self._run, completed=self._num_finished + step / self._num_steps)
        if worst_group_accuracy is not None:
            self._progress.note = (
                f"worst group (holdout) {worst_group_accuracy:.3f}, best so far {self._best:.3f}{self._weights}"
            )

    def show_weights(self, weights: Sequence[float]) -> None:
        """Show the groups with the largest of ``weights``, which are in the order of the group names."""
        if len(self._names) != len(weights) or max(weights) - min(weights) < 1e-6:
            self._weights = ""
            return
        largest = sorted(range(len(weights)), key=lambda group: -weights[group])[:_NUM_NAMED_GROUPS]
        shown = ", ".join(
            f"{one_line(self._names[group])[:_MAX_NAME_LENGTH]} {weights[group]:.2f}" for group in largest
        )
        self._weights = f" · largest weights: {shown}"

    def finish(self, note: str) -> None:
        """End a training and print a line for it."""
        self._num_finished += 1
        self._num_steps = None
        self._progress.update(self._run, completed=self._num_finished)
        print_line(note, self.console)


class _WithNote(Progress):
    note = ""

    def get_renderables(self) -> Iterable[RenderableType]:
        yield from super().get_renderables()
        if self.note:
            yield Text(self.note, overflow="ellipsis", no_wrap=True)
