"""Plots of classes and groups: accuracies, weights, payoffs and confusions."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from reducr.reports.accuracy_tables import confusion, worst_class
from reducr.reports.comparison import Comparison, Series
from reducr.reports.figure import (
    COLOURS,
    GRID_COLOUR,
    HATCHES,
    INK,
    MAX_NAMED,
    REDUCR_COLOUR,
    Plot,
    add_legend,
    file_name,
    label_text,
    legend_label,
    line_style,
    new_figure,
)
from reducr.reports.metrics_log import Floats

_NUM_LARGEST = 5  # named where there are too many classes to name each
_LABEL_GAP = 0.045  # of the largest value
_CONFUSION_COLOUR = "#1b5aa6"
_MIN_SHARE_SHOWN = 0.005  # rounds to 1 %
_DARK_SHARE = 0.78  # above it, text on a cell is white


def class_accuracies(comparison: Comparison) -> Iterator[Plot]:
    """Test accuracy of each class: bars for a few classes, sorted lines for many."""
    names = comparison.class_names
    accuracies: list[tuple[int, Series, np.ma.MaskedArray]] = []  # (C,) each, masked for classes without test examples
    for position, series in enumerate(comparison.series):
        by_seed = [values for t in series.trainings.values() if (values := t.class_accuracy()) is not None]
        if by_seed:
            accuracies.append((position, series, np.ma.masked_invalid(np.array(by_seed)).mean(axis=0)))
    if not accuracies:
        return
    figure, axes = new_figure(width=9.0)
    if len(names) > MAX_NAMED:
        for position, series, values in accuracies:
            axes.plot(
                np.sort(values.compressed()),
                label=legend_label(series.label),
                **(line_style(position, series) | {"marker": ""}),
            )
        axes.set_xlabel(f"the {len(names)} classes, from the worst to the best of each method")
        mark = ""
    else:
        _draw_class_bars(axes, accuracies, [label_text(name) for name in names])
        mark = " A triangle marks the worst class of each method."
    axes.set_ylim(0, 1.06)
    axes.set_yticks(np.arange(0, 1.01, 0.2))
    axes.set_ylabel("test accuracy")
    add_legend(axes, num_columns=4)
    summary = "; ".join(
        f"{series.label} worst in {names[worst]} with {values[worst]:.2f}"
        for _, series, values in accuracies
        for worst in [_worst(values)]
    )
    yield Plot(
        "accuracy_by_class",
        f"Test accuracy of each class at the last step, mean over seeds.{mark}",
        f"Test accuracy of each class. {summary}.",
        figure,
    )


def _draw_class_bars(
    axes: Axes, accuracies: Sequence[tuple[int, Series, np.ma.MaskedArray]], labels: Sequence[str]
) -> None:
    """A group of bars for each class, and a triangle over the worst class of each method."""
    width = 0.86 / len(accuracies)
    for i, (position, series, values) in enumerate(accuracies):
        centres = np.arange(len(labels)) + (i - (len(accuracies) - 1) / 2) * width
        axes.bar(
            centres,
            values.filled(0),
            width * 0.92,
            color=line_style(position, series)["color"],
            edgecolor="white",
            linewidth=0,
            hatch=HATCHES[i % len(HATCHES)],
            label=legend_label(series.label),
        )
        worst = _worst(values)
        axes.plot(centres[worst], values[worst] + 0.025, marker="v", color=INK, markersize=4, linestyle="")
    is_crowded = max(map(len, labels)) > 6
    axes.set_xticks(
        range(len(labels)), labels, rotation=25 if is_crowded else 0, ha="right" if is_crowded else "center"
    )
    axes.set_xlim(-0.6, len(labels) - 0.4)


def _worst(accuracy: np.ma.MaskedArray) -> int:
    return int(accuracy.filled(np.inf).argmin())


def group_lines(comparison: Comparison) -> Iterator[Plot]:
    """Weight and cumulative payoff of each group over time, for each method in which they change."""
    for prefix in ("group_weight/", "cumulative_payoff/"):
        for series in comparison.series:
            logs = [t.metrics.by_group(prefix) for t in series.trainings.values()]
            logs = [(steps, values) for steps, values in logs if values.shape[1:] == (len(comparison.group_names),)]
            logs = [(steps, values) for steps, values in logs if len(steps)]
            if any(np.ptp(values, axis=0).max() > 0 for _, values in logs):
                num_steps = min(len(steps) for steps, _ in logs)
                mean = np.mean([values[:num_steps] for _, values in logs], axis=0)
                yield _group_lines(comparison, series, prefix.rstrip("/"), logs[0][0][:num_steps], mean)


def _group_lines(comparison: Comparison, series: Series, name: str, steps: Floats, values: Floats) -> Plot:
    is_weight = name == "group_weight"
    measure, noun, names = name.removeprefix("group_").replace("_", " "), comparison.group_noun, comparison.group_names
    figure, axes = new_figure()
    _draw_lines(axes, steps, values, [label_text(name) for name in names])
    axes.set_xlabel("step")
    axes.set_ylabel("weight" if is_weight else "cumulative payoff, nats")
    if is_weight:
        axes.axhline(1 / len(names), color=GRID_COLOUR, linewidth=0.8, linestyle=":")
        axes.set_ylim(bottom=0)
    largest = np.argsort(-values[-1], kind="stable")[:_NUM_LARGEST].tolist()
    ends = ", ".join(f"{names[group]} {values[-1, group]:.3g}" for group in largest)
    return Plot(
        f"{name}_{file_name(series.label)}",
        f"{series.label}: {measure} of each {noun} over time, mean over seeds. Names that share a label are in order "
        f"from the lowest line.{' Dotted: equal weights.' if is_weight else ''}",
        f"{measure.capitalize()} of each {noun}. Largest at the end: {ends}.",
        figure,
    )


def _draw_lines(axes: Axes, steps: Floats, values: Floats, names: Sequence[str]) -> None:
    """A line for each group of ``values`` (T, G), with its name at its end; of many groups, only the largest."""
    if len(names) > MAX_NAMED:
        axes.plot(steps, values, color=GRID_COLOUR, linewidth=0.5, alpha=0.6)
        named = np.argsort(-values[-1], kind="stable")[:_NUM_LARGEST].tolist()
    else:
        named = list(range(len(names)))
    colour_of = {group: COLOURS[i % len(COLOURS)] for i, group in enumerate(named)}
    for group, colour in colour_of.items():
        axes.plot(steps, values[:, group], color=colour, linewidth=1.6)
    for height, positions in label_heights(values[-1, named]):
        groups = [named[i] for i in positions]
        more = f" and {len(groups) - _NUM_LARGEST} more" if len(groups) > _NUM_LARGEST else ""
        axes.annotate(
            ", ".join(names[group] for group in groups[:_NUM_LARGEST]) + more,
            (steps[-1], height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color=colour_of[groups[0]] if len(groups) == 1 else INK,
        )


def label_heights(values: np.ndarray) -> list[tuple[float, list[int]]]:
    """Heights of the labels of lines that end at ``values`` (G,), and the groups that share each label.

    Lines that end too close together share one label, at their mean height.
    """
    labels: list[tuple[float, list[int]]] = []
    gap = _LABEL_GAP * max(float(np.ptp(values)), float(np.abs(values).max()))
    for group in np.argsort(values).tolist():
        if labels and values[group] - values[labels[-1][1][-1]] < gap:
            groups = [*labels.pop()[1], group]
            labels.append((float(values[groups].mean()), groups))
        else:
            labels.append((float(values[group]), [group]))
    return labels


def confusion_matrices(comparison: Comparison) -> Iterator[Plot]:
    """Confusion matrix of REDUCR and of the best other method."""
    names = comparison.class_names
    if len(names) > MAX_NAMED:
        return
    for series in comparison.highlighted():
        counts = confusion(series)
        if counts is None:
            continue
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        worst = worst_class(counts)
        figure, axes = new_figure(height=4.6)
        _draw_confusion(axes, shares, worst, [label_text(name) for name in names])
        mistaken = int(np.where(np.arange(len(names)) == worst, -1, shares[worst]).argmax())
        yield Plot(
            f"confusion_{file_name(series.label)}",
            f"{series.label}: predictions for the test examples of each class at the last step, in percent, over all "
            "seeds. The worst class is framed.",
            f"Confusion matrix of {series.label}. The worst class, {names[worst]}, is right in "
            f"{shares[worst, worst]:.0%} of its test examples and most often mistaken for {names[mistaken]}, in "
            f"{shares[worst, mistaken]:.0%}.",
            figure,
        )


def _draw_confusion(axes: Axes, shares: np.ndarray, worst: int, labels: Sequence[str]) -> None:
    """A shaded cell for each entry of ``shares`` (C, C), and a frame around the row of the worst class."""
    for row, column in np.ndindex(shares.shape):
        share = float(shares[row, column])
        corner = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(corner, 1, 1, facecolor=_CONFUSION_COLOUR, alpha=share, linewidth=0))
        if share >= _MIN_SHARE_SHOWN:
            colour = "white" if share > _DARK_SHARE else INK
            axes.text(column, row, f"{share * 100:.0f}", ha="center", va="center", fontsize=7, color=colour)
    frame = Rectangle((-0.5, worst - 0.5), len(labels), 1, fill=False, edgecolor=REDUCR_COLOUR, linewidth=1.8)
    axes.add_patch(frame)
    is_crowded = max(map(len, labels)) > 3
    axes.set_xticks(
        range(len(labels)), labels, rotation=40 if is_crowded else 0, ha="right" if is_crowded else "center"
    )
    axes.set_yticks(range(len(labels)), labels)
    axes.set_xlim(-0.55, len(labels) - 0.45)
    axes.set_ylim(len(labels) - 0.45, -0.55)
    axes.set_xlabel("predicted")
    axes.set_ylabel("class")
    axes.spines[:].set_visible(False)
    axes.grid(visible=False)
