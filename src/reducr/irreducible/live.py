"""Reference models evaluated on each batch: for streams without an index and for augmented examples."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from reducr.batch import Batch
from reducr.batch.model_output import model_output
from reducr.functional import per_example_cross_entropy


class LiveLogits:
    """Logits of one reference model (the paper's irreducible model), in eval mode and without gradients.

    The model is put into eval mode, stays there, and is moved to the device of each batch.

    Args:
        model: called with ``batch.input``; returns (B, C) logits, or (B, C * G) logits of a joint model.
        num_joint_groups: G if the model predicts (target, group) pairs, target-major; None if it predicts targets.
        is_frozen: disable gradients of the model's parameters. Set to False for a model that keeps learning.
    """

    def __init__(self, model: nn.Module, *, num_joint_groups: int | None = None, is_frozen: bool = True) -> None:
        self.model = model.eval()
        if is_frozen:
            self.model.requires_grad_(False)
        self.num_joint_groups = num_joint_groups

    @torch.no_grad()
    def logits(self, batch: Batch) -> Tensor:
        """Logits of shape (B, C), or (B, C, G) for a joint model."""
        follow_batch(self.model, batch)
        logits: Tensor = model_output(self.model, batch.input)
        return logits if self.num_joint_groups is None else joint_logits(logits, self.num_joint_groups)


class GroupIrreducibleLoss:
    """Losses of one trained reference model per group: column c is the loss of model c.

    Args:
        models: G models that return (B, C) logits, each trained with the weighting of its group. None for a group
            whose column is not needed (weight zero in ``fixed_weights``); that column is NaN.
        num_joint_groups: as for ``LiveLogits``, for every model.
        is_frozen: as for ``LiveLogits``.

    Raises:
        ValueError: if every model is None.
    """

    def __init__(
        self, models: Sequence[nn.Module | None], *, num_joint_groups: int | None = None, is_frozen: bool = True
    ) -> None:
        if all(model is None for model in models):
            raise ValueError("GroupIrreducibleLoss needs at least one model; got only None.")
        self.sources = [
            None if model is None else LiveLogits(model, num_joint_groups=num_joint_groups, is_frozen=is_frozen)
            for model in models
        ]

    def lookup(self, batch: Batch) -> Tensor:
        """(B, G) nats."""
        columns = [
            None if source is None else per_example_cross_entropy(target_logits(source.logits(batch)), batch.target)
            for source in self.sources
        ]
        absent = torch.full_like(next(column for column in columns if column is not None), torch.nan)
        return torch.stack([absent if column is None else column for column in columns], dim=1)


class HeadIrreducibleLoss:
    """Losses of the heads of one model (``MultiHead`` or ``Ensemble``): column c is the loss of the head of group c.

    Args:
        model: returns (B, H, C) logits, or (B, H, C * J) logits over (target, group) pairs; put into eval mode.
        groups: for each of the H heads, the group whose weighting it was trained with.
        num_groups: G; the column of a group without a head is NaN.
        num_joint_groups: J if heads predict (target, group) pairs, target-major; None if they predict targets.
        is_frozen: as for ``LiveLogits``.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        groups: Sequence[int],
        num_groups: int,
        num_joint_groups: int | None = None,
        is_frozen: bool = True,
    ) -> None:
        self.model = model.eval()
        if is_frozen:
            self.model.requires_grad_(False)
        self.groups = torch.tensor(list(groups))
        self.num_groups = num_groups
        self.num_joint_groups = num_joint_groups

    @torch.no_grad()
    def lookup(self, batch: Batch) -> Tensor:
        """(B, G) nats."""
        follow_batch(self.model, batch)
        logits: Tensor = model_output(self.model, batch.input)
        size, num_heads = logits.shape[:2]
        logits = logits.reshape(size * num_heads, -1)
        if self.num_joint_groups is not None:
            logits = target_logits(logits.reshape(len(logits), -1, self.num_joint_groups))
        losses = per_example_cross_entropy(logits, batch.target.repeat_interleave(num_heads)).reshape(size, num_heads)
        columns = losses.new_full((size, self.num_groups), torch.nan)
        columns[:, self.groups.to(losses.device)] = losses
        return columns


def joint_logits(logits: Tensor, num_joint_groups: int) -> Tensor:
    """(B, C, G) logits of (target, group) pairs from the (B, C * G) logits of a joint model, target-major.

    Raises:
        ValueError: unless the number of logits is a multiple of G.
    """
    if logits.ndim != 2 or logits.shape[1] % num_joint_groups:
        raise ValueError(
            f"A joint reference model must return one logit for each (target, group) pair, (B, C * {num_joint_groups}) "
            f"for num_joint_groups={num_joint_groups}; got {tuple(logits.shape)}. Set the size of its last layer to "
            "the number of classes times groups, and train it on targets * num_joint_groups + groups."
        )
    return logits.reshape(len(logits), -1, num_joint_groups)


def target_logits(logits: Tensor) -> Tensor:
    """(B, C) logits of the targets: (B, C, G) joint logits summed over groups by logsumexp; (B, C) logits unchanged."""
    return logits if logits.ndim == 2 else logits.logsumexp(dim=2)


def follow_batch(model: nn.Module, batch: Batch) -> None:
    """Move ``model`` to the device of ``batch``."""
    parameter = next(model.parameters(), None)
    if parameter is not None and parameter.device != batch.target.device:
        model.to(batch.target.device)
