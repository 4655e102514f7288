"""Evaluate trained models: test accuracies and predictions, and the losses of the training examples."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from reducr._internal.distributed import all_gather, is_main_rank
from reducr._internal.files import replaced_atomically, write_text_atomically
from reducr._internal.run_folder import ResultRow
from reducr.batch import Batch
from reducr.data import ExampleDataset, ExampleLoader
from reducr.functional import per_example_cross_entropy
from reducr.metrics import ClassificationReport, summary
from reducr.pipeline.setup import Method, SeedData
from reducr.scoring import scoring_pass

TEST_BATCH_SIZE = 1000


def evaluate_checkpoints(
    method: Method,
    data: SeedData,
    model: nn.Module,
    state_by_rule: Mapping[str, dict[str, Tensor]],
    folder: Path,
    *,
    num_joint_groups: int | None = None,
    **costs: Any,
) -> list[ResultRow]:
    """Test the state of each checkpoint rule; write ``test_accuracy.csv`` and ``test_predictions.npz``."""
    rows, lines = [], []
    predictions: dict[str, Any] = {}
    for rule, state in state_by_rule.items():
        model.load_state_dict(state)
        batches = ExampleLoader(data.splits.test, batch_size=TEST_BATCH_SIZE, sync=True)
        report = evaluate(
            model,
            batches,
            num_classes=data.splits.test.num_classes,
            num_groups=data.splits.test.num_groups,
            num_joint_groups=num_joint_groups,
        )
        rows.append(ResultRow(method=method.name, seed=data.seed, checkpoint_rule=rule, **(costs | summary(report))))
        predictions[rule] = report["prediction"].numpy().astype(np.min_scalar_type(data.splits.test.num_classes - 1))
        for part in ("class", "group"):
            values, counts = report[f"{part}_accuracy"].tolist(), report[f"{part}_count"].tolist()
            lines += [[rule, part, place, counts[place], f"{values[place]:.6g}"] for place in range(len(values))]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [["checkpoint_rule", "partition", "part", "count", "accuracy"], *lines]
    )
    if is_main_rank():
        write_text_atomically(folder / "test_accuracy.csv", text.getvalue())
        with replaced_atomically(folder / "test_predictions.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **predictions)
    return rows


@torch.no_grad()
def write_losses(model: nn.Module, examples: ExampleDataset, path: Path) -> None:
    """Write the loss of every training example in eval mode, (N,) float32."""
    device = next(model.parameters()).device
    losses = []
    with scoring_pass(model, "eval"):
        for batch in ExampleLoader(examples, batch_size=TEST_BATCH_SIZE, sync=True):
            batch_losses = per_example_cross_entropy(model(batch.input.to(device)).cpu(), batch.target)
            losses.append(torch.cat(all_gather(batch_losses)))
    if is_main_rank():
        with replaced_atomically(path) as temporary, temporary.open("wb") as file:
            np.save(file, torch.cat(losses).numpy().astype(np.float32))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_classes: int,
    num_groups: int,
    num_joint_groups: int | None = None,
) -> dict[str, Tensor]:
    """Test ``model`` in eval mode on its own device.

    Args:
        model: predicts (B, C) logits, or (B, C * ``num_joint_groups``) for a joint model.
        batches: the test examples in order; on several ranks, each rank's share.
        num_classes: C.
        num_groups: G.
        num_joint_groups: groups per class in the labels of a joint reference model; None for any other model.

    Returns:
        The values of ``metrics.ClassificationReport``, and ``prediction`` (N,) int64, the predicted class of every
        example of all ranks.
    """
    report = ClassificationReport(num_classes=num_classes, num_groups=num_groups)
    device = next(model.parameters()).device
    predictions = []
    with scoring_pass(model, "eval"):
        for batch in batches:
            logits = model(batch.input.to(device)).cpu()
            if num_joint_groups is not None:
                logits = logits.reshape(len(logits), -1, num_joint_groups).logsumexp(dim=2)
            report.update(logits, batch.target, batch.group)
            predictions.append(torch.cat(all_gather(logits.argmax(dim=1))))
    return report.compute() | {"prediction": torch.cat(predictions)}
