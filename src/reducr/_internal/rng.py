"""Global random states as plain values that a checkpoint can hold."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


def random_state() -> dict[str, Any]:
    """The global random states of torch (CPU, and all CUDA devices once CUDA is in use), numpy and Python."""
    name, keys, position, has_gauss, cached = np.random.get_state()  # noqa: NPY002  (data sets may draw from it)
    has_cuda = torch.cuda.is_available() and torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if has_cuda else [],
        "numpy": [str(name), torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": random.getstate(),
    }


@contextmanager
def seeded_python(seed: int) -> Iterator[None]:
    """Seed the global generators of Python and numpy inside the block, and restore them afterwards.

    Those of torch are left alone.

    Args:
        seed: in [0, 2^32).
    """
    python, arrays = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(python)
        np.random.set_state(arrays)  # noqa: NPY002


def set_random_state(state: dict[str, Any]) -> None:
    """Restore the states that ``random_state`` returned. States of missing CUDA devices are skipped."""
    torch.set_rng_state(state["torch"].cpu())
    for device, cuda_state in enumerate(state["cuda"]):
        if device < torch.cuda.device_count():
            torch.cuda.set_rng_state(cuda_state.cpu(), device)
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


@contextmanager
def same_random_state() -> Iterator[None]:
    """Restore the global random states after the block."""
    state = random_state()
    try:
        yield
    finally:
        set_random_state(state)
