"""The labels that one reference model must predict so that the loss of every group follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reducr.batch import Batch


@dataclass(frozen=True)
class JointLabels:
    """Joint label space of targets and groups.

    Labels are the targets where the group follows from the target, else (target, group) pairs in target-major order:
    ``label = target * G + group``.

    Args:
        num_labels: C for targets, C * G for pairs.
        group_of_target: (C,) int64, the group of each target; None if groups equal targets, or for pairs.
        num_joint_groups: G for pairs; None for targets.

    Example:
        >>> targets, groups = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
        >>> joint_labels = JointLabels.of(targets, groups, num_classes=2, num_groups=2)
        >>> joint_labels.labels(Batch(None, None, targets, groups))
        tensor([0, 1, 2, 3])
    """

    num_labels: int
    group_of_target: Tensor | None = None
    num_joint_groups: int | None = None

    @classmethod
    def of(cls, targets: Tensor, groups: Tensor, *, num_classes: int, num_groups: int) -> JointLabels:
        """The smallest label space for clean examples with these targets (N,) and groups (N,)."""
        if num_classes == num_groups and torch.equal(targets, groups):
            return cls(num_classes)
        pairs = torch.unique(torch.stack([targets, groups]), dim=1)
        if len(torch.unique(pairs[0])) == pairs.shape[1] == num_classes:
            group_of_target = torch.empty(num_classes, dtype=torch.int64)
            group_of_target[pairs[0]] = pairs[1]
            return cls(num_classes, group_of_target=group_of_target)
        return cls(num_classes * num_groups, num_joint_groups=num_groups)

    def labels(self, batch: Batch) -> Tensor:
        """(B,) int64 in [0, num_labels), the label of each example."""
        if self.num_joint_groups is None:
            return batch.target
        return batch.target * self.num_joint_groups + batch.group
