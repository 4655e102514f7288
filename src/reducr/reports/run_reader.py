"""What run folders hold, read for a report: finished, running and interrupted runs, and which of them compare."""

from __future__ import annotations

import csv
import itertools
import json
import zipfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

from reducr._internal.run_folder import ResultRow, has_results, is_at_work, read_results

Floats = NDArray[np.float64]
# more steps than this are thinned out when they are read: no plot shows as many
_MOST_STEPS = 600
# what may differ between runs whose seeds and methods belong together
_BESIDE_THE_SETTINGS = (
    "seeds",
    "seed",
    "compare",
    "selection_method",
    "name",
    "irreducible.dir",
    "gradient_weighted_class",
)
_BESIDE_THE_SETTINGS_TOO = ("model_io.", "logger.", "hydra.", "record.")
_MOST_DIFFERENCES = 3


@dataclass(frozen=True)
class Metrics:
    """A ``metrics.csv``, of which steps that are logged in passing are thinned out to some hundreds.

    Args:
        columns: by name, (L,) floats, NaN where a line has no value.
    """

    columns: Mapping[str, Floats]

    @classmethod
    def read(cls, path: Path) -> Metrics:
        """Read the file; a last line that is still being written is left out."""
        with path.open(newline="", encoding="utf-8") as file:
            reader = csv.reader(file)
            header = next(reader, [])
            lines = [line for line in reader if len(line) == len(header)]
        if "step" not in header:
            return cls({})
        validation = header.index("holdout/mean_accuracy") if "holdout/mean_accuracy" in header else None
        passing = [number for number, line in enumerate(lines) if validation is None or not line[validation]]
        every = -(-len(passing) // _MOST_STEPS) or 1
        left_out = set(passing) - set(passing[every - 1 :: every]) - set(passing[-1:])
        values = [[float(cell or "nan") for cell in line] for n, line in enumerate(lines) if n not in left_out]
        table = np.array(values, dtype=np.float64).reshape(-1, len(header))
        return cls({name: table[:, place] for place, name in enumerate(header)})

    def curve(self, name: str, *, against: str = "step") -> tuple[Floats, Floats]:
        """The (T,) values of ``against`` and of ``name`` where both are logged; empty where they never are."""
        if name not in self.columns or against not in self.columns:
            return np.zeros(0), np.zeros(0)
        x, y = self.columns[against], self.columns[name]
        is_there = ~np.isnan(x) & ~np.isnan(y)
        return x[is_there], y[is_there]

    def by_group(self, prefix: str) -> tuple[Floats, Floats]:
        """The steps (T,) and (T, G) values of the columns ``prefix0``, ``prefix1``, ... where they are logged."""
        names = [name for name in self.columns if name.startswith(prefix)]
        names.sort(key=lambda name: int(name.removeprefix(prefix)))
        if not names:
            return np.zeros(0), np.zeros((0, 0))
        is_there = ~np.isnan(self.columns[names[0]])
        return self.columns["step"][is_there], np.stack([self.columns[name][is_there] for name in names], axis=1)


@dataclass(frozen=True)
class Training:
    """One method trained for one seed.

    Args:
        run: folder of the run.
        method: as the run calls it.
        seed: of the data and the training.
        rows: its lines of ``results.csv`` by checkpoint rule; none while it goes on.
        train_on: the points it could select: ``train``, ``holdout`` or ``train_and_holdout``.
    """

    run: Path
    method: str
    seed: int
    rows: Mapping[str, ResultRow]
    train_on: str = "train"

    @property
    def folder(self) -> Path:
        """Where its files are."""
        return self.run / f"seed_{self.seed}" / self.method

    @cached_property
    def metrics(self) -> Metrics:
        """What it logged; nothing where there is no CSV logger."""
        path = self.folder / "csv" / "metrics.csv"
        return Metrics.read(path) if path.is_file() else Metrics({})

    @property
    def data(self) -> Mapping[str, NDArray[Any]]:
        """The arrays of the seed's ``data.npz``."""
        return read_arrays(self.run / f"seed_{self.seed}" / "data.npz") or {}

    @cached_property
    def index(self) -> NDArray[np.int64] | None:
        """(steps, b) the training points selected at every step, -1 for none; None where nothing is selected."""
        arrays = read_arrays(self.folder / "selected.npz")
        return None if arrays is None else arrays["index"]

    @cached_property
    def times_selected(self) -> NDArray[np.int64] | None:
        """(N,) how often each point was selected; None where nothing is."""
        arrays = read_arrays(self.folder / "selected.npz")
        return None if arrays is None else arrays["num_times_selected"]

    @cached_property
    def point_loss(self) -> Floats | None:
        """(N,) loss of the last model on every point it could select; None where that was not recorded."""
        path = self.folder / "point_loss.npy"
        return np.load(path).astype(np.float64) if path.is_file() else None

    def predictions(self, rule: str) -> NDArray[Any] | None:
        """(N,) the class that the model of a checkpoint rule predicts for every test point; None where not recorded."""
        arrays = read_arrays(self.folder / "test_predictions.npz")
        return None if arrays is None else arrays[rule]

    def point_arrays(self, name: str) -> NDArray[Any] | None:
        """(N,) ``target``, ``group`` or ``is_corrupted`` of every point it could select; None where not known.

        The points of ``train_and_holdout`` are those of both parts, one after the other; where corruption is known of
        one part alone, the other's points count as left alone.
        """
        parts = self.train_on.split("_and_")
        known = [self.data.get(f"{part}_{name}") for part in parts]
        if all(values is None for values in known):
            return None
        sizes = [len(self.data[f"{part}_target"]) for part in parts]
        return np.concatenate(
            [
                np.zeros(size, dtype=bool) if values is None else values
                for values, size in zip(known, sizes, strict=True)
            ]
        )

    def class_accuracy(self, rule: str = "last") -> Floats | None:
        """(C,) test accuracy of every class, NaN for one without test points; None while the method goes on."""
        path = self.folder / "test_accuracy.csv"
        if not path.is_file():
            return None
        with path.open(newline="", encoding="utf-8") as file:
            return np.array(
                [
                    float(line["accuracy"])
                    for line in csv.DictReader(file)
                    if line["checkpoint_rule"] == rule and line["partition"] == "class"
                ]
            )


@dataclass(frozen=True)
class Series:
    """One line of a comparison: a method over its seeds.

    Args:
        label: unique in the comparison.
        method: as its runs call it.
        trainings: by seed.
    """

    label: str
    method: str
    trainings: Mapping[int, Training]

    def values(self, name: str, *, rule: str = "last") -> dict[int, float]:
        """A column of ``results.csv`` by seed, of the seeds that have finished and where it applies."""
        found = {seed: getattr(one.rows[rule], name) for seed, one in self.trainings.items() if one.rows}
        return {seed: value for seed, value in found.items() if value is not None}

    @property
    def is_trained_on_holdout(self) -> bool:
        """Whether it selected from holdout points."""
        return any(one.train_on != "train" and one.index is not None for one in self.trainings.values())

    @property
    def is_reducr(self) -> bool:
        """Whether it is the method that others are compared with."""
        return self.method == "reducr"


@dataclass(frozen=True)
class Run:
    """A run folder.

    Args:
        folder: of the run.
        rows: of ``results.csv``, none before the first method has finished.
        state: ``finished``, ``running`` or ``interrupted``.
        num_expected: methods times seeds that it is to train.
        command: the command line that began it.
        config_text: its ``config.yaml``.
    """

    folder: Path
    rows: Sequence[ResultRow]
    state: str
    num_expected: int
    command: str
    config_text: str

    @classmethod
    def read(cls, folder: Path) -> Run:
        """Read a run that may still be going on.

        Raises:
            FileNotFoundError: if the folder is that of no run, or nothing has been trained in it yet.
            ValueError: if it holds irreducible models alone, or a file in it is damaged; says which.
        """
        config_path = folder / "config.yaml"
        if not config_path.is_file() or not (folder / "run.json").is_file():
            raise FileNotFoundError(
                f"{folder} is not the folder of a run: it has no "
                f"{'config.yaml' if not config_path.is_file() else 'run.json'}. Give folders that `reducr run` or "
                "`reducr train` made, such as runs/NAME/DATE_TIME."
            )
        if json.loads((folder / "run.json").read_text(encoding="utf-8")).get("command") == "irreducible":
            raise ValueError(
                f"{folder} holds irreducible models alone, which there is no report of. Give the folder of a run that "
                "used them (irreducible.dir)."
            )
        text = config_path.read_text(encoding="utf-8")
        config = _parsed(text, config_path)
        rows = read_results(folder) if has_results(folder) else []
        num_methods = 1 if config["selection_method"] is not None else len(config["compare"])
        num_expected = num_methods * (1 if config["seed"] is not None else len(config["seeds"]))
        num_finished = len({(row.method, row.seed) for row in rows})
        state = "running" if is_at_work(folder) else "finished" if num_finished == num_expected else "interrupted"
        command = folder / "command.txt"
        run = cls(
            folder,
            rows,
            state,
            num_expected,
            command.read_text(encoding="utf-8").strip() if command.is_file() else "",
            text,
        )
        if not run.trainings:
            raise FileNotFoundError(
                f"{folder} has no results.csv and nothing logged: "
                + (
                    "it is still reading its data or training its irreducible models. Try again in a while."
                    if state == "running"
                    else "it was interrupted before its first method. `reducr resume RUN` goes on with it."
                )
            )
        return run

    @property
    def name(self) -> str:
        """Its folder and that above it."""
        folder = self.folder.resolve()
        return f"{folder.parent.name}/{folder.name}"

    @cached_property
    def config(self) -> dict[str, Any]:
        """The configuration, nested."""
        return _parsed(self.config_text, self.folder / "config.yaml")

    @cached_property
    def settings(self) -> dict[str, str]:
        """Every option with its dotted name, but those that do not matter to results, or are methods and seeds."""
        flat = dict(_flat(self.config))
        return {
            name: value
            for name, value in flat.items()
            if name not in _BESIDE_THE_SETTINGS
            and not name.startswith(_BESIDE_THE_SETTINGS_TOO)
            and not name.endswith("_dir")
        }

    @cached_property
    def trainings(self) -> list[Training]:
        """All that have been begun: the finished ones, then those with a log alone."""
        rows: dict[tuple[str, int], dict[str, ResultRow]] = {}
        for row in self.rows:
            rows.setdefault((row.method, row.seed), {})[row.checkpoint_rule] = row
        for path in sorted(self.folder.glob("seed_*/*/csv/metrics.csv")):
            rows.setdefault((path.parts[-3], int(path.parts[-4].removeprefix("seed_"))), {})
        methods = self.config.get("methods") or {}
        return [
            Training(self.folder, method, seed, own, methods.get(method, {}).get("train_on", "train"))
            for (method, seed), own in rows.items()
        ]


@dataclass(frozen=True)
class Comparison:
    """Runs on the same data, and their methods.

    Args:
        title: the name of the runs.
        runs: that it is made of.
        series: the methods, in the order of the runs.
    """

    title: str
    runs: Sequence[Run]
    series: Sequence[Series]

    @property
    def reducr(self) -> Series | None:
        """What the others are compared with: the first series of the method ``reducr``; None without one."""
        return next((series for series in self.series if series.is_reducr), None)

    @property
    def names(self) -> tuple[list[str], list[str]]:
        """Of the classes and of the groups."""
        return names_of(next(iter(self.series[0].trainings.values())).data)

    @property
    def seeds(self) -> list[int]:
        """All seeds, in order."""
        return sorted({seed for series in self.series for seed in series.trainings})


def compared(runs: Sequence[Run]) -> list[Comparison]:
    """Put runs on the same data together, and their methods and seeds where all other settings are the same.

    A method that several settings have is named with the options that tell these apart.
    """
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        data = {name: value for name, value in run.settings.items() if name.startswith("datamodule.")}
        by_data.setdefault(json.dumps(data, sort_keys=True), []).append(run)
    return [_comparison(own) for own in by_data.values()]


def _comparison(runs: Sequence[Run]) -> Comparison:
    pools: list[tuple[Run, dict[tuple[str, int], Training]]] = []
    for run in runs:
        own = {(one.method, one.seed): one for one in run.trainings}
        pool = next(
            (pool for first, pool in pools if first.settings == run.settings and pool.keys().isdisjoint(own)), None
        )
        if pool is None:
            pools.append((run, own))
        else:
            pool.update(own)
    methods = [list(dict.fromkeys(method for method, _ in pool)) for _, pool in pools]
    counts = {method: sum(method in own for own in methods) for own in methods for method in own}
    series = []
    for (run, pool), own_methods in zip(pools, methods, strict=True):
        others = [first for first, _ in pools if first is not run]
        for method in own_methods:
            label = method if counts[method] == 1 else f"{method} ({_distinction(run, others, method)})"
            trainings = {seed: one for (name, seed), one in sorted(pool.items()) if name == method}
            series.append(Series(label, method, trainings))
    return Comparison(str(runs[0].config.get("name", runs[0].name)), runs, series)


def _distinction(run: Run, others: Sequence[Run], method: str) -> str:
    """What tells the settings of a run from those of others, as far as the method can know."""
    names = sorted({*run.settings, *itertools.chain.from_iterable(other.settings for other in others)})
    different = [
        name
        for name in names
        if any(run.settings.get(name) != other.settings.get(name) for other in others)
        and (not name.startswith("methods.") or name.startswith(f"methods.{method}."))
    ]
    own = [{name: each.settings.get(name) for name in different} for each in (run, *others)]
    if not 0 < len(different) <= _MOST_DIFFERENCES or own.count(own[0]) > 1:
        return run.name
    return ", ".join(f"{name.removeprefix(f'methods.{method}.')}={run.settings.get(name)}" for name in different)


def names_of(data: Mapping[str, NDArray[Any]]) -> tuple[list[str], list[str]]:
    """The names of the classes, and of the groups, in a ``data.npz``; groups without names have numbers."""
    class_names = [str(name) for name in data["class_names"]]
    if "group_names" in data:
        return class_names, [str(name) for name in data["group_names"]]
    if np.array_equal(data["train_group"], data["train_target"]):
        return class_names, class_names
    num_groups = 1 + int(max(data[f"{part}_group"].max() for part in ("train", "holdout", "test")))
    return class_names, [f"group {group}" for group in range(num_groups)]


@lru_cache(maxsize=64)
def _read_arrays(path: Path, changed: int) -> Mapping[str, NDArray[Any]]:
    try:
        # numpy leaves a file that it cannot read open
        with path.open("rb") as opened, np.load(opened) as file:
            return dict(file)
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}): make the run again, or leave it out of the report.") from error


def read_arrays(path: Path) -> Mapping[str, NDArray[Any]] | None:
    """The arrays of an ``.npz`` file; None where it is not there.

    Raises:
        ValueError: if it cannot be read.
    """
    return _read_arrays(path, path.stat().st_mtime_ns) if path.is_file() else None


def _parsed(text: str, path: Path) -> dict[str, Any]:
    try:
        config = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"{path} cannot be read as YAML: {error}") from error
    needed = ("compare", "seeds", "selection_method", "seed", "datamodule")
    if not isinstance(config, dict) or any(name not in config for name in needed):
        raise ValueError(f"{path} is not the configuration of a run: it must have {', '.join(needed)}.")
    return config


def _flat(node: Any, prefix: str = "") -> Iterable[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for name, value in node.items():
            yield from _flat(value, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, str(node)
