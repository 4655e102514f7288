"""A table of the study in Markdown."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from benchmarks.run_store import RunStore
from benchmarks.study.runs import Row
from benchmarks.study.tables import Table
from benchmarks.study.tuning import TUNING_SEED, chosen
from reducr._internal.run_folder import CHECKPOINT_RULES
from reducr.reports.statistics import estimate, paired_difference

JointLabels = Mapping[int, dict[str, Any]]


def report_of(table: Table, kept: RunStore) -> str:
    """What the runs say: at the last step with differences, then by the two rules that choose a checkpoint."""
    rows: dict[Row, JointLabels] = {}
    for contender in table.contenders:
        row = chosen(contender, kept.runs)
        if row is not None:
            outcomes = {seed: kept.runs[row.key(seed)] for seed in range(TUNING_SEED) if row.key(seed) in kept.runs}
            if len(outcomes) >= table.num_seeds:
                rows[row] = outcomes
    if not rows:
        return "Nothing has been run to the end."
    seconds, machine = kept.conditions["seconds"], kept.conditions["machine"]
    lines = [f"**{table.title}**, {seconds:g} s of one core ({machine['processor']}), {table.num_seeds} seeds", ""]
    lines += _last_step(rows)
    if any(len(one.trials) > 1 for one in table.contenders):
        lines += ["", *_goal(rows), "", *_checkpoint_rules(rows)]
    return "\n".join(lines)


def _last_step(rows: Mapping[Row, JointLabels]) -> list[str]:
    """Accuracies, and what the first row of each block has more."""
    has_blocks = any(row.block for row in rows)
    lines = [
        "| at the last step " + "| " * has_blocks + "| worst class | the first less it | mean | the first less it | "
        "steps | wrong labels |",
        "| --- " + "| --- " * has_blocks + "|" + " ---: |" * 6,
    ]
    firsts: dict[str, JointLabels] = {}
    for row, outcomes in rows.items():
        is_first = row.block not in firsts
        first = firsts.setdefault(row.block, outcomes)
        cells = [row.block if is_first else ""] * has_blocks + [row.label]
        for name in ("worst", "mean"):
            own, others = (_values(one, f"report/last/{name}") for one in (outcomes, first))
            cells += [_with_deviation(own), "–" if is_first else _with_interval(others, own)]
        corrupted = [one["corrupted"] for one in outcomes.values() if one["corrupted"] is not None]
        cells.append(f"{sum(one['steps'] for one in outcomes.values()) / len(outcomes):.0f}")
        cells.append(f"{sum(corrupted) / len(corrupted):.3f}" if corrupted else "–")
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _goal(rows: Mapping[Row, JointLabels]) -> list[str]:
    """REDUCR's rows less the best of the others in the worst class."""
    others = [row for row in rows if not row.label.startswith("REDUCR")]
    if not others or len(others) == len(rows):
        return []
    best = max(others, key=lambda row: sum(_values(rows[row], "report/last/worst").values()))
    lines = [f"Less {best.label}, the best of the others in the worst class:", ""]
    for row, outcomes in rows.items():
        if row not in others:
            worst, mean = (
                _with_interval(*(_values(one, f"report/last/{name}") for one in (outcomes, rows[best])))
                for name in ("worst", "mean")
            )
            lines.append(f"- {row.label}: worst class {worst}, mean {mean}")
    return lines


def _checkpoint_rules(rows: Mapping[Row, JointLabels]) -> list[str]:
    """Accuracies of the checkpoints that are chosen on holdout data, and what a method was tuned to."""
    rules = [rule for rule in CHECKPOINT_RULES if rule != "last"]
    lines = [
        f"| checkpoint by | {' | '.join(f'{rule}: worst class | mean' for rule in rules)} | options |",
        "| --- |" + " ---: |" * 2 * len(rules) + " --- |",
    ]
    for row, outcomes in rows.items():
        cells = [
            _with_deviation(_values(outcomes, f"report/{rule}/{name}")) for rule in rules for name in ("worst", "mean")
        ]
        tuned = ", ".join(
            f"`{one.split('.', 1)[-1] if 'lr=' in one else one.split('options.')[-1]}`"
            for one in row.options
            if one[0] != "+"
        )
        lines.append(f"| {row.label} | {' | '.join(cells)} | {tuned} |")
    return lines


def _values(outcomes: JointLabels, name: str) -> dict[int, float]:
    return {seed: one[name] for seed, one in outcomes.items()}


def _with_deviation(values: Mapping[int, float]) -> str:
    found = estimate(list(values.values()))
    return f"{found.mean:.3f} ± {found.deviation or 0:.3f}"  # type: ignore[union-attr]  # there are some


def _with_interval(first: Mapping[int, float], other: Mapping[int, float]) -> str:
    found = paired_difference(first, other)
    if found is None:
        return "–"
    return f"{found.mean:+.3f}" + (f" [{found.low:+.3f}, {found.high:+.3f}]" if found.low is not None else "")
