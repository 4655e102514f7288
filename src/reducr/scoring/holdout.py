"""The holdout set, and the group-holdout loss: how badly the model still does on each group of clean held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from reducr._internal.buffers import FixedDtypeBuffers
from reducr._internal.checks import (
    check_count,
    check_every_group_has_examples,
    check_num_groups,
    check_range,
    is_finite_number,
)
from reducr._internal.distributed import all_reduce_sum

_SMALLEST_COUNT = 1e-200


@dataclass(frozen=True)
class Holdout:
    """The clean holdout set, and when the model is evaluated on it.

    Args:
        batches: of the holdout set, structured as the candidates or in another usual way; iterated at every refresh.
        refresh_steps: gradient steps between two passes over it; None for the end of every epoch.
        decay: None, or in (0, 1) to follow the holdout loss with one batch per step as a moving average, in place of
            refreshes after the first.

    Raises:
        ValueError: for a number out of range, for batches that can be iterated once only, or for both ``refresh_steps``
            and ``decay``.
    """

    batches: Iterable[Any]
    refresh_steps: int | None = None
    decay: float | None = None

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            raise ValueError(  # noqa: TRY004  (it is iterable, but only once)
                f"The holdout set is read again at every refresh, and a {type(self.batches).__name__} can be iterated "
                "only once. Pass a loader, or a list of batches."
            )
        if self.refresh_steps is not None:
            check_count("refresh_steps", self.refresh_steps)
        if self.decay is None:
            return
        if not (is_finite_number(self.decay) and 0 < self.decay < 1):
            raise ValueError(
                f"The decay of the holdout loss must be in (0, 1), or None to refresh the whole loss; got {self.decay}."
            )
        if self.refresh_steps is not None:
            raise ValueError(
                f"refresh_steps={self.refresh_steps} has no effect with decay={self.decay}, which updates the holdout "
                "loss at every step. Leave one of them out."
            )


def holdout_of(holdout: Holdout | Iterable[Any] | None, refresh_steps: int | None) -> Holdout | None:
    """Return the ``Holdout`` of a loop's two arguments.

    Raises:
        ValueError: for ``refresh_steps`` without a holdout set, or given twice.
    """
    if refresh_steps is None:
        return Holdout(holdout) if holdout is not None and not isinstance(holdout, Holdout) else holdout
    check_count("refresh_steps", refresh_steps)
    if holdout is None or isinstance(holdout, Holdout):
        reason = "without `holdout`" if holdout is None else "beside a Holdout, which has its own"
        raise ValueError(f"refresh_steps={refresh_steps} has no effect {reason}. Pass `holdout=`, the batches.")
    return Holdout(holdout, refresh_steps)


class GroupHoldoutLoss(FixedDtypeBuffers):
    """Mean holdout loss of each group, from sums and counts: ``h_c = sum_{i in c} loss_i / n_c``.

    One pass over the holdout set is ``reset``, ``update`` for every batch, ``compute``. With ``decay`` below 1, every
    update first multiplies sums and counts by it, so that one holdout batch per step follows the model: a debiased
    moving average. A group that is absent from a batch keeps its mean.

    On several ranks, each may see a part of the holdout set or all of it. ``compute(sync=True)`` is the mean over
    what all ranks have seen; a group may be absent on some of them.

    State:
        sums: (G,) float64 nats, of this rank; summed over ranks by ``compute``.
        counts: (G,) float64 examples, likewise.

    Args:
        num_groups: G >= 1.
        decay: in (0, 1]; 1 gives the plain mean.

    Raises:
        ValueError: if ``decay`` is outside (0, 1].

    Example:
        >>> holdout = GroupHoldoutLoss(2)
        >>> holdout.update(torch.tensor([1.0, 3.0, 5.0]), torch.tensor([0, 0, 1]))
        >>> holdout.compute()
        tensor([2., 5.], dtype=torch.float64)
    """

    sums: Tensor
    counts: Tensor

    def __init__(self, num_groups: int, *, decay: float = 1.0) -> None:
        super().__init__()
        check_num_groups(num_groups)
        if not (is_finite_number(decay) and 0 < decay <= 1):
            raise ValueError(f"`decay` must be in (0, 1]; got {decay}.")
        self.decay = float(decay)
        self.register_buffer("sums", torch.zeros(num_groups, dtype=torch.float64))
        self.register_buffer("counts", torch.zeros(num_groups, dtype=torch.float64))

    def reset(self) -> None:
        """Set all sums and counts to zero."""
        self.sums.zero_()
        self.counts.zero_()

    @torch.no_grad()
    def update(self, loss: Tensor, groups: Tensor) -> None:
        """Add the losses (B,) of examples in ``groups`` (B,).

        Raises:
            ValueError: if there is not one loss and one integer group in range per example.
        """
        if loss.ndim != 1 or groups.shape != loss.shape or groups.is_floating_point() or groups.is_complex():
            raise ValueError(
                "A holdout batch needs one loss and one integer group per example; got losses "
                f"{tuple(loss.shape)} and groups {tuple(groups.shape)} of {groups.dtype}."
            )
        groups = groups.to(self.counts.device, torch.int64)
        check_range("holdout groups", groups, len(self.counts))
        # the mean of a group that is absent for very long would drift once its count is denormal
        decay = torch.full_like(self.counts, self.decay).masked_fill_(self.counts < _SMALLEST_COUNT, 1.0)
        self.sums.mul_(decay).index_add_(0, groups, loss.to(self.sums))
        self.counts.mul_(decay).index_add_(0, groups, torch.ones_like(groups, dtype=self.counts.dtype))

    def rescale(self, num_examples: float, *, sync: bool = False) -> None:
        """Give everything seen so far the weight of ``num_examples`` examples. The means stay as they are.

        A moving average that starts from a pass over the whole holdout set is rescaled to one batch, so that the first
        pass decays like any other.

        Args:
            num_examples: size of one batch of this rank.
            sync: whether ``compute`` will be called with ``sync``; all ranks must then call this together.

        Raises:
            ValueError: if a group has no holdout example yet; names the groups.
        """
        seen = torch.cat([self.counts, self.counts.new_tensor([num_examples])])
        if sync:
            seen = all_reduce_sum(seen)
        check_every_group_has_examples(seen[:-1])
        factor = seen[-1] / seen[:-1].sum()
        self.sums *= factor
        self.counts *= factor

    def compute(self, *, sync: bool = False) -> Tensor:
        """Return the mean losses (G,), float64, in nats.

        Args:
            sync: the mean over what all ranks have seen, with the same bits on each; all ranks must call this together.

        Raises:
            ValueError: if a group has no holdout example, or a mean is not finite; names the groups.
        """
        seen = torch.stack([self.sums, self.counts])
        sums, counts = all_reduce_sum(seen) if sync else seen
        check_every_group_has_examples(counts)
        means: Tensor = sums / counts
        nonfinite = torch.nonzero(~torch.isfinite(means)).flatten().tolist()
        if nonfinite:
            raise ValueError(
                f"The holdout loss of group {', '.join(map(str, nonfinite))} is not finite: the model has diverged, or "
                "a holdout input is NaN or infinite. Lower the learning rate, or check the holdout inputs of that "
                "group."
            )
        return means
