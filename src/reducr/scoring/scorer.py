"""Score a batch of candidates: the model's losses or outputs, and the irreducible losses that a rule needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import pairwise
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reducr._internal.checks import is_finite_number
from reducr.batch import Batch, Candidates, LazyGroupLoss, PerExampleLoss, model_output
from reducr.functional import zero_one_loss
from reducr.functional.outputs import checked_logits, per_example_losses
from reducr.irreducible.bound import BoundReference
from reducr.scoring.checks import missing_irreducible
from reducr.scoring.faults import scored_output
from reducr.scoring.modes import has_collective_forward, models_in, repeat_without_trace, scoring_pass
from reducr.scoring.options import Scoring
from reducr.scoring.rows import candidate_groups
from reducr.selectors import Selector

_LAZY_ABOVE = 2**20
"""Candidates x groups above which irreducible losses are computed a few rows at a time, if the source can."""
_AS_PUBLISHED = Scoring()


class IrreducibleLookup(Protocol):
    """Anything that gives irreducible losses for a batch."""

    def lookup(self, batch: Batch) -> Tensor:
        """Return the losses (B,) of one reference model, or (B, G) of each group's, in nats."""


def num_selected_of(fraction: float, num_candidates: int) -> int:
    """Return how many of ``num_candidates`` examples a fraction is: rounded down, but at least 1.

    Raises:
        ValueError: if ``fraction`` is outside (0, 1].

    Example:
        >>> num_selected_of(0.1, 320), num_selected_of(0.1, 32), num_selected_of(0.29, 100)
        (32, 3, 29)
    """
    if not (is_finite_number(fraction) and 0 < fraction <= 1):
        is_percent = is_finite_number(fraction) and 1 < fraction <= 100
        raise ValueError(
            f"`fraction` must be in (0, 1], the fraction of the candidates to keep; got {fraction}."
            + (f" For {fraction} percent, pass {fraction / 100}." if is_percent else "")
        )
    # the small term keeps 0.29 * 100 = 28.999999999999996 from losing an example
    return max(1, math.floor(fraction * num_candidates + 1e-9))


@torch.no_grad()
def score_candidates(
    model: nn.Module,
    batch: Batch,
    selector: Selector,
    irreducible: IrreducibleLookup | None = None,
    *,
    loss: PerExampleLoss | None = None,
    scoring: Scoring = _AS_PUBLISHED,
    forward: Callable[..., Any] | None = None,
    sizes: Sequence[int] | None = None,
) -> Candidates:
    """Compute everything that ``selector`` needs to know of ``batch``, without gradients.

    Args:
        model: called with ``batch.input``; returns logits (B, C), or whatever ``loss`` takes. A rule that reads neither
            losses nor logits does not run it. Its modes, and frozen buffers, are left as they were.
        batch: B candidates, on the model's device.
        selector: the rule; read, not changed.
        irreducible: source of irreducible losses, for the rules that need them.
        loss: of (output, target), one value per example (B,); None for the cross-entropy.
        scoring: mode and ``batch_size``; the other options are those of ``forward``.
        forward: called in place of ``model``, which it runs, such as a ``ScoringForward``.
        sizes: number of candidates of every rank. A model whose forward pass is a collective, such as one sharded by
            FSDP, is then called equally often on all ranks. None in one process.

    Raises:
        ValueError: for an output that is not (B, C), a loss that is not (B,), or irreducible losses that are missing or
            of another shape.
    """
    fields = model_fields(model, batch, selector, loss=loss, scoring=scoring, forward=forward, sizes=sizes)
    fields |= known_fields(batch, selector, irreducible, loss=loss, scoring=scoring, sizes=sizes)
    return Candidates(**fields or {"groups": candidate_groups(batch, loss)})


def known_fields(
    batch: Batch,
    selector: Selector,
    irreducible: IrreducibleLookup | None,
    *,
    loss: PerExampleLoss | None = None,
    scoring: Scoring = _AS_PUBLISHED,
    sizes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return the fields of ``Candidates`` that ``selector`` needs and the model does not give."""
    groups = candidate_groups(batch, loss)
    given = {"targets": batch.target, "groups": groups, "index": batch.index}
    if "index" in selector.needs and batch.index is None:
        raise ValueError(
            f"{selector.name!r} keeps state per example, by its index, and these batches have none. Let the data set "
            "yield (index, input, target), or say where the index is with `spec=BatchSpec(index=...)`."
        )
    fields: dict[str, Any] = {name: tensor for name, tensor in given.items() if name in selector.needs}
    chunks, num_candidates = _chunks(batch, scoring.batch_size), len(groups)
    fields |= _irreducible_fields(batch, selector, irreducible, chunks, num_candidates=num_candidates)
    num_missing = _num_missing(chunks, scoring.batch_size, sizes)
    if num_missing and any(has_collective_forward(model, mode="eval") for model in models_in(irreducible)):
        for _ in range(num_missing):
            _repeat_lookup(selector, irreducible, chunks[-1])
    return fields


def model_fields(
    model: nn.Module,
    batch: Batch,
    selector: Selector,
    *,
    loss: PerExampleLoss | None = None,
    scoring: Scoring = _AS_PUBLISHED,
    forward: Callable[..., Any] | None = None,
    sizes: Sequence[int] | None = None,
) -> dict[str, Any]:
    """Return the fields of ``Candidates`` that the model gives; arguments as for ``score_candidates``."""
    called, num_samples = model if forward is None else forward, selector.num_dropout_samples
    chunks = _chunks(batch, scoring.batch_size)
    parts: list[dict[str, Tensor]] = [{} for _ in chunks]
    is_collective = has_collective_forward(model, mode=scoring.mode)
    num_missing = _num_missing(chunks, scoring.batch_size, sizes) if is_collective else 0
    if "model_loss" in selector.needs or ("logits" in selector.needs and not num_samples):
        with scoring_pass(model, scoring.mode), _last_linear_layer(model, selector) as last_layer:
            for part, chunk in zip(parts, chunks, strict=True):
                output = scored_output(called, chunk, scoring, loss)
                if "model_loss" in selector.needs:
                    part["model_loss"] = per_example_losses(output, chunk.target, loss)
                if "logits" in selector.needs:
                    part["logits"] = checked_logits(output, chunk.target.shape[0])
                if last_layer is not None:
                    part["features"] = last_layer.features(part["logits"])
            repeat_without_trace(lambda: model_output(called, chunks[-1].input), model, num_missing)
    if num_samples:
        for part, chunk in zip(parts, chunks, strict=True):
            part["logits"] = dropout_samples(model, chunk.input, num_samples=num_samples, forward=forward)
        sample = partial(dropout_samples, model, chunks[-1].input, num_samples=num_samples, forward=forward)
        repeat_without_trace(sample, model, num_missing)
    if len(parts) == 1:
        return parts[0]
    axes = {"logits": -2}  # (S, B, C) with dropout samples
    return {name: torch.cat([part[name] for part in parts], dim=axes.get(name, 0)) for name in parts[0]}


def _num_chunks(size: int, batch_size: int | None) -> int:
    return 1 if batch_size is None else -(-size // batch_size)


def _chunks(batch: Batch, batch_size: int | None) -> list[Batch]:
    """Split a batch into as few chunks of at most ``batch_size`` examples as there can be, of equal size up to 1."""
    size = batch.target.shape[0]
    num_chunks = _num_chunks(size, batch_size)
    if num_chunks <= 1:
        return [batch]
    bounds = [size * number // num_chunks for number in range(num_chunks + 1)]
    return [batch.take(slice(start, stop)) for start, stop in pairwise(bounds)]


def _num_missing(chunks: Sequence[Batch], batch_size: int | None, sizes: Sequence[int] | None) -> int:
    """How many chunks fewer this rank has than the one with most."""
    return max(_num_chunks(size, batch_size) for size in sizes) - len(chunks) if sizes else 0


class _LastLinearLayer:
    """Records input and output of the linear layers of a model, of which the last must make the logits."""

    def __init__(self, model: nn.Module, selector: Selector) -> None:
        self.selector = selector
        self.last: tuple[Tensor, Tensor] | None = None
        layers = (module for module in model.modules() if isinstance(module, nn.Linear))
        self.handles = [layer.register_forward_hook(self.record) for layer in layers]

    def record(self, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        self.last = inputs[0], output

    def features(self, logits: Tensor) -> Tensor:
        """Return the inputs (B, D) of the layer that made the ``logits``."""
        if self.last is not None:
            features, output = self.last
            if output.shape == logits.shape and torch.equal(output.to(logits.dtype), logits):
                return features
        raise ValueError(
            f"{self.selector.name!r} needs gradients of the last layer, and this model's logits are not the output of "
            "its last nn.Linear, or it is compiled. Let the model end in nn.Linear, score without compiling, or choose "
            "a rule without such gradients."
        )


@contextmanager
def _last_linear_layer(model: nn.Module, selector: Selector) -> Iterator[_LastLinearLayer | None]:
    if "features" not in selector.needs:
        yield None
        return
    last_layer = _LastLinearLayer(model, selector)
    try:
        yield last_layer
    finally:
        for handle in last_layer.handles:
            handle.remove()


def holdout_losses(selector: Selector, output: Any, target: Tensor, loss: PerExampleLoss | None = None) -> Tensor:
    """Return the losses (B,) whose mean per group is the group-holdout loss of ``selector``.

    Arguments and errors as for ``per_example_losses``; a rule with ``holdout_loss = "zero_one"`` takes logits (B, C),
    whatever ``loss`` is.
    """
    if selector.holdout_loss == "zero_one":
        return zero_one_loss(checked_logits(output, len(target)), target)
    return per_example_losses(output, target, loss)


@torch.no_grad()
def dropout_samples(
    model: nn.Module,
    input: Any,  # noqa: A002  (Batch's name)
    *,
    num_samples: int,
    forward: Callable[..., Any] | None = None,
) -> Tensor:
    """Return logits (S, B, C) of MC-dropout: every module in eval mode but the dropout layers.

    Raises:
        ValueError: if the model has no dropout layer, so that all samples would be equal.
    """
    layers = [module for module in model.modules() if isinstance(module, nn.modules.dropout._DropoutNd)]
    if not any(layer.p > 0 for layer in layers):
        raise ValueError(
            "MC-dropout needs a model with dropout layers of p > 0, and this one has none: all samples would be equal. "
            "Add nn.Dropout to the model, or choose a rule without dropout samples, such as 'entropy'."
        )
    with scoring_pass(model, "eval"):
        for layer in layers:
            layer.training = True
        called = model if forward is None else forward
        return torch.stack([model_output(called, input) for _ in range(num_samples)])


def check_model_output(model: nn.Module, batch: Batch, num_classes: int) -> None:
    """See that ``model`` returns logits (B, C) for ``batch`` in eval mode; leaves modes and buffers as they were.

    Raises:
        ValueError: if the output is not a floating tensor (B, C).
    """
    with scoring_pass(model, "eval"), torch.no_grad():
        logits = checked_logits(model_output(model, batch.input), len(batch.target))
    if logits.shape[1] != num_classes:
        raise ValueError(
            f"The model must return one logit for each of the {num_classes} classes; its output has shape "
            f"{tuple(logits.shape)} for {len(batch.target)} examples. Set the size of its last layer to {num_classes}."
        )


def _irreducible_fields(
    batch: Batch,
    selector: Selector,
    irreducible: IrreducibleLookup | None,
    chunks: Sequence[Batch],
    *,
    num_candidates: int,
) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for name, axes in (("irreducible_loss", 1), ("group_irreducible_loss", 2)):
        if name not in selector.needs:
            continue
        if irreducible is None:
            raise missing_irreducible(selector)
        source: Any = irreducible.view(name) if isinstance(irreducible, BoundReference) else irreducible
        if axes == 2 and num_candidates * selector.num_groups > _LAZY_ABOVE and hasattr(source, "lazy"):
            fields[name] = _lazy_losses(chunks, source)
            continue
        parts = [source.lookup(chunk).to(batch.target.device) for chunk in chunks]
        losses = parts[0] if len(parts) == 1 else torch.cat(parts)
        if losses.ndim != axes or losses.shape[0] != num_candidates:
            shape = "(B,)" if axes == 1 else "(B, G)"
            raise ValueError(
                f"{selector.name!r} needs irreducible losses of shape {shape} with B = {num_candidates}; "
                f"{type(irreducible).__name__}.lookup returned {tuple(losses.shape)}."
            )
        fields[name] = losses
    return fields


def _repeat_lookup(selector: Selector, irreducible: Any, chunk: Batch) -> None:
    """Look the losses of ``chunk`` up once more, for the sake of the forward passes that other ranks wait for."""
    for name in ("irreducible_loss", "group_irreducible_loss"):
        if name in selector.needs:
            source = irreducible.view(name) if isinstance(irreducible, BoundReference) else irreducible
            source.lookup(chunk)


def _lazy_losses(chunks: Sequence[Batch], irreducible: Any) -> LazyGroupLoss:
    parts = [irreducible.lazy(chunk) for chunk in chunks]
    losses: LazyGroupLoss = parts[0] if len(parts) == 1 else type(parts[0]).concatenated(parts)
    return losses
