"""Text classifiers for (B, 2, L) integers: token ids in plane 0, and the segment of each token in plane 1.

Segment 0 is the first text, 1 the second text, and -1 the padding on the right. Padding does not affect the logits.
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
    """Classifier of single texts or pairs that trains in minutes on a CPU: (B, 2, L) to (B, num_classes).

    Features of a single text: token embeddings, a convolution of width 3 with ReLU, and its mean and maximum over
    tokens.

    Features of a pair: each token x attends to the tokens x' of the other text with weights softmax(x . x'), which
    gives their weighted mean y; then the mean of ``relu(linear([x, x - y, x * y]))`` over the tokens of each text.
    Embeddings are initialised large enough for a token to attend to its own copy in the other text.

    Two linear layers map the features to logits.

    Args:
        num_classes: C.
        num_tokens: vocabulary size.
        has_pairs: whether the segments are two texts; if False, both are read as one text.
        embedding_size: width of the token embeddings.
        hidden_size: width of the convolution or of the comparison.
        dropout: probability before each of the last two layers; above 0 for MC-dropout rules.

    Source: pairs follow Parikh et al. 2016 (arXiv 1606.01933), but attend to the embeddings directly and use means
    instead of sums.
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
        # The dot product of a token with itself is then about 4, and with another about 4 / sqrt(embedding_size).
        nn.init.normal_(self.embedding.weight, std=2 / math.sqrt(embedding_size))
        if has_pairs:
            self.comparison = nn.Linear(3 * embedding_size, hidden_size)
        else:
            self.convolution = nn.Linear(3 * embedding_size, hidden_size)  # faster on a CPU than nn.Conv1d
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
        """(B, 2 hidden_size) features of single texts."""
        size = (segments >= 0).sum(1)
        x, mask = self._tokens(tokens, torch.zeros_like(size), size)
        padded = F.pad(x, (0, 0, 1, 1))
        hidden = F.relu(self.convolution(torch.cat([padded[:, :-2], x, padded[:, 2:]], dim=2)))
        return torch.cat([_mean(hidden, mask), (hidden * mask.unsqueeze(2)).amax(1)], dim=1)

    def _pair(self, tokens: Tensor, segments: Tensor) -> Tensor:
        """(B, 2 hidden_size) features of pairs."""
        sizes = [(segments == segment).sum(1) for segment in (0, 1)]
        x0, mask0 = self._tokens(tokens, torch.zeros_like(sizes[0]), sizes[0])
        x1, mask1 = self._tokens(tokens, sizes[0], sizes[1])
        products = x0 @ x1.transpose(1, 2)
        y0 = (products + _attention_bias(mask1).unsqueeze(1)).softmax(2) @ x1
        y1 = (products + _attention_bias(mask0).unsqueeze(2)).softmax(1).transpose(1, 2) @ x0
        return torch.cat([self._comparison_features(x0, y0, mask0), self._comparison_features(x1, y1, mask1)], dim=1)

    def _tokens(self, tokens: Tensor, start: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
        """(B, S, embedding_size) embeddings of ``size`` (B,) tokens from ``start`` (B,), and their (B, S) mask."""
        offsets = torch.arange(max(int(size.max()), 1), device=tokens.device)
        positions = (start.unsqueeze(1) + offsets).clamp(max=tokens.shape[1] - 1)
        mask = (offsets < size.unsqueeze(1)).to(self.embedding.weight.dtype)
        return self.embedding(tokens.gather(1, positions)) * mask.unsqueeze(2), mask

    def _comparison_features(self, x: Tensor, y: Tensor, mask: Tensor) -> Tensor:
        """(B, hidden_size) features of a text x, compared with its attention y, both (B, S, embedding_size)."""
        return _mean(F.relu(self.comparison(torch.cat([x, x - y, x * y], dim=2))), mask)


class TransformersTextClassifier(nn.Module):
    """Any sequence classifier of transformers: (B, 2, L) to (B, num_classes).

    Each batch is truncated to its longest row. Segments are passed to models that embed two of them.

    Args:
        num_classes: C.
        name: as for ``transformers_model``.
        pretrained: as for ``transformers_model``.
        architecture: as for ``transformers_model``.
        config: as for ``transformers_model``. The default ``vocab_size`` of random models is ``num_tokens``.
        num_tokens: vocabulary size of the data; None skips the check that it fits.
        dropout: probability of every dropout layer; None keeps the architecture's own.

    Raises:
        ValueError: as ``transformers_model``, or if the vocabulary is larger than the model's, or if ``dropout`` is set
            for a model without dropout layers.
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
        vocabulary_size = self.model.get_input_embeddings().num_embeddings
        if num_tokens is not None and num_tokens > vocabulary_size:
            raise ValueError(
                f"the data has a vocabulary of {num_tokens} tokens, but the model embeds {vocabulary_size}. Use the "
                "tokenizer of the model, or one with a smaller vocabulary."
            )
        # Models that classify at the last token use this id to find it.
        padding = getattr(settings, "pad_token_id", None)
        padding = getattr(settings, "eos_token_id", None) if padding is None else padding
        self.padding = padding if isinstance(padding, int) and 0 <= padding < vocabulary_size else None
        settings.pad_token_id = self.padding
        takes_segments = "token_type_ids" in inspect.signature(self.model.forward).parameters
        self.has_segments = takes_segments and getattr(settings, "type_vocab_size", 0) >= 2
        self.max_length: int | None = getattr(settings, "max_position_embeddings", None)
        if dropout is not None:
            self._set_dropout(dropout)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        """(B, num_classes) logits.

        Raises:
            ValueError: if L exceeds the number of positions of the model.
        """
        tokens, segments = _planes(input)
        if self.max_length is not None and tokens.shape[1] > self.max_length:
            raise ValueError(
                f"texts have up to {tokens.shape[1]} tokens, but the model has {self.max_length} positions. Truncate "
                "the texts, for instance with `max_length`."
            )
        length = max(int((segments >= 0).sum(1).max()), 1)
        tokens, segments = tokens[:, :length], segments[:, :length]
        if self.padding is not None:
            tokens = tokens.masked_fill(segments < 0, self.padding)
        segment_ids = {"token_type_ids": segments.clamp(min=0)} if self.has_segments else {}
        logits: Tensor = self.model(input_ids=tokens, attention_mask=(segments >= 0).long(), **segment_ids).logits
        return logits

    def _set_dropout(self, dropout: float) -> None:
        layers = [module for module in self.model.modules() if isinstance(module, nn.Dropout)]
        if not layers:
            raise ValueError(
                f"dropout={dropout} needs dropout layers, but {type(self.model).__name__} has none. Set `dropout=null`."
            )
        for layer in layers:
            layer.p = dropout


def _planes(input: Tensor) -> tuple[Tensor, Tensor]:  # noqa: A002  (the field's name in Batch)
    """Token ids and segments, each (B, L) int64."""
    if input.ndim != 3 or input.shape[1] != 2 or input.is_floating_point():
        raise ValueError(
            "a text model takes (B, 2, L) integers, token ids and segments (0, 1, or -1 for padding); got "
            f"{input.dtype} {tuple(input.shape)}."
        )
    tokens, segments = input.long().unbind(1)
    return tokens, segments


def _mean(hidden: Tensor, mask: Tensor) -> Tensor:
    """(B, H) mean of ``hidden`` (B, S, H) where ``mask`` (B, S) is 1; 0 for rows without a 1."""
    weights = mask / mask.sum(1, keepdim=True).clamp(min=1)
    return (weights.unsqueeze(1) @ hidden).squeeze(1)


def _attention_bias(mask: Tensor) -> Tensor:
    """0 where ``mask`` is 1, else so low that softmax gives 0."""
    return (mask - 1) * 1e4
