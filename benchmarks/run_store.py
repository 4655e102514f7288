"""Store the runs of a long benchmark after each, so that an interrupted one continues where it stopped."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
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
    """The runs in a JSON file, one per line.

    Args:
        path: the file.
        key: entries that identify a run; the file is sorted by them.
        conditions: what all runs have in common, including machine and versions.
        runs: by the values of their key.
        commit: the commit that makes further runs.
    """

    path: Path
    key: tuple[str, ...]
    conditions: dict[str, Any]
    runs: dict[Key, dict[str, Any]] = field(default_factory=dict)
    commit: str = "unknown"

    @classmethod
    def read(cls, path: Path, key: tuple[str, ...]) -> RunStore:
        """Read the file."""
        content = json.loads(path.read_text(encoding="utf-8"))
        return cls(path, key, content["conditions"], {tuple(run[name] for name in key): run for run in content["runs"]})

    @classmethod
    def with_more(cls, path: Path, key: tuple[str, ...], conditions: Mapping[str, Any]) -> RunStore:
        """Open the file to add runs, or start a new one.

        Also sets torch to one thread and keeps freed memory, as the training commands do.

        Raises:
            ValueError: if the runs in the file were made under other conditions, such as another machine or version.
        """
        torch.set_num_threads(1)
        keep_freed_memory()
        environment = results.environment()
        commit = environment.pop("commit")
        new = cls(path, key, {**conditions, **environment}, commit=commit)
        if path.is_file():
            earlier = cls.read(path, key)
            if earlier.conditions != new.conditions:
                names = (name for name in new.conditions if earlier.conditions.get(name) != new.conditions[name])
                raise ValueError(
                    f"The runs in {path} were made with another {', '.join(names)}. Set `--out` to another file, or "
                    "remove this one."
                )
            new.runs = earlier.runs
        return new

    def add(self, run: Mapping[str, Any]) -> None:
        """Add a run with the current commit, and write the file atomically."""
        self.runs[tuple(run[name] for name in self.key)] = {**run, "commit": self.commit}
        lines = ",\n".join(f"  {json.dumps(self.runs[key])}" for key in sorted(self.runs))
        text = f'{{"conditions": {json.dumps(self.conditions)},\n "runs": [\n{lines}\n]}}\n'
        write_text_atomically(self.path, text)


def parse_arguments(parser: argparse.ArgumentParser, arguments: list[str] | None) -> argparse.Namespace:
    """Add the options that every long benchmark has, and parse the arguments."""
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--data-dir", type=Path, help="folder of the data; without it, nothing is run")
    parser.add_argument(
        "--options", nargs="+", default=[], help="further options of `reducr run`, such as num_steps=500"
    )
    parser.add_argument("--tiny", action="store_true", help="make each run very short, to check that it works")
    parser.add_argument("--again", action="store_true", help="repeat runs that are stored already")
    parser.add_argument("--out", type=Path, help="JSON file; default: the one behind the documentation")
    return parser.parse_args(arguments)


def reducr_options(options: argparse.Namespace, tiny: Sequence[str]) -> list[str]:
    """The options of `reducr run` that the user set, after those of a ``tiny`` run if it is one."""
    return [*(tiny if options.tiny else ()), *options.options]


def run_if_requested(
    parser: argparse.ArgumentParser,
    options: argparse.Namespace,
    out: Path,
    run_missing: Callable[[argparse.Namespace, Path], None],
) -> None:
    """Call ``run_missing`` if ``--data-dir`` is set; exit with a message if there are no runs to show either."""
    if options.data_dir is not None:
        try:
            run_missing(options, out)
        except ValueError as error:
            parser.error(str(error))
    elif not out.is_file():
        parser.error(f"There are no runs in {out}. Set --data-dir to the folder of the data to make them.")
