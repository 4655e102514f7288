"""The group-holdout loss: how badly the model still does on each group of clean held-out data."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr.checks import check_every_group_has_points, check_num_groups
from reducr.state import ExactState

_SMALLEST_COUNT = 1e-200


class GroupHoldoutLoss(ExactState):
    """Mean holdout loss of each group, from sums and counts: ``h_c = sum_{i in c} loss_i / n_c``.

    One pass over the holdout set is ``reset``, ``update`` for every batch, ``mean``. With ``decay`` below 1 the sums
    and counts are forgotten by that factor at every update, so that one holdout mini-batch a step follows the model:
    a debiased moving average, which a group absent from a mini-batch keeps as it was.

    State:
        sums: (G,) float64 nats, summed over ranks.
        counts: (G,) float64, summed over ranks.

    Args:
        num_groups: G >= 1.
        decay: in (0, 1]; 1 gives the plain mean.

    Raises:
        ValueError: if ``decay`` is outside (0, 1].

    Example:
        >>> holdout = GroupHoldoutLoss(2)
        >>> holdout.update(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
        >>> holdout.mean()
        tensor([2., 5.], dtype=torch.float64)
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, num_groups: int, *, decay: float = 1.0) -> None:
        super().__init__()
        check_num_groups(num_groups)
        if not 0 < decay <= 1:
            raise ValueError(f"decay must be in (0, 1]; got {decay}.")
        self.decay = decay
        self.register_buffer("sums", torch.zeros(num_groups, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_groups, dtype=torch.float64))

    def reset(self) -> None:
        """Forget everything."""
        self.sums.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def update(self, loss: Tensor, groups: Tensor) -> None:
        """Add the losses (B,) of points in ``groups`` (B,)."""
        groups = groups.long()
        # a group absent for very long must not sink into the denormals, where its mean would drift
        decay = torch.full_like(self.counts, self.decay).masked_fill_(self.counts < _SMALLEST_COUNT, 1.0)
        self.sums.mul_(decay).index_add_(0, groups, loss.to(self.sums))
        self.counts.mul_(decay).index_add_(0, groups, torch.ones_like(groups, dtype=self.counts.dtype))

    def rescale(self, num_points: float) -> None:
        """Give all that was seen so far the weight of ``num_points`` points, leaving the means as they are.

        A moving average that starts from a pass over the whole holdout set is rescaled to one mini-batch, so that
        the first pass is forgotten like any other.

        Raises:
            ValueError: if a group has no holdout point yet; names the groups.
        """
        check_every_group_has_points(self.counts)
        factor = num_points / self.counts.sum()
        self.sums *= factor
        self.counts *= factor

    def mean(self) -> Tensor:
        """(G,) float64 mean losses in nats.

        Raises:
            ValueError: if a group has no holdout point, or a mean is not finite; names the groups.
        """
        check_every_group_has_points(self.counts)
        means = self.sums / self.counts
        broken = torch.nonzero(~torch.isfinite(means)).flatten().tolist()
        if broken:
            raise ValueError(
                f"the holdout loss of group {', '.join(map(str, broken))} is not finite: the model has diverged or "
                "a holdout input is broken. Lower the learning rate, or look at the holdout inputs of that group."
            )
        return means
