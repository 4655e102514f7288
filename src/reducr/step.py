"""One selection step: a model, a batch, a selector and irreducible losses meet here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch import Tensor, nn

from reducr.batch import Batch, Candidates, Selection
from reducr.functional import point_cross_entropy
from reducr.holdout import GroupHoldoutLoss
from reducr.names import unknown_name
from reducr.selectors import Selector

SCORING_MODES = ("train", "eval", "train_frozen_statistics")


class IrreducibleLookup(Protocol):
    """Anything that gives irreducible losses for a batch."""

    def lookup(self, batch: Batch) -> Tensor:
        """(B,) losses of one irreducible model, or (B, G) of the group-irreducible models, in nats."""


def num_selected_of(fraction: float, num_candidates: int) -> int:
    """How many of ``num_candidates`` points a fraction is: rounded down, but at least 1.

    Raises:
        ValueError: if ``fraction`` is outside (0, 1].

    Example:
        >>> num_selected_of(0.1, 320), num_selected_of(0.1, 32), num_selected_of(0.29, 100)
        (32, 3, 29)
    """
    if not 0 < fraction <= 1:
        raise ValueError(
            f"fraction must be in (0, 1], the share of the candidates to keep; got {fraction}."
            + (f" For {fraction} percent give {fraction / 100}." if 1 < fraction <= 100 else "")
        )
    # the small term keeps 0.29 * 100 = 28.999999999999996 from losing a point
    return max(1, math.floor(fraction * num_candidates + 1e-9))


def pick(
    model: nn.Module,
    batch: Batch,
    selector: Selector,
    irreducible: IrreducibleLookup | None = None,
    *,
    num_selected: int,
    scoring_mode: str = "train",
    generator: torch.Generator | None = None,
) -> tuple[Batch, Selection]:
    """Score a large batch without gradients and keep its best points.

    Args:
        model: called with ``batch.input``; gives (B, C) logits. A rule that reads no loss or logits does not run it.
        batch: B candidates, on the model's device.
        selector: the rule; read, not changed. Call ``selector.update(selection)`` after the gradient step.
        irreducible: losses for the rules that need them.
        num_selected: b in [1, B].
        scoring_mode: how the model is run: ``train`` (as published: batch statistics, running statistics see the
            unselected points too, dropout is on), ``eval``, or ``train_frozen_statistics`` (as ``train``, but every
            buffer is left as found). A model in train mode is scored as it is, so layers that its owner keeps in
            eval mode stay there. Every module's mode is left as found.
        generator: source of randomness for rules and samplers that draw; dropout in the model draws from torch's
            global one, as in training.

    Returns:
        The selected batch of b points, and the selection.

    Raises:
        ValueError: for an output that is not (B, C), irreducible losses of the wrong shape or missing, an unknown
            ``scoring_mode``, and whatever ``selector.select`` refuses.
    """
    candidates = score_candidates(model, batch, selector, irreducible, scoring_mode=scoring_mode)
    selection = selector.select(candidates, num_selected=num_selected, generator=generator)
    return batch.take(selection.positions), selection


@torch.no_grad()
def score_candidates(
    model: nn.Module,
    batch: Batch,
    selector: Selector,
    irreducible: IrreducibleLookup | None,
    *,
    scoring_mode: str = "train",
) -> Candidates:
    """All that ``selector`` needs to know of ``batch``, computed without gradients; arguments as for ``pick``."""
    fields: dict[str, Tensor] = {"targets": batch.target, "groups": batch.group}
    num_samples = selector.num_dropout_samples
    if "model_loss" in selector.needs or ("logits" in selector.needs and not num_samples):
        with scoring_pass(model, scoring_mode):
            logits = _checked_logits(model(batch.input), batch)
        if "model_loss" in selector.needs:
            fields["model_loss"] = point_cross_entropy(logits, batch.target)
        if "logits" in selector.needs:
            fields["logits"] = logits
    if num_samples:
        fields["logits"] = dropout_samples(model, batch.input, num_samples=num_samples)
    fields |= _irreducible_fields(batch, selector, irreducible)
    return Candidates(**fields)


@contextmanager
def scoring_pass(model: nn.Module, scoring_mode: str) -> Iterator[None]:
    """Run ``model`` in a scoring mode, then put the mode of every module, and frozen buffers, back as found."""
    if scoring_mode not in SCORING_MODES:
        raise unknown_name("scoring_mode", scoring_mode, SCORING_MODES)
    modes = [(module, module.training) for module in model.modules()]
    keeps_buffers = scoring_mode == "train_frozen_statistics"
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if keeps_buffers else []
    if scoring_mode == "eval":
        model.eval()
    elif not model.training:
        model.train()
    try:
        yield
    finally:
        for module, is_training in modes:
            module.training = is_training
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@torch.no_grad()
def dropout_samples(model: nn.Module, input: Tensor, *, num_samples: int) -> Tensor:  # noqa: A002  (Batch's name)
    """(S, B, C) logits of MC-dropout: everything in eval mode but the dropout layers.

    Raises:
        ValueError: if the model has no dropout layer, so that all samples would be equal.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    if not any(layer.p > 0 for layer in layers):
        raise ValueError(
            "MC-dropout needs a model with dropout layers of p > 0; this one has none, so that all samples would be "
            "equal. Add nn.Dropout to the model, or choose a rule without dropout samples, such as 'entropy'."
        )
    with scoring_pass(model, "eval"):
        for layer in layers:
            layer.training = True
        return torch.stack([model(input) for _ in range(num_samples)])


def check_model_output(model: nn.Module, batch: Batch, num_classes: int) -> None:
    """See that ``model`` gives (B, C) logits for ``batch``, in eval mode; leaves modes and buffers as found.

    Raises:
        ValueError: if the output is not a (B, C) floating tensor.
    """
    with scoring_pass(model, "eval"), torch.no_grad():
        logits = _checked_logits(model(batch.input), batch)
    if logits.shape[1] != num_classes:
        raise ValueError(
            f"the model must give one logit for each of the {num_classes} classes; its output has shape "
            f"{tuple(logits.shape)} for {len(batch.target)} points. Set the size of its last layer to {num_classes}."
        )


def _checked_logits(output: Tensor, batch: Batch) -> Tensor:
    size = len(batch.target)
    if not isinstance(output, Tensor):
        raise ValueError(  # noqa: TRY004  (a fault of the model's author, like a wrong shape)
            f"the model must return a tensor of logits (B, C); got {type(output).__name__}. Wrap it so that it does."
        )
    if output.ndim != 2 or len(output) != size or not output.is_floating_point():
        raise ValueError(
            f"the model must return floating-point logits of shape (B, C) with B = {size}; got {output.dtype} "
            f"{tuple(output.shape)}."
        )
    return output


def _irreducible_fields(batch: Batch, selector: Selector, irreducible: IrreducibleLookup | None) -> dict[str, Tensor]:
    for name, axes in (("irreducible_loss", 1), ("group_irreducible_loss", 2)):
        if name not in selector.needs:
            continue
        if irreducible is None:
            raise ValueError(
                f"selector {selector.name!r} needs irreducible losses; got irreducible=None. Give anything with "
                "lookup(batch), such as reducr.irreducible.AdjustedIrreducibleLoss."
            )
        losses = irreducible.lookup(batch).to(batch.target.device)
        if losses.ndim != axes or len(losses) != len(batch.target):
            wanted = "(B,)" if axes == 1 else "(B, G)"
            raise ValueError(
                f"selector {selector.name!r} needs irreducible losses of shape {wanted} with B = "
                f"{len(batch.target)}; {type(irreducible).__name__}.lookup gave {tuple(losses.shape)}."
            )
        return {name: losses}
    return {}


@torch.no_grad()
def update_holdout_loss(
    model: nn.Module, holdout: Iterable[Batch], selector: Selector, holdout_loss: GroupHoldoutLoss
) -> None:
    """Evaluate ``model`` on ``holdout`` in eval mode and put the mean loss of every group in force.

    Args:
        model: its modes are left as found.
        holdout: one mini-batch for a moving average (``holdout_loss.decay`` below 1), else the whole holdout set.
        selector: gets the means.
        holdout_loss: the running sums; reset first unless they decay.

    Raises:
        ValueError: if a group has no holdout point (named), or a loss is not finite.
    """
    if holdout_loss.decay == 1:
        holdout_loss.reset()
    with scoring_pass(model, "eval"):
        for batch in holdout:
            logits = _checked_logits(model(batch.input), batch)
            holdout_loss.update(point_cross_entropy(logits, batch.target), batch.group)
    selector.set_group_holdout_loss(holdout_loss.mean())
