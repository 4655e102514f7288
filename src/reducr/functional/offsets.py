"""Decision thresholds: one offset per class that is added to the logits."""

from __future__ import annotations

import torch
from torch import Tensor

from reducr._internal.checks import check_count, check_range
from reducr.functional.losses import check_targets

_STEP_SIZE = 0.3
_HEDGE_RATE = 4.0


@torch.no_grad()
def logit_offsets(logits: Tensor, targets: Tensor, groups: Tensor | None = None, *, num_steps: int = 300) -> Tensor:
    """Offsets b that even out the errors of the groups, so that ``argmax(logits + b)`` does well on the worst one.

    With groups that are the classes, the offset of a class rises while its error is above the mean error of all::

        b_c <- b_c + 0.3 / sqrt(1 + t) * ( err_c - mean_k err_k ),    t = 0, 1, ...

    With other groups, weights ``q_g`` follow the errors of the groups, ``q proportional to exp(4 err)``, and every
    error moves the offset of its target up and that of the predicted class down, as in a perceptron, by its group's
    weight. The result is the mean over the second half of the steps, shifted to mean zero.

    Args:
        logits: (N, C), of examples that the model was not trained on.
        targets: (N,) integers in [0, C).
        groups: (N,) integers from 0; None if groups are the targets. A group without an example has no error.
        num_steps: number of steps, at least 2.

    Returns:
        (C,) float64 offsets. Offsets of classes without an example are zero before the shift if groups are the targets.

    Raises:
        ValueError: if targets or groups do not fit the logits.

    Example:
        >>> logits = torch.tensor([[2.0, 0.0], [2.0, 0.0], [0.5, 0.0], [0.0, 1.0]])
        >>> (logits + logit_offsets(logits, torch.tensor([0, 0, 1, 1]))).argmax(dim=1)
        tensor([0, 0, 1, 1])

    Source: threshold moving; the errors in place of the losses of Menon et al. 2021 (arXiv 2007.07314) and of DROPS
    (arXiv 2309.08825).
    """
    check_count("num_steps", num_steps, least=2)
    check_targets(logits, targets)
    logits, targets = logits.double(), targets.long()
    num_classes = logits.shape[1]
    check_range("targets", targets, num_classes)
    if groups is not None:
        check_targets(logits, groups)
        return _group_offsets(logits, targets, groups.long(), num_steps)
    counts = torch.bincount(targets, minlength=num_classes).double()
    is_present = counts > 0
    offsets, total = logits.new_zeros(num_classes), logits.new_zeros(num_classes)
    for step in range(num_steps):
        is_wrong = ((logits + offsets).argmax(dim=1) != targets).double()
        error = torch.bincount(targets, weights=is_wrong, minlength=num_classes) / counts.clamp(min=1)
        rise = torch.where(is_present, error - error[is_present].mean(), 0.0)
        offsets = offsets + _STEP_SIZE / (1 + step) ** 0.5 * rise
        if step >= num_steps // 2:
            total += offsets
    return _centred(total / (num_steps - num_steps // 2))


def _group_offsets(logits: Tensor, targets: Tensor, groups: Tensor, num_steps: int) -> Tensor:
    num_classes = logits.shape[1]
    counts = torch.bincount(groups).double()
    share = 1 / counts[groups]
    offsets, total = logits.new_zeros(num_classes), logits.new_zeros(num_classes)
    for step in range(num_steps):
        predicted = (logits + offsets).argmax(dim=1)
        is_wrong = (predicted != targets).double()
        error = torch.bincount(groups, weights=is_wrong) / counts.clamp(min=1)
        weights = torch.softmax(_HEDGE_RATE * error, dim=0)
        push = weights[groups] * share * is_wrong
        rise = torch.bincount(targets, weights=push, minlength=num_classes)
        rise -= torch.bincount(predicted, weights=push, minlength=num_classes)
        offsets = offsets + _STEP_SIZE / (1 + step) ** 0.5 * rise
        if step >= num_steps // 2:
            total += offsets
    return _centred(total / (num_steps - num_steps // 2))


def _centred(offsets: Tensor) -> Tensor:
    return offsets - offsets.mean()


def group_accuracy(predicted: Tensor, targets: Tensor, groups: Tensor, num_groups: int) -> Tensor:
    """Accuracy of every group, (G,) float64; NaN for a group without an example.

    Args:
        predicted: (N,) integers.
        targets: (N,) integers.
        groups: (N,) integers in [0, G).
        num_groups: G.

    Example:
        >>> group_accuracy(torch.tensor([0, 1, 1]), torch.tensor([0, 1, 0]), torch.tensor([0, 0, 1]), 2)
        tensor([1., 0.], dtype=torch.float64)
    """
    right = torch.bincount(groups, weights=(predicted == targets).double(), minlength=num_groups)
    return right / torch.bincount(groups, minlength=num_groups)
