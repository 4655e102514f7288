"""Cheaper scoring passes: the time that each saves, and the accuracy that it costs.

    python -m benchmarks.cheaper_scoring --data-dir DIR                      run what is missing, then print the tables
    python -m benchmarks.cheaper_scoring --data-dir DIR --seeds 0 --settings fashion_mnist        run a part of it
    python -m benchmarks.cheaper_scoring                                     print the tables of the stored runs

DIR contains FashionMNIST/raw and CIFAR-10 with CIFAR-10N. For every seed, REDUCR trains the model of the experiment
once with each option. The trainings alternate: each takes one step on a batch of candidates before any takes the next.
They share the data, the irreducible model and the initial parameters. Times are processor seconds on one thread,
medians over steps. They leave out what is equal for all: holdout evaluations and the irreducible stage. The worst class
jumps from step to step, so differences are also given between means over ten tests in the last tenth of the steps.

A seed takes about two minutes for Fashion-MNIST and six for CIFAR-10N. An interrupted benchmark continues with the next
seed.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any, NamedTuple

import torch
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from torch import Tensor, nn

from benchmarks import results
from benchmarks.cifar_sheets import data_dir_for
from benchmarks.run_store import RunStore, parse_arguments, reducr_options, run_if_requested
from reducr.auxiliary import Auxiliary, AuxiliaryModel, selected_loss
from reducr.batch import Batch
from reducr.data import ExampleLoader
from reducr.downsampler import Downsampler
from reducr.metrics import summary
from reducr.pipeline.evaluation import evaluate
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import SeedData, build, make_optimizer, methods_of, scoped_seed, stream_seed
from reducr.scoring import Holdout, IrreducibleLookup, Scoring, ScoringBudget

SETTINGS = {
    "fashion_mnist": "Fashion-MNIST, 30 % wrong labels, imbalance 10:1",
    "cifar10n_worse": "CIFAR-10N, 40 % wrong labels, imbalance 10:1",
}
BEGIN, END = "<!-- begin: benchmarks.cheaper_scoring -->", "<!-- end: benchmarks.cheaper_scoring -->"
TINY = ["num_candidates=40", "num_steps=4", "holdout.refresh_steps=2", "irreducible.num_epochs=1"]


class Variant(NamedTuple):
    """A way to score the candidates.

    Args:
        label: first cell of its row.
        budget: fraction of the candidates that is scored.
        autocast: precision of the scoring pass.
        is_compiled: whether the scoring pass is compiled.
        has_proxy: whether a model of half the width scores.
        is_pooled: whether the model ends in a global average, so that it accepts images of any size.
        resolution: scale of the images that are scored.
    """

    label: str
    budget: float | None = None
    autocast: torch.dtype | None = None
    is_compiled: bool = False
    has_proxy: bool = False
    is_pooled: bool = False
    resolution: float | None = None


VARIANTS = {
    "full": Variant("all candidates"),
    "bfloat16": Variant("bfloat16", autocast=torch.bfloat16),
    "compiled": Variant("compiled", is_compiled=True),
    "budget_40": Variant("budget 0.4", budget=0.4),
    "budget_30": Variant("budget 0.3", budget=0.3),
    "budget_25": Variant("budget 0.25", budget=0.25),
    "budget_30_bfloat16": Variant("budget 0.3, bfloat16", budget=0.3, autocast=torch.bfloat16),
    "proxy": Variant("proxy of half the width", has_proxy=True),
    "pooled_full": Variant("model with global average: all candidates", is_pooled=True),
    "pooled_75": Variant("... at a resolution of 0.75", is_pooled=True, resolution=0.75),
    "pooled_50": Variant("... at a resolution of 0.5", is_pooled=True, resolution=0.5),
}


def baseline_name(name: str) -> str:
    """The variant that ``name`` is compared with: the same model, scoring all candidates in full."""
    return "pooled_full" if VARIANTS[name].is_pooled else "full"


class PooledCNN(nn.Module):
    """``reducr.models.SmallCNN`` with a global average after the convolutions: (B, K, S, S) to (B, num_classes)."""

    def __init__(self, *, in_channels: int, num_classes: int, widths: Sequence[int], hidden_size: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, kernel_size in zip(widths, (5, 3, 3), strict=True):
            layers += [nn.Conv2d(in_channels, width, kernel_size, stride=2, padding=kernel_size // 2), nn.ReLU()]
            in_channels = width
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(in_channels, hidden_size), nn.ReLU(), nn.Linear(hidden_size, num_classes)
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        """(B, num_classes) logits."""
        logits: Tensor = self.classifier(self.features(input).mean(dim=(2, 3)))
        return logits


def model_node(config: DictConfig, variant: Variant) -> DictConfig:
    """The configuration of the target model."""
    if not variant.is_pooled:
        node: DictConfig = config.model
        return node
    options = {name: config.model[name] for name in ("in_channels", "widths", "hidden_size")}
    return OmegaConf.create({"_target_": "benchmarks.cheaper_scoring.PooledCNN", **options})


def half_width(node: DictConfig) -> DictConfig:
    """The configuration of a model of half the width."""
    return OmegaConf.merge(
        node, {"widths": [width // 2 for width in node.widths], "hidden_size": node.hidden_size // 2}
    )


class Training:
    """Train a model step by step, and record the time of each step."""

    def __init__(
        self,
        variant: Variant,
        config: DictConfig,
        data: SeedData,
        irreducible: IrreducibleLookup | None,
        holdout: Sequence[Batch],
    ) -> None:
        num_classes = data.splits.train.num_classes
        make = partial(data.make_model, num_outputs=num_classes, seed=stream_seed(data.seed, "target"))
        self.model = make(model_node(config, variant))
        make_own = make_optimizer(config.optimizer)
        self.optimizer = make_own(self.model.parameters())
        proxies = [make(half_width(config.model))] if variant.has_proxy else []
        models = [AuxiliaryModel(proxy, make_own(proxy.parameters()), is_proxy=True) for proxy in proxies]
        budget = None if variant.budget is None else ScoringBudget(variant.budget, num_examples=len(data.splits.train))
        self.downsampler = Downsampler(
            methods_of(config)[0].make_selector(num_classes),
            irreducible,
            fraction=config.fraction,
            holdout=Holdout(holdout, refresh_steps=config.num_steps + 1),  # ``refresh`` is called instead
            scoring=Scoring(
                autocast=variant.autocast,
                compile=variant.is_compiled,
                resolution=variant.resolution,
                budget=budget,
            ),
            auxiliary=Auxiliary(models),
            seed=stream_seed(data.seed, "selection"),
        )
        self.scoring_seconds: list[float] = []
        self.step_seconds: list[float] = []
        self.tests: list[dict[str, float]] = []

    def step_on(self, batch: Batch) -> None:
        """Score and select from the candidates, and take a gradient step."""
        started = time.process_time()
        selected = self.downsampler.select(batch, self.model)
        self.scoring_seconds.append(time.process_time() - started)
        self.optimizer.zero_grad()
        selected_loss(self.model, selected).backward()
        self.optimizer.step()
        self.downsampler.step(self.model)
        self.step_seconds.append(time.process_time() - started)

    def refresh(self) -> None:
        """Evaluate the holdout set and set the group losses."""
        self.downsampler.refresh(self.model)

    def test(self, tests: Iterable[Batch], num_classes: int) -> None:
        """Record accuracies on the test set."""
        self.tests.append(summary(evaluate(self.model, tests, num_classes=num_classes, num_groups=num_classes)))

    def outcome(self) -> dict[str, float]:
        """Accuracies after the last step and averaged over tests, and median seconds per step."""
        late = {
            f"late_{name}": fmean(test[f"{name}_accuracy"] for test in self.tests) for name in ("worst_class", "mean")
        }
        outcome = {
            "worst_class": self.tests[-1]["worst_class_accuracy"],
            "mean": self.tests[-1]["mean_accuracy"],
            **late,
            "scoring_seconds": median(self.scoring_seconds),
            "step_seconds": median(self.step_seconds),
            "first_step_seconds": self.step_seconds[0],
        }
        return {name: float(f"{value:.5g}") for name, value in outcome.items()}


def run(config: DictConfig, data: SeedData) -> dict[str, dict[str, float]]:
    """Train with every variant alternately; the outcome of each."""
    selector = methods_of(config)[0].make_selector(data.splits.train.num_groups)
    with tempfile.TemporaryDirectory() as folder, RunDisplay(1, console=Console(quiet=True)) as display:
        irreducible = IrreducibleStage(config, data, Path(folder), display).losses_for(selector).lookup
    candidates = ExampleLoader(
        data.splits.train,
        batch_size=config.num_candidates,
        shuffle=True,
        drop_last=True,
        seed=stream_seed(data.seed, "order"),
    )
    holdout = list(ExampleLoader(data.splits.holdout, batch_size=config.holdout.batch_size))
    trainings = {name: Training(variant, config, data, irreducible, holdout) for name, variant in VARIANTS.items()}
    tests = ExampleLoader(data.splits.test, batch_size=1000)
    batches = itertools.chain.from_iterable(itertools.repeat(candidates))
    for step, batch in enumerate(itertools.islice(batches, config.num_steps)):
        steps_left = config.num_steps - step - 1
        is_tested = steps_left % max(1, config.num_steps // 100) == 0 and steps_left < config.num_steps // 10 + 1
        for training in trainings.values():
            if step % config.holdout.refresh_steps == 0:
                training.refresh()
            training.step_on(batch)
            if is_tested:
                training.test(tests, data.splits.test.num_classes)
    return {name: training.outcome() for name, training in trainings.items()}


KEY = ("setting", "seed")


def run_missing(options: argparse.Namespace, out: Path) -> None:
    """Make the requested runs that ``out`` lacks, writing it after each; raises like ``RunStore.with_more``."""
    more = reducr_options(options, TINY)
    store = RunStore.with_more(out, KEY, {"options": more, "variants": list(VARIANTS)})
    for seed, setting in itertools.product(options.seeds, options.settings):
        if (setting, seed) in store.runs and not options.again:
            continue
        data_dir = data_dir_for(setting, options.data_dir)
        with initialize_config_module("reducr.configs", version_base="1.3"):
            overrides = [f"experiment={setting}", "compare=[reducr]", f"datamodule.data_dir={data_dir}", *more]
            config = compose("main", overrides=overrides)
        data = SeedData.of(build(config.datamodule), seed)
        torch.compiler.reset()
        with scoped_seed(stream_seed(seed, "target")):
            outcomes = run(config, data)
        store.add({"setting": setting, "seed": seed, "variants": outcomes})
        print(
            f"{setting}, seed {seed}: worst class {outcomes['full']['worst_class']:.3f} when all are scored", flush=True
        )


def markdown_table(setting: str, runs: Sequence[dict[str, Any]]) -> str:
    """The table of a setting in Markdown."""
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else "1 seed"
    lines = [
        f"**{SETTINGS[setting]}**, {seeds}",
        "",
        "| scoring | scoring time | step time | worst class | difference | over ten tests | mean | difference |",
        "| --- |" + " ---: |" * 7,
        *(table_row(name, [run["variants"] for run in runs]) for name in VARIANTS),
    ]
    return "\n".join(lines)


def table_row(name: str, outcomes: Sequence[dict[str, dict[str, float]]]) -> str:
    """The row of a variant, with ratios and differences to its baseline, seed by seed."""
    baseline = baseline_name(name)
    pairs = [(by_variant[name], by_variant[baseline]) for by_variant in outcomes]
    cells = [VARIANTS[name].label]
    for column in ("scoring_seconds", "step_seconds"):
        if name == baseline:
            cells.append(f"{1e3 * median(outcome[column] for outcome, _ in pairs):.1f} ms")
        else:
            cells.append(f"{median(outcome[column] / base[column] for outcome, base in pairs):.2f}")
    for column in ("worst_class", "late_worst_class", "mean"):
        if not column.startswith("late"):
            cells.append(mean_with_deviation([outcome[column] for outcome, _ in pairs]))
        differences = [outcome[column] - base[column] for outcome, base in pairs]
        cells.append("–" if name == baseline else mean_with_deviation(differences, sign="+"))
    return f"| {' | '.join(cells)} |"


def mean_with_deviation(values: Sequence[float], *, sign: str = "") -> str:
    """Mean ± standard deviation over seeds."""
    return f"{fmean(values):{sign}.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}"


def main(arguments: list[str] | None = None) -> None:
    """Make the missing runs, then print and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: both")
    options = parse_arguments(parser, arguments)
    out = options.out or results.ROOT / "benchmarks" / "cheaper_scoring.json"
    run_if_requested(parser, options, out, run_missing)
    runs = RunStore.read(out, KEY).runs
    by_setting = {setting: [runs[key] for key in sorted(runs) if key[0] == setting] for setting in SETTINGS}
    text = "\n\n".join(
        markdown_table(setting, setting_runs) for setting, setting_runs in by_setting.items() if setting_runs
    )
    print(text)
    if options.out is None:
        results.put_between(results.ROOT / "docs" / "performance.md", text, begin=BEGIN, end=END)


if __name__ == "__main__":
    main()
