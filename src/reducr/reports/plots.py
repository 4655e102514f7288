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
# Paul Tol's "muted" palette, which colour-blind readers can tell apart, and a grey
_COLOURS = (
    "#332288", "#CC6677", "#117733", "#DDCC77", "#88CCEE", "#AA4499", "#44AA99", "#882255", "#999933", "#777777",
)  # fmt: skip
_REDUCR_COLOUR = "#EE3311"
_LABEL_GAP = 0.04  # of the largest value


def save_run_plot(run: Path, rows: Sequence[ResultRow], path: Path) -> None:
    """Draw group weights over time (mean over seeds) and last-checkpoint test accuracy per class; save as PNG."""
    methods = list(dict.fromkeys(row.method for row in rows))
    seeds = sorted({row.seed for row in rows})
    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    weights_axes, accuracy_axes = figure.subplots(1, 2, width_ratios=(1, 1.6))
    weighted = next((method for method in methods if method == "reducr"), None)
    class_names, group_names = read_names(run / f"seed_{seeds[0]}" / "data.npz")
    files = [run / f"seed_{seed}" / str(weighted) / "csv" / "metrics.csv" for seed in seeds]
    _draw_weights(weights_axes, files, group_names)
    _draw_accuracies(accuracy_axes, run, methods, seeds, class_names)
    figure.legend(*accuracy_axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    with replaced_atomically(path) as temporary:
        figure.savefig(temporary, format="png", dpi=130)


def _label_heights(values: np.ndarray) -> list[tuple[float, list[int]]]:
    """Where to write the name of each line that ends at ``values`` (G,); lines too close together share a label."""
    labels: list[tuple[float, list[int]]] = []
    for group in np.argsort(values).tolist():
        if labels and values[group] - values[labels[-1][1][-1]] < _LABEL_GAP * values.max():
            groups = [*labels.pop()[1], group]
            labels.append((float(values[groups].mean()), groups))
        else:
            labels.append((float(values[group]), [group]))
    return labels


def _draw_weights(axes: Axes, files: Sequence[Path], names: Sequence[str]) -> None:
    axes.set_title("REDUCR: weight of each class")
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
        axes.plot(steps, mean[:, group], color=_COLOURS[group % len(_COLOURS)], linewidth=1.8)
    for height, groups in _label_heights(mean[-1]):
        axes.annotate(
            ", ".join(names[group] for group in groups),
            (steps[-1], height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color=_COLOURS[groups[0] % len(_COLOURS)] if len(groups) == 1 else "#333333",
        )
    axes.axhline(1 / mean.shape[1], color="#999999", linewidth=0.8, linestyle=":")
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)


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


def _draw_accuracies(axes: Axes, run: Path, methods: Sequence[str], seeds: Sequence[int], names: Sequence[str]) -> None:
    axes.set_title("Test accuracy of each class at the last step, mean over seeds")
    axes.set_ylabel("accuracy")
    width = 0.85 / len(methods)
    num_classes = 0
    for place, method in enumerate(methods):
        colour = _REDUCR_COLOUR if method == "reducr" else _COLOURS[place % len(_COLOURS)]
        found = [run / f"seed_{seed}" / method / "test_accuracy.csv" for seed in seeds]
        by_seed = np.array([read_class_accuracies(path) for path in found if path.is_file()])
        num_classes = by_seed.shape[1]
        centres = np.arange(num_classes) + (place - (len(methods) - 1) / 2) * width
        label = f"{method} (worst {by_seed.min(axis=1).mean():.2f})"
        axes.bar(centres, by_seed.mean(axis=0), width * 0.92, color=colour, label=label)
    is_crowded = max(map(len, names)) > 6
    axes.set_xticks(range(num_classes), names, rotation=30 if is_crowded else 0, ha="right" if is_crowded else "center")
    axes.set_xlim(-0.6, num_classes - 0.4)
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)


def read_names(path: Path) -> tuple[list[str], list[str]]:
    """The names of the classes, and of the groups, from a seed's ``data.npz``; groups of their own have numbers."""
    with np.load(path) as data:
        class_names = [str(name) for name in data["class_names"]]
        if np.array_equal(data["train_group"], data["train_target"]):
            return class_names, class_names
        return class_names, [f"group {group}" for group in range(int(data["train_group"].max()) + 1)]


def read_class_accuracies(path: Path, *, checkpoint_rule: str = "last") -> list[float]:
    """Accuracy of each class from a ``test_accuracy.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [
        float(line["accuracy"])
        for line in lines
        if line["checkpoint_rule"] == checkpoint_rule and line["partition"] == "class"
    ]
