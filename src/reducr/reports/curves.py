"""Accuracy curves against steps or seconds, and accuracies at equal steps or seconds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reducr.reports.comparison import Comparison, Series
from reducr.reports.metrics_log import Floats
from reducr.reports.run_reader import Training


def accuracy_source(comparison: Comparison) -> str | None:
    """The part whose accuracies are compared over time.

    ``test`` if every training with a curve logged test accuracies, else ``holdout``; None if there are no curves.
    """
    logs = [t.metrics.columns for series in comparison.series for t in series.trainings.values()]
    logs = [columns for columns in logs if "holdout/mean_accuracy" in columns]
    if not logs:
        return None
    return "test" if all("test/mean_accuracy" in columns for columns in logs) else "holdout"


def accuracy_curve(training: Training, name: str, *, source: str, against: str) -> tuple[Floats, Floats]:
    """Accuracy of one training over time.

    Args:
        training: one method and seed.
        name: ``worst_class_accuracy``, ``worst_group_accuracy`` or ``mean_accuracy``.
        source: ``test`` or ``holdout``.
        against: ``step`` or ``seconds``. Seconds include the whole irreducible stage, charged before the first step;
            they are known once the method finishes.

    Returns:
        (T,) steps or seconds, and (T,) accuracies; both empty if unknown.
    """
    if against == "step":
        return training.metrics.curve(f"{source}/{name}")
    seconds, accuracy = training.metrics.curve(f"{source}/{name}", against="time/target_seconds")
    if not training.rows:
        return np.zeros(0), np.zeros(0)
    return seconds + training.rows["last"].irreducible_seconds, accuracy


def ends(series: Series, *, source: str, against: str) -> dict[int, float]:
    """The last step or second with an accuracy, by seed, for finished trainings that have a curve."""
    last = {}
    for seed, training in series.trainings.items():
        times, _ = accuracy_curve(training, "mean_accuracy", source=source, against=against)
        if training.rows and len(times):
            last[seed] = float(times[-1])
    return last


def first_ends(comparison: Comparison, against: str) -> dict[int, float]:
    """The earliest end of any method (see ``ends``), by seed."""
    source = accuracy_source(comparison)
    series_ends = [ends(series, source=source, against=against) for series in comparison.series] if source else []
    seeds = sorted({seed for by_seed in series_ends for seed in by_seed})
    return {seed: min(by_seed[seed] for by_seed in series_ends if seed in by_seed) for seed in seeds}


def accuracy_at(
    series: Series, name: str, *, source: str, against: str, limits: Mapping[int, float]
) -> dict[int, float]:
    """Accuracy at the last evaluation up to each seed's limit, by seed; seeds without one by then are left out.

    A method without a curve, such as the irreducible model, has its final test accuracy from the second at which its
    training ended.
    """
    accuracies = {}
    for seed, training in series.trainings.items():
        if seed not in limits or not training.rows:
            continue
        times, values = accuracy_curve(training, name, source=source, against=against)
        if len(times):
            num_evaluations = int(np.searchsorted(times, limits[seed], side="right"))
            if num_evaluations:
                accuracies[seed] = float(values[num_evaluations - 1])
        elif source == "test" and against == "seconds" and training.selected_index is None:
            last = training.rows["last"]
            if last.total_seconds <= limits[seed]:
                accuracies[seed] = float(getattr(last, name))
    return accuracies


def mean_curve(series: Series, name: str, *, source: str, against: str) -> tuple[Floats, Floats, Floats] | None:
    """Mean accuracy over seeds at the steps at which every seed was evaluated; None if there are none.

    Returns:
        (T,) steps, or mean seconds at these steps; (T,) mean accuracies; (T,) sample standard deviations, 0 for a
        single seed.
    """
    curves = []
    for training in series.trainings.values():
        steps, _ = accuracy_curve(training, name, source=source, against="step")
        times, values = accuracy_curve(training, name, source=source, against=against)
        if len(times) == len(steps) > 0:
            curves.append((steps, times, values))
    if not curves:
        return None
    shared_steps = list(set.intersection(*(set(steps.tolist()) for steps, _, _ in curves)))
    if not shared_steps:
        return None
    is_shared = [np.isin(steps, shared_steps) for steps, _, _ in curves]
    times = np.array([times[shared] for shared, (_, times, _) in zip(is_shared, curves, strict=True)])
    values = np.array([values[shared] for shared, (_, _, values) in zip(is_shared, curves, strict=True)])
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    return times.mean(axis=0), values.mean(axis=0), deviation
