"""Accuracy against seconds, everything included: REDUCR and what one would do without it.

    python -m benchmarks.seconds_to_goal --data-dir DIR                      run what is not there yet, then draw
    python -m benchmarks.seconds_to_goal --data-dir DIR --seeds 0 --methods reducr uniform    a part of it
    python -m benchmarks.seconds_to_goal                                     draw what is there

DIR contains FashionMNIST/raw and CIFAR-10 with CIFAR-10N. Every method trains the same model from the same initial
parameters with the same optimiser at the same constant learning rate, those of the experiment, and is stopped after
--seconds. The clock starts when the data is in memory, so REDUCR begins with its irreducible stage, model and table,
and evaluates the holdout set as often as the experiment says. The clock stands while the model is tested.

Everything is on one thread, so that runs can be made side by side, one for each core, with another --out each. A run
takes its seconds and about a fifth more. Leave the machine alone meanwhile.
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
from benchmarks.run_store import Key, RunStore, parsed, run_where_asked
from benchmarks.timed import Stopwatch, candidates_of, shuffled
from reducr._internal.files import replaced_atomically
from reducr.batch import Batch
from reducr.data import ExampleLoader
from reducr.metrics import summary
from reducr.pipeline.setup import SeedData, build, make_optimizer, methods_of, scoped_seed, stream_seed
from reducr.pipeline.target_stage import evaluate
from reducr.scoring.scorer import num_selected_of

SETTINGS = {
    "fashion_mnist": "Fashion-MNIST, 30 % wrong labels, imbalance 10:1",
    "cifar10n_worse": "CIFAR-10N, 40 % wrong labels, imbalance 10:1",
}
BEGIN, END = "<!-- made by benchmarks.seconds_to_goal -->", "<!-- end of what it makes -->"
COLUMNS = ("seconds", "step", "worst_class", "mean")
TINY = ["num_candidates=40", "irreducible.num_epochs=1"]


class Training(NamedTuple):
    """How a method trains, and how it is drawn.

    Args:
        label: in table and figure.
        colour: of Okabe and Ito's, which colour-blind readers can tell apart.
        dashes: of the line.
        method: of the training program; None for all candidates.
        budget: share of the candidates that is scored.
        is_in_parts: whether all candidates are trained on in steps as small as those of the other methods.
    """

    label: str
    colour: str
    dashes: str = "-"
    method: str | None = None
    budget: float | None = None
    is_in_parts: bool = False

    @property
    def is_reducr(self) -> bool:
        """Whether it is what the others are compared with."""
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


def composed(setting: str, options: Sequence[str]) -> DictConfig:
    """The configuration of an experiment, with all methods to compare."""
    compared = {training.method: None for training in TRAININGS.values() if training.method is not None}
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=[f"experiment={setting}", f"compare=[{','.join(compared)}]", *options])


def epoch_of(config: DictConfig, name: str, data: SeedData, model: nn.Module) -> Iterable[Batch]:
    """The batches that ``model`` is trained on; the irreducible losses, if it needs them, are made first."""
    training = TRAININGS[name]
    if training.method is None:
        num_selected = num_selected_of(config.fraction, config.num_candidates)
        return shuffled(data, "train", num_selected if training.is_in_parts else config.num_candidates)
    method = next(one for one in methods_of(config) if one.name == training.method)
    own = OmegaConf.merge(config, {"scoring": {"budget": training.budget}})
    return candidates_of(own, method, data, model).batches  # type: ignore[arg-type]  # a merged DictConfig is one


def run(
    config: DictConfig, name: str, data: SeedData, *, budget_seconds: float, num_tests: int
) -> dict[str, list[float]]:
    """Train by one method until the budget is spent; what tests after its first step and at regular seconds gave."""
    num_classes = data.splits.test.num_classes
    tests = ExampleLoader(data.splits.test, batch_size=1000)
    interval = budget_seconds / num_tests
    curve: dict[str, list[float]] = {column: [] for column in COLUMNS}
    with scoped_seed(stream_seed(data.seed, "target")):
        watch = Stopwatch()
        model = data.make_model(config.model, num_outputs=num_classes, seed=stream_seed(data.seed, "target"))
        optimizer = make_optimizer(config.optimizer)(model.parameters())
        epochs = itertools.repeat(epoch_of(config, name, data, model))
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
    """The tests of the S runs of a method at T common seconds, on straight lines between those of each run."""

    seconds: np.ndarray
    """(T,) from where all runs have begun to the end of the budget."""
    worst_class: np.ndarray
    """(S, T) accuracies."""
    mean: np.ndarray
    """(S, T) accuracies."""

    @classmethod
    def of(cls, runs: Sequence[dict[str, Any]], budget_seconds: float) -> Curve:
        """Of the runs of one method."""
        begin = max(one["seconds"][0] for one in runs)
        seconds = np.linspace(begin, max(begin, budget_seconds), 481)
        worst_class, mean = (
            np.array([np.interp(seconds, one["seconds"], one[column]) for one in runs])
            for column in ("worst_class", "mean")
        )
        return cls(seconds, worst_class, mean)

    def best_place(self, column: str) -> int:
        """Where among the T the mean over runs is largest."""
        return int(getattr(self, column).mean(axis=0).argmax())

    def best(self, column: str) -> float:
        """The largest mean over runs."""
        return float(getattr(self, column).mean(axis=0).max())

    def seconds_to(self, goal: float) -> float | None:
        """Until the worst class, in the mean over runs, has reached ``goal``; None if it does not."""
        reached = np.flatnonzero(self.worst_class.mean(axis=0) >= goal)
        return float(self.seconds[reached[0]]) if len(reached) else None


Curves = dict[str, Curve]
"""Of one setting, by method."""


def curves_of(runs: Mapping[Key, dict[str, Any]], setting: str, budget_seconds: float) -> Curves:
    """Of the methods that have runs."""
    found = {name: [runs[key] for key in sorted(runs) if key[:2] == (setting, name)] for name in TRAININGS}
    return {name: Curve.of(own, budget_seconds) for name, own in found.items() if own}


def is_comparison(curves: Curves) -> bool:
    """Whether there is REDUCR, and something to compare it with."""
    return "reducr" in curves and not all(TRAININGS[name].is_reducr for name in curves)


def goal_of(curves: Curves) -> tuple[str, float]:
    """The best worst class that a method without REDUCR reaches, and which method does."""
    best = {name: curve.best("worst_class") for name, curve in curves.items() if not TRAININGS[name].is_reducr}
    name = max(best, key=best.__getitem__)
    return name, best[name]


def report_of(setting: str, curves: Curves, budget_seconds: float) -> str:
    """The table of a setting in Markdown, and how soon REDUCR is at the goal."""
    name, goal = goal_of(curves)
    end = f"at {budget_seconds:g} s"
    num_seeds = sorted({len(curve.mean) for curve in curves.values()})
    lines = [
        f"**{SETTINGS[setting]}**, {' to '.join(map(str, num_seeds))} seeds",
        "",
        f"| method | worst class: best | at second | {end} | mean: best | {end} | REDUCR is as good after |",
        "| --- |" + " ---: |" * 6,
        *(line_of(one, curves) for one in curves),
        "",
        f"Goal: {goal:.3f}, the best worst class of {TRAININGS[name].label}.",
    ]
    for one in (one for one in curves if TRAININGS[one].is_reducr):
        after = curves[one].seconds_to(goal)
        lines[-1] += f" {TRAININGS[one].label} reaches it " + (
            "not." if after is None else f"after {after:.1f} s, {after / budget_seconds:.2f} of the budget."
        )
    return "\n".join(lines)


def line_of(name: str, curves: Curves) -> str:
    """Of the table, for one method."""
    curve = curves[name]
    place = curve.best_place("worst_class")
    after = "–"
    if not TRAININGS[name].is_reducr:
        seconds = curves["reducr"].seconds_to(curve.best("worst_class"))
        after = "never" if seconds is None else f"{seconds:.1f} s"
    cells = [
        TRAININGS[name].label,
        cell(curve.worst_class[:, place]),
        f"{curve.seconds[place]:.1f}",
        cell(curve.worst_class[:, -1]),
        cell(curve.mean[:, curve.best_place("mean")]),
        cell(curve.mean[:, -1]),
        after,
    ]
    return f"| {' | '.join(cells)} |"


def cell(values: np.ndarray) -> str:
    """Mean ± standard deviation over seeds."""
    return f"{values.mean():.3f} ± {values.std(ddof=1) if len(values) > 1 else 0:.3f}"


def figure_of(by_setting: dict[str, Curves], budget_seconds: float) -> Figure:
    """A row for each setting: worst class and mean accuracy against seconds, mean and standard deviation over seeds."""
    figure = Figure(figsize=(9.5, 0.5 + 3.2 * len(by_setting)), dpi=110, layout="constrained")
    rows = figure.subplots(len(by_setting), 2, sharex=True, squeeze=False)
    for (worst_class, mean), (setting, curves) in zip(rows, by_setting.items(), strict=True):
        worst_class.set_title(SETTINGS[setting], loc="left", fontsize="medium")
        worst_class.set_ylabel("worst-class test accuracy")
        mean.set_ylabel("mean test accuracy")
        draw_lines(worst_class, curves, "worst_class", budget_seconds)
        draw_lines(mean, curves, "mean", budget_seconds)
        draw_goal(worst_class, curves, budget_seconds)
        # what happens in the first seconds is not worth the space
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
    """A line with a band for each method, REDUCR's on top."""
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
    """The goal, a third of the budget, and a dot where REDUCR reaches it."""
    _, goal = goal_of(curves)
    axes.axhline(goal, color="#444444", linewidth=1.2, linestyle=":", label=GOAL)
    axes.axvline(budget_seconds / 3, color="#444444", linewidth=1.2, linestyle=":")
    reached = {name: curve.seconds_to(goal) for name, curve in curves.items() if TRAININGS[name].is_reducr}
    for name, seconds in reached.items():
        if seconds is not None:
            axes.plot(seconds, goal, "o", color=TRAININGS[name].colour, markeredgecolor="white", markersize=9, zorder=5)
            # the labels of the two keep out of each other's way
            is_last = seconds == max(other for other in reached.values() if other is not None)
            offset, align = ((7, 6), "left") if is_last else ((-7, -15), "right")
            axes.annotate(f"{seconds:.0f} s", (seconds, goal), xytext=offset, textcoords="offset points", ha=align)


def save_figure(figure: Figure, path: Path) -> None:
    """As a PNG of 64 colours, which is a third of the size of one with all of them."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").quantize(64, dither=Image.Dither.NONE)
    with replaced_atomically(path) as temporary:
        image.save(temporary, format="PNG", optimize=True)


def run_missing(given: argparse.Namespace, out: Path) -> None:
    """Run what is asked for and not in ``out``, which is written after each run; raises as ``RunStore``."""
    options = [*(TINY if given.tiny else ()), *given.options]
    conditions = {"budget_seconds": given.seconds, "tests": given.tests, "options": options}
    kept = RunStore.with_more(out, KEY, conditions)
    for seed, setting in itertools.product(given.seeds, given.settings):
        missing = [name for name in given.methods if given.again or (setting, name, seed) not in kept.runs]
        if not missing:
            continue
        data_dir = data_dir_for(setting, given.data_dir)
        config = composed(setting, [f"datamodule.data_dir={data_dir}", *options])
        data = SeedData.of(build(config.datamodule), seed)
        for name in missing:
            curve = run(config, name, data, budget_seconds=given.seconds, num_tests=given.tests)
            kept.add({"setting": setting, "method": name, "seed": seed, **curve})
            numbers = f"{curve['step'][-1]} steps, worst class {max(curve['worst_class']):.3f} at best"
            print(f"{setting}, seed {seed}, {name}: {numbers}", flush=True)


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, draw the figure and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60.0, help="the budget of a run; default: 60")
    parser.add_argument("--tests", type=int, default=30, help="of a run, at regular seconds; default: 30")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: both")
    parser.add_argument("--methods", nargs="+", choices=TRAININGS, default=list(TRAININGS), help="default: all")
    given = parsed(parser, arguments)
    if given.seconds <= 0 or given.tests < 1:
        parser.error(f"--seconds must be above 0 and --tests at least 1; got {given.seconds} and {given.tests}")
    out = given.out or results.ROOT / "benchmarks" / "seconds_to_goal.json"
    picture = out.with_suffix(".png") if given.out else results.ROOT / "docs" / "figures" / "seconds_to_goal.png"
    run_where_asked(parser, given, out, run_missing)

    kept = RunStore.read(out, KEY)
    budget_seconds = kept.conditions["budget_seconds"]
    by_setting = {setting: curves_of(kept.runs, setting, budget_seconds) for setting in SETTINGS}
    by_setting = {setting: curves for setting, curves in by_setting.items() if is_comparison(curves)}
    if not by_setting:
        return
    save_figure(figure_of(by_setting, budget_seconds), picture)
    text = "\n\n".join(report_of(setting, curves, budget_seconds) for setting, curves in by_setting.items())
    print(text)
    if given.out is None:
        shown = f"![Accuracy against seconds](figures/{picture.name})\n\n{text}"
        results.put_between(results.ROOT / "docs" / "performance.md", shown, begin=BEGIN, end=END)


if __name__ == "__main__":
    main()
