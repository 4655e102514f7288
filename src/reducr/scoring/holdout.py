"""The holdout set, and the group-holdout loss: how badly the model still does on each group of clean held-out data."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
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


DEFAULT_REFRESH_STEPS = 50
DEFAULT_PER_GROUP = 100


@dataclass(frozen=True)
class Holdout:
    """The clean holdout set: when the model is evaluated on it, on how much of it, and whether it is trained on.

    By default the holdout loss is refreshed after 1, 2, 4, ... 32 gradient steps, while the model changes fastest, and
    then every 50 steps, on at most 100 examples of each group, spread evenly over the set; rules that do not read the
    holdout loss get it once. docs/performance.md has the cost and the effect of other values.

    Args:
        batches: of the holdout set, structured as the candidates or in another usual way; iterated at every refresh.
        refresh_steps: gradient steps between two evaluations; ``"epoch"`` for the end of every epoch, as published;
            None for the default above.
        decay: None, or in (0, 1) to follow the holdout loss with one batch per step as a moving average, in place of
            refreshes after the first.
        examples_per_group: evaluate the model on at most this many examples of each group; None for all of them, but
            for the default of ``refresh_steps``.
        fraction: share of the examples of each gradient step that are drawn from the holdout set instead of being
            selected, in [0, 1); they follow the selected ones. In one process only, but for ``SelectiveBatchSampler``.

    Raises:
        ValueError: for a number out of range, for batches that can be iterated once only, or for options of refreshes
            beside ``decay``.
    """

    batches: Iterable[Any]
    refresh_steps: int | str | None = None
    decay: float | None = None
    examples_per_group: int | None = None
    fraction: float = 0.0

    def __post_init__(self) -> None:
        if isinstance(self.batches, Iterator):
            raise ValueError(  # noqa: TRY004  (it is iterable, but only once)
                f"The holdout set is read again at every refresh, and a {type(self.batches).__name__} can be iterated "
                "only once. Pass a loader, or a list of batches."
            )
        _check_refresh_steps(self.refresh_steps)
        if self.examples_per_group is not None:
            check_count("examples_per_group", self.examples_per_group)
        if not (is_finite_number(self.fraction) and 0 <= self.fraction < 1):
            raise ValueError(
                "holdout_fraction must be in [0, 1), the share of the examples of each gradient step that are drawn "
                f"from the holdout set; got {self.fraction}."
            )
        if self.decay is None:
            return
        if not (is_finite_number(self.decay) and 0 < self.decay < 1):
            raise ValueError(
                f"The decay of the holdout loss must be in (0, 1), or None to refresh the whole loss; got {self.decay}."
            )
        for name in ("refresh_steps", "examples_per_group"):
            if getattr(self, name) is not None:
                raise ValueError(
                    f"{name}={getattr(self, name)} has no effect with decay={self.decay}, which updates the holdout "
                    "loss at every step. Leave one of them out."
                )

    @property
    def per_group(self) -> int | None:
        """Examples of each group that a refresh evaluates at most; None for all."""
        is_default = self.refresh_steps is None and self.decay is None and self.examples_per_group is None
        return DEFAULT_PER_GROUP if is_default else self.examples_per_group

    def is_due(self, num_steps: int | None, *, is_last: bool) -> bool:
        """Whether to refresh after ``num_steps`` gradient steps; None if none was taken since the last call."""
        every = self.refresh_steps
        if every == "epoch":
            return is_last
        if num_steps is None:
            return False
        if every is None:
            is_early = num_steps < DEFAULT_REFRESH_STEPS and num_steps & (num_steps - 1) == 0  # a power of two
            return is_early or num_steps % DEFAULT_REFRESH_STEPS == 0
        return num_steps % int(every) == 0


def holdout_of(
    holdout: Holdout | Iterable[Any] | None,
    refresh_steps: int | str | None = None,
    holdout_fraction: float | None = None,
) -> Holdout | None:
    """Return the ``Holdout`` of a loop's arguments.

    Raises:
        ValueError: for an option of the holdout set without one, or given twice.
    """
    if refresh_steps is not None:
        _check_refresh_steps(refresh_steps)
    options: dict[str, Any] = {"refresh_steps": refresh_steps, "fraction": holdout_fraction}
    given = {name: value for name, value in options.items() if value is not None}
    if holdout is not None and not isinstance(holdout, Holdout):
        holdout = Holdout(holdout)
    for name, value in given.items():
        option = "holdout_fraction" if name == "fraction" else name
        if holdout is None and value:
            raise ValueError(f"{option}={value} has no effect without `holdout`. Pass `holdout=`, the batches.")
        if holdout is not None and getattr(holdout, name):
            raise ValueError(f"{option}={value} has no effect beside a Holdout with its own {name}. Leave one out.")
    return holdout if holdout is None else replace(holdout, **given)


def _check_refresh_steps(refresh_steps: Any) -> None:
    if isinstance(refresh_steps, str) and refresh_steps != "epoch":
        raise ValueError(
            f"refresh_steps must be a number of gradient steps, 'epoch' for the end of every epoch, or None; got "
            f"{refresh_steps!r}."
        )
    if refresh_steps is not None and refresh_steps != "epoch":
        check_count("refresh_steps", refresh_steps)


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
