"""Measure what selection costs, and write ``benchmarks/results.json`` and the table in ``docs/performance.md``.

    python -m benchmarks                          run everything, about eight minutes on two cores
    python -m benchmarks steps_mlp start          run these only; the other results stay
    python -m benchmarks --table                  only write the table again from the results
    python -m benchmarks --tiny                   run everything very briefly to check that it works; write nothing

Do not use the machine for anything else meanwhile.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

from benchmarks import results
from benchmarks.before_loading import before_loading
from benchmarks.chunks import chunked_scoring
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
    "before_loading": before_loading,
    "kept_memory": kept_memory,
    "chunked_scoring": chunked_scoring,
    "overlap_mlp": partial(overlap, "mlp"),
    "overlap_cnn": partial(overlap, "cnn"),
    "start": start,
}


def main(arguments: list[str] | None = None) -> None:
    """Run the requested benchmarks."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"one of {', '.join(BENCHMARKS)}; default: all")
    parser.add_argument(
        "--repetitions", type=int, help="repetitions of every comparison; default: each benchmark's own"
    )
    parser.add_argument("--tiny", action="store_true", help="only check that everything works")
    parser.add_argument("--table", action="store_true", help="measure nothing, only write the table")
    parser.add_argument("--results", type=Path, help="JSON file; default: benchmarks/results.json, or none with --tiny")
    parser.add_argument(
        "--document", type=Path, help="file that gets the table; default: docs/performance.md, unless --results is set"
    )
    options = parser.parse_args(arguments)
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"there is no benchmark {', '.join(unknown)}; choose from {', '.join(BENCHMARKS)}")
    if options.repetitions is not None and options.repetitions < 1:
        parser.error(f"--repetitions must be at least 1; got {options.repetitions}")
    if options.results is None and not options.tiny:
        options.results = results.ROOT / "benchmarks" / "results.json"
        options.document = options.document or results.ROOT / "docs" / "performance.md"

    keep_freed_memory()  # as the training commands do
    measured = {} if options.results is None else results.read(options.results)
    effort, environment = Effort(options.repetitions, options.tiny), results.environment()
    for name in [] if options.table else options.names or BENCHMARKS:
        print(f"{name} ...", flush=True)
        measured[name] = results.entry(BENCHMARKS[name](effort), environment)
        print(results.table({name: measured[name]}).split("\n\n")[0], flush=True)
        if options.results is not None:
            results.write(options.results, measured, order=BENCHMARKS)
    if options.document is not None:
        results.put_table(options.document, {name: measured[name] for name in BENCHMARKS if name in measured})


if __name__ == "__main__":
    main()
