"""CSV logger whose file a resumed run continues."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from reducr._internal.files import naming_file, write_text_atomically
from reducr._internal.reading import reading


class CSVMetrics(CSVLogger):
    """Lightning's CSVLogger; a resumed run appends to the file instead of replacing it.

    Lines also reach the file every ``flush_logs_every_n_steps`` steps if some steps log nothing.
    """

    _last_step: int | None = None

    def resume_from(self, step: int) -> None:
        """Keep the lines up to ``step`` and drop later ones, which the resumed run writes again."""
        self._last_step = step

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Tensor | float], step: int | None = None) -> None:  # type: ignore[override]
        """Buffer a line, and write the buffer if it is due."""
        super().log_metrics(metrics, step)
        buffer = self.experiment.metrics
        if buffer and buffer[-1]["step"] - buffer[0]["step"] >= self._flush_logs_every_n_steps:
            self.save()

    @rank_zero_only
    def save(self) -> None:
        """Write the buffer to the file."""
        with naming_file(Path(self.log_dir) / "metrics.csv"):
            super().save()

    @property
    @rank_zero_experiment
    def experiment(self) -> ExperimentWriter:
        """The writer of the file."""
        if self._experiment is None:
            Path(self.log_dir).mkdir(parents=True, exist_ok=True)
            self._experiment = _Writer(self.log_dir, last_step=self._last_step)
        return self._experiment  # type: ignore[return-value]  # Lightning's own class has no public type


class _Writer(ExperimentWriter):
    def __init__(self, log_dir: str, *, last_step: int | None) -> None:
        self.last_step = last_step
        super().__init__(log_dir=log_dir)

    def _check_log_dir_exists(self) -> None:
        """Keep the lines to resume after; Lightning's own method removes the file."""
        path = Path(self.metrics_file_path)
        if self.last_step is None or not path.is_file():
            path.unlink(missing_ok=True)
            return
        with reading(path, "metrics by step"), path.open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
            if "step" not in header:
                raise ValueError("it lacks the column step")
            step_column = header.index("step")
            whole_lines = (line for line in lines if len(line) == len(header))
            earlier_lines = [line for line in whole_lines if int(line[step_column]) <= self.last_step]
        text = io.StringIO()
        csv.writer(text).writerows([header, *earlier_lines])
        write_text_atomically(path, text.getvalue())
        self.metrics_keys = header
