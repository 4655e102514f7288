"""Titled tables, and their Markdown, CSV and terminal forms."""

from __future__ import annotations

import csv
import io
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from reducr._internal.text import one_line
from reducr.reports.statistics import Estimate, estimate

Cell = str | Estimate
EMPTY_CELL = "–"
_PIPE_WIDTH = 110  # characters; the widest table fits


@dataclass(frozen=True)
class Table:
    """A titled table; the first column is left-aligned, the others right.

    Args:
        title: what it shows.
        columns: headings.
        lines: cells of each line, text or estimates.
        name: file name without suffix.
        note: what a reader must know.
        has_bars: whether the estimates are fractions that a page also draws as bars.
    """

    title: str
    columns: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...]
    name: str = "table"
    note: str = ""
    has_bars: bool = False


def mean_and_deviation(values: Sequence[float]) -> str:
    """Mean and sample standard deviation, such as ``0.617 ± 0.027``; one value has no deviation."""
    accuracy = estimate(values)
    if accuracy is None:
        return EMPTY_CELL
    return f"{accuracy.mean:.3f}" if accuracy.deviation is None else f"{accuracy.mean:.3f} ± {accuracy.deviation:.3f}"


def mean_cell(values: Sequence[float | None], spec: str) -> str:
    """Mean of the values that are not None, formatted with ``spec``."""
    known = [value for value in values if value is not None]
    return format(statistics.fmean(known), spec) if known else EMPTY_CELL


def estimate_cell(values: np.ndarray) -> Cell:
    """Estimate over the ``values`` (n,) that are not NaN."""
    return estimate(values[~np.isnan(values)].tolist()) or EMPTY_CELL


def is_signed(column: str) -> bool:
    """Whether a column holds differences, which are shown with their sign."""
    return " minus method: " in column


def markdown(table: Table) -> str:
    """The table as GitHub Markdown, with title and note."""
    lines = [
        [
            markdown_text(cell) if isinstance(cell, str) else _cell_text(cell, has_sign=is_signed(column))
            for column, cell in zip(table.columns, line, strict=True)
        ]
        for line in table.lines
    ]
    rows = [tuple(map(markdown_text, table.columns)), ("---", *["---:"] * (len(table.columns) - 1)), *lines]
    note = f"\n{table.note}\n" if table.note else ""
    return f"{table.title}\n\n" + "".join(f"| {' | '.join(row)} |\n" for row in rows) + note


def comma_separated(table: Table) -> str:
    """The table as CSV; an estimate has further columns for its deviation, both ends of its interval and its seeds."""
    has_estimates = [any(isinstance(line[i], Estimate) for line in table.lines) for i in range(len(table.columns))]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    header: list[str] = []
    for column, has_estimate in zip(table.columns, has_estimates, strict=True):
        header.append(_csv_text(column))
        if has_estimate:
            header += [f"{_csv_text(column)}: {part}" for part in ("deviation", "low", "high", "seeds")]
    writer.writerow(header)
    for line in table.lines:
        cells: list[str] = []
        for cell, has_estimate in zip(line, has_estimates, strict=True):
            if isinstance(cell, Estimate):
                numbers = (cell.mean, cell.deviation, cell.low, cell.high)
                cells += ["" if number is None else f"{number:.6g}" for number in numbers] + [str(cell.count)]
            else:
                cells += ["" if cell == EMPTY_CELL else _csv_text(cell), *[""] * (4 * has_estimate)]
        writer.writerow(cells)
    return text.getvalue()


def print_table(table: Table, console: Console) -> None:
    """Print the table on a terminal."""
    title = f"{table.title}. {table.note}".rstrip(". ")
    rich_table = RichTable(title=Text(title), title_justify="left", box=SIMPLE_HEAD, padding=(0, 1), expand=False)
    for i, column in enumerate(table.columns):
        rich_table.add_column(Text(one_line(column)), justify="right" if i else "left", no_wrap=not i)
    for line in table.lines:
        rich_table.add_row(*(Text(_cell_text(cell)) for cell in line))
    console.print(rich_table)


def make_console() -> Console:
    """A console as wide as the terminal, or wide enough for the tables if the output is a file or a pipe.

    It shows text as it is: names of users are no markup and no emoji codes.
    """
    console = _console()
    return console if console.is_terminal else _console(width=_PIPE_WIDTH)


def print_line(text: str, console: Console) -> None:
    """Print one line of text, such as one with a path, which is neither broken nor read as markup."""
    console.print(one_line(text), markup=False, emoji=False, highlight=False, soft_wrap=True)


def _console(width: int | None = None) -> Console:
    return Console(width=width, markup=False, emoji=False, highlight=False)


def _cell_text(cell: Cell, *, has_sign: bool = False) -> str:
    """A cell on one line, such as ``0.617 ± 0.027 [0.550, 0.684]``."""
    if isinstance(cell, str):
        return one_line(cell)
    sign = "+" if has_sign else ""
    text = f"{cell.mean:{sign}.3f}"
    if cell.deviation is None:
        return text
    return f"{text} ± {cell.deviation:.3f} [{cell.low:{sign}.3f}, {cell.high:{sign}.3f}]"


def markdown_text(text: str) -> str:
    r"""``text`` in Markdown that shows it as it is.

    Example:
        >>> markdown_text("a|b *c* <img> d_e")
        'a\\|b \\*c\\* \\<img> d_e'
    """
    escaped = re.sub(r"([\\`*\[\]|<&$])|(?<!\w)_|_(?!\w)", lambda match: "\\" + match[0], one_line(text))
    return re.sub(r"^(\s*)([#>]|[-+](?=\s)|\d+[.)](?=\s))", r"\1\\\2", escaped)


def _csv_text(text: str) -> str:
    """``text`` as a spreadsheet shows it. It would take a text that begins like a formula for one, and run it."""
    try:
        float(text)
    except ValueError:
        return f"'{text}" if text[:1] in ("=", "+", "-", "@", "\t", "\r") else text
    return text
