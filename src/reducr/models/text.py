"""Models of text: (B, 2, L) integers, token ids in plane 0 and the segment of each token in plane 1.

Segment 0 is the first text, 1 the second one after it, and -1 padding, on the right. Padding has no part in the logits.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from reducr.models.pretrained import transformers_model


class SmallTextClassifier(nn.Module):
    """A model of one text or of a pair that trains in minutes on a CPU: (B, 2, L) to (B, num_classes).

    One text: token embeddings, a convolution of width 3 with ReLU, and its mean and its largest value over the tokens.

    A pair: every token x is set against what the other text says about it, y, the mean of that text's tokens with
    weights softmax(x . x'); the mean of ``relu(linear([x, x - y, x * y]))`` over the tokens of either text follows.
    Embeddings begin so large that a token finds itself in the other text.

    Two linear layers give the logits.

    Args:
        num_classes: C.
        num_tokens: size of the vocabulary.
        has_pairs: whether the segments are two texts; if not, both are read as one.
        embedding_size: width of a token.
        hidden_size: width of the convolution, or of the comparison.
        dropout: probability before each of the two last layers; above 0 for MC-dropout rules.

    Source: pairs after Parikh et al. 2016 (arXiv 1606.01933), with tokens attended to as they are, and means for sums.
    """

    def __init__(
        self,
        *,
        num_classes: int,
        num_tokens: int,
        has_pairs: bool = False,
        embedding_size: int = 32,
        hidden_size: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.has_pairs = has_pairs
        self.embedding = nn.Embedding(num_tokens, embedding_size)
        # a token times itself is then about 4, and times another about 4 / sqrt(embedding_size)
        nn.init.normal_(self.embedding.weight, std=2 / math.sqrt(embedding_size))
        if has_pairs:
            self.comparison = nn.Linear(3 * embedding_size, hidden_size)
        else:
            self.convolution = nn.Linear(3 * embedding_size, hidden_size)  # on a CPU faster than nn.Conv1d
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(2 * hidden_size, 2 * hidden_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(2 * hidden_size, num_classes),
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        """(B, num_classes) logits."""
        tokens, segments = _planes(input)
        features = self._pair(tokens, segments) if self.has_pairs else self._one_text(tokens, segments)
        logits: Tensor = self.classifier(features)
        return logits

    def _one_text(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """(B, 2 hidden_size)."""
        size = (segments >= 0).sum(1)
        x, mask = self._tokens(tokens, torch.zeros_like(size), size)
        padded = F.pad(x, (0, 0, 1, 1))
        hidden = F.relu(self.convolution(torch.cat([padded[:, :-2], x, padded[:, 2:]], dim=2)))
        return torch.cat([_mean(hidden, mask), (hidden * mask.unsqueeze(2)).amax(1)], dim=1)

    def _pair(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """(B, 2 hidden_size)."""
        sizes = [(segments == segment).sum(1) for segment in (0, 1)]
        x0, mask0 = self._tokens(tokens, torch.zeros_like(sizes[0]), sizes[0])
        x1, mask1 = self._tokens(tokens, sizes[0], sizes[1])
        products = x0 @ x1.transpose(1, 2)
        y0 = (products + _forbidden(mask1).unsqueeze(1)).softmax(2) @ x1
        y1 = (products + _forbidden(mask0).unsqueeze(2)).softmax(1).transpose(1, 2) @ x0
        return torch.cat([self._compared(x0, y0, mask0), self._compared(x1, y1, mask1)], dim=1)

    def _tokens(self, tokens: Tensor, start: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, embedding_size) the ``size`` (B,) tokens from ``start`` (B,) on, then zeros; and (B, S) 1 and 0."""
        offsets = torch.arange(max(int(size.max()), 1), device=tokens.device)
        positions = (start.unsqueeze(1) + offsets).clamp(max=tokens.shape[1] - 1)
        mask = (offsets < size.unsqueeze(1)).to(self.embedding.weight.dtype)
        return self.embedding(tokens.gather(1, positions)) * mask.unsqueeze(2), mask

    def _compared(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """(B, hidden_size) a text (B, S, embedding_size) set against what the other one says."""
        return _mean(F.relu(self.comparison(torch.cat([x, x - y, x * y], dim=2))), mask)


class TransformersTextClassifier(nn.Module):
    """Any sequence classifier of transformers: (B, 2, L) to (B, num_classes).

    A batch is cut to its longest row. Segments are given to models that have an embedding for two of them.

    Args:
        num_classes: C.
        name: see ``transformers_model``.
        pretrained: see there.
        architecture: see there.
        config: see there. Without ``vocab_size``, a model with random parameters has a vocabulary of ``num_tokens``.
        num_tokens: size of the data's vocabulary; None leaves it unchecked.
        dropout: probability of every dropout layer; None leaves the architecture's own.

    Raises:
        ValueError: as ``transformers_model``, for a vocabulary that is larger than the model's, or for dropout in a
            model without such layers.
        FileNotFoundError: as ``transformers_model``.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        name: str | None = None,
        pretrained: bool = True,
        architecture: str | None = None,
        config: Mapping[str, Any] | None = None,
        num_tokens: int | None = None,
        dropout: float | None = None,
    ) -> None:
        super().__init__()
        if not pretrained and architecture is not None and num_tokens is not None:
            config = {"vocab_size": num_tokens, **(config or {})}
        self.model = transformers_model(
            "SequenceClassification",
            num_classes,
            name=name,
            pretrained=pretrained,
            architecture=architecture,
            config=config,
        )
        settings = self.model.config
        known = self.model.get_input_embeddings().num_embeddings
        if num_tokens is not None and num_tokens > known:
            raise ValueError(
                f"the data has a vocabulary of {num_tokens} tokens, but the model's embedding has {known}. Use the "
                "tokenizer that belongs to the model, or one with a smaller vocabulary."
            )
        # models that classify at the last token find it by this id
        padding = getattr(settings, "pad_token_id", None)
        padding = getattr(settings, "eos_token_id", None) if padding is None else padding
        self.padding = padding if isinstance(padding, int) and 0 <= padding < known else None
        settings.pad_token_id = self.padding
        takes_segments = "token_type_ids" in inspect.signature(self.model.forward).parameters
        self.has_segments = takes_segments and getattr(settings, "type_vocab_size", 0) >= 2
        self.max_length: int | None = getattr(settings, "max_position_embeddings", None)
        if dropout is not None:
            self._set_dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        """(B, num_classes) logits.

        Raises:
            ValueError: if L is more than the model has positions for.
        """
        tokens, segments = _planes(input)
        if self.max_length is not None and tokens.shape[1] > self.max_length:
            raise ValueError(
                f"texts have up to {tokens.shape[1]} tokens, but the model has positions for {self.max_length}. Cut "
                "the texts to at most that many."
            )
        length = max(int((segments >= 0).sum(1).max()), 1)
        tokens, segments = tokens[:, :length], segments[:, :length]
        if self.padding is not None:
            tokens = tokens.masked_fill(segments < 0, self.padding)
        kinds = {"token_type_ids": segments.clamp(min=0)} if self.has_segments else {}
        logits: Tensor = self.model(input_ids=tokens, attention_mask=(segments >= 0).long(), **kinds).logits
        return logits

    def _set_dropout(self, dropout: float) -> None:
        layers = [module for module in self.model.modules() if isinstance(module, nn.Dropout)]
        if not layers:
            raise ValueError(
                f"dropout={dropout} is for the dropout layers of the model, but {type(self.model).__name__} has none. "
                "Leave it out (null)."
            )
        for layer in layers:
            layer.p = dropout


def _planes(input: Tensor) -> tuple[Tensor, Tensor]:  # noqa: A002  (the field's name in Batch)
    """Token ids and segments, (B, L) each."""
    if input.ndim != 3 or input.shape[1] != 2 or input.is_floating_point():
        raise ValueError(
            "a model of text takes integers (B, 2, L), token ids and segments (0, 1, and -1 for padding); got "
            f"{input.dtype} {tuple(input.shape)}."
        )
    tokens, segments = input.long().unbind(1)
    return tokens, segments


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, H) mean of ``hidden`` (B, S, H) where ``mask`` (B, S) is 1; 0 where it is nowhere."""
    weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
    return (weights.unsqueeze(1) @ hidden).squeeze(1)


def _forbidden(mask: Tensor) -> Tensor:
    """0 where ``mask`` is 1, else so low that softmax gives nothing."""
    return (mask - 1) * 1e4
