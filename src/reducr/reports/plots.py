"""One picture of a run: class weights over time, and accuracy per class."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from reducr.files import replaced_atomically
from reducr.runs import ResultRow

_WEIGHT_COLUMN = "group_weight/"
# Okabe & Ito's palette, which colour-blind readers can tell apart, continued by greys
_COLOURS = (
    "#0072B2",
    "#D55E00",
    "#009E73",
    "#CC79A7",
    "#E69F00",
    "#56B4E9",
    "#000000",
    "#999999",
    "#666666",
    "#BBBBBB",
)


def save_run_plot(run: Path, rows: Sequence[ResultRow], path: Path) -> None:
    """Draw group weights over time (mean over seeds) and last-checkpoint test accuracy per class; save as PNG."""
    methods = list(dict.fromkeys(row.method for row in rows))
    seeds = sorted({row.seed for row in rows})
    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    weights_axes, accuracy_axes = figure.subplots(1, 2, width_ratios=(1, 1.6))
    weighted = next((method for method in methods if method == "reducr"), None)
    _draw_weights(weights_axes, [run / f"seed_{seed}" / str(weighted) / "csv" / "metrics.csv" for seed in seeds])
    _draw_accuracies(accuracy_axes, run, methods, seeds)
    with replaced_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _draw_weights(axes: Axes, files: Sequence[Path]) -> None:
    axes.set_title("REDUCR's class weights")
    axes.set_xlabel("step")
    axes.set_ylabel("weight")
    found = [weights for path in files if path.is_file() and (weights := read_weights(path)) is not None]
    if not found:
        axes.text(0.5, 0.5, "no metrics of REDUCR in this run", ha="center", transform=axes.transAxes)
        return
    num_steps = min(len(steps) for steps, _ in found)
    steps = found[0][0][:num_steps]
    mean = np.mean([weights[:num_steps] for _, weights in found], axis=0)
    for group in range(mean.shape[1]):
        axes.plot(steps, mean[:, group], color=_COLOURS[group % len(_COLOURS)], label=str(group))
    axes.axhline(1 / mean.shape[1], color="#999999", linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    if mean.shape[1] <= len(_COLOURS):
        axes.legend(title="class", ncols=2, fontsize="small")


def read_weights(path: Path) -> tuple[np.ndarray, np.ndarray] | None:
    """Steps (T,) and group weights (T, G) from a ``metrics.csv``; None if it holds none yet."""
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        columns = [name for name in reader.fieldnames or () if name.startswith(_WEIGHT_COLUMN)]
        columns.sort(key=lambda name: int(name.removeprefix(_WEIGHT_COLUMN)))
        lines = [line for line in reader if columns and line[columns[0]]]
    if not lines:
        return None
    steps = np.array([int(line["step"]) for line in lines])
    return steps, np.array([[float(line[column]) for column in columns] for line in lines])


def _draw_accuracies(axes: Axes, run: Path, methods: Sequence[str], seeds: Sequence[int]) -> None:
    axes.set_title("Test accuracy per class, last checkpoint, mean over seeds")
    axes.set_xlabel("class")
    axes.set_ylabel("accuracy")
    width = 0.85 / len(methods)
    for place, method in enumerate(methods):
        found = [run / f"seed_{seed}" / method / "test_accuracy.csv" for seed in seeds]
        by_seed = [read_class_accuracies(path) for path in found if path.is_file()]
        accuracy = np.mean(by_seed, axis=0)
        centres = np.arange(len(accuracy)) + (place - (len(methods) - 1) / 2) * width
        colour = _COLOURS[place % len(_COLOURS)]
        axes.bar(centres, accuracy, width, color=colour, label=f"{method} (worst {accuracy.min():.2f})")
    axes.set_xticks(range(len(accuracy)))
    axes.set_ylim(0, 1)
    axes.legend(fontsize="small", ncols=2, loc="lower left", framealpha=0.9)


def read_class_accuracies(path: Path, *, checkpoint_rule: str = "last") -> list[float]:
    """Accuracy of each class from a ``test_accuracy.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [
        float(line["accuracy"])
        for line in lines
        if line["checkpoint_rule"] == checkpoint_rule and line["partition"] == "class"
    ]
