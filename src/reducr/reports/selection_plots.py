"""Plots of what was selected: corrupted examples, repeated selections, and losses."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from matplotlib.ticker import LogLocator, NullLocator

from reducr.reports.comparison import Comparison, Series
from reducr.reports.figure import (
    COLOURS,
    GRID_COLOUR,
    REDUCR_COLOUR,
    Plot,
    add_legend,
    file_name,
    legend_label,
    line_style,
    new_figure,
)
from reducr.reports.metrics_log import Floats
from reducr.reports.run_reader import Training

_NUM_WINDOWS = 12
_MIN_LOSS = 1e-4  # nats; smaller losses are drawn as this


def corrupted_shares(comparison: Comparison) -> Iterator[Plot]:
    """Share of corrupted examples among the selected, over time."""
    figure, axes = new_figure()
    final_values = []
    share_of_all = None
    for position, series in enumerate(comparison.series):
        curves = [curve for t in series.trainings.values() if (curve := _corrupted_share(t)) is not None]
        if not curves:
            continue
        num_windows = min(len(shares) for _, shares in curves)
        mean = np.mean([shares[:num_windows] for _, shares in curves], axis=0)
        axes.plot(
            curves[0][0][:num_windows],
            mean,
            label=legend_label(series.label),
            markersize=4,
            **line_style(position, series),
        )
        final_values.append(f"{series.label} {mean[-1]:.2f}")
        flags = next(iter(series.trainings.values())).example_array("is_corrupted")
        if share_of_all is None and flags is not None:
            share_of_all = float(flags.mean())
    if not final_values:
        return
    if share_of_all is not None:
        axes.axhline(share_of_all, color=GRID_COLOUR, linewidth=0.8, linestyle=":")
    axes.set_ylim(0, 1)
    axes.set_xlabel("steps")
    axes.set_ylabel("corrupted among the selected")
    add_legend(axes)
    yield Plot(
        "corrupted",
        "Share of corrupted examples among the selected, averaged over a twelfth of the steps. Dotted: share among "
        "all examples.",
        f"Share of corrupted examples among the selected. At the end: {', '.join(final_values)}.",
        figure,
    )


def _corrupted_share(training: Training) -> tuple[np.ndarray, np.ndarray] | None:
    """(W,) middle steps of windows, and (W,) share of corrupted examples among those selected in each."""
    index, flags = training.selected_index, training.example_array("is_corrupted")
    if index is None or flags is None or not len(index):
        return None
    windows = np.array_split(np.arange(len(index)), min(_NUM_WINDOWS, len(index)))
    shares = [flags[index[window][index[window] >= 0]].mean() for window in windows]
    return np.array([window.mean() + 1 for window in windows]), np.array(shares)


def repeated_selections(comparison: Comparison) -> Iterator[Plot]:
    """Share of the training examples that were selected at least n times."""
    figure, axes = new_figure()
    summaries = []
    for position, series in enumerate(comparison.series):
        counts = [times for t in series.trainings.values() if (times := t.times_selected) is not None]
        if not counts:
            continue
        most = max(int(times.max()) for times in counts)
        at_least = np.mean(
            [np.bincount(times, minlength=most + 1)[::-1].cumsum()[::-1] / len(times) for times in counts], axis=0
        )
        style = line_style(position, series)
        axes.plot(
            np.arange(1, most + 1),
            at_least[1:],
            label=legend_label(series.label),
            markevery=max(1, most // 6),
            markersize=4,
            **style,
        )
        ever_selected = at_least[1] if most else 0.0
        summaries.append(f"{series.label} selected {ever_selected:.0%} of the examples at least once")
    if not summaries:
        return
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter("{x:.0f}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(0, 1)
    axes.set_xlim(left=1)
    axes.set_xlabel("n, times selected")
    axes.set_ylabel("share of the training examples")
    add_legend(axes)
    yield Plot(
        "repeats",
        "Share of the training examples that were selected at least n times.",
        f"{'; '.join(summaries)}.",
        figure,
    )


def loss_histograms(comparison: Comparison) -> Iterator[Plot]:
    """Loss of the last model on selected examples and on those never selected."""
    for series in comparison.highlighted(selecting_only=True):
        arrays = [
            (t.example_loss, t.times_selected)
            for t in series.trainings.values()
            if t.example_loss is not None
            and t.times_selected is not None
            and len(t.example_loss) == len(t.times_selected)
        ]
        if arrays:
            losses, times = (np.concatenate(parts) for parts in zip(*arrays, strict=True))
            is_finite = np.isfinite(losses)
            yield _loss_histogram(series, losses[is_finite], times[is_finite])


def _loss_histogram(series: Series, losses: Floats, times: np.ndarray) -> Plot:
    lowest, highest = (float(losses.min()), float(losses.max())) if len(losses) else (1.0, 1.0)
    edges = np.geomspace(max(_MIN_LOSS, lowest), max(highest, 2 * max(_MIN_LOSS, lowest)), 41)
    losses = np.clip(losses, edges[0], edges[-1])
    figure, axes = new_figure()
    histograms = (
        ("selected (counted each time)", times, REDUCR_COLOUR, "-"),
        ("never selected", (times == 0).astype(np.int64), COLOURS[0], "--"),
    )
    medians = []
    for label, weights, colour, dashes in histograms:
        if not weights.sum():
            continue
        counts, _ = np.histogram(losses, edges, weights=weights.astype(np.float64))
        axes.stairs(counts / weights.sum(), edges, label=label, color=colour, linestyle=dashes, linewidth=1.8)
        medians.append(f"{label}: median {_weighted_median(losses, weights):.2g} nats")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0) if edges[-1] < 100 * edges[0] else (1.0,)))
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("loss of the last model, nats")
    axes.set_ylabel("share of the examples")
    add_legend(axes, num_columns=2)
    return Plot(
        f"losses_{file_name(series.label)}",
        f"{series.label}: loss of the last model on selected examples, counted each time, and on those never selected.",
        f"Losses under {series.label}. {'; '.join(medians)}.",
        figure,
    )


def _weighted_median(values: np.ndarray, weights: np.ndarray) -> float:
    order = np.argsort(values)
    cumulative = np.cumsum(weights[order])
    return float(values[order][np.searchsorted(cumulative, cumulative[-1] / 2)])
