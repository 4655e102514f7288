"""Plots of accuracy over time, and of the time spent."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from reducr.reports.comparison import Comparison
from reducr.reports.curves import accuracy_source, mean_curve
from reducr.reports.figure import (
    COLOURS,
    HATCHES,
    REDUCR_COLOUR,
    Plot,
    add_legend,
    legend_label,
    line_style,
    new_figure,
)

_COST_PARTS = {  # column of results.csv, without _seconds: label and colour
    "irreducible": ("irreducible stage", REDUCR_COLOUR),
    "selection": ("scoring and selection", COLOURS[0]),
    "training": ("training", COLOURS[1]),
}


def accuracy_curves(comparison: Comparison) -> Iterator[Plot]:
    """Worst-class and mean accuracy against steps and seconds."""
    source = accuracy_source(comparison)
    if source is None:
        return
    for measure in ("worst-class", "mean"):
        for against in ("step", "seconds"):
            plot = _accuracy_curve(comparison, measure, source=source, against=against)
            if plot is not None:
                yield plot


def _accuracy_curve(comparison: Comparison, measure: str, *, source: str, against: str) -> Plot | None:
    figure, axes = new_figure()
    name, unit = measure.replace("-", "_"), f"{against.removesuffix('s')}s"
    final_values = []
    for position, series in enumerate(comparison.series):
        curve = mean_curve(series, f"{name}_accuracy", source=source, against=against)
        if curve is None:
            continue
        times, values, deviation = curve
        style = line_style(position, series)
        axes.plot(
            times, values, label=legend_label(series.label), markevery=max(1, len(times) // 6), markersize=4, **style
        )
        if series.is_reducr:
            axes.fill_between(
                times, values - deviation, values + deviation, color=style["color"], alpha=0.18, linewidth=0
            )
        final_values.append(f"{series.label} {values[-1]:.2f}")
    if not final_values:
        return None
    axes.set_ylim(0, 1)
    axes.set_xlabel("steps" if against == "step" else "seconds, including the irreducible stage")
    axes.set_ylabel(f"{measure} {source} accuracy")
    add_legend(axes)
    title = f"{measure.capitalize()} {source} accuracy against {unit}"
    band = " The band is one standard deviation of REDUCR." if comparison.reducr is not None else ""
    return Plot(
        f"{name}_by_{unit}",
        f"{title}, mean over seeds.{band}",
        f"{title}. At the end: {', '.join(final_values)}.",
        figure,
    )


def cost_bars(comparison: Comparison) -> Iterator[Plot]:
    """Seconds that each part of a training took."""
    finished = [series for series in comparison.series if series.values("total_seconds")]
    if not finished:
        return
    figure, axes = new_figure(height=0.9 + 0.32 * len(finished) + 0.7)
    totals = np.array([np.mean(list(series.values("total_seconds").values())) for series in finished])
    bars = [
        (label, colour, np.array([np.mean(list(series.values(f"{part}_seconds").values())) for series in finished]))
        for part, (label, colour) in _COST_PARTS.items()
    ]
    rest = np.maximum(totals - sum(widths for _, _, widths in bars), 0)
    left = np.zeros(len(finished))
    for hatch, (label, colour, widths) in zip(
        HATCHES, [*bars, ("evaluation and rest", COLOURS[6], rest)], strict=False
    ):
        axes.barh(
            range(len(finished)), widths, left=left, label=label, color=colour, hatch=hatch, edgecolor="white",
            linewidth=0, height=0.7,
        )  # fmt: skip
        left += widths
    axes.set_yticks(range(len(finished)), [legend_label(series.label) for series in finished])
    axes.invert_yaxis()
    axes.set_xlabel("seconds, mean over seeds")
    add_legend(axes, num_columns=2)
    seconds = ", ".join(f"{series.label} {total:.3g} s" for series, total in zip(finished, totals, strict=True))
    yield Plot("seconds", "Where the time went.", f"Total seconds: {seconds}.", figure)
