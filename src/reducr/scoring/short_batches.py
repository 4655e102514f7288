"""Batches of candidates that are too short to give two examples, on which layers with batch statistics fail."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from reducr._internal.distributed import is_main_rank, num_ranks
from reducr._internal.names import unknown_name
from reducr.batch import PerExampleLoss
from reducr.functional import TokenLoss
from reducr.scoring.scorer import num_selected_of

SHORT_BATCHES = ("skip", "keep", "error")


class ShortBatches:
    """What to do with a batch that gives a single example to train on where full batches give more.

    Args:
        mode: one of ``SHORT_BATCHES``.
        fraction: of the candidates to train on.
        loss: of the loop; with a ``TokenLoss`` all examples of a batch are trained on.
        distributed: of the selection. With ``global`` the batches of all ranks count as one.

    Raises:
        ValueError: for an unknown mode.
    """

    def __init__(self, mode: str, fraction: float, loss: PerExampleLoss | None, distributed: str | None) -> None:
        if mode not in SHORT_BATCHES:
            raise unknown_name("short_batches", mode, SHORT_BATCHES)
        self.mode = mode
        self.fraction = 1.0 if isinstance(loss, TokenLoss) else fraction
        self.is_global = distributed == "global"

    def is_too_short(self, size: int, full_size: int) -> bool:
        """Whether ``size`` candidates give one example, and as many as in a full batch more."""
        gives_one = size > 0 and num_selected_of(self.fraction, size) < 2
        return gives_one and num_selected_of(self.fraction, full_size) >= 2

    def skips(self, sizes: list[list[int]], counts: dict[str, int]) -> bool:
        """Whether to leave out a batch, the same on all ranks; counts it then, and tells once.

        Args:
            sizes: for every rank, of its batch, and of a full batch if that is known, else 0.
            counts: of a ``SelectionLog``; its ``largest_batch``, which loops reset in every epoch, is updated.

        Raises:
            ValueError: for a batch that is too short, if ``short_batches`` is ``error``.
        """
        size, full_size = (sum(of_ranks) if self.is_global else min(of_ranks) for of_ranks in zip(*sizes, strict=True))
        counts["largest_batch"] = max(size, counts["largest_batch"])
        full_size = max(full_size, counts["largest_batch"])
        if self.mode == "keep" or not self.is_too_short(size, full_size):
            return False
        text = (
            f"A batch has {size} candidates where others have {full_size}: fraction={self.fraction:g} of it is one "
            "example, with which layers such as BatchNorm cannot be trained."
        )
        if self.mode == "error":
            raise ValueError(f"{text} Use `drop_last=True`, or `short_batches='skip'` or `'keep'`.")
        if not counts["num_skipped"] and is_main_rank():
            advice = "Use `drop_last=True`, or `short_batches='keep'` to train on it."
            warnings.warn(f"{text} It is skipped, and so are later ones. {advice}", UserWarning, stacklevel=4)
        counts["num_skipped"] += 1
        return True

    def num_skipped(self, sizes: list[int]) -> int:
        """Return how many batches of these sizes are left out, if those of the other ranks have the same."""
        if self.mode != "skip" or not sizes:
            return 0
        num_parts = num_ranks() if self.is_global else 1
        return sum(self.is_too_short(num_parts * size, num_parts * max(sizes)) for size in sizes)


def known_sizes(loader: Any, size_of: Callable[[Any], int] | None = None) -> list[int] | None:
    """Return the sizes of the batches of a pass, if they are known without one; else None.

    Args:
        loader: a DataLoader with its usual batch sampler, or a list of batches.
        size_of: number of examples of a batch in a list; None to read no list.
    """
    if isinstance(loader, list | tuple) and size_of is not None:
        return [size_of(batch) for batch in loader]
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        return None
    batches: Any = loader.batch_sampler
    if type(batches) is not BatchSampler or not hasattr(batches.sampler, "__len__"):
        return None
    sampler: Any = batches.sampler
    num_full, rest = divmod(len(sampler), batches.batch_size)
    return [batches.batch_size] * num_full + ([rest] if rest and not batches.drop_last else [])
