"""Independent streams of randomness from one seed."""

from __future__ import annotations

import numpy as np


def mixed_seed(*words: int) -> int:
    """A 32-bit seed mixed from integers >= 0. Changing any of the ``words`` gives an unrelated seed.

    The CPU generator of torch reads only the low 32 bits of a seed, so words combined by shifting would be lost.

    Example:
        >>> mixed_seed(0, 1) == mixed_seed(1, 0)
        False
    """
    return int(np.random.SeedSequence(words).generate_state(1)[0])
