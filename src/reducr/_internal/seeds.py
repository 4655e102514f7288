"""Independent streams of randomness from one seed."""

from __future__ import annotations

import numpy as np


def mixed_seed(*words: int) -> int:
    """A 32-bit seed from whole numbers of at least 0; a change of any of the ``words`` gives an unrelated one.

    torch's generator on the CPU reads the low 32 bits of a seed and no more, so seeds put together by shifting would
    lose their upper part.

    Example:
        >>> mixed_seed(0, 1) == mixed_seed(1, 0)
        False
    """
    return int(np.random.SeedSequence(words).generate_state(1)[0])
