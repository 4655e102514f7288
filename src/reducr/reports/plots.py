"""One picture of a run: class weights over time, and accuracy per class."""

from __future__ import annotations

import csv
import warnings
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
# more classes than this are not named one by one
_MANY = 20
_NUM_NAMED = 5
_LONGEST_NAME = 24


def save_run_plot(run: Path, rows: Sequence[ResultRow], path: Path) -> None:
    """Save the picture of a run as PNG."""
    figure = run_figure(run, rows)
    with replaced_atomically(path) as temporary, warnings.catch_warnings():
        # a character that the font lacks is drawn as a box
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(temporary, format="png", dpi=130)


def run_figure(run: Path, rows: Sequence[ResultRow]) -> Figure:
    """Group weights over time (mean over seeds), and test accuracy per class at the last checkpoint.

    More than 20 classes are not named one by one: of the weights the largest are, and accuracies are in order.
    """
    methods = list(dict.fromkeys(row.method for row in rows))
    seeds = sorted({row.seed for row in rows})
    figure = Figure(figsize=(13, 5), layout="constrained")
    FigureCanvasAgg(figure)
    weights_axes, accuracy_axes = figure.subplots(1, 2, width_ratios=(1, 1.6))
    weighted = next((method for method in methods if method == "reducr"), None)
    class_names, group_names = (
        [_as_text(name) for name in names] for names in read_names(run / f"seed_{seeds[0]}" / "data.npz")
    )
    files = [run / f"seed_{seed}" / str(weighted) / "csv" / "metrics.csv" for seed in seeds]
    _draw_weights(weights_axes, files, group_names)
    _draw_accuracies(accuracy_axes, run, methods, seeds, class_names)
    figure.legend(*accuracy_axes.get_legend_handles_labels(), loc="outside lower center", ncols=4, frameon=False)
    return figure


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
    axes.axhline(1 / mean.shape[1], color="#999999", linewidth=0.8, linestyle=":")
    axes.spines[["top", "right"]].set_visible(False)
    if mean.shape[1] > _MANY:
        _draw_many_weights(axes, steps, mean, names)
    else:
        _draw_few_weights(axes, steps, mean, names)
    axes.set_ylim(bottom=0)


def _draw_many_weights(axes: Axes, steps: np.ndarray, weights: np.ndarray, names: Sequence[str]) -> None:
    """A grey line for each group, and colours and names for those with the largest weights (T, G) at the end."""
    axes.plot(steps, weights, color="#bbbbbb", linewidth=0.5)
    for place, group in enumerate(np.argsort(-weights[-1], kind="stable")[:_NUM_NAMED].tolist()):
        label = f"{weights[-1, group]:.3g}  {names[group]}"
        axes.plot(steps, weights[:, group], color=_COLOURS[place], linewidth=1.8, label=label)
    axes.legend(loc="lower left", fontsize="small", frameon=False, title="largest at the end")


def _draw_few_weights(axes: Axes, steps: np.ndarray, weights: np.ndarray, names: Sequence[str]) -> None:
    """A line for each group, with its name at its end."""
    for group in range(weights.shape[1]):
        axes.plot(steps, weights[:, group], color=_COLOURS[group % len(_COLOURS)], linewidth=1.8)
    for height, groups in _label_heights(weights[-1]):
        more = f" and {len(groups) - _NUM_NAMED} more" if len(groups) > _NUM_NAMED else ""
        axes.annotate(
            ", ".join(names[group] for group in groups[:_NUM_NAMED]) + more,
            (steps[-1], height),
            xytext=(5, 0),
            textcoords="offset points",
            va="center",
            fontsize="small",
            color=_COLOURS[groups[0] % len(_COLOURS)] if len(groups) == 1 else "#333333",
        )


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
    for place, method in enumerate(methods):
        colour = _REDUCR_COLOUR if method == "reducr" else _COLOURS[place % len(_COLOURS)]
        found = [run / f"seed_{seed}" / method / "test_accuracy.csv" for seed in seeds]
        # classes without test points are left out
        by_seed = np.ma.masked_invalid([read_class_accuracies(path) for path in found if path.is_file()])
        label = f"{method} (worst {by_seed.min(axis=1).mean():.2f})"
        accuracies = by_seed.mean(axis=0)
        if len(names) > _MANY:
            axes.plot(np.sort(accuracies.compressed()), color=colour, label=label, drawstyle="steps-mid")
        else:
            width = 0.85 / len(methods)
            centres = np.arange(len(names)) + (place - (len(methods) - 1) / 2) * width
            axes.bar(centres, accuracies.filled(0), width * 0.92, color=colour, label=label)
    if len(names) > _MANY:
        axes.set_xlabel(f"the {len(names)} classes, from the worst to the best of each method")
    else:
        is_crowded = max(map(len, names)) > 6
        rotation, alignment = (30, "right") if is_crowded else (0, "center")
        axes.set_xticks(range(len(names)), names, rotation=rotation, ha=alignment)
        axes.set_xlim(-0.6, len(names) - 0.4)
    axes.set_ylim(0, 1)
    axes.spines[["top", "right"]].set_visible(False)


def _as_text(name: str) -> str:
    """``name`` as matplotlib writes it: no formula between dollars, and no longer than fits."""
    half = _LONGEST_NAME // 2
    short = name if len(name) <= _LONGEST_NAME else f"{name[: half - 1]}…{name[-half:]}"
    return short.replace("$", r"\$")


def read_names(path: Path) -> tuple[list[str], list[str]]:
    """The names of the classes, and of the groups, from a seed's ``data.npz``; groups without names have numbers."""
    with np.load(path) as data:
        class_names = [str(name) for name in data["class_names"]]
        if "group_names" in data:
            return class_names, [str(name) for name in data["group_names"]]
        if np.array_equal(data["train_group"], data["train_target"]):
            return class_names, class_names
        num_groups = 1 + int(max(data[f"{part}_group"].max() for part in ("train", "holdout", "test")))
        return class_names, [f"group {group}" for group in range(num_groups)]


def read_class_accuracies(path: Path, *, checkpoint_rule: str = "last") -> list[float]:
    """Accuracy of each class from a ``test_accuracy.csv``."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [
        float(line["accuracy"])
        for line in lines
        if line["checkpoint_rule"] == checkpoint_rule and line["partition"] == "class"
    ]
