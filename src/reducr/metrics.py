"""Per-class, per-group and worst-group accuracy, as torchmetrics metrics."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric


class PartitionAccuracy(Metric):
    """Accuracy within each part of a partition of the examples, such as the classes or the groups.

    Args:
        num_parts: K.

    State:
        num_correct: (K,) int64, summed over ranks.
        num_examples: (K,) int64, summed over ranks.
    """

    full_state_update = False
    higher_is_better = True
    num_correct: Tensor
    num_examples: Tensor

    def __init__(self, num_parts: int, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        for name in ("num_correct", "num_examples"):
            self.add_state(name, torch.zeros(num_parts, dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, is_correct: Tensor, parts: Tensor) -> None:
        """Add examples: (B,) bool and the (B,) part of each."""
        size = len(self.num_examples)
        self.num_examples += torch.bincount(parts, minlength=size)
        self.num_correct += torch.bincount(parts[is_correct], minlength=size)

    def compute(self) -> Tensor:
        """(K,) float64 accuracies; NaN for a part without examples."""
        return self.num_correct.double() / self.num_examples


class ClassificationReport(Metric):
    """Accuracy of each class and each group, and the mean over examples.

    Args:
        num_classes: C.
        num_groups: G.

    Example:
        >>> report = ClassificationReport(num_classes=2, num_groups=2)
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.0, 2.0]])
        >>> report.update(logits, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 1]))
        >>> summary(report.compute())
        {'worst_class_accuracy': 0.5, 'worst_group_accuracy': 0.5, 'mean_accuracy': 0.6666666666666666}
    """

    full_state_update = False

    def __init__(self, *, num_classes: int, num_groups: int, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        self.by_class = PartitionAccuracy(num_classes)
        self.by_group = PartitionAccuracy(num_groups)

    def update(self, logits: Tensor, targets: Tensor, groups: Tensor) -> None:
        """Add examples: (B, C) logits, (B,) targets and groups."""
        is_correct = logits.argmax(dim=1) == targets
        self.by_class.update(is_correct, targets)
        self.by_group.update(is_correct, groups)

    def compute(self) -> dict[str, Tensor]:
        """``class_accuracy`` (C,), ``group_accuracy`` (G,), ``mean_accuracy`` (), and the counts of both partitions."""
        report = {}
        for name, accuracy in (("class", self.by_class), ("group", self.by_group)):
            with accuracy.sync_context():  # sums over ranks
                report[f"{name}_accuracy"] = accuracy.num_correct.double() / accuracy.num_examples
                report[f"{name}_count"] = accuracy.num_examples.clone()
                report["mean_accuracy"] = accuracy.num_correct.sum().double() / accuracy.num_examples.sum()
        return report

    def reset(self) -> None:
        """Discard all examples."""
        super().reset()
        self.by_class.reset()
        self.by_group.reset()


def worst(accuracy: Tensor) -> float:
    """The smallest of the accuracies (K,), ignoring parts without examples (NaN)."""
    return float(accuracy[~torch.isnan(accuracy)].min())


def summary(report: dict[str, Tensor]) -> dict[str, float]:
    """The three headline numbers of a computed ``ClassificationReport``."""
    return {
        "worst_class_accuracy": worst(report["class_accuracy"]),
        "worst_group_accuracy": worst(report["group_accuracy"]),
        "mean_accuracy": float(report["mean_accuracy"]),
    }
