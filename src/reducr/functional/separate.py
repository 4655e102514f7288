"""See that the loss of an example depends on that example alone."""

from __future__ import annotations

import warnings
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor

from reducr._internal.notes import describe_value
from reducr._internal.rng import same_random_state
from reducr.batch import PerExampleLoss
from reducr.batch.nested import index_batch
from reducr.functional.sequences import TokenLoss

_CHECKED: WeakSet[Any] = WeakSet()


def warn_of_shared_losses(loss: PerExampleLoss, output: Any, target: Tensor, losses: Tensor) -> None:
    """Warn, once for each ``loss``, if half of a batch has other losses by itself than in the batch.

    An output (B, 1) and a target (B,) are broadcast to (B, B), whose mean over an axis has the right shape and says
    nothing of an example. The batch is not scored again, and no random number is drawn.

    Args:
        loss: of (output, target).
        output: of the model, for B examples.
        target: with one row per example.
        losses: (B,), what ``loss`` has returned for them.
    """
    size = len(losses)
    try:
        if size < 2 or isinstance(loss, TokenLoss) or loss in _CHECKED:
            return
        _CHECKED.add(loss)
    except TypeError:  # it has no hash, or cannot be referred to weakly
        return
    half = slice(0, size // 2)
    try:
        with torch.no_grad(), same_random_state():
            part = loss(index_batch(output, half, num_examples=size), target[half])
            is_same = torch.allclose(part.float(), losses[half].detach().float(), rtol=1e-2, atol=1e-4, equal_nan=True)
    except Exception:  # a loss that cannot be tried on a part of its batch is not judged
        return
    if not is_same:
        warnings.warn(
            "`loss(output, target)` gives examples another value when the others of their batch are left out; it was "
            f"called with the output {describe_value(output)} and the target {describe_value(target)}. Give both the "
            "same shape, if they were broadcast. A loss that compares examples, or is divided by a sum over the batch, "
            "ranks them by what else is in it.",
            RuntimeWarning,
            stacklevel=3,
        )
