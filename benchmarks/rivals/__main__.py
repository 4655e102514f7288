"""Trials of the recipe and its rivals on a fifth of the test examples, which no report uses.

    python -m benchmarks.rivals SETTING... --data-dir DIR [--rows NAME...] [--seeds 100 101] [--jobs 2]
    python -m benchmarks.rivals                       print the tables of the stored trials

Every row gets the same seconds of one core, counted by a nominal clock: what a gradient step and an example of a
forward pass take on a free core, measured beforehand. So trials do not depend on what else the machine does. A quarter
of the clean holdout examples is held back from every step, for logit adjustment; each row is told as trained and
adjusted. The figures are worst class (or group) and mean accuracy. Trials find out what to study; seeds from 100 on are
for them. Learning rates are 2e-3 everywhere.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.rivals.problems import SETTINGS
from benchmarks.rivals.trials import ROWS, trial

STORE = Path(__file__).with_name("trials.jsonl")


def tables(store: Path) -> Iterator[str]:
    """The lines of the Markdown tables of the stored trials."""
    outcomes: dict[str, dict[str, list[dict[str, Any]]]] = defaultdict(lambda: defaultdict(list))
    for line in store.read_text().splitlines():
        outcome = json.loads(line)
        outcomes[outcome["setting"]][outcome["row"]].append(outcome)
    for setting, rows in outcomes.items():
        yield f"\n**{SETTINGS[setting].title}**, {SETTINGS[setting].seconds:g} nominal s\n"
        yield "| | as trained: worst / mean | adjusted: worst / mean | steps | seeds |"
        yield "|---|---|---|---:|---:|"
        for name in (name for name in ROWS if name in rows):
            runs = rows[name]
            cells = [
                " / ".join(f"{fmean(run[kind][i] for run in runs):.3f}" for i in (0, 1))
                for kind in ("trained", "adjusted")
            ]
            yield f"| {name} | {cells[0]} | {cells[1]} | {fmean(run['steps'] for run in runs):.0f} | {len(runs)} |"


def main(arguments: list[str] | None = None) -> None:
    """Make the missing trials, then print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", nargs="*", metavar="SETTING", help=f"of {', '.join(SETTINGS)}")
    parser.add_argument("--data-dir", type=Path)
    parser.add_argument("--rows", nargs="+", default=list(ROWS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[100, 101])
    parser.add_argument("--seconds", type=float, help="of a run; default: those of the setting")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", type=Path, default=STORE)
    options = parser.parse_args(arguments)
    for given, known in ((options.settings, SETTINGS), (options.rows, ROWS)):
        for name in given:
            if name not in known:
                parser.error(f"there is no {name!r}; choose from {', '.join(known)}")
    if options.settings and options.data_dir is None:
        parser.error("--data-dir is needed to make trials")
    if options.settings:
        _make(options)
    if not options.out.is_file():
        parser.error(f"there are no trials in {options.out}; name a SETTING and --data-dir")
    for line in tables(options.out):
        print(line)


def _make(options: argparse.Namespace) -> None:
    lines = options.out.read_text().splitlines() if options.out.is_file() else []
    done = {(trial["setting"], trial["seed"], trial["row"]) for trial in map(json.loads, lines)}
    jobs = [
        (setting, seed, name, options.data_dir.resolve(), options.seconds)
        for setting in options.settings
        for seed in options.seeds
        for name in options.rows
        if (setting, seed, name) not in done and not (ROWS[name].is_oracle and not SETTINGS[setting].has_true_labels)
    ]
    jobs = [job for job in jobs if not (job[2] == "mixup" and SETTINGS[job[0]].is_text)]
    with multiprocessing.get_context("spawn").Pool(options.jobs) as pool, options.out.open("a") as file:
        for outcome in pool.imap(trial, jobs):
            file.write(json.dumps(outcome) + "\n")
            file.flush()
            print(
                outcome["setting"], outcome["seed"], outcome["row"], outcome["trained"], outcome["adjusted"], flush=True
            )


if __name__ == "__main__":
    main()
