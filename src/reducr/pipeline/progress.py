"""Progress on the terminal: one bar for the whole run, one for what is being trained."""

from __future__ import annotations

import logging
import warnings
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from reducr.distributed import is_main
from reducr.reports import make_console

_DRAWN_PER_SECOND = 4  # drawing takes time from training


class RunDisplay:
    """Two progress bars with time left; quiet text when the output is not a terminal.

    Args:
        num_parts: trainings in the whole run.
        console: where to draw; None for the terminal, on rank 0 alone.
    """

    def __init__(self, num_parts: int, *, console: Console | None = None) -> None:
        self.console = console or (make_console() if is_main() else Console(quiet=True))
        self._progress = Progress(
            TextColumn("{task.description:<38}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=self.console,
            refresh_per_second=_DRAWN_PER_SECOND,
        )
        self._warnings = warnings.catch_warnings()
        self._run = self._progress.add_task("run", total=num_parts, note="")
        self._part = self._progress.add_task("", total=None, note="", visible=False)

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
        self._progress.stop()
        self._warnings.__exit__(kind, error, trace)

    def begin(self, description: str, num_steps: int) -> None:
        """Start the bar of one training."""
        self._progress.reset(self._part, description=description, total=num_steps, visible=True, note="")

    def advance(self, step: int, worst_group_accuracy: float | None) -> None:
        """Move the bar of the training to ``step``."""
        note = "" if worst_group_accuracy is None else f"worst group (holdout) {worst_group_accuracy:.3f}"
        self._progress.update(self._part, completed=step, note=note)

    def finish(self, note: str) -> None:
        """End one training, with a line that stays."""
        self._progress.advance(self._run)
        self.console.print(note, highlight=False)
