"""The group-holdout loss: how badly the model still does on each group of clean held-out data."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr._internal.buffers import FixedDtypeBuffers
from reducr._internal.checks import check_every_group_has_examples, check_num_groups, check_range, is_finite_number
from reducr._internal.distributed import all_reduce_sum

_SMALLEST_COUNT = 1e-200


class GroupHoldoutLoss(FixedDtypeBuffers):
    """Mean holdout loss of each group, from sums and counts: ``h_c = sum_{i in c} loss_i / n_c``.

    One pass over the holdout set is ``reset``, ``update`` for every batch, ``mean``. With ``decay`` below 1 the sums
    and counts are forgotten by that factor at every update, so that one holdout mini-batch a step follows the model:
    a debiased moving average, which a group absent from a mini-batch keeps as it was.

    On several ranks each may be given a part of the holdout set of its own, or all the whole: ``sync`` gives the
    mean over what all have seen, in which a group may be absent on some.

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
        if not (is_finite_number(decay) and 0 < decay <= 1):
            raise ValueError(f"decay must be in (0, 1]; got {decay}.")
        self.decay = float(decay)
        self.register_buffer("sums", torch.zeros(num_groups, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_groups, dtype=torch.float64))

    def reset(self) -> None:
        """Forget everything."""
        self.sums.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def update(self, loss: Tensor, groups: Tensor) -> None:
        """Add the losses (B,) of points in ``groups`` (B,).

        Raises:
            ValueError: if losses and groups are not one number for each point, groups no integers or out of range.
        """
        if loss.ndim != 1 or groups.shape != loss.shape or groups.is_floating_point() or groups.is_complex():
            raise ValueError(
                "a holdout batch needs one loss and one integer group for each point; got losses "
                f"{tuple(loss.shape)} and groups {tuple(groups.shape)} of {groups.dtype}."
            )
        groups = groups.long()
        check_range("holdout groups", groups, len(self.counts))
        # a group absent for very long must not sink into the denormals, where its mean would drift
        decay = torch.full_like(self.counts, self.decay).masked_fill_(self.counts < _SMALLEST_COUNT, 1.0)
        self.sums.mul_(decay).index_add_(0, groups, loss.to(self.sums))
        self.counts.mul_(decay).index_add_(0, groups, torch.ones_like(groups, dtype=self.counts.dtype))

    def rescale(self, num_examples: float, *, sync: bool = False) -> None:
        """Give all that was seen so far the weight of ``num_examples`` points, leaving the means as they are.

        A moving average that starts from a pass over the whole holdout set is rescaled to one mini-batch, so that
        the first pass is forgotten like any other.

        Args:
            num_examples: size of a mini-batch, of this rank's.
            sync: whether ``mean`` will be asked for that over all ranks; all of them must call this then.

        Raises:
            ValueError: if a group has no holdout point yet; names the groups.
        """
        seen = torch.cat([self.counts, self.counts.new_tensor([num_examples])])
        if sync:
            seen = all_reduce_sum(seen)
        check_every_group_has_examples(seen[:-1])
        factor = seen[-1] / seen[:-1].sum()
        self.sums *= factor
        self.counts *= factor

    def mean(self, *, sync: bool = False) -> Tensor:
        """(G,) float64 mean losses in nats.

        Args:
            sync: of what all ranks have seen, the same bits on each; all of them must call this then.

        Raises:
            ValueError: if a group has no holdout point, or a mean is not finite; names the groups.
        """
        seen = torch.stack([self.sums, self.counts])
        sums, counts = all_reduce_sum(seen) if sync else seen
        check_every_group_has_examples(counts)
        means: Tensor = sums / counts
        broken = torch.nonzero(~torch.isfinite(means)).flatten().tolist()
        if broken:
            raise ValueError(
                f"the holdout loss of group {', '.join(map(str, broken))} is not finite: the model has diverged or "
                "a holdout input is broken. Lower the learning rate, or look at the holdout inputs of that group."
            )
        return means
