"""Read the ``metrics.csv`` of a training."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from reducr._internal.reading import reading

Floats = NDArray[np.float64]
_MAX_STEPS = 600  # more than any plot can show
_VALIDATION_COLUMN = "holdout/mean_accuracy"


@dataclass(frozen=True)
class MetricsLog:
    """The metrics of one training: every validation, and up to 600 evenly spaced other steps.

    Args:
        columns: by name, (L,) floats, NaN where a line has no value.
    """

    columns: Mapping[str, Floats]

    @classmethod
    def read(cls, path: Path) -> MetricsLog:
        """Read the file, except a last line that is still being written.

        Raises:
            ValueError: if the file is damaged.
        """
        with reading(path, "metrics by step"):
            return cls._read(path)

    @classmethod
    def _read(cls, path: Path) -> MetricsLog:
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            lines = [line for line in reader if len(line) == len(header)]
        if "step" not in header:
            if lines:
                raise ValueError("it lacks the column step")
            return cls({})
        validation = header.index(_VALIDATION_COLUMN) if _VALIDATION_COLUMN in header else None
        steps = [number for number, line in enumerate(lines) if validation is None or not line[validation]]
        stride = -(-len(steps) // _MAX_STEPS) or 1
        dropped = set(steps) - set(steps[stride - 1 :: stride]) - set(steps[-1:])
        values = [[float(cell or "nan") for cell in line] for n, line in enumerate(lines) if n not in dropped]
        table = np.array(values, dtype=np.float64).reshape(-1, len(header))
        return cls({name: table[:, column] for column, name in enumerate(header)})

    def curve(self, name: str, *, against: str = "step") -> tuple[Floats, Floats]:
        """(T,) values of ``against`` and (T,) values of ``name`` on the lines that have both; empty if none has."""
        if name not in self.columns or against not in self.columns:
            return np.zeros(0), np.zeros(0)
        x, y = self.columns[against], self.columns[name]
        is_known = ~np.isnan(x) & ~np.isnan(y)
        return x[is_known], y[is_known]

    def by_group(self, prefix: str) -> tuple[Floats, Floats]:
        """(T,) steps and (T, G) values of the columns ``prefix0``, ``prefix1``, ...; empty if there are none."""
        names = [name for name in self.columns if name.startswith(prefix)]
        names.sort(key=lambda name: int(name.removeprefix(prefix)))
        if not names:
            return np.zeros(0), np.zeros((0, 0))
        is_known = ~np.isnan(self.columns[names[0]])
        return self.columns["step"][is_known], np.stack([self.columns[name][is_known] for name in names], axis=1)
