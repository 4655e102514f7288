"""Write the report of some runs: an HTML page, Markdown tables, and CSV, SVG and PNG files."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from reducr._internal.files import write_text_atomically
from reducr._internal.text import one_line
from reducr.reports.accuracy_tables import (
    accuracy_tables,
    checkpoint_table,
    class_accuracy_table,
    confusion_table,
    headline_table,
    result_rows,
)
from reducr.reports.comparison import Comparison, comparisons
from reducr.reports.gallery import OpenData, galleries
from reducr.reports.page import Section, page
from reducr.reports.plots import plots
from reducr.reports.run_reader import Run
from reducr.reports.selection_tables import cost_table, selected_groups_table, selection_table
from reducr.reports.tables import Table, comma_separated, markdown, markdown_text, print_line, print_table

_LEGEND = (
    "Entries are means over seeds ± one standard deviation. Brackets hold the 95 % interval of the mean (Student's t). "
    "Differences are REDUCR minus the method, paired by seed, so REDUCR is better where they are positive. ▲ and ▼ "
    "mark differences whose interval excludes 0."
)
_NOTHING_FINISHED = "No method has finished yet. The plots show the trainings so far."
_PLOTS = {  # section: beginnings of the names of its plots
    "Accuracy over time": ("worst_class_by_", "mean_by_"),
    "Classes": ("accuracy_by_class", "confusion_"),
    "Class weights and payoff": ("group_weight_", "cumulative_payoff_"),
    "What was selected": ("corrupted", "repeats", "losses_"),
    "Time spent": ("seconds",),
}
Chapter = tuple[Comparison, Mapping[str, Sequence[Table]]]
"""A comparison with its tables by section."""


def write_report(
    runs: Sequence[Path],
    *,
    out: Path,
    console: Console,
    open_data: OpenData | None = None,
    with_page: bool = True,
    with_files: bool = True,
    is_own: bool = False,
) -> None:
    """Print the main tables of the runs, and write ``results.md`` and ``report.html`` into ``out``.

    Args:
        runs: run folders, which may still be active.
        out: the output folder; created if needed.
        console: where to print.
        open_data: reads the data of a run to show examples; None to show none.
        with_page: whether to draw the plots and write ``report.html``; otherwise only ``results.md`` is written.
        with_files: whether to write ``report/`` as well, with each table as CSV and each plot as SVG and PNG.
        is_own: see ``Run.read``.

    Raises:
        FileNotFoundError: if a folder is not a run folder, or no training has started.
        ValueError: if a folder is given twice, holds irreducible models only, or has a damaged file.
    """
    folders = [run.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError("A run folder is given more than once. Give each once.")
    loaded = [Run.read(run, is_own=is_own) for run in runs]
    chapters = []
    for comparison in comparisons(loaded):
        rows = result_rows(comparison)
        if rows:
            print_table(headline_table(rows), console)
            print_table(checkpoint_table(rows), console)
        chapters.append((comparison, _tables(comparison)))
    write_text_atomically(out / "results.md", _markdown(chapters))
    if with_page:
        _write_page(chapters, out, open_data, with_files=with_files)
    for note in (note for run in loaded for note in run.notes):
        print_line(note, console)
    for run in loaded:
        if run.state != "finished":
            print_line(f"{run.folder} is {run.state}; the report covers what it has so far.", console)
    print_line(f"report: {out / ('report.html' if with_page else 'results.md')}", console)


def _write_page(chapters: Sequence[Chapter], out: Path, open_data: OpenData | None, *, with_files: bool) -> None:
    sections = [(comparison, _sections(comparison, tables, open_data)) for comparison, tables in chapters]
    written_at = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    write_text_atomically(out / "report.html", page(sections, written_at=written_at))
    if with_files:
        for number, (_, chapter_sections) in enumerate(sections, start=1):
            _write_files(chapter_sections, out / "report" / (str(number) if len(sections) > 1 else ""))


def _write_files(sections: Sequence[Section], folder: Path) -> None:
    for section in sections:
        for table in section.tables:
            write_text_atomically(folder / f"{table.name}.csv", comma_separated(table))
        for plot in section.plots:
            plot.save(folder)


def _tables(comparison: Comparison) -> dict[str, list[Table]]:
    """The tables of each section for which the runs have data."""
    rows = result_rows(comparison)
    tables = {"What was selected": [selection_table(comparison), selected_groups_table(comparison)]}
    if rows:
        tables |= {
            "Results": [headline_table(rows), *accuracy_tables(comparison)],
            "Classes": [class_accuracy_table(comparison), confusion_table(comparison)],
            "Time spent": [cost_table(comparison)],
        }
    return {title: [table for table in section if table.lines] for title, section in tables.items()}


def _sections(
    comparison: Comparison, tables: Mapping[str, Sequence[Table]], open_data: OpenData | None
) -> list[Section]:
    all_plots = plots(comparison)
    notes = [_LEGEND if "Results" in tables else _NOTHING_FINISHED, *(n for run in comparison.runs for n in run.notes)]
    sections = [Section("Results", tables.get("Results", ()), note=" ".join(notes))]
    for title, beginnings in _PLOTS.items():
        section_plots = [plot for plot in all_plots if plot.name.startswith(beginnings)]
        sections.append(Section(title, tables.get(title, ()), section_plots))
    note, examples = galleries(comparison, open_data)
    return [*sections, Section("Examples", note=note, galleries=examples)]


def _code(text: str) -> str:
    """``text`` as Markdown code, between more backquotes than it has in a row."""
    text = one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", text)), default=0))
    space = " " if text[:1] == "`" or text[-1:] == "`" else ""
    return f"{fence}{space}{text}{space}{fence}"


def _markdown(chapters: Sequence[Chapter]) -> str:
    parts = []
    for comparison, tables in chapters:
        parts.append(f"# {markdown_text(comparison.title)}\n")
        parts += [f"{markdown_text(run.name)} ({run.state}): {_code(run.command)}\n" for run in comparison.runs]
        parts += [f"{markdown_text(note)}\n" for run in comparison.runs for note in run.notes]
        ordered = [table for title in ("Results", *_PLOTS) for table in tables.get(title, ())]
        parts += [f"## {markdown(table)}" for table in ordered]
    return "\n".join(parts)
