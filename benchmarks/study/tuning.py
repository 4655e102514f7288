"""Which trial of a method is reported."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.kept_runs import Key
from benchmarks.study.runs import Row
from benchmarks.study.tables import Contender, Table

FIRST_TUNING_SEED = 100


def tuning_seeds(table: Table) -> range:
    """Those of its trials."""
    return range(FIRST_TUNING_SEED, FIRST_TUNING_SEED + table.num_tuning_seeds)


def chosen(table: Table, contender: Contender, runs: Mapping[Key, dict[str, Any]]) -> Row | None:
    """The row of the best trial; None where one has not been run."""
    trials = [contender.row.with_options(*options) for options in contender.trials]
    if len(trials) == 1:
        return trials[0]
    keys = {row: [row.key(seed) for seed in tuning_seeds(table)] for row in trials}
    if any(key not in runs for of_row in keys.values() for key in of_row):
        return None

    def score(row: Row) -> tuple[float, float]:
        worst, mean = (sum(runs[key][f"tuning/last/{name}"] for key in keys[row]) for name in ("worst", "mean"))
        return worst, mean

    return max(trials, key=score)
