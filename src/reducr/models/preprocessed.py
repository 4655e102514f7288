"""A model with its preprocessing."""

from __future__ import annotations

from torch import Tensor, nn


class Preprocessed(nn.Module):
    """``model(preprocess(input))``, so that a checkpoint accepts inputs as the data set yields them.

    Args:
        preprocess: module without parameters, such as ``data.core.transforms.Preprocess``.
        model: returns (B, C) logits.
    """

    def __init__(self, preprocess: nn.Module, model: nn.Module) -> None:
        super().__init__()
        self.preprocess = preprocess
        self.model = model

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        """(B, C) logits."""
        logits: Tensor = self.model(self.preprocess(input))
        return logits
