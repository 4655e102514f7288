"""Independent streams of randomness from one seed."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def mixed_seed(*words: int) -> int:
    """A 32-bit seed mixed from integers >= 0. Changing any of the ``words`` gives an unrelated seed.

    The CPU generator of torch reads only the low 32 bits of a seed, so words combined by shifting would be lost.

    Example:
        >>> mixed_seed(0, 1) == mixed_seed(1, 0)
        False
    """
    return int(np.random.SeedSequence(words).generate_state(1)[0])


def epoch_order(num_examples: int, *, seed: int, epoch: int) -> Tensor:
    """A random order (N,) int64 of ``num_examples``, which depends on ``seed`` and ``epoch`` only."""
    generator = torch.Generator().manual_seed(mixed_seed(seed, epoch))
    return torch.randperm(num_examples, generator=generator)
