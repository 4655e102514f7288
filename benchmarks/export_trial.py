"""Train a fresh model on the export of a run, and on a random subset of the same size.

    python -m benchmarks.export_trial --data-dir DIR                     run what is missing, then print the tables
    python -m benchmarks.export_trial --data-dir DIR --seeds 10 11 --arms score_none random        run a part of it
    python -m benchmarks.export_trial                                    print the tables of the stored runs

DIR holds FashionMNIST/raw. For every seed, REDUCR runs the experiment `fashion_mnist`, and a tenth of its training part
is exported in several ways. The same fresh model is trained on each export, from the same initial parameters, with as
many steps and examples per step as the run; each epoch draws without replacement. The exports are compared with random
subsets of the same size, one of which has the class counts (of the shown labels) of the default export, and with the
whole training part. The default was chosen on seeds 10 and above; seeds 0 to 4 are reported.

An arm takes about five seconds, and the run of a seed about 20. An interrupted trial continues with the next arm.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from pyarrow import parquet
from torch import nn

from benchmarks import results
from benchmarks.run_store import Key, RunStore, parse_arguments, reducr_options, run_if_requested
from reducr.data import ExampleLoader
from reducr.exports import ORDERS, ExportOptions, export_run
from reducr.metrics import summary
from reducr.pipeline import run_experiment
from reducr.pipeline.evaluation import evaluate
from reducr.pipeline.setup import SeedData, build, make_optimizer, scoped_seed, stream_seed
from reducr.reports.statistics import estimate
from reducr.scoring import num_selected_of

BEGIN, END = "<!-- begin: benchmarks.export_trial -->", "<!-- end: benchmarks.export_trial -->"
TINY = ["num_candidates=40", "num_steps=4", "holdout.refresh_steps=2", "irreducible.num_epochs=1"]
FRACTION = 0.1
TUNING_SEEDS_FROM = 10
DEFAULT = "_".join((ExportOptions(fraction=FRACTION).order, ExportOptions(fraction=FRACTION).quotas))
BASELINES = {
    "random": "random",
    "random_same_classes": "random, with the class counts of the default",
    "all": "all training examples",
}
EXPORTS = {
    f"{order}_{quotas}{'_dropped' * drops}": ExportOptions(
        fraction=FRACTION, order=order, quotas=quotas, drops_label_errors=drops
    )
    for order in ORDERS
    for quotas in ("none", "equal", "selected")
    for drops in (False, True)
}
ARMS = (*BASELINES, *EXPORTS)


def composed_config(options: argparse.Namespace) -> DictConfig:
    """The configuration of the runs."""
    overrides = ["experiment=fashion_mnist", "compare=[reducr]", f"datamodule.data_dir={options.data_dir}"]
    overrides += reducr_options(options, TINY)
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=overrides)


def exported_index(run: Path, options: ExportOptions) -> np.ndarray:
    """(n,) indices of the training examples in an export, ascending."""
    with tempfile.TemporaryDirectory() as folder:
        export = export_run(run, Path(folder, "export"), options)
        return np.sort(parquet.read_table(export.folder / "points.parquet")["index"].to_numpy())


def arm_index(arm: str, run: Path, data: SeedData) -> np.ndarray:
    """(n,) indices of the training examples of an arm."""
    target = data.splits.train.target.numpy()
    if arm == "all":
        return np.arange(len(target))
    if arm not in BASELINES:
        return exported_index(run, EXPORTS[arm])
    order = np.random.default_rng(data.seed).permutation(len(target))
    if arm == "random":
        return np.sort(order[: num_selected_of(FRACTION, len(target))])
    counts = np.bincount(target[exported_index(run, EXPORTS[DEFAULT])], minlength=data.splits.train.num_classes)
    return np.sort(np.concatenate([order[target[order] == label][:count] for label, count in enumerate(counts)]))


def train(index: np.ndarray, config: DictConfig, data: SeedData) -> dict[str, float]:
    """Train a fresh model on these training examples, and return its test accuracies."""
    examples = data.splits.train.take(torch.from_numpy(index))
    num_classes = examples.num_classes
    seed = stream_seed(data.seed, "target")
    with scoped_seed(seed):
        model = data.make_model(config.model, num_outputs=num_classes, seed=seed)
        optimizer = make_optimizer(config.optimizer)(model.parameters())
        size = num_selected_of(config.fraction, config.num_candidates)
        order = stream_seed(data.seed, "order")
        loader = ExampleLoader(examples, batch_size=size, shuffle=True, drop_last=True, seed=order)
        batches = itertools.chain.from_iterable(itertools.repeat(loader))
        for batch in itertools.islice(batches, config.num_steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.input), batch.target).backward()
            optimizer.step()
    tests = ExampleLoader(data.splits.test, batch_size=1000)
    report = summary(evaluate(model, tests, num_classes=num_classes, num_groups=num_classes))
    outcome = {
        "worst_class": report["worst_class_accuracy"],
        "mean": report["mean_accuracy"],
        "corrupted": float(examples.is_corrupted.double().mean()),
        "num_points": len(examples),
    }
    return {name: round(value, 4) for name, value in outcome.items()}


KEY = ("seed", "arm")


def run_missing(options: argparse.Namespace, out: Path) -> None:
    """Make the requested runs that ``out`` lacks, writing it after each arm; raises like ``RunStore.with_more``."""
    store = RunStore.with_more(out, KEY, {"options": reducr_options(options, TINY), "default": DEFAULT})
    config = composed_config(options)
    datamodule = build(config.datamodule)
    for seed in options.seeds:
        missing = [arm for arm in options.arms if options.again or (seed, arm) not in store.runs]
        if not missing:
            continue
        data = SeedData.of(datamodule, seed)
        with tempfile.TemporaryDirectory() as home:
            config.seeds, config.model_io.run_dir = [seed], f"{home}/run"
            run = run_experiment(config)
            for arm in missing:
                outcome = train(arm_index(arm, run, data), config, data)
                store.add({"seed": seed, "arm": arm, **outcome})
                print(f"seed {seed}, {arm}: worst class {outcome['worst_class']:.3f}", flush=True)


def markdown_table(outcomes: Mapping[Key, dict[str, Any]], seeds: Sequence[int]) -> str:
    """The table of these seeds in Markdown."""
    lines = [
        f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}",
        "",
        "| trained on | worst class | minus random [95 %] | mean | minus random [95 %] | wrong labels |",
        "| --- |" + " ---: |" * 5,
    ]
    for arm in ARMS:
        if any((seed, arm) not in outcomes for seed in seeds):
            continue
        pairs = [(outcomes[seed, arm], outcomes[seed, "random"]) for seed in seeds]
        cells = [row_label(arm)]
        for column in ("worst_class", "mean"):
            cells.append(mean_with_deviation([outcome[column] for outcome, _ in pairs]))
            differences = [outcome[column] - random[column] for outcome, random in pairs]
            cells.append("–" if arm == "random" else mean_with_interval(differences))
        lines.append(f"| {' | '.join(cells)} | {fmean(outcome['corrupted'] for outcome, _ in pairs):.3f} |")
    return "\n".join(lines)


def row_label(arm: str) -> str:
    """The first cell of an arm's row."""
    if arm in BASELINES:
        return BASELINES[arm]
    options = EXPORTS[arm]
    drops = " --drop-label-errors" * options.drops_label_errors
    return f"`--order {options.order} --quotas {options.quotas}{drops}`{', the default' * (arm == DEFAULT)}"


def mean_with_deviation(values: Sequence[float]) -> str:
    """Mean ± standard deviation, such as ``0.573 ± 0.072``."""
    accuracy = estimate(values)
    assert accuracy is not None
    return f"{accuracy.mean:.3f} ± {accuracy.deviation or 0:.3f}"


def mean_with_interval(differences: Sequence[float]) -> str:
    """Mean of paired differences with its 95 % interval, such as ``+0.330 [+0.242, +0.418]``."""
    difference = estimate(differences)
    assert difference is not None
    if difference.low is None or difference.high is None:
        return f"{difference.mean:+.3f}"
    return f"{difference.mean:+.3f} [{difference.low:+.3f}, {difference.high:+.3f}]"


def main(arguments: list[str] | None = None) -> None:
    """Make the missing runs, then print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    options = parse_arguments(parser, arguments)
    out = options.out or results.ROOT / "benchmarks" / "export_trial.json"
    run_if_requested(parser, options, out, run_missing)

    outcomes = RunStore.read(out, KEY).runs
    seeds = sorted({seed for seed, arm in outcomes if arm == "random"})
    parts = [
        ("Reported", [seed for seed in seeds if seed < TUNING_SEEDS_FROM]),
        ("The default was chosen on these", [seed for seed in seeds if seed >= TUNING_SEEDS_FROM]),
    ]
    text = "\n\n".join(f"**{title}:** {markdown_table(outcomes, part)}" for title, part in parts if part)
    print(text)
    if options.out is None:
        results.put_between(results.ROOT / "docs" / "export.md", text, begin=BEGIN, end=END)


if __name__ == "__main__":
    main()
