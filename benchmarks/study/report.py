"""Write a table of the study in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import fmean
from typing import Any

from benchmarks.run_store import RunStore
from benchmarks.study.runs import Row
from benchmarks.study.tables import Table
from benchmarks.study.tuning import TUNING_SEED, tuned_row
from reducr._internal.run_folder import CHECKPOINT_RULES
from reducr.reports.statistics import estimate, paired_difference

Outcomes = Mapping[int, dict[str, Any]]
"""The runs of a row by seed."""


def markdown_report(table: Table, store: RunStore) -> str:
    """Accuracies at the last step with differences, then those of the two rules that choose a checkpoint."""
    rows: dict[Row, Outcomes] = {}
    for contender in table.contenders:
        row = tuned_row(contender, store.runs)
        if row is not None:
            outcomes = {seed: store.runs[row.key(seed)] for seed in range(TUNING_SEED) if row.key(seed) in store.runs}
            if len(outcomes) >= table.num_seeds:
                rows[row] = outcomes
    if not rows:
        return "No row has all its runs yet."
    seconds, machine = store.conditions["seconds"], store.conditions["machine"]
    lines = [f"**{table.title}**, {seconds:g} s of one core ({machine['processor']}), {table.num_seeds} seeds", ""]
    lines += _last_step(rows)
    if any(len(contender.trials) > 1 for contender in table.contenders):
        lines += ["", *_goal(rows), "", *_checkpoint_rules(rows)]
    return "\n".join(lines)


def _last_step(rows: Mapping[Row, Outcomes]) -> list[str]:
    """Accuracies, and the differences of the first row of each block minus each other row."""
    has_blocks = any(row.block for row in rows)
    lines = [
        "| at the last step " + "| " * has_blocks + "| worst class | first minus this | mean | first minus this | "
        "steps | wrong labels |",
        "| --- " + "| --- " * has_blocks + "|" + " ---: |" * 6,
    ]
    firsts: dict[str, Outcomes] = {}
    for row, outcomes in rows.items():
        is_first = row.block not in firsts
        first = firsts.setdefault(row.block, outcomes)
        cells = [row.block if is_first else ""] * has_blocks + [row.label]
        for name in ("worst", "mean"):
            accuracies, first_accuracies = (_values(runs, f"report/last/{name}") for runs in (outcomes, first))
            cells.append(_mean_with_deviation(accuracies))
            cells.append("–" if is_first else _difference_with_interval(first_accuracies, accuracies))
        corrupted = [run["corrupted"] for run in outcomes.values() if run["corrupted"] is not None]
        cells.append(f"{fmean(run['steps'] for run in outcomes.values()):.0f}")
        cells.append(f"{fmean(corrupted):.3f}" if corrupted else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _goal(rows: Mapping[Row, Outcomes]) -> list[str]:
    """REDUCR's rows minus the best other row in the worst class."""
    others = [row for row in rows if not row.label.startswith("REDUCR")]
    if not others or len(others) == len(rows):
        return []
    best = max(others, key=lambda row: sum(_values(rows[row], "report/last/worst").values()))
    lines = [f"Differences to {best.label}, the best other method in the worst class:", ""]
    for row, outcomes in rows.items():
        if row not in others:
            worst, mean = (
                _difference_with_interval(*(_values(runs, f"report/last/{name}") for runs in (outcomes, rows[best])))
                for name in ("worst", "mean")
            )
            lines.append(f"- {row.label}: worst class {worst}, mean {mean}")
    return lines


def _checkpoint_rules(rows: Mapping[Row, Outcomes]) -> list[str]:
    """Accuracies of the checkpoints that are chosen on holdout data, and the tuned options."""
    rules = [rule for rule in CHECKPOINT_RULES if rule != "last"]
    lines = [
        f"| checkpoint by | {' | '.join(f'{rule}: worst class | mean' for rule in rules)} | options |",
        "| --- |" + " ---: |" * 2 * len(rules) + " --- |",
    ]
    for row, outcomes in rows.items():
        cells = [
            _mean_with_deviation(_values(outcomes, f"report/{rule}/{name}"))
            for rule in rules
            for name in ("worst", "mean")
        ]
        tuned = ", ".join(
            f"`{option.split('.', 1)[-1] if 'lr=' in option else option.split('options.')[-1]}`"
            for option in row.options
            if option[0] != "+"
        )
        lines.append(f"| {row.label} | {' | '.join(cells)} | {tuned} |")
    return lines


def _values(outcomes: Outcomes, name: str) -> dict[int, float]:
    return {seed: run[name] for seed, run in outcomes.items()}


def _mean_with_deviation(values: Mapping[int, float]) -> str:
    accuracy = estimate(list(values.values()))
    assert accuracy is not None
    return f"{accuracy.mean:.3f} ± {accuracy.deviation or 0:.3f}"


def _difference_with_interval(first: Mapping[int, float], second: Mapping[int, float]) -> str:
    difference = paired_difference(first, second)
    if difference is None:
        return "–"
    interval = f" [{difference.low:+.3f}, {difference.high:+.3f}]" if difference.low is not None else ""
    return f"{difference.mean:+.3f}{interval}"
