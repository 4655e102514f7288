"""Per-example losses, and all group-irreducible losses in closed form from one model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reducr._internal.checks import check_gradient_weight, check_range

_NO_TARGET = -(2**63)  # torch would give a loss of zero to the target -100, its default
_NO_CLASS = "Leave out examples without a label, or give the model one output for each class."
_VECTOR_WIDTH = 16


def selection_dtype(tensor: Tensor) -> torch.dtype:
    """Dtype for selection arithmetic: float64 for float64 inputs, float32 for all others."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def zero_one_loss(logits: Tensor, targets: Tensor) -> Tensor:
    """Zero-one loss: 1 for each example whose most probable class is not its target, else 0.

    Formula: ``loss_i = [ argmax_k logits_ik != target_i ]``; of equal logits the first is the prediction.

    Args:
        logits: (B, C) outputs of a model, any floating dtype.
        targets: (B,) integers in [0, C).

    Returns:
        (B,) losses without a unit, float32 or float64; NaN where a logit is not finite.

    Raises:
        ValueError: unless there is one integer target for each example.

    Example:
        >>> zero_one_loss(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([0, 0]))
        tensor([1., 0.])
    """
    check_targets(logits, targets)
    is_wrong = (logits.argmax(dim=1) != targets).to(selection_dtype(logits))
    return is_wrong.masked_fill_(~logits.isfinite().all(dim=1), torch.nan)


def per_example_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each example, in float32 or float64.

    Formula: ``loss_i = logsumexp(logits_i) - logits_i[target_i]``.

    Args:
        logits: (B, C) outputs of a model, any floating dtype.
        targets: (B,) integers in [0, C).

    Returns:
        (B,) losses in nats; gradients are kept.

    Raises:
        ValueError: unless there is one integer target for each example, in range. On a GPU an out-of-range target
            aborts the process instead, because a check would have to wait for the device.

    Example:
        >>> per_example_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([1.3863, 1.3863])
    """
    check_targets(logits, targets)
    logits, targets = logits.to(selection_dtype(logits)), targets.long()
    is_trained = logits.requires_grad and torch.is_grad_enabled()
    log_probabilities = torch.log_softmax(logits, dim=1) if is_trained else _log_softmax(logits)
    try:
        return F.nll_loss(log_probabilities, targets, reduction="none", ignore_index=_NO_TARGET)
    except (IndexError, RuntimeError):
        check_range("targets", targets, logits.shape[1], advice=_NO_CLASS)
        raise


def adjusted_irreducible_loss(
    logits: Tensor, targets: Tensor, *, gradient_weight: float, group_of_target: Tensor | None = None
) -> Tensor:
    """All group-irreducible losses of every example, from the logits of one reference model (irreducible model).

    The minimiser of the cross-entropy that weights the examples of group c by g and all others by 1 is ``q_c(y | x)``
    proportional to ``g^[group(y) = c] p(y | x)``. So for an example (x, y), with ``p = softmax(z)`` of the logits z and
    ``P_c`` the sum of p over the targets of group c::

        r_c = log( 1 + (g - 1) P_c ) - log p_y - log(g) [group(y) = c]

    Args:
        logits: (B, C) outputs of the reference model, which was trained without weights.
        targets: (B,) integers in [0, C).
        gradient_weight: g >= 1, the weight that a group-irreducible model would be trained with.
        group_of_target: (C,) group of each target, integers in [0, G); None if groups are the targets.

    Returns:
        (B, G) losses in nats, float32 or float64.

    Raises:
        ValueError: if ``gradient_weight`` is below 1, ``group_of_target`` does not have C entries, or the targets do
            not fit (see ``per_example_cross_entropy``).

    Example:
        >>> adjusted_irreducible_loss(torch.zeros(1, 2), torch.tensor([0]), gradient_weight=3.0)
        tensor([[0.2877, 1.3863]])

    Source: derived in docs/method.md section 4 for REDUCR's weighted cross-entropy (arXiv 2312.00486, section 4.3);
    related to logit adjustment (Menon et al., arXiv 2007.07314).
    """
    check_gradient_weight(gradient_weight)
    check_targets(logits, targets)
    targets = targets.long()
    log_probabilities = _log_softmax(logits.to(selection_dtype(logits)))
    own = _at_targets(log_probabilities, targets)
    probabilities, own_group = log_probabilities.exp(), targets
    if group_of_target is not None:
        if group_of_target.shape != logits.shape[1:]:
            raise ValueError(
                f"group_of_target must hold the group of each of the {logits.shape[1]} classes that the logits have; "
                f"got shape {tuple(group_of_target.shape)}."
            )
        group_of_target = group_of_target.to(logits.device).long()
        own_group = group_of_target[targets]
        probabilities = probabilities.new_zeros(len(logits), int(group_of_target.max()) + 1).index_add_(
            1, group_of_target, probabilities
        )
    loss = probabilities.mul_(gradient_weight - 1).log1p_().sub_(own)
    return loss.scatter_add_(1, own_group.unsqueeze(1), own.new_full((1, 1), -math.log(gradient_weight)).expand_as(own))


def adjusted_joint_irreducible_loss(logits: Tensor, targets: Tensor, *, gradient_weight: float) -> Tensor:
    """All group-irreducible losses of every example if the target does not determine the group.

    One reference model (irreducible model) predicts the joint outcome (target, group). Weighting group c by g
    multiplies the probability of all its outcomes by g. The loss of a target sums the probabilities over the groups::

        r_c = log( sum_{y', k} g^[k = c] exp(z_{y' k}) ) - log( sum_k g^[k = c] exp(z_{y k}) )

    Args:
        logits: (B, C, G) outputs of the joint model, targets along axis 1, groups along axis 2.
        targets: (B,) integers in [0, C).
        gradient_weight: g >= 1.

    Returns:
        (B, G) losses in nats, float32 or float64.

    Raises:
        ValueError: if ``gradient_weight`` is below 1, or the targets do not fit (see ``per_example_cross_entropy``).

    Example:
        >>> adjusted_joint_irreducible_loss(torch.zeros(1, 2, 3), torch.tensor([0]), gradient_weight=10.0)
        tensor([[0.6931, 0.6931, 0.6931]])

    Source: docs/method.md section 4.
    """
    check_gradient_weight(gradient_weight)
    check_targets(logits, targets)
    logits, targets = logits.to(selection_dtype(logits)), targets.long()
    own = _at_targets(logits, targets.unsqueeze(1).expand(-1, logits.shape[2])).squeeze(1)
    all_outcomes = torch.logsumexp(logits, dim=(1, 2)).unsqueeze(1)
    own_outcomes = torch.logsumexp(own, dim=1, keepdim=True)
    group_outcomes = torch.logsumexp(logits, dim=1)
    log_extra = math.log(gradient_weight - 1) if gradient_weight > 1 else -math.inf
    return torch.logaddexp(all_outcomes, group_outcomes + log_extra) - torch.logaddexp(own_outcomes, own + log_extra)


def check_targets(logits: Tensor, targets: Tensor) -> None:
    """Raise a ValueError unless ``targets`` holds one integer for each row of ``logits``; reads no values."""
    if targets.shape != logits.shape[:1] or targets.is_floating_point() or targets.is_complex():
        raise ValueError(
            f"targets must be one integer for each of the {len(logits)} examples; got {targets.dtype} "
            f"{tuple(targets.shape)}."
        )


def _at_targets(values: Tensor, targets: Tensor) -> Tensor:
    """Entries (B, 1, ...) of ``values`` (B, C, ...) at the ``targets`` (B, ...)."""
    try:
        return values.gather(1, targets.unsqueeze(1))
    except (IndexError, RuntimeError):
        check_range("targets", targets.reshape(len(targets), -1)[:, 0], values.shape[1])
        raise


def _log_softmax(logits: Tensor) -> Tensor:
    """(B, C) log-probabilities; equal rows have equal results to the last bit, at every position.

    On a CPU torch does not vectorise rows narrower than its vectors, which is several times slower, so they are padded.
    """
    num_classes = logits.shape[1]
    if num_classes < _VECTOR_WIDTH and logits.device.type == "cpu":
        logits = F.pad(logits, (0, _VECTOR_WIDTH - num_classes), value=-torch.inf)
    return torch.log_softmax(logits, dim=1)[:, :num_classes]
