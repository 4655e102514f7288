"""Losses of sequences, tokens and pixels: targets with more than one label per example."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from reducr._internal.checks import check_flag, check_range
from reducr.functional.losses import selection_dtype


def token_loss(logits: Tensor, labels: Tensor, *, ignore_index: int = -100, is_causal: bool = True) -> Tensor:
    """Cross-entropy of each token of each sequence, in float32 or float64; zero where there is no label.

    Formula: ``loss_it = -log p(label_it | tokens before t)``. A causal language model returns the logits for token t at
    place t - 1, and its labels are not shifted, as those of the transformers library. So the first token has no loss.

    Args:
        logits: (B, T, V) outputs of a model, any floating dtype.
        labels: (B, T) integers in [0, V), or ``ignore_index`` for tokens that are not predicted, such as padding.
        ignore_index: the label of these tokens.
        is_causal: whether the logits at place t are for the label at place t + 1; False if they are for the label at
            the same place, as in token classification, masked language models and sequence-to-sequence models.

    Returns:
        (B, T) losses in nats, at the places of the labels; gradients are kept.

    Raises:
        ValueError: unless there is one integer label in range for each place of the logits.

    Example:
        >>> token_loss(torch.zeros(1, 4, 2), torch.tensor([[0, 1, 1, -100]]))
        tensor([[0.0000, 0.6931, 0.6931, 0.0000]])
    """
    _check_labels(logits, labels)
    expected = labels.long()
    if is_causal:
        expected = F.pad(expected[:, 1:], (0, 1), value=ignore_index)
    flat, places = logits.to(selection_dtype(logits)).flatten(0, 1), expected.flatten()
    try:
        losses = F.cross_entropy(flat, places, reduction="none", ignore_index=ignore_index)
    except (IndexError, RuntimeError):
        check_range("labels", places[places != ignore_index], logits.shape[2])
        raise
    losses = losses.view(labels.shape)
    return losses.roll(1, dims=1) if is_causal else losses  # the last place, without a label, becomes the first


def sequence_loss(logits: Tensor, labels: Tensor, *, ignore_index: int = -100, is_causal: bool = True) -> Tensor:
    """Mean cross-entropy of each sequence over its own tokens: the per-example loss of language models and taggers.

    Formula: ``loss_i = sum_t loss_it / n_i`` over the n_i tokens that have a label (see ``token_loss``), and 0 for a
    sequence that has none. Padding changes nothing.

    Args:
        logits: (B, T, V) outputs of a model, any floating dtype.
        labels: (B, T) integers in [0, V), or ``ignore_index``.
        ignore_index: label of the tokens that are not predicted.
        is_causal: see ``token_loss``. Use ``functools.partial(sequence_loss, is_causal=False)`` for sequence tagging.

    Returns:
        (B,) losses in nats per token; gradients are kept.

    Raises:
        ValueError: unless there is one integer label in range for each place of the logits.

    Example:
        >>> sequence_loss(torch.zeros(2, 3, 4), torch.tensor([[0, 1, -100], [-100, -100, -100]]))
        tensor([1.3863, 0.0000])
    """
    losses = token_loss(logits, labels, ignore_index=ignore_index, is_causal=is_causal)
    counts = is_labelled(labels, ignore_index=ignore_index, is_causal=is_causal).sum(dim=1)
    return losses.sum(dim=1) / counts.clamp(min=1)


def pixel_loss(logits: Tensor, targets: Tensor, *, ignore_index: int = -100) -> Tensor:
    """Mean cross-entropy of each image over its own pixels: the per-example loss of segmentation.

    Args:
        logits: (B, C, ...) outputs of a model, classes along axis 1, any floating dtype.
        targets: (B, ...) integers in [0, C), or ``ignore_index`` for pixels without a class.
        ignore_index: often 255 in data sets of segmentation: ``functools.partial(pixel_loss, ignore_index=255)``.

    Returns:
        (B,) losses in nats per pixel, 0 for an image without a class anywhere; gradients are kept.

    Raises:
        ValueError: unless there is one integer target in range for each pixel.

    Example:
        >>> pixel_loss(torch.zeros(1, 2, 4, 4), torch.ones(1, 4, 4, dtype=torch.int64))
        tensor([0.6931])
    """
    if logits.ndim < 3 or targets.shape != (logits.shape[0], *logits.shape[2:]):
        raise ValueError(
            "pixel_loss needs logits (B, C, ...) with classes along axis 1 and targets (B, ...) with one class per "
            f"pixel; got logits {tuple(logits.shape)} and targets {tuple(targets.shape)}."
        )
    return sequence_loss(
        logits.flatten(2).transpose(1, 2), targets.flatten(1), ignore_index=ignore_index, is_causal=False
    )


def is_labelled(labels: Tensor, *, ignore_index: int = -100, is_causal: bool = True) -> Tensor:
    """(B, T) bool, whether each token is predicted: it has a label and, in causal models, tokens before it."""
    mask = labels != ignore_index
    if is_causal:
        mask[:, :1] = False
    return mask


@dataclass(frozen=True, kw_only=True)
class TokenLoss:
    """Loss of each token, which makes tokens the candidates: a selection by token, as in Rho-1.

    Passed as ``loss`` of a loop, the rule scores all labelled tokens of all sequences of a batch and selects a fraction
    of them. The loop gets the whole batch, because a model needs whole sequences, with ``ignore_index`` as the label of
    every token that was not selected. So the loss of the loop, the mean over labelled tokens, is that of the selected
    tokens. The group of a token is that of its sequence. A ``Reference`` takes this loss from its loop.

    Called with logits (B, T, V) and labels (B, T), it returns the losses (N,) of the labelled tokens, sequence after
    sequence.

    Args:
        ignore_index: label of the tokens that are not predicted.
        is_causal: see ``functional.token_loss``.

    Example:
        >>> TokenLoss()(torch.zeros(2, 3, 4), torch.tensor([[0, 1, -100], [3, 2, 1]]))
        tensor([1.3863, 1.3863, 1.3863])
        >>> TokenLoss().keep(torch.tensor([[0, 1, -100], [3, 2, 1]]), torch.tensor([1]))
        tensor([[-100, -100, -100],
                [-100,    2, -100]])

    Source: Lin et al., Rho-1 (arXiv 2404.07965), which selects 0.6 of the tokens by their excess loss: the rule
    ``rho_loss`` with ``fraction=0.6``.
    """

    ignore_index: int = -100
    is_causal: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.ignore_index, bool) or not isinstance(self.ignore_index, int):
            raise ValueError(  # noqa: TRY004  (a configuration error)
                f"`ignore_index` must be an integer label; got {self.ignore_index!r}."
            )
        check_flag("is_causal", self.is_causal)

    def __call__(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(N,) losses in nats of the labelled tokens; gradients are kept."""
        losses = token_loss(logits, labels, ignore_index=self.ignore_index, is_causal=self.is_causal)
        return losses[self.is_labelled(labels)]

    def of_sequences(self, logits: Tensor, labels: Tensor) -> Tensor:
        """(B,) mean loss of each sequence over its own tokens: ``sequence_loss`` with the same options."""
        return sequence_loss(logits, labels, ignore_index=self.ignore_index, is_causal=self.is_causal)

    def is_labelled(self, labels: Tensor) -> Tensor:
        """(B, T) bool, whether each token is a candidate."""
        return is_labelled(labels, ignore_index=self.ignore_index, is_causal=self.is_causal)

    def keep(self, labels: Tensor, positions: Tensor) -> Tensor:
        """Return the labels (B, T) of the candidates at ``positions`` (n,), and ``ignore_index`` everywhere else."""
        places = torch.nonzero(self.is_labelled(labels).flatten()).flatten()[positions]
        kept = torch.full_like(labels, self.ignore_index).flatten()
        return kept.index_copy_(0, places, labels.flatten()[places]).view(labels.shape)


def example_loss(loss: Callable[..., Any] | None) -> Callable[..., Any] | None:
    """Return ``loss``, or for a ``TokenLoss`` the mean over the tokens of each sequence, which is one per example."""
    return loss.of_sequences if isinstance(loss, TokenLoss) else loss


def num_rows(target: Tensor, loss: Callable[..., Any] | None) -> int:
    """Return how many values ``loss`` has for a batch: one per example, or one per labelled token."""
    return int(loss.is_labelled(target).sum()) if isinstance(loss, TokenLoss) else target.shape[0]


def row_groups(group: Tensor, target: Tensor, loss: Callable[..., Any] | None) -> Tensor:
    """Return the group of each value of ``loss``: those of the examples (B,), or of each labelled token (N,)."""
    if not isinstance(loss, TokenLoss):
        return group
    return group.repeat_interleave(loss.is_labelled(target).sum(dim=1))


def _check_labels(logits: Any, labels: Any) -> None:
    is_float = isinstance(logits, Tensor) and logits.is_floating_point()
    is_integer = isinstance(labels, Tensor) and not (
        labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool
    )
    if not is_float or not is_integer or logits.ndim != 3 or labels.shape != logits.shape[:2]:
        kinds = (
            f"{value.dtype} {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__
            for value in (logits, labels)
        )
        raise ValueError(
            "A loss of tokens needs floating-point logits (B, T, V) and integer labels (B, T), one for each token; got "
            "logits {} and labels {}.".format(*kinds)
        )
