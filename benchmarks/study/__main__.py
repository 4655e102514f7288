"""The study: every method gets the same seconds of one core and the same tuning effort.

    python -m benchmarks.study TABLE... --data-dir DIR      run what is missing, then print the tables
    python -m benchmarks.study                              print the tables of the stored runs

DIR contains FashionMNIST/raw and CIFAR-10 with CIFAR-10N. Every run has its own process with one thread, and its clock
counts the processor seconds of that process. Parallel runs take no seconds from it, but they share caches and memory:
the same run made between 2,900 and 3,800 steps, depending on what else was running. --jobs runs are made at a time. An
interrupted study continues with the next run.

Each method is tuned on one seed that is not reported. The best trial is the one with the best worst class at the last
step, on one half of the test part (every other example); the mean breaks ties. The report uses other seeds and the
other half.
"""

from __future__ import annotations

import argparse
import os
from functools import partial
from pathlib import Path

from benchmarks import results
from benchmarks.cifar_sheets import data_dir_for
from benchmarks.run_store import RunStore, parse_arguments, reducr_options, run_if_requested
from benchmarks.study.report import markdown_report
from benchmarks.study.runs import KEY, Job, Row, run_jobs
from benchmarks.study.tables import TABLES, Table
from benchmarks.study.tuning import TUNING_SEED, tuned_row

DOCUMENT = results.ROOT / "docs" / "results.md"
FOLDER = results.ROOT / "benchmarks" / "study"


def run_table(table: Table, options: argparse.Namespace, out: Path) -> None:
    """Make the missing runs: first the trials, then the reported seeds; raises like ``RunStore.with_more``."""
    common = (*table.options, *reducr_options(options, TINY))
    seconds = options.seconds or table.seconds
    store = RunStore.with_more(out, KEY, {"experiment": table.experiment, "seconds": seconds, "options": list(common)})
    contenders = [c for c in table.contenders if not options.rows or c.row.label in options.rows]

    def run(rows_and_seeds: list[tuple[Row, int]]) -> None:
        missing = [(row, seed) for row, seed in rows_and_seeds if options.again or row.key(seed) not in store.runs]
        if not missing:
            return
        job_options = common
        if table.experiment != "digits":
            job_options += (f"datamodule.data_dir={data_dir_for(table.experiment, options.data_dir)}",)
        jobs = [Job(table.experiment, job_options, row, seed, seconds) for row, seed in missing]
        for number, (job, outcome) in enumerate(run_jobs(jobs, num_processes=options.jobs), start=1):
            store.add(outcome)
            worst, mean = (outcome[f"report/last/{name}"] for name in ("worst", "mean"))
            print(
                f"{number} of {len(jobs)}: {job.row.label}, seed {job.seed}: worst class {worst:.3f}, mean {mean:.3f}",
                flush=True,
            )

    tuned = [c for c in contenders if len(c.trials) > 1]
    run([(c.row.with_options(*trial), TUNING_SEED) for c in tuned for trial in c.trials])
    rows = [tuned_row(c, store.runs) for c in contenders]
    run([(row, seed) for seed in range(options.num_seeds or table.num_seeds) for row in rows if row is not None])


TINY = ("irreducible.num_epochs=1", "num_candidates=40")


def main(arguments: list[str] | None = None) -> None:
    """Make the missing runs, then print and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"one of {', '.join(TABLES)}; default: all")
    parser.add_argument("--rows", nargs="+", metavar="LABEL", help="rows of the tables; default: all")
    parser.add_argument("--seconds", type=float, help="seconds of a run; default: those of the table")
    parser.add_argument("--num-seeds", type=int, help="number of reported seeds; default: that of the table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; default: one per core")
    options = parse_arguments(parser, arguments)
    unknown = [name for name in options.tables if name not in TABLES]
    if unknown:
        parser.error(f"there is no table {unknown[0]!r}; choose from {', '.join(TABLES)}")
    if min(options.seconds or 1, options.num_seeds or 1, options.jobs) <= 0:
        parser.error("--seconds, --num-seeds and --jobs must be above 0")
    for name in options.tables or TABLES:
        table = TABLES[name]
        labels = [c.row.label for c in table.contenders]
        unknown = [label for label in options.rows or () if label not in labels]
        if unknown:
            parser.error(f"table {name!r} has no row {unknown[0]!r}; choose from {', '.join(map(repr, labels))}")
        out = (options.out or FOLDER) / f"{name}.json"
        if options.data_dir is None and not options.tables and not out.is_file():
            continue  # without arguments, only tables that have runs are shown
        run_if_requested(parser, options, out, partial(run_table, table))
        text = markdown_report(table, RunStore.read(out, KEY))
        print(text)
        if options.out is None:
            marks = {mark: f"<!-- {mark} of the study: {name} -->" for mark in ("begin", "end")}
            results.put_between(DOCUMENT, text, **marks)


if __name__ == "__main__":
    main()
