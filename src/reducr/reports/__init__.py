"""Reports of run folders: one HTML page, its tables as Markdown and CSV, its plots as PNG and SVG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path

from rich.console import Console

from reducr._internal.files import write_text_atomically
from reducr.reports.gallery import OpenData, galleries
from reducr.reports.page import Section, page
from reducr.reports.plots import plots
from reducr.reports.run_reader import Comparison, Run, compared
from reducr.reports.tables import (
    Table,
    accuracy_tables,
    checkpoint_table,
    class_accuracy_table,
    comma_separated,
    confusion_table,
    cost_table,
    headline_table,
    make_console,
    markdown,
    print_table,
    result_rows,
    selected_groups_table,
    selection_table,
)

__all__ = ["make_console", "write_report"]

Chapter = tuple[Comparison, Mapping[str, Sequence[Table]]]

_HOW_TO_READ = (
    "Figures are means over seeds ± one standard deviation, with the 95 % interval of the mean by Student's t in "
    "brackets. Differences are those of REDUCR minus the method, paired by seed: above 0 REDUCR is better. ▲ and ▼ "
    "mark those whose interval leaves 0 out."
)
_PLOTS = {
    "Accuracy over time": ("worst_class_by_", "mean_by_"),
    "Classes": ("accuracy_by_class", "confusion_"),
    "Class weights and payoff": ("group_weight_", "cumulative_payoff_"),
    "What was selected": ("corrupted", "repeats", "losses_"),
    "Time spent": ("seconds",),
}


def write_report(
    runs: Sequence[Path],
    *,
    out: Path,
    console: Console,
    open_data: OpenData | None = None,
    with_page: bool = True,
    with_files: bool = True,
) -> None:
    """Print the main tables of some runs, and write ``results.md`` and ``report.html`` into ``out``.

    Args:
        runs: run folders; may still be going on.
        out: made if needed.
        console: where to print.
        open_data: reads the data of a run, for the galleries; None for none.
        with_page: without it ``results.md`` is all that is written, and nothing is drawn.
        with_files: also write ``report/`` with every table as CSV and every plot as SVG and PNG.

    Raises:
        FileNotFoundError: if a folder is not that of a run, or nothing has been trained in it yet.
        ValueError: if a folder comes twice, holds irreducible models alone, or a file in it is damaged.
    """
    folders = [run.resolve() for run in runs]
    if len(set(folders)) < len(folders):
        raise ValueError("a run folder is given more than once; give each once.")
    read = [Run.read(run) for run in runs]
    chapters = []
    for comparison in compared(read):
        rows = result_rows(comparison)
        if rows:
            for table in (headline_table(rows), checkpoint_table(rows)):
                print_table(table, console)
        chapters.append((comparison, _tables(comparison)))
    write_text_atomically(out / "results.md", _markdown_of(chapters))
    if with_page:
        _write_page(chapters, out, open_data, with_files=with_files)
    for run in read:
        if run.state != "finished":
            console.print(f"{run.folder} is {run.state}: the report is of what there is.", highlight=False)
    console.print(f"report: {out / ('report.html' if with_page else 'results.md')}", highlight=False)


def _write_page(chapters: Sequence[Chapter], out: Path, open_data: OpenData | None, *, with_files: bool) -> None:
    shown = [(comparison, _sections(comparison, tables, open_data)) for comparison, tables in chapters]
    written_at = datetime.now().astimezone().strftime("%Y-%m-%d %H:%M")
    write_text_atomically(out / "report.html", page(shown, written_at=written_at))
    if with_files:
        for number, (_, sections) in enumerate(shown):
            _write_files(sections, out / "report" / (f"{number + 1}" if len(shown) > 1 else ""))


def _write_files(sections: Sequence[Section], folder: Path) -> None:
    for section in sections:
        for table in section.tables:
            write_text_atomically(folder / f"{table.name}.csv", comma_separated(table))
        for plot in section.plots:
            plot.save(folder)


def _tables(comparison: Comparison) -> dict[str, list[Table]]:
    """The tables of each section that the runs hold something for."""
    rows = result_rows(comparison)
    tables = {"What was selected": [selection_table(comparison), selected_groups_table(comparison)]}
    if rows:
        tables |= {
            "Results": [headline_table(rows), *accuracy_tables(comparison)],
            "Classes": [class_accuracy_table(comparison), confusion_table(comparison)],
            "Time spent": [cost_table(comparison)],
        }
    return {title: [table for table in own if table.lines] for title, own in tables.items()}


def _sections(
    comparison: Comparison, tables: Mapping[str, Sequence[Table]], open_data: OpenData | None
) -> list[Section]:
    drawn = plots(comparison)
    note = _HOW_TO_READ if "Results" in tables else "No method has finished yet; what follows is on holdout data."
    found = [Section("Results", tables.get("Results", ()), note=note)]
    for title, beginnings in _PLOTS.items():
        own = [plot for plot in drawn if plot.name.startswith(beginnings)]
        found.append(Section(title, tables.get(title, ()), own))
    told, shown = galleries(comparison, open_data)
    return [*found, Section("Points", note=told, galleries=shown)]


def _markdown_of(chapters: Sequence[Chapter]) -> str:
    parts = []
    for comparison, tables in chapters:
        parts.append(f"# {comparison.title}\n")
        parts += [f"{run.name} ({run.state}): `{run.command}`\n" for run in comparison.runs]
        ordered = [table for title in ("Results", *_PLOTS) for table in tables.get(title, ())]
        parts += [f"## {markdown(table)}" for table in ordered]
    return "\n".join(parts)
