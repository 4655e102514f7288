"""Tables and plots from run folders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from reducr.files import write_text_atomically
from reducr.reports.plots import save_run_plot
from reducr.reports.tables import checkpoint_table, headline_table, make_console, markdown, print_table
from reducr.runs import read_results

__all__ = ["make_console", "write_report"]


def write_report(runs: Sequence[Path], *, out: Path, console: Console) -> None:
    """Print the tables of some runs, and write ``results.md`` and ``report.png`` (one per run) into ``out``.

    Args:
        runs: run folders; may still be going on.
        out: made if needed.
        console: where to print.

    Raises:
        FileNotFoundError: if a folder is not that of a run with at least one finished method.
    """
    rows_by_run = {run: read_results(run) for run in runs}
    sections = []
    for run, rows in rows_by_run.items():
        command = run / "command.txt"
        repeat = f"`{command.read_text(encoding='utf-8').strip()}`" if command.is_file() else str(run)
        sections.append(f"## {run.name}\n\n{repeat}\n")
        for table in (headline_table(rows), checkpoint_table(rows)):
            print_table(table, console)
            sections.append(markdown(table))
        suffix = "" if len(rows_by_run) == 1 else f"_{run.parent.name}_{run.name}"
        save_run_plot(run, rows, out / f"report{suffix}.png")
    write_text_atomically(out / "results.md", "\n".join(sections))
    console.print(f"report: {out}", highlight=False)
