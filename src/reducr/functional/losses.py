"""Per-point losses, and all group-irreducible losses in closed form from one model."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from reducr.checks import check_gradient_weight


def selection_dtype(tensor: Tensor) -> torch.dtype:
    """The dtype selection arithmetic runs in: float64 for float64 inputs, float32 for anything narrower."""
    return torch.promote_types(tensor.dtype, torch.float32)


def point_cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Cross-entropy of each point, in float32 or better.

    Formula: ``loss_i = logsumexp(logits_i) - logits_i[target_i]``.

    Args:
        logits: (B, C) outputs of a model, any floating dtype.
        targets: (B,) integers in [0, C).

    Returns:
        (B,) losses in nats; gradients are kept.

    Example:
        >>> point_cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]))
        tensor([1.3863, 1.3863])
    """
    return F.cross_entropy(logits.to(selection_dtype(logits)), targets.long(), reduction="none")


def adjusted_irreducible_loss(
    logits: Tensor, targets: Tensor, *, gradient_weight: float, group_of_target: Tensor | None = None
) -> Tensor:
    """Every group-irreducible loss of every point, from the logits of one plain irreducible model.

    The minimiser of the cross-entropy that weights the points of group c by g and all others by 1 is
    ``q_c(y | x)`` proportional to ``g^[group(y) = c] p(y | x)``, so for a point (x, y), with ``z`` the logits and
    ``L_c`` the logsumexp of ``z`` over the targets of group c::

        r_c = log( exp(logsumexp z) + (g - 1) exp(L_c) ) - z_y - log(g) [group(y) = c]

    Args:
        logits: (B, C) outputs of the plain irreducible model.
        targets: (B,) integers in [0, C).
        gradient_weight: g >= 1, the weight a group-irreducible model would have been trained with.
        group_of_target: (C,) the group of each target, integers in [0, G); None where groups are the targets.

    Returns:
        (B, G) losses in nats, float32 or better.

    Raises:
        ValueError: if ``gradient_weight`` is below 1.

    Example:
        >>> adjusted_irreducible_loss(torch.zeros(1, 2), torch.tensor([0]), gradient_weight=3.0)
        tensor([[0.2877, 1.3863]])

    Source: derived in docs/method.md section 4 for REDUCR's weighted cross-entropy (arXiv 2312.00486, section 4.3);
    related to logit adjustment (Menon et al., arXiv 2007.07314).
    """
    log_extra, log_weight = _log_gradient_weight(gradient_weight)
    logits = logits.to(selection_dtype(logits))
    targets = targets.long()
    if group_of_target is None:
        group_logits, own_group = logits, targets
    else:
        group_of_target = group_of_target.to(logits.device)
        group_logits = _logsumexp_by_group(logits, group_of_target)
        own_group = group_of_target[targets]
    normaliser = torch.logaddexp(torch.logsumexp(logits, dim=1, keepdim=True), group_logits + log_extra)
    loss = normaliser - logits.gather(1, targets.unsqueeze(1))
    return loss.scatter_add_(1, own_group.unsqueeze(1), loss.new_full((len(loss), 1), -log_weight))


def adjusted_joint_irreducible_loss(logits: Tensor, targets: Tensor, *, gradient_weight: float) -> Tensor:
    """Every group-irreducible loss of every point where groups are not decided by the target.

    One plain irreducible model predicts the joint outcome (target, group). Weighting group c by g multiplies the
    probability of all its outcomes by g; the loss of a target sums the probabilities over the groups::

        r_c = log( sum_{y', k} g^[k = c] exp(z_{y' k}) ) - log( sum_k g^[k = c] exp(z_{y k}) )

    Args:
        logits: (B, C, G) outputs of the joint model, targets along axis 1, groups along axis 2.
        targets: (B,) integers in [0, C).
        gradient_weight: g >= 1.

    Returns:
        (B, G) losses in nats, float32 or better.

    Raises:
        ValueError: if ``gradient_weight`` is below 1.

    Example:
        >>> adjusted_joint_irreducible_loss(torch.zeros(1, 2, 3), torch.tensor([0]), gradient_weight=10.0)
        tensor([[0.6931, 0.6931, 0.6931]])

    Source: docs/method.md section 4.
    """
    log_extra, _ = _log_gradient_weight(gradient_weight)
    logits = logits.to(selection_dtype(logits))
    own = logits[torch.arange(len(logits), device=logits.device), targets.long()]
    all_outcomes = torch.logsumexp(logits, dim=(1, 2)).unsqueeze(1)
    own_outcomes = torch.logsumexp(own, dim=1, keepdim=True)
    group_outcomes = torch.logsumexp(logits, dim=1)
    return torch.logaddexp(all_outcomes, group_outcomes + log_extra) - torch.logaddexp(own_outcomes, own + log_extra)


def _log_gradient_weight(gradient_weight: float) -> tuple[float, float]:
    """log(g - 1), which is minus infinity at g = 1, and log(g)."""
    check_gradient_weight(gradient_weight)
    log_extra = math.log(gradient_weight - 1) if gradient_weight > 1 else -math.inf
    return log_extra, math.log(gradient_weight)


def _logsumexp_by_group(logits: Tensor, group_of_target: Tensor) -> Tensor:
    """(B, G) logsumexp of the logits over the targets of each group."""
    num_groups = int(group_of_target.max()) + 1
    largest = logits.amax(dim=1, keepdim=True)
    sums = logits.new_zeros(len(logits), num_groups)
    sums.index_add_(1, group_of_target.long(), torch.exp(logits - largest))
    return torch.log(sums) + largest
