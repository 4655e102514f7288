"""Logistic regression on the inputs of a model's last layer, to judge weights of training examples."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

_PENALTY = 1e-3
_NUM_ITERATIONS = 20
_SCALES = (0.3, 0.5, 0.7, 1.0, 1.4, 2.0, 3.0, 5.0)
"""Factors of the logits that are tried: weights also decide how confident a probe is, which is not what is judged."""


class Part(NamedTuple):
    """Examples as a probe sees them."""

    features: Tensor
    """(N, d) float32."""
    targets: Tensor
    """(N,) int64."""
    groups: Tensor
    """(N,) int64."""

    def standardised(self, other: Part) -> tuple[Part, Part]:
        """Return both with features of mean 0 and deviation 1 in this one; constant features are zeros in both."""
        deviation, mean = torch.std_mean(self.features.double(), dim=0, correction=0)
        scale = torch.where(deviation > 1e-6 * mean.abs().clamp(min=1), 1 / deviation, 0.0)
        first, second = (part._replace(features=((part.features - mean) * scale).float()) for part in (self, other))
        return first, second


def with_numbered_groups(*parts: Part) -> tuple[Part, ...]:
    """Return the parts with groups numbered from 0 over all of them, in the order of their values."""
    numbers = torch.unique(torch.cat([part.groups for part in parts]), return_inverse=True)[1]
    split = torch.split(numbers, [len(part.groups) for part in parts])
    return tuple(part._replace(groups=groups) for part, groups in zip(parts, split, strict=True))


class GroupLosses(NamedTuple):
    """Losses of a probe on held-back examples."""

    losses: Tensor
    """(N,) float64 in nats."""
    shares: Tensor
    """(N,) float64, the weight of each example in the mean over groups; they sum to 1."""

    @property
    def mean(self) -> Tensor:
        """The mean over groups."""
        return (self.losses * self.shares).sum()


def last_layer_inputs(module: nn.Module, call: Callable[[nn.Module], Tensor]) -> Tensor:
    """Return the inputs (B, d) of the linear layer whose outputs are the logits, or the logits if there is none.

    Args:
        module: the model.
        call: runs it; returns logits (B, C).
    """
    seen: list[tuple[Tensor, Tensor]] = []

    def keep(_: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if inputs and isinstance(inputs[0], Tensor) and isinstance(output, Tensor) and inputs[0].ndim == 2:
            seen.append((inputs[0].detach(), output.detach()))

    layers = [layer for layer in module.modules() if isinstance(layer, nn.Linear)]
    hooks = [layer.register_forward_hook(keep) for layer in layers]
    try:
        logits = call(module)
    finally:
        for hook in hooks:
            hook.remove()
    return next((features for features, output in reversed(seen) if torch.equal(output, logits)), logits)


@torch.enable_grad()
def fit_probe(part: Part, weights: Tensor, *, num_classes: int, start: Tensor | None = None) -> Tensor:
    """Fit multinomial logistic regression with weights of the examples; returns (d + 1, C), the last row the biases.

    Minimises ``sum_i w_i CE_i + 0.001 |W|^2`` with weights that sum to 1, by 20 iterations of L-BFGS.

    Args:
        part: standardised features, targets and groups.
        weights: (N,) >= 0, not all zero.
        num_classes: C.
        start: (d + 1, C) to begin from; None for zeros.
    """
    head = torch.zeros(part.features.shape[1] + 1, num_classes) if start is None else start.detach().clone()
    head.requires_grad_()
    shares = (weights / weights.sum()).float()
    optimizer = torch.optim.LBFGS([head], max_iter=_NUM_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = cross_entropy(_logits(head, part.features), part.targets, reduction="none")
        loss = (shares * losses).sum() + _PENALTY * head[:-1].square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    return head.detach()


def group_losses(head: Tensor, part: Part) -> GroupLosses:
    """Return the losses of a probe, with the factor of its logits that makes their mean over groups smallest."""
    logits = _logits(head, part.features)
    counts = torch.bincount(part.groups).double()
    shares = 1 / (counts[part.groups] * (counts > 0).sum())
    tried = [
        GroupLosses(cross_entropy(scale * logits, part.targets, reduction="none").double(), shares) for scale in _SCALES
    ]
    return min(tried, key=lambda losses: float(losses.mean))


def paired_gain(first: GroupLosses, second: GroupLosses) -> tuple[float, float]:
    """Return by how much the mean of the second is smaller, and the standard error of that difference."""
    difference = first.losses - second.losses
    gain = float((difference * first.shares).sum())
    error = float(((difference - gain) * first.shares).square().sum().sqrt())
    return gain, error


def _logits(head: Tensor, features: Tensor) -> Tensor:
    return features @ head[:-1] + head[-1]
