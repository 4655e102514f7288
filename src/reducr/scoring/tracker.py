"""Keep the group-holdout loss of a selector up to date."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from reducr._internal.distributed import is_main_rank, raising_on_all_ranks
from reducr._internal.endless import EndlessBatches
from reducr._internal.rng import same_random_state
from reducr.batch import Batch, BatchReader, BatchSpec, PerExampleLoss, model_output
from reducr.batch.nested import send_to_device
from reducr.functional.outputs import check_output
from reducr.functional.sequences import row_groups
from reducr.scoring.holdout import DEFAULT_REFRESH_STEPS, GroupHoldoutLoss, Holdout
from reducr.scoring.holdout_groups import HoldoutGroups, unhooked, usable_parts
from reducr.scoring.lockstep import Lockstep, even_batches
from reducr.scoring.modes import device_of, has_collective_forward, scoring_pass, without_wrappers
from reducr.scoring.scorer import holdout_losses
from reducr.selectors import Selector


class HoldoutTracker:
    """Evaluate a model on the holdout set when it is due, and put the mean loss of every group in force.

    Args:
        holdout: the holdout set; None if there is none.
        selector: gets the means.
        loss: of (output, target), one value per example; None for the cross-entropy.
        spec: where the parts of a batch are; None for the usual places.
        sync: take means over what all ranks have seen; all ranks then call every method together.
        groups: of the holdout set, if they have been read already.
    """

    def __init__(
        self,
        holdout: Holdout | None,
        selector: Selector,
        *,
        loss: PerExampleLoss | None = None,
        spec: BatchSpec | None = None,
        sync: bool = False,
        groups: HoldoutGroups | None = None,
    ) -> None:
        self.holdout = holdout
        self._groups = HoldoutGroups(holdout.batches, spec) if groups is None and holdout is not None else groups
        self.is_refreshed_by_validation = False
        """Whether the loop's validations over the holdout set are the refreshes, which ``step`` then leaves to them."""
        self._part: Iterable[Any] | None = None
        self._has_warned = False
        self.selector = selector
        self.sync = sync
        self.lockstep = Lockstep(sync=sync)
        """Checks that all ranks are at the same point."""
        self.loss = GroupHoldoutLoss(selector.num_groups)
        """Sums of the last pass."""
        decay = None if holdout is None else holdout.decay
        self.moving_loss = None if decay is None else GroupHoldoutLoss(selector.num_groups, decay=decay)
        """The moving average, if that is what is in force."""
        self.keeps_random_state = False
        """Whether reading the holdout set leaves the global random states as they were."""
        self._per_example = loss
        self._read = BatchReader(spec)
        self._stream = (
            None if holdout is None or decay is None else EndlessBatches(holdout.batches, name="Holdout batches")
        )

    @property
    def batches(self) -> Iterable[Any]:
        """Of the holdout set; none if there is no holdout set."""
        return () if self.holdout is None else self.holdout.batches

    @property
    def is_missing(self) -> bool:
        """Whether the selector needs a holdout loss, has none yet, and there is no set to compute it on."""
        return self.holdout is None and self.selector.needs_group_holdout_loss and self._is_first

    @property
    def refreshes_at_epoch_ends(self) -> bool:
        """Whether refreshes happen at the ends of epochs only."""
        return self.refresh_steps == "epoch"

    @property
    def refresh_steps(self) -> int | str | None:
        """Of the holdout set; None if there is none."""
        return None if self.holdout is None else self.holdout.refresh_steps

    def begin(self, model: nn.Module, *, num_steps: int) -> None:
        """Evaluate ``model`` unless a holdout loss is in force; continue a moving average after ``num_steps`` steps."""
        self.lockstep.begin()
        if self.holdout is None:
            return
        is_new = self.moving_loss is not None and not bool(self.moving_loss.counts.any())
        if self._is_first or is_new:
            self.refresh(model)
        if self.moving_loss is not None and is_new:
            self.moving_loss.load_state_dict(self.loss.state_dict())
            first = self._parts_of(next(iter(self.holdout.batches)))
            self.moving_loss.rescale(len(first.target), sync=self.sync)
        if self._stream is not None and self._stream.position != num_steps:
            self._stream.seek(num_steps)

    def step(self, model: nn.Module, *, num_steps: int | None, is_last: bool) -> bool:
        """Refresh the holdout loss if it is due.

        Args:
            model: the target model.
            num_steps: gradient steps so far; None if no gradient step was taken since the last call.
            is_last: whether the epoch ends here.

        Returns:
            Whether it was due.
        """
        is_due = self._is_due(num_steps=num_steps, is_last=is_last)
        if not is_due:
            return False
        if not is_last:  # else the caller has
            self.lockstep.step()
        if self.moving_loss is None or self._stream is None:
            self.refresh(model)
        else:
            self._evaluate(model, [next(self._stream)], self.moving_loss)
            self.selector.set_group_holdout_loss(self.moving_loss.compute(sync=self.sync))
        return True

    def _is_due(self, *, num_steps: int | None, is_last: bool) -> bool:
        if self.holdout is None:
            return False
        if self.moving_loss is not None:
            return num_steps is not None
        is_wanted = self.holdout.refresh_steps is not None or self.selector.needs_group_holdout_loss
        return is_wanted and not self.is_refreshed_by_validation and self.holdout.is_due(num_steps, is_last=is_last)

    def refresh(self, model: nn.Module) -> None:
        """Evaluate ``model`` on the holdout set, or on the part of it that refreshes are for.

        Raises:
            ValueError: if there is no holdout set, a group has no example in it (named), or a loss is not finite.
        """
        if self.holdout is None:
            raise ValueError("There is no holdout set to refresh the holdout loss with. Pass `holdout=`, its batches.")
        self.loss.reset()
        with same_random_state() if self.keeps_random_state else nullcontext():
            self._evaluate(model, self._evaluated(), self.loss)
        self.end_pass()

    def _evaluated(self) -> Iterable[Any]:
        """The batches that a refresh evaluates."""
        if self._part is None and self.holdout is not None and self._groups is not None:
            per_group, self._part = self.holdout.per_group, self.holdout.batches
            if per_group is not None and not self.is_refreshed_by_validation:
                try:
                    with raising_on_all_ranks() if self.sync else nullcontext():
                        self._part = self._groups.part(per_group, num_groups=self.selector.num_groups)
                except ValueError:
                    if unhooked(self.holdout.batches)[0] is self.holdout.batches:
                        raise  # else only batches after their hook have the structure that can be read
        return () if self._part is None else self._part

    def warn_of_stale_loss(self, event: str, *, num_steps: int) -> None:
        """Warn, once, if a pass ``ended`` or ``was left`` before the first refresh, and the selector needs one.

        A number of steps that the user chose is warned of only once the default would have refreshed several times.
        """
        holdout = self.holdout
        if holdout is None or self.moving_loss is not None or not self.selector.needs_group_holdout_loss:
            return
        least = 1 if holdout.refresh_steps == "epoch" else DEFAULT_REFRESH_STEPS
        if self._has_warned or num_steps < least or not is_main_rank():
            return
        self._has_warned = True
        warnings.warn(
            f"A pass {event} after {num_steps} steps without a refresh of the holdout loss (refresh_steps="
            f"{holdout.refresh_steps!r}): the group weights still follow the model before its first step. Leave "
            "`refresh_steps` out for a default that refreshes from the first steps on, or lower it.",
            UserWarning,
            stacklevel=4,
        )

    def add(self, output: Any, batch: Batch) -> None:
        """Add a batch to the sums of a pass that the loop itself runs, from ``loss.reset`` to ``end_pass``.

        Args:
            output: what the model, in eval mode, returned for ``batch.input``.
            batch: of the holdout set.
        """
        self._add(output, batch, self.loss)

    def end_pass(self) -> Tensor:
        """Return the mean loss (G,) of a pass over the holdout set, and put it in force unless a moving average is.

        Raises:
            ValueError: if a group has no holdout example (named), or a loss is not finite.
        """
        mean = self.loss.compute(sync=self.sync)
        if self.moving_loss is None or self._is_first:
            self.selector.set_group_holdout_loss(mean)
        return mean

    def _parts_of(self, batch: Any) -> Batch:
        return usable_parts(self._read(batch), num_groups=self.selector.num_groups, loss=self._per_example)

    @property
    def _is_first(self) -> bool:
        return bool(torch.isnan(self.selector.group_holdout_loss).any())

    @torch.no_grad()
    def _evaluate(self, model: nn.Module, batches: Iterable[Any], holdout_loss: GroupHoldoutLoss) -> None:
        device, model = device_of(model), without_wrappers(model)
        if self.sync and has_collective_forward(model, mode="eval"):
            batches_and_repeats = even_batches(batches, what="holdout batch")
        else:
            batches_and_repeats = ((batch, False) for batch in batches)
        with scoring_pass(model, "eval"):
            for batch, is_repeat in batches_and_repeats:
                parts = self._parts_of(send_to_device(batch, device))
                output = model_output(model, parts.input)
                check_output(output, parts.target, self._per_example)
                if not is_repeat:
                    self._add(output, parts, holdout_loss)

    def _add(self, output: Any, batch: Batch, holdout_loss: GroupHoldoutLoss) -> None:
        losses = holdout_losses(self.selector, output, batch.target, self._per_example)
        holdout_loss.update(losses, row_groups(batch.group, batch.target, self._per_example))
