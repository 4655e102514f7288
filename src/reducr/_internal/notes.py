"""Notes on errors that a user's model or loss raises: with what it was called."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

_FAULTS = (
    TypeError,
    ValueError,
    RuntimeError,
    LookupError,
    AttributeError,
    AssertionError,
    NotImplementedError,
)


@contextmanager
def noting(describe: Callable[[], str]) -> Iterator[None]:
    """Add the note that ``describe`` returns to an error of the block, unless memory has run out."""
    try:
        yield
    except _FAULTS as error:
        if not isinstance(error, torch.cuda.OutOfMemoryError):
            error.add_note(describe())
        raise


def describe_value(value: Any) -> str:
    """Return the kind of a value: dtype and shape of a tensor, and what a container holds.

    Example:
        >>> describe_value((torch.zeros(2, 3), {"mask": None}, ["a", "b"]))
        'a tuple of torch.float32 (2, 3), a dict of mask: NoneType, a list of 2'
    """
    if isinstance(value, Tensor):
        return f"{value.dtype} {tuple(value.shape)}"
    kind = type(value).__name__
    if isinstance(value, Mapping):
        return f"a {kind} of " + ", ".join(f"{key}: {describe_value(entry)}" for key, entry in value.items())
    if isinstance(value, tuple):
        return f"a {kind} of " + ", ".join(map(describe_value, value[:4])) + ", ..." * (len(value) > 4)
    return f"a {kind} of {len(value)}" if isinstance(value, list) else kind
