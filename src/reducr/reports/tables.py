"""The tables of a comparison: accuracies under every checkpoint rule, differences, cost, and what was selected."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from reducr._internal.run_folder import CHECKPOINT_RULES, ResultRow
from reducr.reports.curves import accuracy_at, accuracy_source, ends, first_ends
from reducr.reports.run_reader import Comparison, Series
from reducr.reports.statistics import Estimate, estimate, paired_difference

Cell = str | Estimate
NOTHING = "–"
_NUM_CONFUSIONS = 3
_RULE_TITLES = {
    "last": "Test accuracy at the last step",
    "best_worst_group": "Test accuracy of the checkpoint with the best worst group on holdout data (best_worst_group)",
    "best_mean": "Test accuracy of the checkpoint with the best mean on holdout data (best_mean)",
}


@dataclass(frozen=True)
class Table:
    """A titled table; the first column is left-aligned, the others right.

    Args:
        title: what it shows.
        columns: their headings.
        lines: of cells, text or estimates.
        name: of its file, without ending.
        note: what a reader must know.
        has_bars: estimates are fractions, which a page shows as bars too.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    name: str = "table"
    note: str = ""
    has_bars: bool = False


def headline_table(rows: Sequence[ResultRow]) -> Table:
    """Accuracy at the last step, what it cost and what was selected, for every method."""
    lines = []
    for method, own in _by_method(rows).items():
        last = [row for row in own if row.checkpoint_rule == "last"]
        lines.append(
            (
                method,
                mean_and_deviation([row.worst_class_accuracy for row in last]),
                mean_and_deviation([row.mean_accuracy for row in last]),
                _mean([row.steps for row in last], ".0f"),
                _mean([row.total_seconds for row in last], ".1f"),
                _mean([row.selection_seconds for row in last], ".1f"),
                _mean([row.selected_fraction for row in last], ".3f"),
                _mean([row.corrupted_fraction for row in last], ".3f"),
            )
        )
    columns = ("method", "worst class", "mean", "steps", "seconds", "selecting", "selected", "corrupted")
    title = f"Test accuracy at the last step over {_num_seeds(rows)} seed(s), with what it cost"
    note = (
        "± one standard deviation; seconds in all and spent selecting; selected fraction of the candidates; share of "
        "corrupted points among the selected."
    )
    return Table(title, columns, tuple(lines), name="overview", note=note)


def checkpoint_table(rows: Sequence[ResultRow]) -> Table:
    """Accuracy of the checkpoints chosen on holdout data, for every method."""
    rules = [rule for rule in CHECKPOINT_RULES if rule != "last"]
    lines = []
    for method, own in _by_method(rows).items():
        line = [method]
        for rule in rules:
            chosen = [row for row in own if row.checkpoint_rule == rule]
            line.append(mean_and_deviation([row.worst_class_accuracy for row in chosen]))
            line.append(mean_and_deviation([row.mean_accuracy for row in chosen]))
        lines.append(tuple(line))
    columns = ("method", *(f"{rule}: {what}" for rule in rules for what in ("worst class", "mean")))
    title = f"Test accuracy of the checkpoint chosen on holdout data by each rule, over {_num_seeds(rows)} seed(s)"
    return Table(title, columns, tuple(lines), name="checkpoints")


def result_rows(comparison: Comparison) -> list[ResultRow]:
    """All finished rows, with the label of their series as method."""
    found = []
    for series in comparison.series:
        for training in series.trainings.values():
            found += [replace(row, method=series.label) for row in training.rows.values()]
    return found


def accuracy_tables(comparison: Comparison) -> list[Table]:
    """One table for each checkpoint rule, and at equal steps and equal seconds, with paired differences.

    Equal steps, and equal seconds, are those at which the first method has come to its end; seconds also those at which
    REDUCR has. They are each seed's own, and the irreducible stage is charged in full.
    """
    tables = [
        _accuracy_table(
            comparison, partial(Series.values, rule=rule), title=_RULE_TITLES[rule], name=f"accuracy_{rule}", note=""
        )
        for rule in CHECKPOINT_RULES
    ]
    source = accuracy_source(comparison)
    if source is None:
        return tables
    told = ""
    if source == "holdout":
        told = "It was not logged of test points, which record.test_accuracy=true does. "
        seen = [series.label for series in comparison.series if series.is_trained_on_holdout]
        if seen:
            told += f"Trained on these very points: {', '.join(seen)}. "
    budgets = [("step", "when the first method is done", first_ends(comparison, "step"))]
    budgets.append(("seconds", "when the first method is done", first_ends(comparison, "seconds")))
    if comparison.reducr is not None:
        limits = ends(comparison.reducr, source=source, against="seconds")
        budgets.append(("seconds", "when REDUCR is done", limits))
    for against, when, limits in budgets:
        if not limits:
            continue
        shown = [f"{limit:.3g}" for limit in sorted(set(limits.values()))]
        where = shown[0] if len(shown) == 1 else f"{shown[0]} to {shown[-1]}, each seed's own"
        unit = "step" if against == "step" else "seconds"
        note = f"{told}At the last evaluation up to {unit} {where}. What had none by then has no figure."
        if when == "when REDUCR is done":
            note += " What ended before counts as it ended: more steps might have made it better."
        tables.append(
            _accuracy_table(
                comparison,
                partial(accuracy_at, source=source, against=against, limits=limits),
                title=f"{source.capitalize()} accuracy at equal {against.removesuffix('s')}s, {when}",
                name=f"accuracy_equal_{against}" + ("_of_reducr" if when == "when REDUCR is done" else ""),
                note=note,
            )
        )
    return tables


def _accuracy_table(
    comparison: Comparison, values: Callable[[Series, str], dict[int, float]], *, title: str, name: str, note: str
) -> Table:
    has_groups = any(
        values(series, "worst_group_accuracy") != values(series, "worst_class_accuracy") for series in comparison.series
    )
    measured = {"worst_class_accuracy": "worst class"} | ({"worst_group_accuracy": "worst group"} if has_groups else {})
    measured |= {"mean_accuracy": "mean"}
    reference = comparison.reducr
    lines: list[tuple[Cell, ...]] = []
    for series in comparison.series:
        by_name = {column: values(series, column) for column in measured}
        line: list[Cell] = [series.label, str(len(by_name["mean_accuracy"]))]
        line += [estimate(list(found.values())) or NOTHING for found in by_name.values()]
        if reference is not None:
            for column, found in by_name.items():
                difference = None if series is reference else paired_difference(values(reference, column), found)
                line.append(difference or NOTHING)
        lines.append(tuple(line))
    columns = ["method", "seeds", *measured.values()]
    if reference is not None:
        columns += [f"{reference.label} minus method: {what}" for what in measured.values()]
    return Table(title, tuple(columns), tuple(lines), name=name, note=note)


def class_accuracy_table(comparison: Comparison) -> Table:
    """Test accuracy of every class at the last step; a line for each class, a column for each method."""
    names, _ = comparison.names
    columns = []
    for series in comparison.series:
        found = [one.class_accuracy() for one in series.trainings.values()]
        columns.append(np.array([values for values in found if values is not None]).reshape(-1, len(names)))
    lines = [(name, *(_estimate_of_known(values[:, place]) for values in columns)) for place, name in enumerate(names)]
    return Table(
        "Accuracy of each class",
        ("class", *(series.label for series in comparison.series)),
        tuple(lines),
        name="accuracy_by_class",
        note="Test accuracy at the last step, mean over seeds.",
        has_bars=True,
    )


def cost_table(comparison: Comparison) -> Table:
    """Where the seconds went, mean over seeds."""
    lines = []
    for series in comparison.series:
        parts = {name: series.values(f"{name}_seconds") for name in ("irreducible", "selection", "training", "total")}
        rest = [
            total - sum(parts[name][seed] for name in ("irreducible", "selection", "training"))
            for seed, total in parts["total"].items()
        ]
        # of the irreducible model the whole training is both
        rest = [max(0.0, value) for value in rest]
        cells = [*(list(found.values()) for found in list(parts.values())[:3]), rest, list(parts["total"].values())]
        lines.append(
            (series.label, _mean(list(series.values("steps").values()), ".0f"), *(_mean(cell, ".1f") for cell in cells))
        )
    return Table(
        "Seconds of each part",
        ("method", "steps", "irreducible stage", "scoring and selecting", "training", "evaluation and rest", "in all"),
        tuple(lines),
        name="seconds",
        note="Wall-clock, mean over seeds. The irreducible stage is charged in full to every method that uses "
        "it. The rest is holdout evaluations, reading, logs and checkpoints.",
    )


def selection_table(comparison: Comparison) -> Table:
    """How often points were selected, and how many of them were corrupted."""
    lines = []
    for series in comparison.series:
        found = [one for one in series.trainings.values() if one.times_selected is not None]
        if not found:
            continue
        times = [one.times_selected for one in found if one.times_selected is not None]
        flags = [one.point_arrays("is_corrupted") for one in found]
        selected_shares = [
            float(flag[np.repeat(np.arange(len(flag)), count)].mean())
            for flag, count in zip(flags, times, strict=True)
            if flag is not None and count.any()
        ]
        lines.append(
            (
                series.label,
                _mean([int(count.sum()) for count in times], ".0f"),
                _mean([float((count > 0).mean()) for count in times], ".3f"),
                _mean([float(count[count > 0].mean()) for count in times if count.any()], ".1f"),
                _mean([int(count.max()) for count in times], ".0f"),
                _mean(selected_shares, ".3f"),
                _mean([float(flag.mean()) for flag in flags if flag is not None], ".3f"),
            )
        )
    return Table(
        "How often points were selected, and how many of these are corrupted",
        (
            "method",
            "selections",
            "share of points ever selected",
            "times each of these",
            "most times",
            "corrupted among the selected",
            "corrupted among all",
        ),
        tuple(lines),
        name="selection",
        note="Mean over seeds. Points count as often as they were selected; corrupted are those with a label or an "
        "input that is known to have been changed.",
    )


def selected_groups_table(comparison: Comparison) -> Table:
    """Share of each group among the selected points."""
    _, names = comparison.names
    shown: list[str] = []
    columns: list[np.ndarray] = []
    all_points: list[np.ndarray] = []
    for series in comparison.series:
        shares = []
        for one in series.trainings.values():
            times, groups = one.times_selected, one.point_arrays("group")
            if times is None or groups is None or not times.any():
                continue
            shares.append(np.bincount(groups, weights=times, minlength=len(names)) / times.sum())
            if not columns and one.train_on == "train":
                all_points.append(np.bincount(groups, minlength=len(names)) / len(groups))
        if shares:
            shown.append(series.label)
            columns.append(np.array(shares))
    all_values = np.array(all_points).reshape(-1, len(names))
    lines = [
        (name, *(_estimate_of_known(values[:, place]) for values in [all_values, *columns]))
        for place, name in enumerate(names if columns else [])
    ]
    return Table(
        "Share of each class among the selected",
        ("class", "all points", *shown),
        tuple(lines),
        name="selected_by_class",
        note="By the labels that the training part shows, wrong ones included; mean over seeds.",
        has_bars=True,
    )


def confusion_table(comparison: Comparison, *, rule: str = "last") -> Table:
    """The worst class of every method, and what its test points are most often taken for."""
    names, _ = comparison.names
    lines: list[tuple[Cell, ...]] = []
    for series in comparison.series:
        counts = confusion(series, rule=rule)
        if counts is None:
            continue
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        worst = worst_class(counts)
        others = [place for place in np.argsort(-shares[worst], kind="stable").tolist() if place != worst]
        told = [f"{names[place]} {shares[worst, place]:.2f}" for place in others if shares[worst, place] > 0]
        lines.append(
            (
                series.label,
                names[worst],
                f"{shares[worst, worst]:.3f}",
                ", ".join(told[:_NUM_CONFUSIONS]) or NOTHING,
            )
        )
    return Table(
        "The worst class, and what it is taken for",
        ("method", "worst class", "accuracy", "predicted instead, as a share of its test points"),
        tuple(lines),
        name="worst_class",
        note="At the last step, test points of all seeds together: the class with the lowest accuracy of all "
        "seeds need not be the lowest of each.",
    )


def confusion(series: Series, *, rule: str = "last") -> np.ndarray | None:
    """(C, C) test points of all seeds by class (rows) and prediction (columns); None where none were recorded."""
    total = None
    for one in series.trainings.values():
        predictions = one.predictions(rule)
        if predictions is None:
            continue
        num_classes = len(one.data["class_names"])
        pairs = one.data["test_target"].astype(np.int64) * num_classes + predictions
        counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
        total = counts if total is None else total + counts
    return total


def worst_class(counts: np.ndarray) -> int:
    """The class with the lowest accuracy in a confusion matrix (C, C), of those with points."""
    points = counts.sum(axis=1)
    return int(np.where(points > 0, np.diag(counts) / np.maximum(points, 1), np.inf).argmin())


def mean_and_deviation(values: Sequence[float]) -> str:
    """``0.617 ± 0.027``, the standard deviation being that of a sample; without it for one value."""
    found = estimate(values)
    if found is None:
        return NOTHING
    return f"{found.mean:.3f}" if found.deviation is None else f"{found.mean:.3f} ± {found.deviation:.3f}"


def cell_text(cell: Cell, *, is_signed: bool = False) -> str:
    """A cell in one line: ``0.617 ± 0.027 [0.550, 0.684]``."""
    if isinstance(cell, str):
        return cell
    sign = "+" if is_signed else ""
    text = f"{cell.mean:{sign}.3f}"
    if cell.deviation is None:
        return text
    return f"{text} ± {cell.deviation:.3f} [{cell.low:{sign}.3f}, {cell.high:{sign}.3f}]"


def is_signed(column: str) -> bool:
    """Whether a column is one of differences."""
    return " minus method: " in column


def markdown(table: Table) -> str:
    """The table as GitHub Markdown."""
    lines = [
        [cell_text(cell, is_signed=is_signed(column)) for column, cell in zip(table.columns, line, strict=True)]
        for line in table.lines
    ]
    rows = [table.columns, ("---", *["---:"] * (len(table.columns) - 1)), *lines]
    told = f"\n{table.note}\n" if table.note else ""
    return f"{table.title}\n\n" + "".join(f"| {' | '.join(map(_escaped, row))} |\n" for row in rows) + told


def comma_separated(table: Table) -> str:
    """The table as CSV; an estimate has columns of its own for deviation, both ends of the interval and seeds."""
    is_estimate = [
        any(isinstance(line[place], Estimate) for line in table.lines) for place in range(len(table.columns))
    ]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header: list[str] = []
    for column, has_more in zip(table.columns, is_estimate, strict=True):
        header.append(column)
        if has_more:
            header += [f"{column}: {part}" for part in ("deviation", "low", "high", "seeds")]
    writer.writerow(header)
    for line in table.lines:
        cells: list[str] = []
        for cell, has_more in zip(line, is_estimate, strict=True):
            if isinstance(cell, Estimate):
                numbers = (cell.mean, cell.deviation, cell.low, cell.high)
                cells += ["" if number is None else f"{number:.6g}" for number in numbers] + [str(cell.count)]
            else:
                cells += ["" if cell == NOTHING else cell, *[""] * (4 * has_more)]
        writer.writerow(cells)
    return text.getvalue()


def print_table(table: Table, console: Console) -> None:
    """Draw the table on a terminal."""
    told = f"{table.title}. {table.note}".rstrip(". ")
    drawn = RichTable(title=told, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), expand=False)
    for place, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if place else "left", no_wrap=not place)
    for line in table.lines:
        drawn.add_row(*map(cell_text, line))
    console.print(drawn)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def _estimate_of_known(values: np.ndarray) -> Cell:
    return estimate(values[~np.isnan(values)].tolist()) or NOTHING


def _by_method(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    return {method: [row for row in rows if row.method == method] for method in dict.fromkeys(r.method for r in rows)}


def _num_seeds(rows: Sequence[ResultRow]) -> int:
    return len({row.seed for row in rows})


def _mean(values: Sequence[float | None], spec: str) -> str:
    known = [value for value in values if value is not None]
    return format(statistics.fmean(known), spec) if known else NOTHING


def make_console() -> Console:
    """A console as wide as the terminal; wide enough for the tables where the output is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=110)
