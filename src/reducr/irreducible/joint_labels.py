"""What one irreducible model must predict so that every group's loss follows from it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from reducr.batch import Batch


@dataclass(frozen=True)
class JointLabels:
    """The outcomes of the plain irreducible model, and how groups follow from them.

    Args:
        num_outcomes: C where groups follow from targets, C * G where they do not.
        group_of_target: (C,) the group of each target; None where groups are the targets or do not follow.
        num_joint_groups: G where outcomes are (target, group) pairs, target-major; else None.
    """

    num_outcomes: int
    group_of_target: Tensor | None = None
    num_joint_groups: int | None = None

    @classmethod
    def of(cls, targets: Tensor, groups: Tensor, *, num_classes: int, num_groups: int) -> JointLabels:
        """The smallest set of outcomes for clean points with these targets (N,) and groups (N,)."""
        if num_classes == num_groups and torch.equal(targets, groups):
            return cls(num_classes)
        pairs = torch.unique(torch.stack([targets, groups]), dim=1)
        if len(torch.unique(pairs[0])) == pairs.shape[1] == num_classes:
            group_of_target = torch.empty(num_classes, dtype=torch.int64)
            group_of_target[pairs[0]] = pairs[1]
            return cls(num_classes, group_of_target=group_of_target)
        return cls(num_classes * num_groups, num_joint_groups=num_groups)

    def outcome(self, batch: Batch) -> Tensor:
        """(B,) int64, the outcome each point is an example of."""
        if self.num_joint_groups is None:
            return batch.target
        return batch.target * self.num_joint_groups + batch.group
