"""What `reducr export` is worth: a fresh model trained on the export, and on a random subset of the same size.

    python -m benchmarks.export_trial --data-dir DIR                     run what is not there yet, then the tables
    python -m benchmarks.export_trial --data-dir DIR --seeds 10 11 --arms score_none random        a part of it
    python -m benchmarks.export_trial                                    the tables of what is there

DIR holds FashionMNIST/raw. For every seed REDUCR is run as the experiment `fashion_mnist` says, and a tenth of its
training part exported in several ways. On each export the same fresh model is trained from the same initial parameters
for as many steps of as many points as the run took, drawn without replacement in each epoch. Arms that are compared:
random subsets of the same size, one of them with as many points of each class as the default export, by the labels that
are shown; and the whole training part. What is the default was chosen on the seeds from 10 on; reported are 0 to 4.

An arm takes about five seconds, and the run of a seed about 20. Interrupted, it goes on with the next arm.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig
from pyarrow import parquet
from scipy.stats import t as student
from torch import nn

from benchmarks import results
from benchmarks.run_store import Key, RunStore, parsed, run_where_asked
from reducr.data import ExampleLoader
from reducr.exports import ORDERS, ExportOptions, export_run
from reducr.metrics import summary
from reducr.pipeline import run_experiment
from reducr.pipeline.setup import SeedData, build, make_optimizer, scoped_seed, stream_seed
from reducr.pipeline.target_stage import evaluate
from reducr.scoring.scorer import num_selected_of

BEGIN, END = "<!-- made by benchmarks.export_trial -->", "<!-- end of what it makes: export -->"
TINY = ["num_candidates=40", "num_steps=4", "holdout.refresh_steps=2", "irreducible.num_epochs=1"]
FRACTION = 0.1
TUNING_SEEDS_FROM = 10
DEFAULT = "_".join((ExportOptions(fraction=FRACTION).order, ExportOptions(fraction=FRACTION).quotas))
BASELINES = {
    "random": "random",
    "random_same_classes": "random, the classes of the default",
    "all": "all training points",
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


def composed(given: argparse.Namespace) -> DictConfig:
    """The configuration of the runs."""
    options = [*(TINY if given.tiny else ()), *given.options]
    overrides = ["experiment=fashion_mnist", "compare=[reducr]", f"datamodule.data_dir={given.data_dir}", *options]
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=overrides)


def exported_index(run: Path, options: ExportOptions) -> np.ndarray:
    """(n,) what an export keeps, ascending."""
    with tempfile.TemporaryDirectory() as folder:
        export = export_run(run, Path(folder, "export"), options)
        return np.sort(parquet.read_table(export.folder / "points.parquet")["index"].to_numpy())


def index_of(arm: str, run: Path, data: SeedData) -> np.ndarray:
    """(n,) the training points of an arm."""
    target = data.splits.train.target.numpy()
    if arm == "all":
        return np.arange(len(target))
    if arm not in BASELINES:
        return exported_index(run, EXPORTS[arm])
    order = np.random.default_rng(data.seed).permutation(len(target))
    if arm == "random":
        return np.sort(order[: num_selected_of(FRACTION, len(target))])
    counts = np.bincount(target[exported_index(run, EXPORTS[DEFAULT])], minlength=data.splits.train.num_classes)
    return np.sort(np.concatenate([order[target[order] == number][:count] for number, count in enumerate(counts)]))


def trained_on(index: np.ndarray, config: DictConfig, data: SeedData) -> dict[str, float]:
    """Train a fresh model on these points; its accuracies on the test part."""
    points = data.splits.train.take(torch.from_numpy(index))
    num_classes = points.num_classes
    seed = stream_seed(data.seed, "target")
    with scoped_seed(seed):
        model = data.make_model(config.model, num_outputs=num_classes, seed=seed)
        optimizer = make_optimizer(config.optimizer)(model.parameters())
        size = num_selected_of(config.fraction, config.num_candidates)
        order = stream_seed(data.seed, "order")
        loader = ExampleLoader(points, batch_size=size, shuffle=True, drop_last=True, seed=order)
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
        "corrupted": float(points.is_corrupted.double().mean()),
        "num_points": len(points),
    }
    return {name: round(value, 4) for name, value in outcome.items()}


KEY = ("seed", "arm")


def run_missing(given: argparse.Namespace, out: Path) -> None:
    """Run what is asked for and not in ``out``, which is written after each arm; raises as ``RunStore``."""
    options = [*(TINY if given.tiny else ()), *given.options]
    kept = RunStore.with_more(out, KEY, {"options": options, "default": DEFAULT})
    config = composed(given)
    datamodule = build(config.datamodule)
    for seed in given.seeds:
        missing = [arm for arm in given.arms if given.again or (seed, arm) not in kept.runs]
        if not missing:
            continue
        data = SeedData.of(datamodule, seed)
        with tempfile.TemporaryDirectory() as home:
            config.seeds, config.model_io.run_dir = [seed], f"{home}/run"
            run = run_experiment(config)
            for arm in missing:
                outcome = trained_on(index_of(arm, run, data), config, data)
                kept.add({"seed": seed, "arm": arm, **outcome})
                print(f"seed {seed}, {arm}: worst class {outcome['worst_class']:.3f}", flush=True)


def report_of(outcomes: Mapping[Key, dict[str, Any]], seeds: Sequence[int]) -> str:
    """The table of these seeds in Markdown."""
    lines = [
        f"{len(seeds)} seeds, {seeds[0]} to {seeds[-1]}",
        "",
        "| trained on | worst class | less random, 95 % interval | mean | less random, 95 % interval | wrong labels |",
        "| --- |" + " ---: |" * 5,
    ]
    for arm in ARMS:
        own = {seed: outcomes[seed, arm] for seed in seeds if (seed, arm) in outcomes}
        if len(own) == len(seeds):
            pairs = [(one, outcomes[seed, "random"]) for seed, one in own.items()]
            cells = [label_of(arm)]
            for column in ("worst_class", "mean"):
                cells.append(with_deviation([one[column] for one, _ in pairs]))
                differences = [one[column] - random[column] for one, random in pairs]
                cells.append("–" if arm == "random" else with_interval(differences))
            lines.append(f"| {' | '.join(cells)} | {fmean(one['corrupted'] for one, _ in pairs):.3f} |")
    return "\n".join(lines)


def label_of(arm: str) -> str:
    """Of a line of the table."""
    if arm in BASELINES:
        return BASELINES[arm]
    options = EXPORTS[arm]
    drops = " --drop-label-errors" * options.drops_label_errors
    return f"`--order {options.order} --quotas {options.quotas}{drops}`{', the default' * (arm == DEFAULT)}"


def with_deviation(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    return f"{fmean(values):.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}"


def with_interval(differences: Sequence[float]) -> str:
    """Mean of paired differences, and its 95 % interval by Student's t."""
    mean, size = fmean(differences), len(differences)
    if size < 2:
        return f"{mean:+.3f}"
    half = float(student.ppf(0.975, size - 1)) * stdev(differences) / size**0.5
    return f"{mean:+.3f}, {mean - half:+.3f} to {mean + half:+.3f}"


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument("--arms", nargs="+", choices=ARMS, default=list(ARMS), help="default: all")
    given = parsed(parser, arguments)
    out = given.out or results.ROOT / "benchmarks" / "export_trial.json"
    run_where_asked(parser, given, out, run_missing)

    outcomes = RunStore.read(out, KEY).runs
    seeds = sorted({seed for seed, arm in outcomes if arm == "random"})
    parts = [
        ("Reported", [seed for seed in seeds if seed < TUNING_SEEDS_FROM]),
        ("The default was chosen on these", [seed for seed in seeds if seed >= TUNING_SEEDS_FROM]),
    ]
    text = "\n\n".join(f"**{title}:** {report_of(outcomes, own)}" for title, own in parts if own)
    print(text)
    if given.out is None:
        results.put_between(results.ROOT / "docs" / "export.md", text, begin=BEGIN, end=END)


if __name__ == "__main__":
    main()
