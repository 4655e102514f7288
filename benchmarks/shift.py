"""A stream whose rare class changes, with and without decay of the class weights.

    python benchmarks/shift.py --data-dir DIR            print the table of docs/results.md
    python benchmarks/shift.py --data-dir DIR --sweep    print how its step sizes were chosen, on other seeds

DIR holds FashionMNIST/raw. The stream has one rare class, nine equally frequent ones and 30 % wrong labels. After three
quarters of the stream the rare class becomes frequent and another one becomes rare. The table takes about five minutes
on one thread, the sweep ten.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

import reducr
from reducr._internal.seeds import mixed_seed
from reducr.data import ExampleDataset
from reducr.data.published.fashion_mnist import CLASS_NAMES, FashionMNIST
from reducr.irreducible import AdjustedIrreducibleLoss, LiveLogits, PlainIrreducibleLoss
from reducr.models import SmallCNN

NUM_CLASSES, NUM_CANDIDATES, FRACTION = 10, 320, 0.1
RATIO, WRONG_LABELS = 10.0, 0.3
REFRESH_STEPS = 25
IRREDUCIBLE_EPOCHS = 20
LEARNING_RATE = 1e-3
DECAYS = (1.0, 0.99, 0.98)
SWEPT = {1.0: (3e-4, 1e-3, 3e-3, 1e-2), 0.99: (3e-4, 1e-3, 3e-3, 1e-2), 0.98: (6e-4, 2e-3, 6e-3, 2e-2)}
CHOSEN = {1.0: 3e-3, 0.99: 3e-3, 0.98: 6e-3}
"""For each decay, the step size with the best worst class after the switch in the sweep."""
SWEPT_SEEDS = (100, 101, 102)


class Examples(NamedTuple):
    """Inputs (N, 1, 14, 14) and targets (N,)."""

    input: Tensor
    target: Tensor

    @classmethod
    def of(cls, data: ExampleDataset) -> Examples:
        """The examples of a part at half the resolution, which makes a run four times cheaper."""
        return cls(nn.functional.avg_pool2d(data.input, 2), data.target)


class ShiftingStream(IterableDataset[tuple[Tensor, Tensor]]):
    """Batches (input, target) without index, drawn from ``examples``; ``rare`` is the rare class before and after."""

    def __init__(
        self, examples: Examples, *, rare: tuple[int, int], switch_step: int, num_steps: int, seed: int
    ) -> None:
        self.examples = examples
        self.order = examples.target.argsort(stable=True)
        self.counts = torch.bincount(examples.target, minlength=NUM_CLASSES)
        self.rare = rare
        self.switch_step = switch_step
        self.num_steps = num_steps
        self.seed = seed

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        generator = torch.Generator().manual_seed(mixed_seed(self.seed, 0))
        first = self.counts.cumsum(0) - self.counts
        for step in range(self.num_steps):
            frequency = torch.ones(NUM_CLASSES)
            frequency[self.rare[step >= self.switch_step]] /= RATIO
            target = torch.multinomial(frequency, NUM_CANDIDATES, replacement=True, generator=generator)
            member = (torch.rand(NUM_CANDIDATES, generator=generator) * self.counts[target]).long()
            is_wrong = torch.rand(NUM_CANDIDATES, generator=generator) < WRONG_LABELS
            other = (target + torch.randint(1, NUM_CLASSES, target.shape, generator=generator)) % NUM_CLASSES
            yield self.examples.input[self.order[first[target] + member]], torch.where(is_wrong, other, target)


def new_model(seed: int) -> nn.Module:
    """A small CNN with initial parameters from ``seed``."""
    torch.random.manual_seed(seed)
    return SmallCNN(in_channels=1, image_size=14, num_classes=NUM_CLASSES)


def step_on(model: nn.Module, optimizer: torch.optim.Optimizer, input: Tensor, target: Tensor) -> None:  # noqa: A002
    """Take a gradient step."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(input), target).backward()
    optimizer.step()


def trained_irreducible(holdout: Examples, *, num_epochs: int, seed: int) -> nn.Module:
    """A model trained on the clean, balanced holdout set."""
    model = new_model(mixed_seed(seed, 1))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    for _ in range(num_epochs):
        for positions in torch.randperm(len(holdout.target)).split(64):
            step_on(model, optimizer, holdout.input[positions], holdout.target[positions])
    return model


@torch.no_grad()
def class_accuracy(model: nn.Module, test: Examples) -> Tensor:
    """(C,) accuracy on the clean, balanced test images."""
    is_right = torch.cat([model(part).argmax(dim=1) for part in test.input.split(2000)]) == test.target
    sums = torch.zeros(NUM_CLASSES).index_add_(0, test.target, is_right.float())
    return sums / torch.bincount(test.target, minlength=NUM_CLASSES)


class Run(NamedTuple):
    """Accuracies (C,) by step, and holdout losses and class weights (num_steps, C) at each step."""

    accuracy: dict[int, Tensor]
    holdout_loss: Tensor
    weights: Tensor
    switch_step: int

    def worst(self, begin: int, end: int) -> float:
        """Worst-class accuracy, averaged over the evaluations after step ``begin`` up to ``end``."""
        return fmean(float(accuracy.min()) for step, accuracy in self.accuracy.items() if begin < step <= end)

    def lead(self, rare: tuple[int, int]) -> float:
        """Log ratio of the formerly to the newly rare class's weight at the switch, ``log(w_0 / w_1)``."""
        log_weights = self.weights[self.switch_step - 1].log()
        return float(log_weights[rare[0]] - log_weights[rare[1]])

    def steps_to_outweigh(self, rare: tuple[int, int]) -> int | None:
        """Steps after the switch until the newly rare class outweighs the formerly rare one; None if it never does."""
        weights = self.weights[self.switch_step :]
        steps = torch.nonzero(weights[:, rare[1]] > weights[:, rare[0]]).flatten()
        return int(steps[0]) if len(steps) else None


def run(
    method: str,
    options: dict[str, Any],
    parts: dict[str, Examples],
    irreducible_model: nn.Module,
    *,
    rare: tuple[int, int],
    num_steps: int,
    seed: int,
) -> Run:
    """Train one model on the stream; tests begin an eighth of the stream before the switch."""
    switch_step = num_steps * 3 // 4
    stream = ShiftingStream(parts["train"], rare=rare, switch_step=switch_step, num_steps=num_steps, seed=seed)
    model = new_model(mixed_seed(seed, 2))
    optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)
    selector = reducr.make_selector(method, num_groups=NUM_CLASSES, **options)
    kinds = {"reducr": AdjustedIrreducibleLoss, "rho_loss": PlainIrreducibleLoss}
    refresh: dict[str, Any] = {}
    if method == "reducr":
        refresh = {
            "holdout": list(zip(*(tensor.split(1000) for tensor in parts["holdout"]), strict=True)),
            "refresh_steps": REFRESH_STEPS,
        }
    loader = reducr.SelectiveLoader(
        DataLoader(stream, batch_size=None),
        model,
        selector,
        kinds[method](LiveLogits(irreducible_model)) if method in kinds else None,
        fraction=FRACTION,
        seed=seed,
        **refresh,
    )
    accuracy, holdout_loss, weights = {}, [], []
    for step, (inputs, target) in enumerate(loader, start=1):
        step_on(model, optimizer, inputs, target)
        holdout_loss.append(selector.group_holdout_loss.clone())
        weights.append(selector.group_weights)
        if step % (num_steps // 128) == 0 and step > num_steps * 5 // 8:
            accuracy[step] = class_accuracy(model, parts["test"])
    return Run(accuracy, torch.stack(holdout_loss), torch.stack(weights), switch_step)


def mean_with_deviation(values: Sequence[float]) -> str:
    """Mean ± standard deviation."""
    return f"{fmean(values):.3f} ± {stdev(values) if len(values) > 1 else 0:.3f}"


def row(runs: Sequence[Run], rare: tuple[int, int]) -> list[str]:
    """The cells of a method's row."""
    switch_step, num_steps = runs[0].switch_step, len(runs[0].weights)
    few, more = num_steps // 32, num_steps // 16
    windows = [
        (switch_step - more, switch_step),
        (switch_step, switch_step + few),
        (switch_step + few, switch_step + few + more),
        (num_steps - more, num_steps),
        (switch_step, num_steps),
    ]
    cells = [mean_with_deviation([run.worst(*window) for run in runs]) for window in windows]
    if bool((runs[0].weights == runs[0].weights[0]).all()):
        return [*cells, "–", "–", "–"]
    before = torch.cat([run.holdout_loss[switch_step - more : switch_step] for run in runs]).mean(dim=0)
    steps = [run.steps_to_outweigh(rare) for run in runs]
    return [
        *cells,
        f"{before[rare[0]]:.2f} / {before[rare[1]]:.2f}",
        ", ".join(f"{run.lead(rare):.1f}" for run in runs),
        ", ".join("never" if count is None else str(count) for count in steps),
    ]


def main(arguments: list[str] | None = None) -> None:
    """Run every method on every seed and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--seeds", type=int, nargs="+", help="default: 0 to 3, or 100 to 102 for the sweep")
    parser.add_argument("--rare", nargs=2, default=["Shirt", "Coat"], choices=CLASS_NAMES, metavar="CLASS")
    parser.add_argument("--steps", type=int, default=3200, help="steps of a run, a multiple of 128")
    parser.add_argument("--holdout-size", type=int, default=5000)
    parser.add_argument("--sweep", action="store_true", help="try several step sizes for each payoff_decay")
    options = parser.parse_args(arguments)
    if options.steps < 128 or options.steps % 128:
        parser.error(f"--steps must be a multiple of 128; got {options.steps}")
    torch.set_num_threads(1)
    rare = (CLASS_NAMES.index(options.rare[0]), CLASS_NAMES.index(options.rare[1]))
    seeds = options.seeds or (SWEPT_SEEDS if options.sweep else range(4))
    sizes = SWEPT if options.sweep else {decay: (size,) for decay, size in CHOSEN.items()}
    methods: list[tuple[str, dict[str, float]]] = [("uniform", {}), ("rho_loss", {})]
    methods += [("reducr", {"payoff_decay": decay, "step_size": size}) for decay in DECAYS for size in sizes[decay]]

    runs: list[list[Run]] = [[] for _ in methods]
    data = FashionMNIST(data_dir=options.data_dir, holdout_size=options.holdout_size)
    for seed in seeds:
        parts = {name: Examples.of(part) for name, part in data.splits(seed=seed).by_name().items()}
        irreducible_model = trained_irreducible(parts["holdout"], num_epochs=IRREDUCIBLE_EPOCHS, seed=seed)
        for (method, method_options), method_runs in zip(methods, runs, strict=True):
            method_runs.append(
                run(method, method_options, parts, irreducible_model, rare=rare, num_steps=options.steps, seed=seed)
            )

    few, more = options.steps // 32, options.steps // 16
    before, after = options.rare
    print(
        f"| method | last {more} steps before | first {few} after | next {more} | last {more} | all after "
        f"| h of {before} / {after} before | lead of {before} at the switch | steps until {after} outweighs it |"
    )
    print("| --- |" + " ---: |" * 8)
    for (method, method_options), method_runs in zip(methods, runs, strict=True):
        name = method + "".join(f", {option} {value:g}" for option, value in method_options.items())
        print(f"| {' | '.join([name, *row(method_runs, rare)])} |")


if __name__ == "__main__":
    main()
