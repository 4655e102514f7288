"""Accuracy over time: against steps and against seconds, of a training, a series, and at equal steps or seconds."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from reducr.reports.run_reader import Comparison, Floats, Series, Training


def accuracy_source(comparison: Comparison) -> str | None:
    """``test`` where every training with a curve logged test accuracies, else ``holdout``; None without any curve."""
    found = [one.metrics.columns for series in comparison.series for one in series.trainings.values()]
    found = [columns for columns in found if "holdout/mean_accuracy" in columns]
    if not found:
        return None
    return "test" if all("test/mean_accuracy" in columns for columns in found) else "holdout"


def accuracy_curve(training: Training, name: str, *, source: str, against: str) -> tuple[Floats, Floats]:
    """Accuracies over time.

    Args:
        training: one method and seed.
        name: ``worst_class_accuracy``, ``worst_group_accuracy`` or ``mean_accuracy``.
        source: ``test`` or ``holdout``.
        against: ``step``, or ``seconds``: of the irreducible stage, which is charged in full before the first step, and
            of target training. They are known once the method has finished.

    Returns:
        (T,) steps or seconds, and (T,) accuracies; empty where they are not known.
    """
    if against == "step":
        return training.metrics.curve(f"{source}/{name}")
    seconds, accuracy = training.metrics.curve(f"{source}/{name}", against="time/target_seconds")
    if not training.rows:
        return np.zeros(0), np.zeros(0)
    return seconds + training.rows["last"].irreducible_seconds, accuracy


def ends(series: Series, *, source: str, against: str) -> dict[int, float]:
    """By seed, the last step or second with an accuracy, of trainings that have finished and have a curve."""
    found = {}
    for seed, one in series.trainings.items():
        places, _ = accuracy_curve(one, "mean_accuracy", source=source, against=against)
        if one.rows and len(places):
            found[seed] = float(places[-1])
    return found


def first_ends(comparison: Comparison, against: str) -> dict[int, float]:
    """By seed, where the first of the methods ends (see ``ends``)."""
    source = accuracy_source(comparison)
    found = [ends(series, source=source, against=against) for series in comparison.series] if source else []
    seeds = {seed for own in found for seed in own}
    return {seed: min(own[seed] for own in found if seed in own) for seed in sorted(seeds)}


def accuracy_at(
    series: Series, name: str, *, source: str, against: str, limits: Mapping[int, float]
) -> dict[int, float]:
    """The accuracy at the last evaluation up to each seed's limit, by seed; without those that had none by then.

    What has no curve, as the irreducible model, has its test accuracy from the second on at which it was trained.
    """
    found = {}
    for seed, one in series.trainings.items():
        if seed not in limits or not one.rows:
            continue
        places, values = accuracy_curve(one, name, source=source, against=against)
        if len(places):
            num_before = int(np.searchsorted(places, limits[seed], side="right"))
            if num_before:
                found[seed] = float(values[num_before - 1])
        elif source == "test" and against == "seconds" and one.index is None:
            last = one.rows["last"]
            if last.total_seconds <= limits[seed]:
                found[seed] = float(getattr(last, name))
    return found


def mean_curve(series: Series, name: str, *, source: str, against: str) -> tuple[Floats, Floats, Floats] | None:
    """The mean over seeds at the steps at which all of them were evaluated; None where there is no such step.

    Returns:
        (T,) steps, or mean seconds at these; (T,) mean accuracies and (T,) their standard deviations, 0 for one seed.
    """
    found = []
    for one in series.trainings.values():
        steps, _ = accuracy_curve(one, name, source=source, against="step")
        places, values = accuracy_curve(one, name, source=source, against=against)
        if len(places) == len(steps) > 0:
            found.append((steps, places, values))
    if not found:
        return None
    common = set.intersection(*(set(steps.tolist()) for steps, _, _ in found))
    kept = [np.isin(steps, list(common)) for steps, _, _ in found]
    places = np.array([places[keep] for keep, (_, places, _) in zip(kept, found, strict=True)])
    values = np.array([values[keep] for keep, (_, _, values) in zip(kept, found, strict=True)])
    if not places.size:
        return None
    deviation = values.std(axis=0, ddof=1) if len(values) > 1 else np.zeros(values.shape[1])
    return places.mean(axis=0), values.mean(axis=0), deviation
