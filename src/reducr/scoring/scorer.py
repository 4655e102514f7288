"""One selection step: a model, a batch, a selector and irreducible losses meet here and nowhere else."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reducr._internal.checks import is_finite_number
from reducr._internal.names import unknown_name
from reducr.batch import Batch, Candidates, Selection
from reducr.batch.model_output import PerExampleLoss, model_output
from reducr.batch.nested import zero_inputs
from reducr.functional import per_example_cross_entropy, selection_dtype, zero_one_loss
from reducr.scoring.budget import ScoringBudget, check_budget
from reducr.scoring.holdout import GroupHoldoutLoss
from reducr.selectors import Selector
from reducr.selectors.distributed import select_distributed

SCORING_MODES = ("train", "eval", "train_frozen_statistics")
_AUTOCAST_DEVICES = ("cuda", "cpu")
_LAZY_ABOVE = 2**20
"""Candidates x groups above which irreducible losses are computed some rows at a time, where that can be."""


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
    if not (is_finite_number(fraction) and 0 < fraction <= 1):
        raise ValueError(
            f"fraction must be in (0, 1], the share of the candidates to keep; got {fraction}."
            + (
                f" For {fraction} percent give {fraction / 100}."
                if is_finite_number(fraction) and 1 < fraction <= 100
                else ""
            )
        )
    # the small term keeps 0.29 * 100 = 28.999999999999996 from losing a point
    return max(1, math.floor(fraction * num_candidates + 1e-9))


def pick(
    model: nn.Module,
    batch: Batch,
    selector: Selector,
    irreducible: IrreducibleLookup | None = None,
    *,
    num_selected: int | Callable[[int], int],
    loss: PerExampleLoss | None = None,
    scoring_mode: str = "train",
    forward: Callable[..., Any] | None = None,
    budget: ScoringBudget | None = None,
    generator: torch.Generator | None = None,
    distributed: str | None = None,
) -> tuple[Batch, Selection]:
    """Score a large batch without gradients and keep its best points.

    Args:
        model: called with ``batch.input`` (see ``forward.model_output``); gives (B, C) logits, or whatever ``loss``
            takes. A rule that reads no loss or logits does not run it.
        batch: B candidates, on the model's device.
        selector: the rule; read, not changed. Call ``selector.update(selection)`` after the gradient step.
        irreducible: losses for the rules that need them.
        num_selected: b in [1, B]; or a function of B, the number of candidates that are chosen from.
        loss: of (output, target), one value for each point (B,); None for the cross-entropy.
        scoring_mode: how the model is run: ``train`` (as published: batch statistics, running statistics see the
            unselected points too, dropout is on), ``eval``, or ``train_frozen_statistics`` (as ``train``, but every
            buffer is left as found). A model in train mode is scored as it is, so layers that its owner keeps in
            eval mode stay there. Every module's mode is left as found.
        forward: what is called in the place of ``model`` and runs it, such as a ``scoring.ScoringForward``.
        budget: scores only a part of the candidates; remembers their losses. Those that were not scored have NaN in
            ``selection.scores``.
        generator: source of randomness for rules and samplers that draw; dropout in the model draws from torch's
            global one, as in training.
        distributed: ``global`` or ``local`` on several ranks; see docs/loops.md.

    Returns:
        The selected batch of b points, and the selection. On several ranks this rank's part of it, whose mean loss is
        to be multiplied with ``selection.loss_weight``.

    Raises:
        ValueError: for an output that is not (B, C), a loss that is not (B,), irreducible losses of the wrong shape or
            missing, an unknown ``scoring_mode``, and whatever ``selector.select`` refuses.
    """
    if budget is not None:
        budget.reserve(batch.index)
    selection = choose(
        model,
        batch,
        selector,
        irreducible,
        num_selected=num_selected,
        loss=loss,
        scoring_mode=scoring_mode,
        forward=forward,
        budget=budget,
        generator=generator,
        distributed=distributed,
    )
    selected = batch.take(selection.positions)
    if selection.has_nonfinite_loss:
        selected = selected._replace(input=zero_inputs(selected.input))
    return selected, selection


def choose(
    model: nn.Module,
    batch: Batch,
    selector: Selector,
    irreducible: IrreducibleLookup | None = None,
    *,
    num_selected: int | Callable[[int], int],
    loss: PerExampleLoss | None = None,
    scoring_mode: str = "train",
    forward: Callable[..., Any] | None = None,
    budget: ScoringBudget | None = None,
    generator: torch.Generator | None = None,
    distributed: str | None = None,
) -> Selection:
    """The selection that ``pick`` makes, for callers who take its points themselves; arguments as there.

    A ``budget`` must have room for the points: see ``ScoringBudget.reserve``.
    """
    scoring: dict[str, Any] = {"loss": loss, "scoring_mode": scoring_mode, "forward": forward}
    if budget is not None:
        check_budget(budget, selector, fraction=0.0, distributed=distributed)
        number = num_selected(batch.target.shape[0]) if callable(num_selected) else num_selected
        return _chosen_within(
            budget, model, batch, selector, irreducible, num_selected=number, generator=generator, **scoring
        )
    candidates = score_candidates(model, batch, selector, irreducible, **scoring)
    return select_distributed(selector, candidates, num_selected=num_selected, generator=generator, mode=distributed)


@torch.no_grad()
def _chosen_within(
    budget: ScoringBudget,
    model: nn.Module,
    batch: Batch,
    selector: Selector,
    irreducible: IrreducibleLookup | None,
    *,
    num_selected: int,
    generator: torch.Generator | None,
    **scoring: Any,
) -> Selection:
    """The best of the candidates that ``budget`` says are to be scored, whose losses it then remembers."""
    known = Candidates(**_known_fields(batch, selector, irreducible) or {"groups": batch.group})
    positions = budget.positions(batch.index, known, selector, num_selected=num_selected, generator=generator)
    part = batch.take(positions)
    model_loss = _model_fields(model, part, selector, **scoring)["model_loss"]
    budget.remember(part.index, model_loss)
    candidates = replace(known.take(positions), model_loss=model_loss)
    selection = selector.select(candidates, num_selected=num_selected, generator=generator)
    scores = selection.scores.new_full(batch.target.shape, torch.nan)
    return replace(
        selection,
        positions=positions.index_select(0, selection.positions),
        scores=scores.index_copy_(0, positions, selection.scores),
    )


@torch.no_grad()
def score_candidates(
    model: nn.Module,
    batch: Batch,
    selector: Selector,
    irreducible: IrreducibleLookup | None,
    *,
    loss: PerExampleLoss | None = None,
    scoring_mode: str = "train",
    forward: Callable[..., Any] | None = None,
) -> Candidates:
    """All that ``selector`` needs to know of ``batch``, computed without gradients; arguments as for ``pick``."""
    fields = _model_fields(model, batch, selector, loss=loss, scoring_mode=scoring_mode, forward=forward)
    fields |= _known_fields(batch, selector, irreducible)
    return Candidates(**fields or {"groups": batch.group})


def _known_fields(batch: Batch, selector: Selector, irreducible: IrreducibleLookup | None) -> dict[str, Any]:
    """What ``selector`` needs to know of ``batch`` that the model is not asked for."""
    given = {"targets": batch.target, "groups": batch.group, "index": batch.index}
    if "index" in selector.needs and batch.index is None:
        raise ValueError(
            f"{selector.name!r} knows points by their index, and these batches have none. Let the data set yield "
            "(index, input, target), or say where the index is with spec=BatchSpec(index=...)."
        )
    fields: dict[str, Any] = {name: tensor for name, tensor in given.items() if name in selector.needs}
    return fields | _irreducible_fields(batch, selector, irreducible)


def _model_fields(
    model: nn.Module,
    batch: Batch,
    selector: Selector,
    *,
    loss: PerExampleLoss | None,
    scoring_mode: str,
    forward: Callable[..., Any] | None,
) -> dict[str, Any]:
    """What it needs to know that the model is asked for."""
    fields: dict[str, Any] = {}
    called, num_samples = model if forward is None else forward, selector.num_dropout_samples
    if "model_loss" in selector.needs or ("logits" in selector.needs and not num_samples):
        with scoring_pass(model, scoring_mode), _linear_layers_seen(model, selector) as seen:
            output = model_output(called, batch.input)
            if "model_loss" in selector.needs:
                fields["model_loss"] = per_example_losses(output, batch.target, loss)
        if "logits" in selector.needs:
            fields["logits"] = _checked_logits(output, batch.target.shape[0])
        if seen is not None:
            fields["features"] = seen.features(fields["logits"])
    if num_samples:
        fields["logits"] = dropout_samples(model, batch.input, num_samples=num_samples, forward=forward)
    return fields


class _LinearLayers:
    """Notes what the linear layers of a model are given, of which the last one is to make the logits."""

    def __init__(self, model: nn.Module, selector: Selector) -> None:
        self.selector = selector
        self.last: tuple[Tensor, Tensor] | None = None
        layers = (module for module in model.modules() if isinstance(module, nn.Linear))
        self.handles = [layer.register_forward_hook(self.note) for layer in layers]

    def note(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.last = inputs[0], output

    def features(self, logits: Tensor) -> Tensor:
        """(B, D) inputs of the layer that made the ``logits``."""
        if self.last is not None:
            features, output = self.last
            if output.shape == logits.shape and torch.equal(output.to(logits.dtype), logits):
                return features
        raise ValueError(
            f"{self.selector.name!r} needs gradients of the last layer, and the logits of this model are not the "
            "output of its last nn.Linear, or it was compiled. Let the model end in nn.Linear, score without "
            "compiling, or choose a rule without such gradients."
        )


@contextmanager
def _linear_layers_seen(model: nn.Module, selector: Selector) -> Iterator[_LinearLayers | None]:
    if "features" not in selector.needs:
        yield None
        return
    seen = _LinearLayers(model, selector)
    try:
        yield seen
    finally:
        for handle in seen.handles:
            handle.remove()


def per_example_losses(output: Any, target: Tensor, loss: PerExampleLoss | None = None) -> Tensor:
    """The loss of each point (B,), in float32 or better.

    Args:
        output: of the model; (B, C) logits for the cross-entropy.
        target: (B,) integers, or whatever ``loss`` takes, with one row for each point.
        loss: of (output, target); None for the cross-entropy.

    Raises:
        ValueError: if the output is no (B, C) floating tensor, or ``loss`` does not give B floating values; a loss that
            has been averaged is told how to be mended.
    """
    size = target.shape[0]
    if loss is None:
        logits = _checked_logits(output, size)
        if target.ndim != 1 or target.is_floating_point() or target.is_complex():
            raise ValueError(
                f"the cross-entropy needs targets (B,) of one integer for each point; got {target.dtype} "
                f"{tuple(target.shape)}. For others give loss=, of (output, target), which keeps one value for each."
            )
        return per_example_cross_entropy(logits, target)
    losses = loss(output, target)
    if not isinstance(losses, Tensor) or losses.shape != (size,) or not losses.is_floating_point():
        found = f"{losses.dtype} {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        mended = ""
        if isinstance(losses, Tensor) and losses.ndim == 0:
            mended = " One value for all points is their mean or sum: give it reduction='none'."
        elif isinstance(losses, Tensor) and losses.ndim > 1 and len(losses) == size:
            mended = " Average it over all axes but the first."
        raise ValueError(
            f"loss(output, target) must give one floating-point value for each of the {size} points, shape ({size},); "
            f"got {found}.{mended}"
        )
    return losses.to(selection_dtype(losses))


def holdout_losses(selector: Selector, output: Any, target: Tensor, loss: PerExampleLoss | None = None) -> Tensor:
    """What the group-holdout loss of ``selector`` is the mean of (B,): its ``holdout_loss``.

    Arguments and errors as for ``per_example_losses``; the zero-one loss takes (B, C) logits, whatever ``loss`` is.
    """
    if selector.holdout_loss == "zero_one":
        return zero_one_loss(_checked_logits(output, len(target)), target)
    return per_example_losses(output, target, loss)


def scoring_pass(model: nn.Module, scoring_mode: str) -> AbstractContextManager[None]:
    """Run ``model`` in a scoring mode, then put the mode of every module, and frozen buffers, back as found.

    In the autocast mode at hand, but without its cache: weights that were cast without gradients must not be what
    training sees afterwards.
    """
    if scoring_mode not in SCORING_MODES:
        raise unknown_name("scoring_mode", scoring_mode, SCORING_MODES)
    changes_nothing = scoring_mode == "train" and model.training
    if changes_nothing and not any(torch.is_autocast_enabled(device_type) for device_type in _AUTOCAST_DEVICES):
        return nullcontext()
    return _scoring_pass(model, scoring_mode)


@contextmanager
def _scoring_pass(model: nn.Module, scoring_mode: str) -> Iterator[None]:
    with _autocast_without_cache():
        if scoring_mode == "train" and model.training:
            yield  # layers that their owner keeps in eval mode stay there
            return
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


@contextmanager
def _autocast_without_cache() -> Iterator[None]:
    with ExitStack() as stack:
        for device_type in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device_type):
                dtype = torch.get_autocast_dtype(device_type)
                stack.enter_context(torch.autocast(device_type, dtype=dtype, cache_enabled=False))
        yield


@torch.no_grad()
def dropout_samples(
    model: nn.Module,
    input: Any,  # noqa: A002  (Batch's name)
    *,
    num_samples: int,
    forward: Callable[..., Any] | None = None,
) -> Tensor:
    """(S, B, C) logits of MC-dropout: everything in eval mode but the dropout layers; arguments as for ``pick``.

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
        called = model if forward is None else forward
        return torch.stack([model_output(called, input) for _ in range(num_samples)])


def check_model_output(model: nn.Module, batch: Batch, num_classes: int) -> None:
    """See that ``model`` gives (B, C) logits for ``batch``, in eval mode; leaves modes and buffers as found.

    Raises:
        ValueError: if the output is not a (B, C) floating tensor.
    """
    with scoring_pass(model, "eval"), torch.no_grad():
        logits = _checked_logits(model_output(model, batch.input), len(batch.target))
    if logits.shape[1] != num_classes:
        raise ValueError(
            f"the model must give one logit for each of the {num_classes} classes; its output has shape "
            f"{tuple(logits.shape)} for {len(batch.target)} points. Set the size of its last layer to {num_classes}."
        )


def _checked_logits(output: Any, size: int) -> Tensor:
    if not isinstance(output, Tensor):
        raise ValueError(  # noqa: TRY004  (a fault of the model's author, like a wrong shape)
            f"the model must return a tensor of logits (B, C), or an output with logits; got {type(output).__name__}. "
            "Wrap it so that it does, or give loss=, which takes what the model returns."
        )
    if output.ndim == 0:
        raise ValueError(
            "the model returns one number, which looks like a loss: points are scored by their own losses, so it must "
            f"return logits (B, C) with B = {size}. Let it leave the loss to the loop, or wrap it so that it does."
        )
    if output.ndim != 2 or output.shape[0] != size or not output.is_floating_point():
        raise ValueError(
            f"the model must return floating-point logits of shape (B, C) with B = {size}; got {output.dtype} "
            f"{tuple(output.shape)}."
        )
    return output


def _irreducible_fields(batch: Batch, selector: Selector, irreducible: IrreducibleLookup | None) -> dict[str, Any]:
    for name, axes in (("irreducible_loss", 1), ("group_irreducible_loss", 2)):
        if name not in selector.needs:
            continue
        if irreducible is None:
            raise ValueError(
                f"selector {selector.name!r} needs irreducible losses; got irreducible=None. Give anything with "
                "lookup(batch), such as reducr.irreducible.AdjustedIrreducibleLoss."
            )
        size = batch.target.shape[0]
        if axes == 2 and size * selector.num_groups > _LAZY_ABOVE and hasattr(irreducible, "lazy"):
            return {name: irreducible.lazy(batch)}
        losses = irreducible.lookup(batch).to(batch.target.device)
        if losses.ndim != axes or losses.shape[0] != size:
            wanted = "(B,)" if axes == 1 else "(B, G)"
            raise ValueError(
                f"selector {selector.name!r} needs irreducible losses of shape {wanted} with B = "
                f"{len(batch.target)}; {type(irreducible).__name__}.lookup gave {tuple(losses.shape)}."
            )
        return {name: losses}
    return {}


@torch.no_grad()
def update_holdout_loss(
    model: nn.Module,
    holdout: Iterable[Batch],
    selector: Selector,
    holdout_loss: GroupHoldoutLoss,
    *,
    loss: PerExampleLoss | None = None,
    sync: bool = False,
) -> None:
    """Evaluate ``model`` on ``holdout`` in eval mode and put the mean loss of every group in force.

    Args:
        model: its modes are left as found.
        holdout: one mini-batch for a moving average (``holdout_loss.decay`` below 1), else the whole holdout set.
        selector: gets the means.
        holdout_loss: the running sums; reset first unless they decay.
        loss: as for ``pick``.
        sync: put the mean over what all ranks were given in force, a part of the holdout set each or the whole.

    Raises:
        ValueError: if a group has no holdout point (named), or a loss is not finite.
    """
    if holdout_loss.decay == 1:
        holdout_loss.reset()
    with scoring_pass(model, "eval"):
        for batch in holdout:
            losses = holdout_losses(selector, model_output(model, batch.input), batch.target, loss)
            holdout_loss.update(losses, batch.group)
    selector.set_group_holdout_loss(holdout_loss.mean(sync=sync))
