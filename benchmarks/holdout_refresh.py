"""How often, and on how many examples, to refresh the holdout loss: its share of the time, and the worst class.

    python -m benchmarks.holdout_refresh digits
    python -m benchmarks.holdout_refresh fashion_mnist --data-dir DIR

The training part has a 10:1 imbalance and 30 % wrong labels. Every row trains for the same number of steps. Prints a
Markdown table: mean and standard deviation over seeds.
"""

from __future__ import annotations

import argparse
import time
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.data import ExampleLoader, Splits
from reducr.data.published.digits import Digits
from reducr.data.published.fashion_mnist import FashionMNIST
from reducr.irreducible import IrreducibleTable, PlainIrreducibleLoss, TableLogits
from reducr.models import MLP, SmallCNN

CHANGES: dict[str, Any] = {"label_noise": {"train": 0.3}, "imbalance": {"train": 10.0}}
ROWS: dict[str, dict[str, Any]] = {
    "only before the first step": {"refresh_steps": 10**6},
    "end of every epoch, whole set": {"refresh_steps": "epoch"},
    "every 100 steps, whole set": {"refresh_steps": 100},
    "every 50 steps, whole set": {"refresh_steps": 50},
    "every 10 steps, whole set": {"refresh_steps": 10},
    "every 50 steps, 100 a group": {"refresh_steps": 50, "examples_per_group": 100},
    "default (1, 2, 4, ... 32, every 50; 100 a group)": {},
    "the same steps, 25 a group": {"examples_per_group": 25},
    "the same steps, 400 a group": {"examples_per_group": 400},
    "moving average, one batch of 100 a step": {"decay": 0.95},
}


def main(arguments: list[str] | None = None) -> None:
    """Train with every setting of the refresh, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=["digits", "fashion_mnist"])
    parser.add_argument("--data-dir", default="")
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--steps", type=int, help="gradient steps; default: 200 for digits, 500 for fashion_mnist")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", "A pass .* without a refresh")
    num_steps = options.steps or {"digits": 200, "fashion_mnist": 500}[options.data]
    parts = [data_of(options.data, options.data_dir, seed) for seed in range(options.seeds)]
    tables = [reference_logits(options.data, splits, seed) for seed, splits in enumerate(parts)]
    print(f"{num_steps} steps, {options.seeds} seeds; share of the holdout loss in the seconds of the training\n")
    print("| refresh | rule | worst class | mean | share |\n| --- | --- | ---: | ---: | ---: |")
    for rule in ("priority_sampling", "reducr"):
        for row, holdout in ROWS.items():
            runs = [
                train(options.data, splits, table, rule, holdout, num_steps=num_steps, seed=seed)
                for seed, (splits, table) in enumerate(zip(parts, tables, strict=True))
            ]
            worst, mean, share = (torch.tensor(values) for values in zip(*runs, strict=True))
            print(f"| {row} | {rule} | {spread(worst)} | {spread(mean)} | {100 * share.mean():.1f} % |", flush=True)


def data_of(name: str, data_dir: str, seed: int) -> Splits:
    """The parts of a seed."""
    if name == "digits":
        return Digits(holdout_size=300, test_size=500, **CHANGES).splits(seed=seed)
    return FashionMNIST(data_dir=data_dir, holdout_size=5000, **CHANGES).splits(seed=seed)


def model_of(name: str, seed: int) -> nn.Module:
    """A new model."""
    torch.random.manual_seed(seed)
    if name == "digits":
        return MLP(num_features=64, num_classes=10)
    return SmallCNN(in_channels=1, image_size=28, num_classes=10)


def reference_logits(name: str, splits: Splits, seed: int) -> TableLogits:
    """Logits of a model trained on the holdout part, for every training example."""
    model = model_of(name, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    for _ in range(30 if name == "digits" else 10):
        for batch in ExampleLoader(splits.holdout, batch_size=64, shuffle=True, seed=seed):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.input), batch.target).backward()
            optimizer.step()
    with torch.no_grad():
        parts = [model.eval()(batch.input) for batch in ExampleLoader(splits.train, batch_size=1000)]
    return TableLogits(IrreducibleTable(torch.cat(parts).numpy(), kind="logits"))


def train(
    name: str, splits: Splits, source: TableLogits, rule: str, holdout: dict[str, Any], *, num_steps: int, seed: int
) -> tuple[float, float, float]:
    """Accuracy of the worst class, mean accuracy, and the share of the holdout loss in the seconds."""
    model = model_of(name, seed).train()
    clean = TensorDataset(splits.holdout.input, splits.holdout.target)
    batches = DataLoader(clean, batch_size=100 if "decay" in holdout else 1000, generator=torch.Generator())
    irreducible = (
        PlainIrreducibleLoss(source) if rule == "priority_sampling" else reducr.AdjustedIrreducibleLoss(source)
    )
    candidates = ExampleLoader(splits.train, batch_size=320 if name != "digits" else 100, shuffle=True, drop_last=True)
    loader = reducr.SelectiveLoader(
        candidates,
        model,
        rule,
        irreducible,
        holdout=reducr.Holdout(batches, **holdout),
        step_size=1e-3 if name == "digits" else 3e-4,
        num_groups=10,
        seed=seed,
    )
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    started = time.perf_counter()
    step = 0
    while step < num_steps:
        for batch in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.input), batch.target).backward()
            optimizer.step()
            step += 1
            if step == num_steps:
                break
    seconds = time.perf_counter() - started
    with torch.no_grad():
        predicted = model.eval()(splits.test.input).argmax(dim=1)
    correct = (predicted == splits.test.target).float()
    accuracies = [float(correct[splits.test.target == group].mean()) for group in range(10)]
    return min(accuracies), float(correct.mean()), loader.report().holdout_seconds / seconds


def spread(values: Tensor) -> str:
    """Mean and standard deviation."""
    deviation = values.std() if len(values) > 1 else torch.zeros(())
    return f"{values.mean():.3f} ± {deviation:.3f}"


if __name__ == "__main__":
    main()
