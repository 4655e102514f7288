"""Cross-fitting: two reference models, each trained on one half of the training set and applied to the other."""

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
