"""Errors for faults of a model or a loop, where torch's own message would not help or there would be none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from reducr.batch import Batch, PerExampleLoss, model_output
from reducr.functional.outputs import check_output
from reducr.scoring.options import Scoring

_TOO_FEW = "Expected more than 1 value per channel"


def scored_output(called: Callable[..., Any], batch: Batch, scoring: Scoring, loss: PerExampleLoss | None) -> Any:
    """Return the output of a model for a chunk of candidates.

    Raises:
        ValueError: for a batch norm that gets a single example, or an output that needs ``loss``.
    """
    try:
        output = model_output(called, batch.input)
    except ValueError as error:
        if _TOO_FEW not in str(error):
            raise
        size = batch.target.shape[0]
        raise ValueError(
            f"The model has layers with batch statistics, which cannot score {size} example in mode {scoring.mode!r} "
            f"({error}). Use `scoring=reducr.Scoring(mode='eval')`, or at least 2 candidates in a batch and in the "
            f"`batch_size` of the scoring pass; got batch_size={scoring.batch_size}."
        ) from error
    check_output(output, batch.target, loss)
    return output


def unread_example_weights(rule: str) -> RuntimeError:
    """Return the error for a loop that trained without the weights of a rule."""
    return RuntimeError(
        f"{rule!r} weights the loss of each example, and this loop did not read `example_weights`. Multiply the losses "
        "with them before the mean."
    )


def unread_loss_weight(mode: str | None) -> RuntimeError:
    """Return the error for a loop on several ranks that trained without the weight of its own."""
    return RuntimeError(
        f"With distributed={mode!r} the ranks have different numbers of selected examples, and this loop did not read "
        "`loss_weight`, without which the mean over the ranks is not the mean over the examples. Call "
        "`(loss * loader.loss_weight).backward()`."
    )
