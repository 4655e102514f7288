"""Cheaper scoring passes: the seconds that each saves, and the accuracy that it costs.

    python -m benchmarks.cheaper_scoring --data-dir DIR                      run what is not there yet, then the tables
    python -m benchmarks.cheaper_scoring --data-dir DIR --seeds 0 --settings fashion_mnist        a part of it
    python -m benchmarks.cheaper_scoring                                     the tables of what is there

DIR contains FashionMNIST/raw and CIFAR-10 with CIFAR-10N. For every seed REDUCR trains the model of the experiment once
with each option, all of them side by side: each takes one step on a batch of candidates before any takes the next, so
that what they cost is measured in turn. They share the data, the irreducible model and the initial parameters. Seconds
are those of the processor, on one thread, medians over steps; what is equal for all, holdout evaluations and the
irreducible stage, is left out. The worst class jumps from step to step, so differences are also given between means
over ten tests in the last tenth of the steps.

A seed takes about two minutes for Fashion-MNIST and six for CIFAR-10N. Interrupted, it goes on with the next seed.
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
from benchmarks.run_store import RunStore, parsed, run_where_asked
from reducr.batch import Batch
from reducr.data import ExampleLoader
from reducr.metrics import summary
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import SeedData, build, make_optimizer, methods_of, scoped_seed, stream_seed
from reducr.pipeline.target_stage import evaluate
from reducr.scoring.budget import ScoringBudget, ScoringForward
from reducr.scoring.holdout import GroupHoldoutLoss
from reducr.scoring.scorer import IrreducibleLookup, num_selected_of, pick, update_holdout_loss
from reducr.training.auxiliary import AuxiliaryModel, joint_optimizer, selected_loss, total_loss

SETTINGS = {
    "fashion_mnist": "Fashion-MNIST, 30 % wrong labels, imbalance 10:1",
    "cifar10n_worse": "CIFAR-10N, 40 % wrong labels, imbalance 10:1",
}
BEGIN, END = "<!-- made by benchmarks.cheaper_scoring -->", "<!-- end of what it makes: cheaper scoring -->"
TINY = ["num_candidates=40", "num_steps=4", "holdout.refresh_steps=2", "irreducible.num_epochs=1"]


class Variant(NamedTuple):
    """How the candidates are scored.

    Args:
        label: in the table.
        budget: fraction of the candidates that is scored.
        autocast: precision of scoring.
        is_compiled: whether scoring is.
        has_proxy: whether a model of half the width scores.
        is_pooled: whether the model ends in a global average, so that it takes images of any size.
        resolution: of the images that are scored.
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


def baseline_of(name: str) -> str:
    """What a variant is compared with: the same model that scores all candidates as they are."""
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
    kept = {name: config.model[name] for name in ("in_channels", "widths", "hidden_size")}
    return OmegaConf.create({"_target_": "benchmarks.cheaper_scoring.PooledCNN", **kept})


def narrower(node: DictConfig) -> DictConfig:
    """A model of half the width."""
    return OmegaConf.merge(
        node, {"widths": [width // 2 for width in node.widths], "hidden_size": node.hidden_size // 2}
    )


class Training:
    """A model that is trained step by step, and the seconds it took."""

    def __init__(
        self, variant: Variant, config: DictConfig, data: SeedData, irreducible: IrreducibleLookup | None
    ) -> None:
        num_classes = data.splits.train.num_classes
        make = partial(data.make_model, num_outputs=num_classes, seed=stream_seed(data.seed, "target"))
        self.model = make(model_node(config, variant))
        self.auxiliary_models = [AuxiliaryModel(make(narrower(config.model)))] if variant.has_proxy else []
        self.scorer = self.auxiliary_models[0].model if variant.has_proxy else self.model
        self.forward = ScoringForward(
            self.scorer, autocast=variant.autocast, is_compiled=variant.is_compiled, resolution=variant.resolution
        )
        self.budget = (
            None if variant.budget is None else ScoringBudget(variant.budget, num_examples=len(data.splits.train))
        )
        self.optimizer = joint_optimizer(make_optimizer(config.optimizer), self.model, self.auxiliary_models)
        self.selector = methods_of(config)[0].make_selector(num_classes)
        self.irreducible = irreducible
        self.fraction: float = config.fraction
        self.holdout_loss = GroupHoldoutLoss(num_classes)
        self.generator = torch.Generator().manual_seed(stream_seed(data.seed, "selection"))
        self.scoring_seconds: list[float] = []
        self.step_seconds: list[float] = []
        self.tests: list[dict[str, float]] = []

    def step_on(self, batch: Batch) -> None:
        """Score, choose, and take a gradient step."""
        started = time.process_time()
        selected, selection = pick(
            self.scorer,
            batch,
            self.selector,
            self.irreducible,
            num_selected=num_selected_of(self.fraction, len(batch.target)),
            forward=self.forward,
            budget=self.budget,
            generator=self.generator,
        )
        self.scoring_seconds.append(time.process_time() - started)
        self.optimizer.zero_grad()
        total_loss(selected_loss(self.model, selected), self.auxiliary_models, selected).backward()
        self.optimizer.step()
        self.selector.update(selection)
        self.step_seconds.append(time.process_time() - started)

    def refresh(self, holdout: Sequence[Batch]) -> None:
        """Evaluate the holdout set."""
        update_holdout_loss(self.model, holdout, self.selector, self.holdout_loss)

    def test(self, tests: Iterable[Batch], num_classes: int) -> None:
        """Accuracies on the test set."""
        self.tests.append(summary(evaluate(self.model, tests, num_classes=num_classes, num_groups=num_classes)))

    def outcome(self) -> dict[str, float]:
        """Accuracies after the last step and in the mean over tests, and seconds a step."""
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
    """Train with every option side by side; what each has come to, and its seconds a step."""
    selector = methods_of(config)[0].make_selector(data.splits.train.num_groups)
    with tempfile.TemporaryDirectory() as folder, RunDisplay(1, console=Console(quiet=True)) as display:
        irreducible = IrreducibleStage(config, data, Path(folder), display).losses_for(selector).lookup
    trainings = {name: Training(variant, config, data, irreducible) for name, variant in VARIANTS.items()}
    candidates = ExampleLoader(
        data.splits.train,
        batch_size=config.num_candidates,
        shuffle=True,
        drop_last=True,
        seed=stream_seed(data.seed, "order"),
    )
    holdout = list(ExampleLoader(data.splits.holdout, batch_size=config.holdout.batch_size))
    tests = ExampleLoader(data.splits.test, batch_size=1000)
    batches = itertools.chain.from_iterable(itertools.repeat(candidates))
    for step, batch in enumerate(itertools.islice(batches, config.num_steps)):
        steps_left = config.num_steps - step - 1
        is_tested = steps_left % max(1, config.num_steps // 100) == 0 and steps_left < config.num_steps // 10 + 1
        for training in trainings.values():
            if step % config.holdout.refresh_steps == 0:
                training.refresh(holdout)
            training.step_on(batch)
            if is_tested:
                training.test(tests, data.splits.test.num_classes)
    return {name: training.outcome() for name, training in trainings.items()}


KEY = ("setting", "seed")


def run_missing(given: argparse.Namespace, out: Path) -> None:
    """Run what is asked for and not in ``out``, which is written after each run; raises as ``RunStore``."""
    options = [*(TINY if given.tiny else ()), *given.options]
    kept = RunStore.with_more(out, KEY, {"options": options, "variants": list(VARIANTS)})
    for seed, setting in itertools.product(given.seeds, given.settings):
        if (setting, seed) in kept.runs and not given.again:
            continue
        data_dir = data_dir_for(setting, given.data_dir)
        with initialize_config_module("reducr.configs", version_base="1.3"):
            overrides = [f"experiment={setting}", "compare=[reducr]", f"datamodule.data_dir={data_dir}", *options]
            config = compose("main", overrides=overrides)
        data = SeedData.of(build(config.datamodule), seed)
        torch.compiler.reset()
        with scoped_seed(stream_seed(seed, "target")):
            outcomes = run(config, data)
        kept.add({"setting": setting, "seed": seed, "variants": outcomes})
        print(f"{setting}, seed {seed}: worst class {outcomes['full']['worst_class']:.3f} with all scored", flush=True)


def report_of(setting: str, runs: Sequence[dict[str, Any]]) -> str:
    """The table of a setting in Markdown."""
    seeds = f"{len(runs)} seeds" if len(runs) > 1 else "1 seed"
    lines = [
        f"**{SETTINGS[setting]}**, {seeds}",
        "",
        "| scoring | its seconds | a step's seconds | worst class | difference | over ten tests | mean | difference |",
        "| --- |" + " ---: |" * 7,
        *(line_of(name, [one["variants"] for one in runs]) for name in VARIANTS),
    ]
    return "\n".join(lines)


def line_of(name: str, outcomes: Sequence[dict[str, dict[str, float]]]) -> str:
    """Of the table, for one variant: ratios and differences are to its baseline, seed by seed."""
    baseline = baseline_of(name)
    pairs = [(one[name], one[baseline]) for one in outcomes]
    cells = [VARIANTS[name].label]
    for column in ("scoring_seconds", "step_seconds"):
        if name == baseline:
            cells.append(f"{1e3 * median(own[column] for own, _ in pairs):.1f} ms")
        else:
            cells.append(f"{median(own[column] / other[column] for own, other in pairs):.2f}")
    for column in ("worst_class", "late_worst_class", "mean"):
        if not column.startswith("late"):
            cells.append(cell([own[column] for own, _ in pairs]))
        cells.append("–" if name == baseline else cell([own[column] - other[column] for own, other in pairs], sign="+"))
    return f"| {' | '.join(cells)} |"


def cell(values: Sequence[float], *, sign: str = "") -> str:
    """Mean ± standard deviation over seeds."""
    return f"{fmean(values):{sign}.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}"


def main(arguments: list[str] | None = None) -> None:
    """Run what is not there yet, and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2, 3, 4], help="default: 0 to 4")
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=list(SETTINGS), help="default: both")
    given = parsed(parser, arguments)
    out = given.out or results.ROOT / "benchmarks" / "cheaper_scoring.json"
    run_where_asked(parser, given, out, run_missing)
    runs = RunStore.read(out, KEY).runs
    by_setting = {setting: [runs[key] for key in sorted(runs) if key[0] == setting] for setting in SETTINGS}
    text = "\n\n".join(report_of(setting, own) for setting, own in by_setting.items() if own)
    print(text)
    if given.out is None:
        results.put_between(results.ROOT / "docs" / "performance.md", text, begin=BEGIN, end=END)


if __name__ == "__main__":
    main()
