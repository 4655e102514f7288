"""Two irreducible models, each trained on one half of the training points and asked about the other."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from reducr.batch import Batch


class CrossFitReference:
    """Losses or logits of every point from the model that has not been trained on it: no holdout set is needed.

    Args:
        first: what the model trained on the first half gives: anything with ``lookup(batch)``, ``logits(batch)`` or
            both.
        second: the same of the model trained on the second half.
        is_in_first: (N,) bool, which training points are in the first half.

    Source: Mindermann et al. 2022 (arXiv 2206.07137), "irreducible losses without holdout data".
    """

    def __init__(self, first: Any, second: Any, *, is_in_first: Tensor) -> None:
        self.first = first
        self.second = second
        self.is_in_first = is_in_first

    def lookup(self, batch: Batch) -> Tensor:
        """(B,) or (B, G) nats."""
        return self._merged(batch, "lookup")

    def logits(self, batch: Batch) -> Tensor:
        """(B, C), or (B, C, G) for joint models."""
        return self._merged(batch, "logits")

    def _merged(self, batch: Batch, method: str) -> Tensor:
        is_in_first = self.is_in_first.to(batch.index.device)[batch.index]
        positions = [torch.nonzero(part).flatten() for part in (is_in_first, ~is_in_first)]
        values = [
            getattr(source, method)(batch.take(where))
            for source, where in zip((self.second, self.first), positions, strict=True)
            if len(where)
        ]
        return torch.cat(values)[torch.cat(positions).argsort()]
