"""Choose the trial of a method that is reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.run_store import Key
from benchmarks.study.runs import Row
from benchmarks.study.tables import Contender

TUNING_SEED = 100


def tuned_row(contender: Contender, runs: Mapping[Key, dict[str, Any]]) -> Row | None:
    """The row of the best trial; None if a trial is missing."""
    trials = [contender.row.with_options(*options) for options in contender.trials]
    if len(trials) == 1:
        return trials[0]
    keys = [row.key(TUNING_SEED) for row in trials]
    if any(key not in runs for key in keys):
        return None
    scores = [(runs[key]["tuning/last/worst"], runs[key]["tuning/last/mean"]) for key in keys]
    return trials[scores.index(max(scores))]
