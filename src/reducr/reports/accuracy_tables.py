"""Tables of accuracy: overview, checkpoint rules, equal budgets, classes and confusions."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial

import numpy as np

from reducr._internal.run_folder import CHECKPOINT_RULES, ResultRow
from reducr.reports.comparison import Comparison, Series
from reducr.reports.curves import accuracy_at, accuracy_source, ends, first_ends
from reducr.reports.statistics import estimate, paired_difference
from reducr.reports.tables import EMPTY_CELL, Cell, Table, estimate_cell, mean_and_deviation, mean_cell

_NUM_CONFUSIONS = 3
_RULE_TITLES = {
    "last": "Test accuracy at the last step",
    "best_worst_group": "Test accuracy of the checkpoint with the best worst-group holdout accuracy (best_worst_group)",
    "best_mean": "Test accuracy of the checkpoint with the best mean holdout accuracy (best_mean)",
}


def result_rows(comparison: Comparison) -> list[ResultRow]:
    """All lines of ``results.csv``, with the label of the series as method."""
    return [
        replace(row, method=series.label)
        for series in comparison.series
        for training in series.trainings.values()
        for row in training.rows.values()
    ]


def headline_table(rows: Sequence[ResultRow]) -> Table:
    """Accuracy at the last step, cost and selection of each method."""
    lines = []
    for method, method_rows in _by_method(rows).items():
        last = [row for row in method_rows if row.checkpoint_rule == "last"]
        lines.append(
            (
                method,
                mean_and_deviation([row.worst_class_accuracy for row in last]),
                mean_and_deviation([row.mean_accuracy for row in last]),
                mean_cell([row.steps for row in last], ".0f"),
                mean_cell([row.total_seconds for row in last], ".1f"),
                mean_cell([row.selection_seconds for row in last], ".1f"),
                mean_cell([row.selected_fraction for row in last], ".3f"),
                mean_cell([row.corrupted_fraction for row in last], ".3f"),
            )
        )
    return Table(
        f"Test accuracy and cost at the last step, over {_num_seeds(rows)}",
        ("method", "worst class", "mean", "steps", "seconds", "selecting", "selected", "corrupted"),
        tuple(lines),
        name="overview",
        note="± is one standard deviation; selecting is the seconds spent on selection, selected the fraction of the "
        "candidates, and corrupted the share of corrupted examples among the selected.",
    )


def checkpoint_table(rows: Sequence[ResultRow]) -> Table:
    """Test accuracy of the checkpoints that are chosen on holdout data, for each method."""
    rules = [rule for rule in CHECKPOINT_RULES if rule != "last"]
    lines = []
    for method, method_rows in _by_method(rows).items():
        line = [method]
        for rule in rules:
            chosen = [row for row in method_rows if row.checkpoint_rule == rule]
            line.append(mean_and_deviation([row.worst_class_accuracy for row in chosen]))
            line.append(mean_and_deviation([row.mean_accuracy for row in chosen]))
        lines.append(tuple(line))
    columns = ("method", *(f"{rule}: {measure}" for rule in rules for measure in ("worst class", "mean")))
    title = f"Test accuracy of the checkpoints chosen on holdout data, over {_num_seeds(rows)}"
    return Table(title, columns, tuple(lines), name="checkpoints")


def accuracy_tables(comparison: Comparison) -> list[Table]:
    """Accuracies with paired differences: one table per checkpoint rule, then tables at equal steps and seconds.

    The budget is the step or second at which the first method ends; a further table uses the second at which REDUCR
    ends. Each seed has its own budget, and the irreducible stage is charged in full.
    """
    tables = [
        _accuracy_table(
            comparison, partial(Series.values, rule=rule), title=_RULE_TITLES[rule], name=f"accuracy_{rule}"
        )
        for rule in CHECKPOINT_RULES
    ]
    return [*tables, *_equal_budget_tables(comparison)]


def _equal_budget_tables(comparison: Comparison) -> Iterator[Table]:
    source = accuracy_source(comparison)
    if source is None:
        return
    budgets = [(against, "the first method", first_ends(comparison, against)) for against in ("step", "seconds")]
    if comparison.reducr is not None:
        budgets.append(("seconds", "REDUCR", ends(comparison.reducr, source=source, against="seconds")))
    for against, method, limits in budgets:
        if not limits:
            continue
        unit = against.removesuffix("s")
        note = f"{_source_note(comparison, source)}Accuracy at the last evaluation up to {unit} {_range(limits)}. "
        note += "A method without an evaluation by then has no entry."
        if method == "REDUCR":
            note += " A method that ended earlier has its final accuracy, which more steps might have improved."
        yield _accuracy_table(
            comparison,
            partial(accuracy_at, source=source, against=against, limits=limits),
            title=f"{source.capitalize()} accuracy at equal {unit}s, when {method} ends",
            name=f"accuracy_equal_{against}" + ("_of_reducr" if method == "REDUCR" else ""),
            note=note,
        )


def _source_note(comparison: Comparison, source: str) -> str:
    if source == "test":
        return ""
    note = "Test accuracy was not logged during training. Set `record.test_accuracy=true` to log it. "
    biased = [series.label for series in comparison.series if series.is_trained_on_holdout]
    return f"{note}These methods train on the holdout set as well: {', '.join(biased)}. " if biased else note


def _range(limits: Mapping[int, float]) -> str:
    values = [f"{limit:.3g}" for limit in sorted(set(limits.values()))]
    return values[0] if len(values) == 1 else f"{values[0]} to {values[-1]}, depending on the seed"


def _accuracy_table(
    comparison: Comparison, values: Callable[[Series, str], dict[int, float]], *, title: str, name: str, note: str = ""
) -> Table:
    """Mean accuracies with intervals, and REDUCR's paired differences; ``values`` gives a measure by seed."""
    has_groups = any(
        values(series, "worst_group_accuracy") != values(series, "worst_class_accuracy") for series in comparison.series
    )
    measures = {"worst_class_accuracy": "worst class"} | ({"worst_group_accuracy": "worst group"} if has_groups else {})
    measures |= {"mean_accuracy": "mean"}
    reducr = comparison.reducr
    lines: list[tuple[Cell, ...]] = []
    for series in comparison.series:
        accuracies = {measure: values(series, measure) for measure in measures}
        line: list[Cell] = [series.label, str(len(accuracies["mean_accuracy"]))]
        line += [estimate(list(by_seed.values())) or EMPTY_CELL for by_seed in accuracies.values()]
        if reducr is not None:
            for measure, by_seed in accuracies.items():
                difference = None if series is reducr else paired_difference(values(reducr, measure), by_seed)
                line.append(difference or EMPTY_CELL)
        lines.append(tuple(line))
    columns = ["method", "seeds", *measures.values()]
    if reducr is not None:
        columns += [f"{reducr.label} minus method: {measure}" for measure in measures.values()]
    return Table(title, tuple(columns), tuple(lines), name=name, note=note)


def class_accuracy_table(comparison: Comparison) -> Table:
    """Test accuracy of each class (lines) under each method (columns) at the last step."""
    names = comparison.class_names
    columns = []
    for series in comparison.series:
        accuracies = [t.class_accuracy() for t in series.trainings.values()]
        columns.append(np.array([values for values in accuracies if values is not None]).reshape(-1, len(names)))
    lines = [(name, *(estimate_cell(values[:, label]) for values in columns)) for label, name in enumerate(names)]
    return Table(
        "Accuracy of each class",
        ("class", *(series.label for series in comparison.series)),
        tuple(lines),
        name="accuracy_by_class",
        note="Test accuracy at the last step, mean over seeds.",
        has_bars=True,
    )


def confusion_table(comparison: Comparison, *, rule: str = "last") -> Table:
    """The worst class of each method, and the classes that its test examples are most often mistaken for."""
    names = comparison.class_names
    lines: list[tuple[Cell, ...]] = []
    for series in comparison.series:
        counts = confusion(series, rule=rule)
        if counts is None:
            continue
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        worst = worst_class(counts)
        others = [label for label in np.argsort(-shares[worst], kind="stable").tolist() if label != worst]
        mistakes = [f"{names[label]} {shares[worst, label]:.2f}" for label in others if shares[worst, label] > 0]
        lines.append(
            (
                series.label,
                names[worst],
                f"{shares[worst, worst]:.3f}",
                ", ".join(mistakes[:_NUM_CONFUSIONS]) or EMPTY_CELL,
            )
        )
    return Table(
        "The worst class, and what it is mistaken for",
        ("method", "worst class", "accuracy", "predicted instead, as a share of its test examples"),
        tuple(lines),
        name="worst_class",
        note="At the last step, over the test examples of all seeds together. The worst class overall need not be the "
        "worst in each seed.",
    )


def confusion(series: Series, *, rule: str = "last") -> np.ndarray | None:
    """(C, C) number of test examples of all seeds by class (rows) and prediction (columns); None if not recorded."""
    total = None
    for training in series.trainings.values():
        predictions = training.predictions(rule)
        if predictions is None:
            continue
        num_classes = len(training.data["class_names"])
        pairs = training.data["test_target"].astype(np.int64) * num_classes + predictions
        counts = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
        total = counts if total is None else total + counts
    return total


def worst_class(counts: np.ndarray) -> int:
    """The class with the lowest accuracy in a confusion matrix (C, C), among classes with examples."""
    num_examples = counts.sum(axis=1)
    return int(np.where(num_examples > 0, np.diag(counts) / np.maximum(num_examples, 1), np.inf).argmin())


def _by_method(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    by_method: dict[str, list[ResultRow]] = {}
    for row in rows:
        by_method.setdefault(row.method, []).append(row)
    return by_method


def _num_seeds(rows: Sequence[ResultRow]) -> str:
    num_seeds = len({row.seed for row in rows})
    return "1 seed" if num_seeds == 1 else f"{num_seeds} seeds"
