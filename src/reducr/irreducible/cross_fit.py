"""Cross-fitting: reference models that are applied only to examples that they were not trained on."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reducr.batch import Batch


class CrossFitReference:
    """Losses or logits of every example from the model that was not trained on it.

    It needs no holdout set.

    Args:
        first: source of the model trained on the first half; has ``lookup(batch)``, ``logits(batch)`` or both.
        second: source of the model trained on the second half.
        is_in_first: (N,) bool, whether each training example is in the first half.

    Source: Mindermann et al. 2022 (arXiv 2206.07137), "irreducible losses without holdout data".
    """

    def __init__(self, first: Any, second: Any, *, is_in_first: Tensor) -> None:
        self.first = first
        self.second = second
        self.is_in_first = is_in_first

    def lookup(self, batch: Batch) -> Tensor:
        """(B,) or (B, G) nats."""
        return self._call_unseen(batch, "lookup")

    def logits(self, batch: Batch) -> Tensor:
        """Logits of shape (B, C), or (B, C, G) for joint models."""
        return self._call_unseen(batch, "logits")

    def _call_unseen(self, batch: Batch, method: str) -> Tensor:
        """Call ``method`` of each source on the examples that its model has not seen, and restore their order."""
        is_in_first = self.is_in_first.to(batch.index.device)[batch.index]
        positions_by_half = [torch.nonzero(half).flatten() for half in (is_in_first, ~is_in_first)]
        values = [
            getattr(source, method)(batch.take(positions))
            for source, positions in zip((self.second, self.first), positions_by_half, strict=True)
            if len(positions)
        ]
        return torch.cat(values)[torch.cat(positions_by_half).argsort()]


def stratified_folds(num_examples: int, num_folds: int, *, labels: Tensor | None, generator: torch.Generator) -> Tensor:
    """Draw the fold of each example, so that every fold has its share of each label.

    Args:
        num_examples: N.
        num_folds: K.
        labels: (N,) integers, such as targets; None for none.
        generator: of the draw.

    Returns:
        (N,) int64 in [0, K). The sizes of two folds differ by one at most, and so do their counts of each label.

    Example:
        >>> labels = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> folds = stratified_folds(6, 2, labels=labels, generator=torch.Generator().manual_seed(0))
        >>> torch.bincount(folds).tolist(), torch.bincount(folds[labels == 1]).tolist()
        ([3, 3], [1, 1])
    """
    order = torch.randperm(num_examples, generator=generator)
    if labels is not None:
        order = order[labels[order].argsort(stable=True)]
    folds = torch.empty(num_examples, dtype=torch.int64)
    folds[order] = torch.arange(num_examples) % num_folds
    return folds
