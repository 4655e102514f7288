"""Logit adjustment: decision thresholds for the worst class or group, from examples that were not trained on."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from reducr.batch import BatchReader, BatchSpec, model_output
from reducr.batch.model_output import logits_of
from reducr.batch.nested import send_to_device
from reducr.functional.offsets import group_accuracy, logit_offsets
from reducr.scoring import device_of, scoring_pass, without_wrappers

SHARES = (0.5, 1.0)
"""Shares of the fitted offsets that are tried."""
FEW_EXAMPLES = 100
"""Examples of the smallest group below which the adjustment promises nothing."""
_NUM_FOLDS = 5


@dataclass(frozen=True)
class LogitAdjustment:
    """Offsets that are added to the logits of a model, and what they are worth on examples they were not fitted on.

    Args:
        offsets: (C,) float32; zeros if no offsets were better than none.
        share: share of the fitted offsets that is used, 0, 0.5 or 1.
        before: (G,) accuracy of every group without offsets; NaN for a group without an example.
        after: (G,) the same with offsets, cross-fitted: those for an example were fitted on other examples.
        counts: (G,) examples of every group that were held back.
    """

    offsets: Tensor
    share: float
    before: Tensor
    after: Tensor
    counts: Tensor

    def __call__(self, logits: Tensor) -> Tensor:
        """Return ``logits`` (..., C) with the offsets."""
        return logits + self.offsets.to(logits.device, logits.dtype)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return a module whose logits are those of ``model`` with the offsets; its state holds both.

        Args:
            model: returns logits (B, C), or an output with ``logits``, of which the wrapper returns the logits.
        """
        return AdjustedModel(model, self.offsets)

    def __str__(self) -> str:
        size = f"{int(self.counts.sum())} held-back examples, {int(self.counts.min())} of the smallest group"
        before, after = _worst_and_mean(self.before), _worst_and_mean(self.after)
        if not self.share:
            return f"No logit adjustment: no offsets were better than none on {size} (worst {before[0]:.3f})."
        return (
            f"Logit adjustment from {size}, cross-fitted: worst {before[0]:.3f} -> {after[0]:.3f}, "
            f"mean {before[1]:.3f} -> {after[1]:.3f}."
        )


class AdjustedModel(nn.Module):
    """A model whose logits get an offset per class.

    Args:
        model: returns logits (B, C), or an output with ``logits``.
        offsets: (C,).

    State:
        offsets: (C,) float32.
    """

    offsets: Tensor

    def __init__(self, model: nn.Module, offsets: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("offsets", offsets.detach().clone().float())

    def forward(self, *arguments: Any, **named: Any) -> Tensor:
        """Return the logits of the model with the offsets."""
        logits: Tensor = logits_of(self.model(*arguments, **named))
        return logits + self.offsets.to(logits.dtype)


def fit_logit_adjustment(
    model: nn.Module,
    held_back: Iterable[Any],
    *,
    spec: BatchSpec | None = None,
    has_groups: bool = False,
    seed: int = 0,
) -> LogitAdjustment:
    """Fit one offset per class, from the errors of ``model`` on examples that no step trained on.

    Offsets are fitted by ``functional.logit_offsets``. All of them, half of them or none are used, whatever has the
    best accuracy in the worst group under five-fold cross-fitting; offsets are used only if they gain more than one
    standard error of that accuracy, because with few examples per group they do harm.

    Args:
        model: returns logits (B, C); called in eval mode and without gradients, and left as it was.
        held_back: batches of clean examples that the model was not trained on, such as a part of the holdout set.
        spec: where the parts of a batch are; None for the usual places.
        has_groups: even out the errors of the batches' groups; False for those of the classes.
        seed: of the folds.

    Raises:
        ValueError: for no examples, a class or group without an example, or outputs that are not logits (B, C).

    Warns:
        RuntimeWarning: if the smallest class or group has fewer than 100 examples.

    Example:
        >>> held_back = [(torch.randn(1000, 4), torch.arange(1000) % 2)]
        >>> adjustment = fit_logit_adjustment(nn.Linear(4, 2), held_back)
        >>> adjustment.wrap(nn.Linear(4, 2))(torch.randn(3, 4)).shape
        torch.Size([3, 2])

    Source: docs/method.md; see ``functional.logit_offsets``.
    """
    logits, targets, groups = _outputs(model, held_back, spec)
    return adjustment_of(logits, targets, groups if has_groups else None, seed=seed)


def adjustment_of(
    logits: Tensor, targets: Tensor, groups: Tensor | None = None, *, seed: int = 0, few_examples: int = FEW_EXAMPLES
) -> LogitAdjustment:
    """As ``fit_logit_adjustment``, from the logits (N, C) of the held-back examples.

    Args:
        logits: (N, C).
        targets: (N,) integers in [0, C).
        groups: (N,) integers from 0; None if groups are the targets.
        seed: of the folds.
        few_examples: warn if the smallest group has fewer examples.
    """
    num_groups = logits.shape[1] if groups is None else int(groups.max()) + 1
    members = targets if groups is None else groups
    counts = torch.bincount(members, minlength=num_groups)
    absent = torch.nonzero(counts == 0).flatten().tolist()
    if absent:
        kind = "classes" if groups is None else "groups"
        raise ValueError(
            f"Logit adjustment needs held-back examples of all {num_groups} {kind}; got none of "
            f"{', '.join(map(str, absent))}. Hold back some of each."
        )
    fewest = int(counts.min())
    if fewest < few_examples:
        warnings.warn(
            f"The smallest group has {fewest} held-back examples: its error is known to within "
            f"{100 * 0.5 / fewest**0.5:.0f} percentage points, so the adjustment may do harm. Hold back "
            f"{few_examples} or more of each group.",
            RuntimeWarning,
            stacklevel=3,
        )
    fitted = _cross_fitted(logits, targets, groups, members, seed=seed)
    before = group_accuracy(logits.argmax(dim=1), targets, members, num_groups)
    tried = {
        share: group_accuracy((logits + share * fitted).argmax(dim=1), targets, members, num_groups) for share in SHARES
    }
    share = max(SHARES, key=lambda share: float(tried[share].min()))
    worst = before.min()
    error = float((worst * (1 - worst) / counts[before.argmin()]).sqrt())
    if float(tried[share].min() - worst) <= error:
        return LogitAdjustment(torch.zeros(logits.shape[1]), 0.0, before, before, counts)
    offsets = share * logit_offsets(logits, targets, groups)
    return LogitAdjustment(offsets.float(), share, before, tried[share], counts)


def _cross_fitted(logits: Tensor, targets: Tensor, groups: Tensor | None, members: Tensor, *, seed: int) -> Tensor:
    """Offsets (N, C) for every example, fitted on the other folds."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    by_member = order[torch.sort(members[order], stable=True).indices]  # folds share every group evenly
    fold = torch.empty_like(order)
    fold[by_member] = torch.arange(len(order)) % _NUM_FOLDS
    offsets = torch.zeros(len(targets), logits.shape[1], dtype=torch.float64)
    for number in range(_NUM_FOLDS):
        is_out = fold == number
        others = None if groups is None else groups[~is_out]
        offsets[is_out] = logit_offsets(logits[~is_out], targets[~is_out], others)
    return offsets


@torch.no_grad()
def _outputs(model: nn.Module, batches: Iterable[Any], spec: BatchSpec | None) -> tuple[Tensor, Tensor, Tensor]:
    read, parts = BatchReader(spec), []
    device, model = device_of(model), without_wrappers(model)
    with scoring_pass(model, "eval"):
        for batch in batches:
            batch_parts = read(send_to_device(batch, device))
            logits = model_output(model, batch_parts.input)
            _check_logits(logits, len(batch_parts.target))
            parts.append((logits.double().cpu(), batch_parts.target.cpu().long(), batch_parts.group.cpu().long()))
    if not parts:
        raise ValueError("There are no held-back examples to fit an adjustment on. Pass at least one batch.")
    logits, targets, groups = (torch.cat(part) for part in zip(*parts, strict=True))
    return logits, targets, groups


def _check_logits(logits: Any, size: int) -> None:
    if not isinstance(logits, Tensor) or logits.ndim != 2 or len(logits) != size or not logits.is_floating_point():
        kind = f"{logits.dtype} {tuple(logits.shape)}" if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(
            f"Logit adjustment needs a model that returns logits of shape (B, C) with B = {size}; got {kind}. A binary "
            "classifier with one logit needs a threshold, not an offset per class."
        )


def _worst_and_mean(accuracy: Tensor) -> tuple[float, float]:
    return float(accuracy.min()), float(accuracy.mean())
