"""How a model is called with the input of a batch, and what counts as its output."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

PerExampleLoss = Callable[[Any, Any], Tensor]
"""A loss of (output, target) that keeps one value for each point, (B,)."""


def model_output(model: Callable[..., Any], input: Any) -> Any:  # noqa: A002  (the field's name in Batch)
    """What ``model`` gives for the ``input`` of a batch.

    A dict is given by name, ``model(**input)``, a tuple or list in order, ``model(*input)``, anything else as it is.
    Of an output with ``logits``, such as those of transformers, these are taken.

    Example:
        >>> model_output(lambda ids, mask: {"logits": ids * mask, "loss": None}, {"ids": 2, "mask": 3})
        6
    """
    if isinstance(input, Mapping):
        output = model(**input)
    elif isinstance(input, tuple | list):
        output = model(*input)
    else:
        output = model(input)
    return logits_of(output)


def logits_of(output: Any) -> Any:
    """The ``logits`` of what a model gave, if it has any; else all of it."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return getattr(output, "logits", output)
