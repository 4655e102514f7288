"""See that groups follow from targets where the columns of irreducible losses are classes."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr._internal.checks import check_range
from reducr.batch import Batch


class GroupsOfTargets:
    """The group that follows from each target, and a check that batches have these groups.

    The closed form of one model that predicts targets knows the groups only by the targets. If a batch has other groups
    its columns would be those of classes: with two classes and two groups the numbers fit, and mean something else.

    A batch without groups of its own passes. The check costs microseconds on the host, so it is made at every batch
    there. On another device it would make the host wait, so batches 1, 2, 4, 8, ... are checked.

    Args:
        group_of_target: (C,) integers, the group of each target; None if groups equal targets.
    """

    def __init__(self, group_of_target: Tensor | None = None) -> None:
        self.group_of_target = group_of_target
        self._num_batches = 0

    def of(self, targets: Tensor) -> Tensor:
        """Return the groups (B,) int64 of ``targets`` (B,).

        Raises:
            ValueError: for a target without a group.
        """
        if self.group_of_target is None:
            return targets.long()
        groups = self.group_of_target.to(targets.device).long()
        if targets.device.type == "cpu":
            check_range("targets", targets, len(groups))
        return groups[targets.long()]

    def check(self, batch: Batch, targets: Tensor | None = None) -> None:
        """Raise ValueError, with what to do, if the group of an example is not that of its target.

        Args:
            batch: of which ``target`` and ``group`` are read.
            targets: (B,) integers in place of ``batch.target``, such as the classes of soft labels.
        """
        group = batch.group
        targets = batch.target if targets is None else targets
        if group is None or _is_same(batch.target, group):
            return
        self._num_batches += 1
        if group.device.type != "cpu" and self._num_batches & (self._num_batches - 1):
            return
        expected = self.of(targets)
        differing = torch.nonzero(expected != group).flatten()
        if len(differing) and not torch.equal(targets, group):  # equal: the data gives no groups of its own
            first = int(differing[0])
            follows = "its target" if self.group_of_target is None else f"group_of_target[{int(targets[first])}]"
            raise ValueError(
                f"This reference model gives the losses of groups that follow from the targets, and the group of "
                f"example {first} is {int(group[first])}, not {int(expected[first])} ({follows}; {len(differing)} of "
                f"{len(group)} differ). {ADVICE}"
            )


ADVICE = (
    "For groups that are not the targets, pass one reference model per group, reducr.Reference([model_0, model_1, "
    "...]), or `num_joint_groups=G` with a model that predicts (target, group) pairs; for groups of classes, pass "
    "`group_of_target=`, (C,). 'priority_sampling' takes any groups."
)


def _is_same(first: Tensor, second: Tensor) -> bool:
    """Whether two tensors are the same values in memory, which needs no comparison."""
    return first is second or (
        first.data_ptr() == second.data_ptr()
        and first.shape == second.shape
        and first.stride() == second.stride()
        and first.dtype == second.dtype
    )
