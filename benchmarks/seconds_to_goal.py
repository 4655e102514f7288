"""Accuracy against total seconds, for REDUCR and the alternatives to it.

    python -m benchmarks.seconds_to_goal --data-dir DIR                      run what is missing, then draw
    python -m benchmarks.seconds_to_goal --data-dir DIR --seeds 0 --methods reducr uniform    run a part of it
    python -m benchmarks.seconds_to_goal                                     draw the stored runs

DIR contains FashionMNIST/raw and CIFAR-10 with CIFAR-10N. Every method trains the same model, with the initial
parameters, optimiser and constant learning rate of the experiment, and stops after --seconds. The clock starts when the
data is in memory, so it counts REDUCR's irreducible stage (model and table) and its holdout evaluations, which are as
frequent as in the experiment. It stops while the model is tested.

Everything uses one thread, so you can make runs in parallel, one per core, with a different --out each. A run takes its
seconds and about a fifth more. Do not use the machine for anything else meanwhile.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from hydra import compose, initialize_config_module
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import nn

from benchmarks import results
from benchmarks.cifar_sheets import data_dir_for
from benchmarks.run_store import Key, RunStore, parse_arguments, reducr_options, run_if_requested
from benchmarks.timed import Stopwatch, shuffled_loader, training_batches
from reducr._internal.files import replaced_atomically
from reducr.batch import Batch
from reducr.data import ExampleLoader
from reducr.metrics import summary
from reducr.pipeline.evaluation import evaluate
from reducr.pipeline.setup import SeedData, build, make_optimizer, methods_of, scoped_seed, stream_seed
from reducr.scoring import num_selected_of

SETTINGS = {
    "fashion_mnist": "Fashion-MNIST, 30 % wrong labels, imbalance 10:1",
    "cifar10n_worse": "CIFAR-10N, 40 % wrong labels, imbalance 10:1",
}
BEGIN, END = "<!-- begin: benchmarks.seconds_to_goal -->", "<!-- end: benchmarks.seconds_to_goal -->"
COLUMNS = ("seconds", "step", "worst_class", "mean")
TINY = ["num_candidates=40", "irreducible.num_epochs=1"]


class Training(NamedTuple):
    """How a method trains, and how it is drawn.

    Args:
        label: in the table and the figure.
        colour: from the palette of Okabe and Ito, which is safe for colour-blind readers.
        dashes: line style.
        method: a method of the training program; None to train on all candidates.
        budget: share of the candidates that is scored.
        is_in_parts: whether training on all candidates uses steps as small as those of the other methods.
    """

    label: str
    colour: str
    dashes: str = "-"
    method: str | None = None
    budget: float | None = None
    is_in_parts: bool = False

    @property
    def is_reducr(self) -> bool:
        """Whether it is REDUCR, which the others are compared with."""
        return self.method == "reducr"


TRAININGS = {
    "reducr": Training("REDUCR", "#D55E00", method="reducr"),
    "reducr_with_budget": Training("REDUCR, a quarter scored", "#D55E00", "--", method="reducr", budget=0.25),
    "uniform": Training("uniform", "#0072B2", method="uniform"),
    "class_balanced": Training("class-balanced", "#009E73", method="class_balanced"),
    "uniform_with_holdout": Training("uniform on train + holdout", "#56B4E9", "--", method="uniform_with_holdout"),
    "all_candidates": Training("all candidates, steps of 320", "#CC79A7"),
    "all_candidates_in_parts": Training("all candidates, steps of 32", "#E69F00", "--", is_in_parts=True),
}
GOAL = "best of the others, a third of the time"


def composed_config(setting: str, options: Sequence[str]) -> DictConfig:
    """The configuration of an experiment, with all methods."""
    methods = {training.method: None for training in TRAININGS.values() if training.method is not None}
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=[f"experiment={setting}", f"compare=[{','.join(methods)}]", *options])


def epoch_batches(config: DictConfig, name: str, data: SeedData, model: nn.Module) -> Iterable[Batch]:
    """The batches of an epoch of ``model``; makes the irreducible losses first, if the method needs them."""
    training = TRAININGS[name]
    if training.method is None:
        num_selected = num_selected_of(config.fraction, config.num_candidates)
        return shuffled_loader(data, "train", num_selected if training.is_in_parts else config.num_candidates)
    method = next(method for method in methods_of(config) if method.name == training.method)
    merged = OmegaConf.merge(config, {"scoring": {"budget": training.budget}})
    return training_batches(merged, method, data, model).batches  # type: ignore[arg-type]  # merging gives a DictConfig


def run(
    config: DictConfig, name: str, data: SeedData, *, budget_seconds: float, num_tests: int
) -> dict[str, list[float]]:
    """Train by one method until the budget is spent; returns tests after the first step and at regular times."""
    num_classes = data.splits.test.num_classes
    tests = ExampleLoader(data.splits.test, batch_size=1000)
    interval = budget_seconds / num_tests
    curve: dict[str, list[float]] = {column: [] for column in COLUMNS}
    with scoped_seed(stream_seed(data.seed, "target")):
        watch = Stopwatch()
        model = data.make_model(config.model, num_outputs=num_classes, seed=stream_seed(data.seed, "target"))
        optimizer = make_optimizer(config.optimizer)(model.parameters())
        epochs = itertools.repeat(epoch_batches(config, name, data, model))
        due = watch.seconds
        for step, batch in enumerate(itertools.chain.from_iterable(epochs), start=1):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.input), batch.target).backward()
            optimizer.step()
            seconds = watch.seconds
            if seconds < due:
                continue
            with watch.stopped():
                report = summary(evaluate(model, tests, num_classes=num_classes, num_groups=num_classes))
            row = (seconds, step, report["worst_class_accuracy"], report["mean_accuracy"])
            for column, value in zip(COLUMNS, row, strict=True):
                curve[column].append(round(value, 4))
            if seconds >= budget_seconds:
                break
            due = interval * math.floor(seconds / interval + 1)
    return curve


KEY = ("setting", "method", "seed")


class Curve(NamedTuple):
    """Accuracies of the S runs of a method at T common times, interpolated linearly between the tests of each run."""

    seconds: np.ndarray
    """(T,) from the first test of the slowest run to the end of the budget."""
    worst_class: np.ndarray
    """(S, T) accuracies."""
    mean: np.ndarray
    """(S, T) accuracies."""

    @classmethod
    def of(cls, runs: Sequence[dict[str, Any]], budget_seconds: float) -> Curve:
        """The curve of the runs of one method."""
        begin = max(run["seconds"][0] for run in runs)
        seconds = np.linspace(begin, max(begin, budget_seconds), 481)
        worst_class, mean = (
            np.array([np.interp(seconds, run["seconds"], run[column]) for run in runs])
            for column in ("worst_class", "mean")
        )
        return cls(seconds, worst_class, mean)

    def best_position(self, column: str) -> int:
        """Index of the time at which the mean over runs is largest."""
        return int(getattr(self, column).mean(axis=0).argmax())

    def best(self, column: str) -> float:
        """Largest mean over runs."""
        return float(getattr(self, column).mean(axis=0).max())

    def seconds_to(self, goal: float) -> float | None:
        """Seconds until the worst class, averaged over runs, reaches ``goal``; None if it never does."""
        reached = np.flatnonzero(self.worst_class.mean(axis=0) >= goal)
        return float(self.seconds[reached[0]]) if len(reached) else None


Curves = dict[str, Curve]
"""The curves of one setting, by method."""


def setting_curves(runs: Mapping[Key, dict[str, Any]], setting: str, budget_seconds: float) -> Curves:
    """The curves of the methods that have runs."""
    by_method = {name: [runs[key] for key in sorted(runs) if key[:2] == (setting, name)] for name in TRAININGS}
    return {name: Curve.of(method_runs, budget_seconds) for name, method_runs in by_method.items() if method_runs}


def is_comparison(curves: Curves) -> bool:
    """Whether there are runs of REDUCR and of another method."""
    return "reducr" in curves and not all(TRAININGS[name].is_reducr for name in curves)


def goal_and_method(curves: Curves) -> tuple[float, str]:
    """The best worst-class accuracy of any other method, and that method."""
    best = {name: curve.best("worst_class") for name, curve in curves.items() if not TRAININGS[name].is_reducr}
    name = max(best, key=best.__getitem__)
    return best[name], name


def markdown_table(setting: str, curves: Curves, budget_seconds: float) -> str:
    """The table of a setting in Markdown, and how soon REDUCR reaches the goal."""
    goal, name = goal_and_method(curves)
    end = f"at {budget_seconds:g} s"
    num_seeds = sorted({len(curve.mean) for curve in curves.values()})
    lines = [
        f"**{SETTINGS[setting]}**, {' to '.join(map(str, num_seeds))} seeds",
        "",
        f"| method | worst class: best | at second | {end} | mean: best | {end} | REDUCR matches it after |",
        "| --- |" + " ---: |" * 6,
        *(table_row(method, curves) for method in curves),
        "",
        f"Goal: {goal:.3f}, the best worst-class accuracy of {TRAININGS[name].label}.",
    ]
    for method in (method for method in curves if TRAININGS[method].is_reducr):
        after = curves[method].seconds_to(goal)
        lines[-1] += f" {TRAININGS[method].label} " + (
            "does not reach it."
            if after is None
            else f"reaches it after {after:.1f} s, {after / budget_seconds:.2f} of the budget."
        )
    return "\n".join(lines)


def table_row(name: str, curves: Curves) -> str:
    """The row of a method."""
    curve = curves[name]
    best = curve.best_position("worst_class")
    after = "–"
    if not TRAININGS[name].is_reducr:
        seconds = curves["reducr"].seconds_to(curve.best("worst_class"))
        after = "never" if seconds is None else f"{seconds:.1f} s"
    cells = [
        TRAININGS[name].label,
        mean_with_deviation(curve.worst_class[:, best]),
        f"{curve.seconds[best]:.1f}",
        mean_with_deviation(curve.worst_class[:, -1]),
        mean_with_deviation(curve.mean[:, curve.best_position("mean")]),
        mean_with_deviation(curve.mean[:, -1]),
        after,
    ]
    return f"| {' | '.join(cells)} |"


def mean_with_deviation(values: np.ndarray) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}"


def draw_figure(by_setting: dict[str, Curves], budget_seconds: float) -> Figure:
    """Worst-class and mean accuracy against seconds, one row per setting; bands are one standard deviation."""
    figure = Figure(figsize=(9.5, 0.5 + 3.2 * len(by_setting)), dpi=110, layout="constrained")
    rows = figure.subplots(len(by_setting), 2, sharex=True, squeeze=False)
    for (worst_class, mean), (setting, curves) in zip(rows, by_setting.items(), strict=True):
        worst_class.set_title(SETTINGS[setting], loc="left", fontsize="medium")
        worst_class.set_ylabel("worst-class test accuracy")
        mean.set_ylabel("mean test accuracy")
        draw_lines(worst_class, curves, "worst_class", budget_seconds)
        draw_lines(mean, curves, "mean", budget_seconds)
        draw_goal(worst_class, curves, budget_seconds)
        # the first eighth of the budget may be cut off below
        mean.set_ylim(
            bottom=0.9 * min(curve.mean.mean(axis=0)[len(curve.seconds) // 8 :].min() for curve in curves.values())
        )
    for axes in rows[-1]:
        axes.set_xlabel("seconds, everything included")
    drawn = {line.get_label(): line for axes in rows[:, 0] for line in axes.get_lines()}
    labels = [label for label in (*(training.label for training in TRAININGS.values()), GOAL) if label in drawn]
    handles = [drawn[label] for label in labels]
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize="small")
    return figure


def draw_lines(axes: Axes, curves: Curves, column: str, budget_seconds: float) -> None:
    """A line with a band for each method, REDUCR on top."""
    for name, curve in reversed(curves.items()):
        training = TRAININGS[name]
        values = getattr(curve, column)
        centre, spread = values.mean(axis=0), values.std(axis=0, ddof=min(1, len(values) - 1))
        axes.fill_between(
            curve.seconds, centre - spread, centre + spread, color=training.colour, alpha=0.15, linewidth=0
        )
        width = 2.4 if training.is_reducr else 1.5
        axes.plot(curve.seconds, centre, training.dashes, color=training.colour, linewidth=width, label=training.label)
    axes.set_xlim(0, budget_seconds)
    axes.set_ylim(bottom=0)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)


def draw_goal(axes: Axes, curves: Curves, budget_seconds: float) -> None:
    """Mark the goal, a third of the budget, and the points where REDUCR reaches the goal."""
    goal, _ = goal_and_method(curves)
    axes.axhline(goal, color="#444444", linewidth=1.2, linestyle=":", label=GOAL)
    axes.axvline(budget_seconds / 3, color="#444444", linewidth=1.2, linestyle=":")
    reached = {name: curve.seconds_to(goal) for name, curve in curves.items() if TRAININGS[name].is_reducr}
    for name, seconds in reached.items():
        if seconds is not None:
            axes.plot(seconds, goal, "o", color=TRAININGS[name].colour, markeredgecolor="white", markersize=9, zorder=5)
            # keep the labels of the two points apart
            is_last = seconds == max(other for other in reached.values() if other is not None)
            offset, align = ((7, 6), "left") if is_last else ((-7, -15), "right")
            axes.annotate(f"{seconds:.0f} s", (seconds, goal), xytext=offset, textcoords="offset points", ha=align)


def save_figure(figure: Figure, path: Path) -> None:
    """Save as a PNG with 64 colours, a third of the size of a full one."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    with replaced_atomically(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def run_missing(options: argparse.Namespace, out: Path) -> None:
    """Make the requested runs that ``out`` lacks, writing it after each; raises like ``RunStore.with_more``."""
    more = reducr_options(options, TINY)
    conditions = {"budget_seconds": options.seconds, "tests": options.tests, "options": more}
    store = RunStore.with_more(out, KEY, conditions)
    for seed, setting in itertools.product(options.seeds, options.settings):
        missing = [name for name in options.methods if options.again or (setting, name, seed) not in store.runs]
        if not missing:
            continue
        data_dir = data_dir_for(setting, options.data_dir)
        config = composed_config(setting, [f"datamodule.data_dir={data_dir}", *more])
        data = SeedData.of(build(config.datamodule), seed)
        for name in missing:
            curve = run(config, name, data, budget_seconds=options.seconds, num_tests=options.tests)
            store.add({"setting": setting, "method": name, "seed": seed, **curve})
            numbers = f"{curve['step'][-1]} steps, worst class {max(curve['worst_class']):.3f} at best"
            print(f"{setting}, seed {seed}, {name}: {numbers}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Make the missing runs, draw the figure, and print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="the budget of a run; default: 60")
    parser.add_argument("--tests", type=int, default=30, help="tests per run, at regular times; default: 30")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: both")
    parser.add_argument("--methods", nargs="+", choices=TRAININGS, default=list(TRAININGS), help="default: all")
    options = parse_arguments(parser, arguments)
    if options.seconds <= 0 or options.tests < 1:
        parser.error(f"--seconds must be above 0 and --tests at least 1; got {options.seconds} and {options.tests}")
    out = options.out or results.ROOT / "benchmarks" / "seconds_to_goal.json"
    picture = out.with_suffix(".png") if options.out else results.ROOT / "docs" / "figures" / "seconds_to_goal.png"
    run_if_requested(parser, options, out, run_missing)

    store = RunStore.read(out, KEY)
    budget_seconds = store.conditions["budget_seconds"]
    by_setting = {setting: setting_curves(store.runs, setting, budget_seconds) for setting in SETTINGS}
    by_setting = {setting: curves for setting, curves in by_setting.items() if is_comparison(curves)}
    if not by_setting:
        return
    save_figure(draw_figure(by_setting, budget_seconds), picture)
    text = "\n\n".join(markdown_table(setting, curves, budget_seconds) for setting, curves in by_setting.items())
    print(text)
    if options.out is None:
        section = f"![Accuracy against seconds](figures/{picture.name})\n\n{text}"
        results.put_between(results.ROOT / "docs" / "performance.md", section, begin=BEGIN, end=END)


if __name__ == "__main__":
    main()
