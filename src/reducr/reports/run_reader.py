"""Read run folders for a report: finished, running and interrupted runs."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from reducr._internal import reading as reading_files
from reducr._internal.moved import current_path
from reducr._internal.reading import DamagedFileError, read_array, reading
from reducr._internal.run_check import UNVERIFIED, check_unchanged, is_verified, lost_files
from reducr._internal.run_folder import ResultRow, has_results, is_locked, read_results
from reducr._internal.run_start import RunStart, never_began
from reducr._internal.text import plain_text
from reducr.reports.metrics_log import Floats, MetricsLog

# options that do not affect results, or that differ between runs whose methods and seeds are pooled
_IGNORED_OPTIONS = (
    "seeds",
    "seed",
    "compare",
    "selection_method",
    "name",
    "irreducible.dir",
    "gradient_weighted_class",
    "callbacks",  # no callback; runs of earlier versions have no such option
)
_IGNORED_PREFIXES = ("model_io.", "logger.", "hydra.", "record.")


@dataclass(frozen=True)
class Training:
    """One method trained with one seed.

    Args:
        run: the run folder.
        method: the method's name in the run.
        seed: seed of the data and the training.
        rows: its lines of ``results.csv`` by checkpoint rule; empty until it finishes.
        train_on: parts that it selects from: ``train``, ``holdout`` or ``train_and_holdout``.
    """

    run: Path
    method: str
    seed: int
    rows: Mapping[str, ResultRow]
    train_on: str = "train"

    @property
    def folder(self) -> Path:
        """The folder of its files."""
        return self.run / f"seed_{self.seed}" / self.method

    @cached_property
    def metrics(self) -> MetricsLog:
        """Its logged metrics; empty without a CSV logger."""
        path = self.folder / "csv" / "metrics.csv"
        return MetricsLog.read(path) if path.is_file() else MetricsLog({})

    @property
    def data(self) -> Mapping[str, NDArray[Any]]:
        """The arrays of the seed's ``data.npz``."""
        path = self.run / f"seed_{self.seed}" / "data.npz"
        return read_arrays(path, "class_names", "train_target", "holdout_target", "test_target") or {}

    @cached_property
    def selected_index(self) -> NDArray[np.int64] | None:
        """(steps, b) indices of the selected examples, -1 for an empty place; None for a method without selection."""
        arrays = read_arrays(self.folder / "selected.npz", "index")
        return None if arrays is None else arrays["index"]

    @cached_property
    def times_selected(self) -> NDArray[np.int64] | None:
        """(N,) number of times each example was selected; None for a method without selection."""
        arrays = read_arrays(self.folder / "selected.npz", "num_times_selected")
        return None if arrays is None else arrays["num_times_selected"]

    @cached_property
    def example_loss(self) -> Floats | None:
        """(N,) loss of the last model on each example it could select, nats; None if it was not recorded."""
        path = self.folder / "point_loss.npy"
        return read_array(path).astype(np.float64) if path.is_file() else None

    def predictions(self, rule: str) -> NDArray[Any] | None:
        """(N,) predicted class of each test example under a checkpoint rule; None if it was not recorded."""
        arrays = read_arrays(self.folder / "test_predictions.npz", rule)
        return None if arrays is None else arrays[rule]

    def example_array(self, name: str) -> NDArray[Any] | None:
        """(N,) ``target``, ``group`` or ``is_corrupted`` of each example it could select; None if unknown.

        For ``train_and_holdout`` the training examples come first. If corruption is known for one part only, the
        examples of the other part count as clean.
        """
        parts = self.train_on.split("_and_")
        arrays = [self.data.get(f"{part}_{name}") for part in parts]
        if all(array is None for array in arrays):
            return None
        sizes = [len(self.data[f"{part}_target"]) for part in parts]
        return np.concatenate(
            [np.zeros(size, dtype=bool) if array is None else array for array, size in zip(arrays, sizes, strict=True)]
        )

    def class_accuracy(self, rule: str = "last") -> Floats | None:
        """(C,) test accuracy of each class, NaN for a class without test examples; None until it finishes."""
        path = self.folder / "test_accuracy.csv"
        if not path.is_file():
            return None
        with reading(path, "test accuracies"), path.open(newline="", encoding="utf-8") as file:
            return np.array(
                [
                    float(line["accuracy"])
                    for line in csv.DictReader(file)
                    if line["checkpoint_rule"] == rule and line["partition"] == "class"
                ]
            )


@dataclass(frozen=True)
class Run:
    """A run folder.

    Args:
        folder: the run folder.
        rows: lines of ``results.csv``; empty until the first method finishes.
        state: ``finished``, ``running`` or ``interrupted``.
        num_expected: number of trainings in the whole run, methods times seeds.
        command: the command line that started it.
        config_text: the content of ``config.yaml``.
        notes: on the files of the run: whether they can be verified, which are gone, and which changes were accepted.
    """

    folder: Path
    rows: Sequence[ResultRow]
    state: str
    num_expected: int
    command: str
    config_text: str
    notes: Sequence[str] = ()

    @classmethod
    def read(cls, folder: Path, *, is_own: bool = False) -> Run:
        """Read a run, which may still be active.

        Args:
            folder: the run folder.
            is_own: whether it is this process that has locked the folder, and is about to leave it.

        Raises:
            FileNotFoundError: if ``folder`` is not a run folder, or no training has started.
            ValueError: if the run holds irreducible models only, or a file is not as the run wrote it (named).
        """
        start = _check_is_run(folder)
        check_unchanged(folder, lambda file: not file.endswith(".ckpt"), command="report")
        config_path = folder / "config.yaml"
        with reading(config_path, "the configuration of a run"):
            text = config_path.read_text(encoding="utf-8")
        config = _parsed(text, config_path)
        rows = read_results(folder) if has_results(folder) else []
        num_methods = 1 if config["selection_method"] is not None else len(config["compare"])
        num_expected = num_methods * (1 if config["seed"] is not None else len(config["seeds"]))
        is_complete = len({(row.method, row.seed) for row in rows}) == num_expected
        run = cls(
            folder,
            rows,
            state=_state(folder, is_complete=is_complete, is_own=is_own),
            num_expected=num_expected,
            command=_command(folder / "command.txt"),
            config_text=text,
            notes=_notes(folder, start),
        )
        if not run.trainings:
            reason = (
                "The run is still reading its data or training its irreducible models. Try again later."
                if run.state == "running"
                else f"The run was interrupted before its first method. Continue it with `reducr resume {folder}`."
            )
            raise FileNotFoundError(f"{folder} has no results and no metrics yet. {reason}")
        return run

    @property
    def name(self) -> str:
        """The folder and its parent, such as ``digits/2026-01-31_12-00-00``."""
        folder = self.folder.resolve()
        return plain_text(f"{folder.parent.name}/{folder.name}")

    @property
    def num_finished(self) -> int:
        """Number of finished trainings."""
        return len({(row.method, row.seed) for row in self.rows})

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration, nested."""
        return _parsed(self.config_text, self.folder / "config.yaml")

    @cached_property
    def settings(self) -> dict[str, str]:
        """Options that affect results, by dotted name, except methods and seeds."""
        return {
            name: current_path(value) if name.endswith("_target_") else value
            for name, value in _dotted(self.config)
            if name not in _IGNORED_OPTIONS and not name.startswith(_IGNORED_PREFIXES) and not name.endswith("_dir")
        }

    @cached_property
    def trainings(self) -> list[Training]:
        """All trainings that have started: the finished ones, then those that have only a log."""
        rows: dict[tuple[str, int], dict[str, ResultRow]] = {}
        for row in self.rows:
            rows.setdefault((row.method, row.seed), {})[row.checkpoint_rule] = row
        for path in sorted(self.folder.glob("seed_*/*/csv/metrics.csv")):
            seed = path.parts[-4].removeprefix("seed_")
            if seed.isdecimal():
                rows.setdefault((path.parts[-3], int(seed)), {})
        methods = self.config.get("methods") or {}
        return [
            Training(self.folder, method, seed, by_rule, methods.get(method, {}).get("train_on", "train"))
            for (method, seed), by_rule in rows.items()
        ]


def read_arrays(path: Path, *names: str) -> Mapping[str, NDArray[Any]] | None:
    """The arrays of an ``.npz`` file, which must have those of ``names``; None if the file does not exist.

    Raises:
        ValueError: if the file is damaged.
    """
    if not path.is_file():
        return None
    arrays = _read_arrays(path, path.stat().st_mtime_ns)
    with reading(path, "arrays"):
        missing = [name for name in names if name not in arrays]
        if missing:
            raise ValueError(f"it lacks the array {', '.join(missing)}")
    return arrays


@lru_cache(maxsize=64)
def _read_arrays(path: Path, changed_at: int) -> Mapping[str, NDArray[Any]]:
    return reading_files.read_arrays(path)


def _command(path: Path) -> str:
    return plain_text(path.read_text(encoding="utf-8", errors="surrogateescape").strip()) if path.is_file() else ""


def _check_is_run(folder: Path) -> RunStart:
    for name in ("config.yaml", "run.json"):
        if not (folder / name).is_file() and not never_began(folder):
            raise FileNotFoundError(
                f"{folder} is not a run folder: it has no {name}. Give a folder made by `reducr run` or "
                "`reducr train`, such as runs/NAME/DATE_TIME."
            )
    start = RunStart.read(folder)
    if start.command == "irreducible":
        raise ValueError(
            f"{folder} holds irreducible models only, and a report needs target trainings. Give the folder of a run "
            "that uses them (`irreducible.dir`)."
        )
    return start


def _notes(folder: Path, start: RunStart) -> list[str]:
    name = plain_text(folder.name)
    notes = [] if is_verified(folder) else [f"{name} is {UNVERIFIED}."]
    lost = lost_files(folder)
    if lost:
        notes.append(plain_text(f"{name} lacks {', '.join(lost)}, and the report what is in there."))
    return notes + [
        plain_text(f"Changes of {', '.join(accepted['files'])} in {name} were accepted at {accepted['time']}.")
        for accepted in start.accepted
    ]


def _state(folder: Path, *, is_complete: bool, is_own: bool) -> str:
    if not is_own and is_locked(folder):
        return "running"
    return "finished" if is_complete else "interrupted"


def _parsed(text: str, path: Path) -> dict[str, Any]:
    with reading(path, "the configuration of a run"):
        try:
            if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, Loader=yaml.SafeLoader)):
                raise DamagedFileError(f"{path} is not the configuration of a run: it holds aliases (*NAME).")
            config = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise DamagedFileError(f"{path} is not valid YAML: {error}") from error
    required = ("compare", "seeds", "selection_method", "seed", "datamodule")
    if not isinstance(config, dict) or any(name not in config for name in required):
        raise ValueError(f"{path} is not the configuration of a run: it must have {', '.join(required)}.")
    return config


def _dotted(node: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _dotted(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, str(node)
