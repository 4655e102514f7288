"""Models of three sizes, and random examples for them; only the time they take matters."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import Optimizer

from benchmarks.harness import Timed, timed
from reducr.batch import Batch
from reducr.irreducible import AdjustedIrreducibleLoss, IrreducibleTable, TableLogits, TableLoss
from reducr.models import MLP, SmallCNN
from reducr.models.resnet import resnet18

NUM_CANDIDATES, NUM_SELECTED, NUM_CLASSES = 320, 32, 10
FRACTION = NUM_SELECTED / NUM_CANDIDATES
INPUT_SHAPES = {"mlp": (64,), "cnn": (3, 32, 32), "resnet18": (3, 32, 32)}
TITLES = {"mlp": "MLP 64-256-256-10", "cnn": "three-layer CNN, 3x32x32", "resnet18": "ResNet-18, 3x32x32"}


def synthetic_model(name: str, *, is_tiny: bool = False) -> nn.Module:
    """The model ``mlp``, ``cnn`` or ``resnet18``, in train mode; ``is_tiny`` makes a narrow ResNet."""
    torch.random.manual_seed(0)
    if name == "mlp":
        return MLP(num_features=64, num_classes=NUM_CLASSES)
    if name == "cnn":
        return SmallCNN(in_channels=3, image_size=32, num_classes=NUM_CLASSES)
    return resnet18(NUM_CLASSES, width=2 if is_tiny else 64)


def synthetic_batches(model: str, num_batches: int) -> list[Batch]:
    """Batches of candidates for a model, in memory; indices count through all batches."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for index in torch.arange(num_batches * NUM_CANDIDATES).split(NUM_CANDIDATES):
        inputs = torch.randn(NUM_CANDIDATES, *INPUT_SHAPES[model], generator=generator)
        target = torch.randint(NUM_CLASSES, (NUM_CANDIDATES,), generator=generator)
        batches.append(Batch(index, inputs, target, target))
    return batches


def synthetic_irreducible(batches: Sequence[Batch]) -> TableLoss:
    """Losses in closed form from a table of logits, computed once for all examples as the training program does."""
    targets = torch.cat([batch.target for batch in batches])
    logits = np.random.default_rng(0).standard_normal((len(targets), NUM_CLASSES), dtype=np.float32)
    return AdjustedIrreducibleLoss(TableLogits(IrreducibleTable(logits, kind="logits"))).tabulate(targets)


def floor_step(model: nn.Module, optimizer: Optimizer, batches: Sequence[Batch]) -> Timed:
    """The floor of a step: a forward pass of the candidates, and a training step on as many as are selected."""

    def steps() -> None:
        for batch in batches:
            with torch.no_grad():
                model(batch.input)
            loss = F.cross_entropy(model(batch.input[:NUM_SELECTED]), batch.target[:NUM_SELECTED])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    return timed(steps, num_parts=len(batches))
