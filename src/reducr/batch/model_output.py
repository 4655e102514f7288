"""Call a model with the input of a batch, and read its logits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor

from reducr._internal.notes import describe_value, noting

PerExampleLoss = Callable[[Any, Any], Tensor]
"""A function of (output, target) that returns one loss per example, (B,)."""


def model_output(model: Callable[..., Any], input: Any) -> Any:  # noqa: A002  (the field's name in Batch)
    """Call ``model`` with the ``input`` of a batch and return its output, or the output's ``logits`` if it has any.

    A dict is passed by name, ``model(**input)``, a tuple or list in order, ``model(*input)``, anything else as the only
    argument. Outputs with ``logits`` are those of the transformers library, for instance. An error of the model gets a
    note that says with what it was called.

    Example:
        >>> model_output(lambda ids, mask: {"logits": ids * mask, "loss": None}, {"ids": 2, "mask": 3})
        6
    """
    if isinstance(input, Mapping):
        output = _called_by_name(model, input)
    else:
        arguments = tuple(input) if isinstance(input, tuple | list) else (input,)
        with noting(lambda: _note(arguments if len(arguments) > 1 else arguments[0])):
            output = model(*arguments)
    return logits_of(output)


def _called_by_name(model: Callable[..., Any], named: Mapping[str, Any]) -> Any:
    try:
        with noting(lambda: _note(named)):
            return model(**named)
    except TypeError as error:
        text = str(error)
        if "unexpected keyword argument" not in text and "required positional argument" not in text:
            raise
        raise ValueError(
            f"The model was called by name with the entries of the batch that are not its target: {', '.join(named)}. "
            f"It does not take them so ({text}). Name the entry that is its input with `spec=reducr.BatchSpec("
            "input=..., target=...)`. If it takes the whole dict, wrap it; with SelectiveTraining, pass `model=lambda "
            "module, **batch: module(batch)`."
        ) from error


def _note(given: Any) -> str:
    return (
        f"reducr called the model with the input that it found in the batch, {describe_value(given)}. If the model "
        "takes something else, say where it is with `spec=reducr.BatchSpec(input=..., target=...)`."
    )


def logits_of(output: Any) -> Any:
    """Return the ``logits`` of a model's output if it has any, else the output itself."""
    if isinstance(output, Mapping):
        return output.get("logits", output)
    return getattr(output, "logits", output)
