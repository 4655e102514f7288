"""What a loader is made of, and a pass over it that leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from reducr._internal.rng import random_state, set_random_state


def loader_parts(loader: Any) -> list[Any]:
    """The loader and the samplers nested in it, without duplicates."""
    parts = [loader]
    for part in parts:
        for name in ("sampler", "batch_sampler"):
            sampler = getattr(part, name, None)
            if sampler is not None and all(sampler is not known for known in parts):
                parts.append(sampler)
    return parts


@contextmanager
def undisturbed(loader: Any) -> Iterator[None]:
    """Read ``loader`` inside the block; the global random states and those of its generators are put back."""
    generators = (getattr(part, "generator", None) for part in loader_parts(loader))
    states = [(item, item.get_state()) for item in generators if isinstance(item, torch.Generator)]
    before = random_state()
    try:
        yield
    finally:
        set_random_state(before)
        for generator, state in states:
            generator.set_state(state)
