"""Irreducible models evaluated on the batch itself: for streams without an index, and for augmented points."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reducr.batch import Batch
from reducr.functional import point_cross_entropy


class LiveLogits:
    """Logits of one irreducible model, evaluated in eval mode without gradients.

    The model is put into eval mode and its parameters are frozen when this is made; it follows the batches to their
    device.

    Args:
        model: called with ``batch.input``; gives (B, C), or (B, C * G) outcomes of a joint model.
        num_joint_groups: G where the model predicts (target, group) outcomes, target-major; None where it predicts
            targets.
    """

    def __init__(self, model: nn.Module, *, num_joint_groups: int | None = None) -> None:
        self.model = model.eval().requires_grad_(False)
        self.num_joint_groups = num_joint_groups

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """(B, C), or (B, C, G) for a joint model."""
        parameter = next(self.model.parameters(), None)
        if parameter is not None and parameter.device != batch.input.device:
            self.model.to(batch.input.device)
        logits: Tensor = self.model(batch.input)
        if self.num_joint_groups is None:
            return logits
        return logits.reshape(len(logits), -1, self.num_joint_groups)


class GroupIrreducibleLoss:
    """Losses of one trained model per group, evaluated on the batch: column c is the loss of model c.

    Args:
        models: G models that give (B, C) logits, each trained with the weighting of its group; None for a group
            whose column is not needed (weight zero in ``fixed_weights``), which is then NaN.

    Raises:
        ValueError: if every model is None.
    """

    def __init__(self, models: Sequence[nn.Module | None]) -> None:
        if all(model is None for model in models):
            raise ValueError("GroupIrreducibleLoss needs at least one model; got none.")
        self.sources = [None if model is None else LiveLogits(model) for model in models]

    def lookup(self, batch: Batch) -> Tensor:
        """(B, G) nats."""
        columns = [
            None if source is None else point_cross_entropy(source.logits(batch), batch.target)
            for source in self.sources
        ]
        absent = torch.full_like(next(column for column in columns if column is not None), torch.nan)
        return torch.stack([absent if column is None else column for column in columns], dim=1)
