"""Losses of each example from whatever a model returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from reducr._internal.notes import describe_value, noting
from reducr.batch import PerExampleLoss
from reducr.functional.losses import per_example_cross_entropy, selection_dtype
from reducr.functional.separate import warn_of_shared_losses
from reducr.functional.sequences import num_rows


def checked_logits(output: Any, size: int, *, owner: str = "The model") -> Tensor:
    """Return the ``output`` of a model if it is floating logits (B, C) with B = ``size``; else raise ValueError."""
    if not isinstance(output, Tensor):
        raise ValueError(  # noqa: TRY004  (a fault of the model's author, like a wrong shape)
            f"{owner} must return a tensor of logits (B, C), or an output with `logits`; got "
            f"{type(output).__name__}. Wrap it, or pass `loss=`, a function that takes what the model returns."
        )
    if output.ndim == 0:
        raise ValueError(
            f"{owner} returns one number, which looks like a loss. Examples are scored by their own losses, so it "
            f"must return logits (B, C) with B = {size}: compute the loss in the loop, or wrap the model."
        )
    if output.ndim != 2 or output.shape[0] != size or not output.is_floating_point():
        raise ValueError(
            f"{owner} must return floating-point logits of shape (B, C) with B = {size}; got {output.dtype} "
            f"{tuple(output.shape)}."
        )
    return output


def check_output(output: Any, target: Tensor, loss: PerExampleLoss | None, *, owner: str = "The model") -> None:
    """See that the cross-entropy of (B, C) logits is the loss of this output, if there is no ``loss``.

    Raises:
        ValueError: for one logit per example, or logits with more axes, as of language models and of segmentation.
    """
    size = target.shape[0]
    if loss is not None or not isinstance(output, Tensor) or not output.ndim or output.shape[0] != size:
        return
    shape = tuple(output.shape)
    expected = f"{owner} must return floating-point logits of shape (B, C) with B = {size}; got {output.dtype} {shape}."
    if output.ndim == 1 or (output.ndim == 2 and shape[1] == 1):
        squeezed = "output.squeeze(1)" if output.ndim == 2 else "output"
        raise ValueError(
            f"{expected} With one logit per example, for binary targets, pass `loss=lambda output, target: "
            f"torch.nn.functional.binary_cross_entropy_with_logits({squeezed}, target.float(), reduction='none')`; for "
            f"a regression `loss=lambda output, target: ({squeezed} - target).square()`."
        )
    if output.ndim > 2:
        raise ValueError(
            f"{expected} For tokens or pixels pass `loss=`, a function of (output, target) that returns the mean loss "
            "of each example, (B,): `reducr.functional.sequence_loss` for a language model, over the tokens whose "
            "label is not -100, or `pixel_loss`."
        )


def per_example_losses(
    output: Any, target: Tensor, loss: PerExampleLoss | None = None, *, owner: str = "The model"
) -> Tensor:
    """Return the loss of each example (B,), in float32 or better; of each labelled token (N,) with a ``TokenLoss``.

    Args:
        output: of the model; logits (B, C) for the cross-entropy.
        target: (B,) integers, or whatever ``loss`` takes, with one row per example.
        loss: of (output, target); None for the cross-entropy.
        owner: what returned the output, for messages.

    Raises:
        ValueError: if the output is not a floating tensor (B, C), or ``loss`` does not return B floating values.
    """
    size = num_rows(target, loss)
    if loss is None:
        if isinstance(output, Tensor) and output.ndim > 2:
            check_output(output, target, loss, owner=owner)
        logits = checked_logits(output, size, owner=owner)
        if target.ndim != 1 or target.is_floating_point() or target.is_complex():
            raise ValueError(
                f"The cross-entropy needs targets (B,), one integer per example; got {target.dtype} "
                f"{tuple(target.shape)}. For other targets pass `loss=`, a function of (output, target) that returns "
                "one value per example."
            )
        return per_example_cross_entropy(logits, target)
    with noting(lambda: _note(output, target)):
        losses = loss(output, target)
    if not isinstance(losses, Tensor) or losses.shape != (size,) or not losses.is_floating_point():
        kind = f"{losses.dtype} {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        advice = ""
        if isinstance(losses, Tensor) and losses.ndim == 0:
            advice = " One value for all examples is their mean or sum: use reduction='none'."
        elif isinstance(losses, Tensor) and losses.shape == (size, size) and _shape(output) != _shape(target):
            advice = (
                f" The output {describe_value(output)} and the target {describe_value(target)} were broadcast: give "
                "them the same shape, for instance with `target.view_as(output)`."
            )
        elif isinstance(losses, Tensor) and losses.ndim > 1 and len(losses) == size:
            advice = " Average it over all axes but the first."
        raise ValueError(
            f"`loss(output, target)` must return one floating-point value per example, shape ({size},); got {kind}."
            f"{advice}"
        )
    warn_of_shared_losses(loss, output, target, losses)
    return losses.to(selection_dtype(losses))


def _shape(value: Any) -> Any:
    return getattr(value, "shape", None)


def _note(output: Any, target: Any) -> str:
    return (
        f"reducr called `loss(output, target)` with the output {describe_value(output)} and the target "
        f"{describe_value(target)} of all examples of a batch. It must return one value per example."
    )
