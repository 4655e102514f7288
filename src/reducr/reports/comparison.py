"""Group runs on the same data into comparisons, and pool the seeds of equal settings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reducr._internal.text import plain_text
from reducr.reports.run_reader import Run, Training

_MAX_DIFFERENCES = 3  # a label with more options would be unreadable


@dataclass(frozen=True)
class Series:
    """One line of a comparison: a method over its seeds.

    Args:
        label: unique in the comparison.
        method: the method's name in its runs.
        trainings: by seed.
    """

    label: str
    method: str
    trainings: Mapping[int, Training]

    def values(self, name: str, *, rule: str = "last") -> dict[int, float]:
        """A column of ``results.csv`` by seed, for finished seeds; cells that do not apply are left out."""
        cells = {seed: getattr(t.rows[rule], name) for seed, t in self.trainings.items() if t.rows}
        return {seed: value for seed, value in cells.items() if value is not None}

    @property
    def is_trained_on_holdout(self) -> bool:
        """Whether it selects from holdout examples."""
        return any(t.train_on != "train" and t.selected_index is not None for t in self.trainings.values())

    @property
    def is_reducr(self) -> bool:
        """Whether it is REDUCR, which the other methods are compared with."""
        return self.method == "reducr"


@dataclass(frozen=True)
class Comparison:
    """Runs on the same data, and their methods.

    Args:
        title: the name of the runs.
        runs: the runs.
        series: the methods, in the order of the runs.
    """

    title: str
    runs: Sequence[Run]
    series: Sequence[Series]

    @property
    def reducr(self) -> Series | None:
        """The first series of the method ``reducr``; None if there is none."""
        return next((series for series in self.series if series.is_reducr), None)

    def highlighted(self, *, selecting_only: bool = False) -> list[Series]:
        """REDUCR, and the other method with the best worst-class accuracy, as far as they exist.

        Args:
            selecting_only: whether the other method must be one that selects examples.
        """
        others = [
            (float(np.mean(list(accuracies.values()))), series)
            for series in self.series
            if not series.is_reducr
            and (accuracies := series.values("worst_class_accuracy"))
            and not (selecting_only and next(iter(series.trainings.values())).times_selected is None)
        ]
        best = [max(others, key=lambda pair: pair[0])[1]] if others else []
        return ([self.reducr] if self.reducr is not None else []) + best

    @property
    def class_names(self) -> list[str]:
        """Names of the C classes."""
        return class_and_group_names(self._data)[0]

    @property
    def group_names(self) -> list[str]:
        """Names of the G groups."""
        return class_and_group_names(self._data)[1]

    @property
    def group_noun(self) -> str:
        """``class`` if the groups are the classes, else ``group``."""
        return "class" if self.group_names == self.class_names else "group"

    @property
    def _data(self) -> Mapping[str, NDArray[Any]]:
        return next(iter(self.series[0].trainings.values())).data


def comparisons(runs: Sequence[Run]) -> list[Comparison]:
    """One comparison for each data set; runs with equal settings pool their methods and seeds.

    If a method occurs with several settings, its labels name the options that differ.
    """
    by_data: dict[str, list[Run]] = {}
    for run in runs:
        data = {name: value for name, value in run.settings.items() if name.startswith("datamodule.")}
        by_data.setdefault(json.dumps(data, sort_keys=True), []).append(run)
    return [_comparison(group) for group in by_data.values()]


def _comparison(runs: Sequence[Run]) -> Comparison:
    pools: list[tuple[Run, dict[tuple[str, int], Training]]] = []
    for run in runs:
        trainings = {(t.method, t.seed): t for t in run.trainings}
        pool = next(
            (pool for first, pool in pools if first.settings == run.settings and pool.keys().isdisjoint(trainings)),
            None,
        )
        if pool is None:
            pools.append((run, trainings))
        else:
            pool.update(trainings)
    methods = [list(dict.fromkeys(method for method, _ in pool)) for _, pool in pools]
    num_pools = {method: sum(method in names for names in methods) for names in methods for method in names}
    series = []
    for (run, pool), names in zip(pools, methods, strict=True):
        others = [first for first, _ in pools if first is not run]
        for method in names:
            label = method if num_pools[method] == 1 else f"{method} ({_distinction(run, others, method)})"
            by_seed = {seed: training for (name, seed), training in sorted(pool.items()) if name == method}
            series.append(Series(plain_text(label), method, by_seed))
    return Comparison(plain_text(str(runs[0].config.get("name", runs[0].name))), runs, series)


def _distinction(run: Run, others: Sequence[Run], method: str) -> str:
    """The options in which a run differs from the others; its folder if these are too many or do not tell it apart.

    Options of other methods are left out.
    """
    names = sorted({*run.settings, *itertools.chain.from_iterable(other.settings for other in others)})
    differing = [
        name
        for name in names
        if any(run.settings.get(name) != other.settings.get(name) for other in others)
        and (not name.startswith("methods.") or name.startswith(f"methods.{method}."))
    ]
    values = [{name: each.settings.get(name) for name in differing} for each in (run, *others)]
    if not 0 < len(differing) <= _MAX_DIFFERENCES or values.count(values[0]) > 1:
        return run.name
    return ", ".join(f"{name.removeprefix(f'methods.{method}.')}={run.settings.get(name)}" for name in differing)


def class_and_group_names(data: Mapping[str, NDArray[Any]]) -> tuple[list[str], list[str]]:
    """Names of the classes and of the groups in a ``data.npz``; groups without names are numbered."""
    class_names = [plain_text(str(name)) for name in data["class_names"]]
    if "group_names" in data:
        return class_names, [plain_text(str(name)) for name in data["group_names"]]
    if np.array_equal(data["train_group"], data["train_target"]):
        return class_names, class_names
    num_groups = 1 + int(max(data[f"{part}_group"].max() for part in ("train", "holdout", "test")))
    return class_names, [f"group {group}" for group in range(num_groups)]
