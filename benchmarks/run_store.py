"""Runs of a long benchmark, kept in a file after each, so that it goes on where it was stopped."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from benchmarks import results
from reducr._internal.files import write_text_atomically
from reducr._internal.memory import keep_freed_memory

Key = tuple[Any, ...]


@dataclass
class RunStore:
    """The runs in a JSON file, one to a line.

    Args:
        path: of the file.
        key: the entries of a run that tell it from others, in the order of the file.
        conditions: what all runs have in common.
        runs: by the values of their key.
        commit: that makes further ones.
    """

    path: Path
    key: tuple[str, ...]
    conditions: dict[str, Any]
    runs: dict[Key, dict[str, Any]] = field(default_factory=dict)
    commit: str = "unknown"

    @classmethod
    def read(cls, path: Path, key: tuple[str, ...]) -> RunStore:
        """Those of a file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, key, content["conditions"], {tuple(run[name] for name in key): run for run in content["runs"]})

    @classmethod
    def with_more(cls, path: Path, key: tuple[str, ...], conditions: Mapping[str, Any]) -> RunStore:
        """Those of a file if it is there, and more to come, on one thread and in the memory of a training command.

        Raises:
            ValueError: if the runs that are there are of other conditions, machine and versions among them.
        """
        torch.set_num_threads(1)
        keep_freed_memory()
        made_in = results.environment()
        commit = made_in.pop("commit")
        new = cls(path, key, {**conditions, **made_in}, commit=commit)
        if path.is_file():
            earlier = cls.read(path, key)
            if earlier.conditions != new.conditions:
                names = (name for name in new.conditions if earlier.conditions.get(name) != new.conditions[name])
                raise ValueError(
                    f"the runs in {path} differ in {', '.join(names)} from those to be made: give another --out, or "
                    "remove it"
                )
            new.runs = earlier.runs
        return new

    def add(self, run: Mapping[str, Any]) -> None:
        """Keep a run, with the commit that it was made by, and write the file, whole or not at all."""
        self.runs[tuple(run[name] for name in self.key)] = {**run, "commit": self.commit}
        lines = ",\n".join(f"  {json.dumps(self.runs[key])}" for key in sorted(self.runs))
        text = f'{{"conditions": {json.dumps(self.conditions)},\n "runs": [\n{lines}\n]}}\n'
        write_text_atomically(self.path, text)


def parsed(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """The arguments, with those that every such benchmark has."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data-dir", type=Path, help="default: nothing is run")
    parser.add_argument("--options", nargs="+", default=[], help="of `reducr run`, such as num_steps=500")
    parser.add_argument("--tiny", action="store_true", help="a moment of each run, to see that it works")
    parser.add_argument("--again", action="store_true", help="run what is there already, too")
    parser.add_argument("--out", type=Path, help="JSON; default: the file of the documentation")
    return parser.parse_args(arguments)


def run_where_asked(
    parser: argparse.ArgumentParser,
    given: argparse.Namespace,
    out: Path,
    run_missing: Callable[[argparse.Namespace, Path], None],
) -> None:
    """Run what is asked for and not in ``out``; end with a message where nothing is, and nothing is asked for."""
    if given.data_dir is not None:
        try:
            run_missing(given, out)
        except ValueError as error:
            parser.error(str(error))
    elif not out.is_file():
        parser.error(f"there are no runs in {out}: give --data-dir, the folder of the data")
