"""The tables of a comparison: accuracies under every checkpoint rule, cost, and what was selected."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable

from reducr.runs import CHECKPOINT_RULES, ResultRow


@dataclass(frozen=True)
class Table:
    """A titled table of text; the first column is left-aligned, the others right."""

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]


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
    title = (
        f"Test accuracy at the last step, ± one standard deviation over {_num_seeds(rows)} seed(s); seconds in all and "
        "spent selecting; selected fraction of the candidates; share of corrupted points among the selected"
    )
    return Table(title, columns, tuple(lines))


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
    return Table(title, columns, tuple(lines))


def mean_and_deviation(values: Sequence[float]) -> str:
    """``0.617 ± 0.027``, the standard deviation being that of a sample; without it for one value."""
    if not values:
        return "–"
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def markdown(table: Table) -> str:
    """The table as GitHub Markdown."""
    rows = [table.columns, ("---", *["---:"] * (len(table.columns) - 1)), *table.lines]
    return f"{table.title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows)


def print_table(table: Table, console: Console) -> None:
    """Draw the table on a terminal."""
    drawn = RichTable(title=table.title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), expand=False)
    for place, column in enumerate(table.columns):
        drawn.add_column(column, justify="right" if place else "left", no_wrap=not place)
    for line in table.lines:
        drawn.add_row(*line)
    console.print(drawn)


def _by_method(rows: Sequence[ResultRow]) -> dict[str, list[ResultRow]]:
    return {method: [row for row in rows if row.method == method] for method in dict.fromkeys(r.method for r in rows)}


def _num_seeds(rows: Sequence[ResultRow]) -> int:
    return len({row.seed for row in rows})


def _mean(values: Sequence[float | None], spec: str) -> str:
    known = [value for value in values if value is not None]
    return format(statistics.fmean(known), spec) if known else "–"


def make_console() -> Console:
    """A console as wide as the terminal; wide enough for the tables where the output is a file or a pipe."""
    console = Console()
    return console if console.is_terminal else Console(width=110)
