"""Measure what selection costs, write ``benchmarks/results.json`` and the table of ``docs/performance.md``.

    python -m benchmarks                          everything, about eight minutes on two cores
    python -m benchmarks steps_mlp start          these alone; results of others stay as they are
    python -m benchmarks --table                  nothing; the table again from the results that are there
    python -m benchmarks --tiny                   everything for a moment, to see that it works; nothing is written

Leave the machine alone meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from benchmarks import results
from benchmarks.harness import Effort, Figure
from benchmarks.irreducible import stages, table_building
from benchmarks.loading import loading
from benchmarks.lookup import lookup
from benchmarks.memory import kept_memory
from benchmarks.overlap import overlap
from benchmarks.selection import choosing, growth
from benchmarks.start import start
from benchmarks.steps import steps
from benchmarks.training import training
from reducr._internal.memory import keep_freed_memory

BENCHMARKS: dict[str, Callable[[Effort], Iterable[Figure]]] = {
    "steps_mlp": partial(steps, "mlp"),
    "steps_cnn": partial(steps, "cnn"),
    "steps_resnet18": partial(steps, "resnet18"),
    "training_mlp": partial(training, "mlp"),
    "training_cnn": partial(training, "cnn"),
    "irreducible_mlp": partial(stages, "mlp"),
    "irreducible_cnn": partial(stages, "cnn"),
    "table_building_mlp": partial(table_building, "mlp"),
    "table_building_cnn": partial(table_building, "cnn"),
    "lookup": lookup,
    "choosing": choosing,
    "growth": growth,
    "loading": loading,
    "kept_memory": kept_memory,
    "overlap_mlp": partial(overlap, "mlp"),
    "overlap_cnn": partial(overlap, "cnn"),
    "start": start,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the benchmarks that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument("--repetitions", type=int, help="of every comparison; default: each benchmark's own")
    parser.add_argument("--tiny", action="store_true", help="only see that everything works")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    parser.add_argument("--results", type=Path, help="default: benchmarks/results.json, or nowhere with --tiny")
    parser.add_argument("--document", type=Path, help="gets the table; default: docs/performance.md with its results")
    given = parser.parse_args(arguments)
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {', '.join(unknown)}; there are {', '.join(BENCHMARKS)}")
    if given.repetitions is not None and given.repetitions < 1:
        parser.error(f"--repetitions must be at least 1; got {given.repetitions}")
    if given.results is None and not given.tiny:
        given.results = results.ROOT / "benchmarks" / "results.json"
        given.document = given.document or results.ROOT / "docs" / "performance.md"

    keep_freed_memory()  # as the training commands do
    found = {} if given.results is None else results.read(given.results)
    effort, made_in = Effort(given.repetitions, given.tiny), results.environment()
    for name in [] if given.table else given.names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        found[name] = results.entry(BENCHMARKS[name](effort), made_in)
        print(results.table({name: found[name]}).split("\n\n")[0], flush=True)
        if given.results is not None:
            results.write(given.results, found, order=BENCHMARKS)
    if given.document is not None:
        results.put_table(given.document, {name: found[name] for name in BENCHMARKS if name in found})


if __name__ == "__main__":
    main()
