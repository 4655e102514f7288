"""The study: every method for the same seconds of one core, tuned with the same effort.

    python -m benchmarks.study TABLE... --data-dir DIR      run what is not there yet, then the tables
    python -m benchmarks.study                              the tables of what is there

DIR contains FashionMNIST/raw and CIFAR-10 with CIFAR-10N. Every run has a process and a thread of its own, and its
clock counts the seconds of the processor that it takes. What runs beside it takes no seconds from it, but shares caches
and memory with it: the same run made 2,900 to 3,800 steps, by what else there was. --jobs run at a time. Interrupted,
it goes on with the next run.

A method is tuned on one seed that is not reported: of its trials the one is taken whose last step has the best worst
class on every other point of the test part, or the best mean where worst classes are equal. Reported are other seeds,
on the other half of the test part.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from benchmarks import results
from benchmarks.cifar_sheets import data_dir_for
from benchmarks.run_store import RunStore, parsed, run_where_asked
from benchmarks.study.report import report_of
from benchmarks.study.runs import KEY, Job, Row, made
from benchmarks.study.tables import TABLES, Table
from benchmarks.study.tuning import TUNING_SEED, chosen

DOCUMENT = results.ROOT / "docs" / "results.md"
FOLDER = results.ROOT / "benchmarks" / "study"


def run_table(table: Table, given: argparse.Namespace, out: Path) -> None:
    """Run what is not there: first the trials, then the seeds of the report; raises as ``RunStore``."""
    options = (*table.options, *(TINY if given.tiny else ()), *given.options)
    seconds = given.seconds or table.seconds
    kept = RunStore.with_more(out, KEY, {"experiment": table.experiment, "seconds": seconds, "options": list(options)})
    contenders = [one for one in table.contenders if not given.rows or one.row.label in given.rows]

    def run(rows_and_seeds: list[tuple[Row, int]]) -> None:
        missing = [(row, seed) for row, seed in rows_and_seeds if given.again or row.key(seed) not in kept.runs]
        if not missing:
            return
        own = options
        if table.experiment != "digits":
            own = (*options, f"datamodule.data_dir={data_dir_for(table.experiment, given.data_dir)}")
        jobs = [Job(table.experiment, own, row, seed, seconds) for row, seed in missing]
        for place, (job, outcome) in enumerate(made(jobs, num_processes=given.jobs), start=1):
            kept.add(outcome)
            worst, mean = (outcome[f"report/last/{name}"] for name in ("worst", "mean"))
            print(
                f"{place} of {len(jobs)}: {job.row.label}, seed {job.seed}: worst class {worst:.3f}, mean {mean:.3f}",
                flush=True,
            )

    tuned = [one for one in contenders if len(one.trials) > 1]
    run([(one.row.with_options(*trial), TUNING_SEED) for one in tuned for trial in one.trials])
    rows = [chosen(one, kept.runs) for one in contenders]
    run([(row, seed) for seed in range(given.num_seeds or table.num_seeds) for row in rows if row is not None])


TINY = ("irreducible.num_epochs=1", "num_candidates=40")


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.study", description=__doc__)
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=f"of {', '.join(TABLES)}; default: all")
    parser.add_argument("--rows", nargs="+", metavar="LABEL", help="of the tables; default: all")
    parser.add_argument("--seconds", type=float, help="of a run; default: those of the table")
    parser.add_argument("--num-seeds", type=int, help="of the report; default: those of the table")
    parser.add_argument("--jobs", type=int, default=os.cpu_count(), help="runs at a time; default: one for each core")
    given = parsed(parser, arguments)
    unknown = [name for name in given.tables if name not in TABLES]
    if unknown:
        parser.error(f"there is no table {unknown[0]!r}; there are {', '.join(TABLES)}")
    if min(given.seconds or 1, given.num_seeds or 1, given.jobs) <= 0:
        parser.error("--seconds, --num-seeds and --jobs must be above 0")
    for name in given.tables or TABLES:
        table = TABLES[name]
        labels = [one.row.label for one in table.contenders]
        strange = [label for label in given.rows or () if label not in labels]
        if strange:
            parser.error(f"table {name!r} has no row {strange[0]!r}; it has {', '.join(map(repr, labels))}")
        out = (given.out or FOLDER) / f"{name}.json"
        if given.data_dir is None and not given.tables and not out.is_file():
            continue  # all that there are
        run_where_asked(parser, given, out, lambda given, out, table=table: run_table(table, given, out))
        text = report_of(table, RunStore.read(out, KEY))
        print(text)
        if given.out is None:
            marks = {mark: f"<!-- {mark} of the study: {name} -->" for mark in ("begin", "end")}
            results.put_between(DOCUMENT, text, **marks)


if __name__ == "__main__":
    main()
