"""Metrics in a CSV file that a resumed run goes on writing."""

from __future__ import annotations

import csv
import io
from pathlib import Path

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from reducr._internal.files import write_text_atomically


class CSVMetrics(CSVLogger):
    """Lightning's CSVLogger, but ``go_on_from`` keeps what a run has written before it was interrupted.

    Lines also reach the file every ``flush_logs_every_n_steps`` where not every step has one.
    """

    _last_step: int | None = None

    def go_on_from(self, step: int) -> None:
        """Keep the lines up to ``step``, where the run goes on, and drop those after it, which will come again."""
        self._last_step = step

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, Tensor | float], step: int | None = None) -> None:  # type: ignore[override]
        """Take up a line."""
        super().log_metrics(metrics, step)
        waiting = self.experiment.metrics
        if waiting and waiting[-1]["step"] - waiting[0]["step"] >= self._flush_logs_every_n_steps:
            self.save()

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
        """In place of removing the file that is there."""
        path = Path(self.metrics_file_path)
        if self.last_step is None or not path.is_file():
            path.unlink(missing_ok=True)
            return
        with path.open(newline="", encoding="utf-8") as file:
            header, *lines = csv.reader(file)
        place = header.index("step")
        whole = (line for line in lines if len(line) == len(header))
        kept = [line for line in whole if int(line[place]) <= self.last_step]
        text = io.StringIO()
        csv.writer(text).writerows([header, *kept])
        write_text_atomically(path, text.getvalue())
        self.metrics_keys = header
