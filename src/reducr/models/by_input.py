"""The small model that fits the inputs."""

from __future__ import annotations

from torch import nn

from reducr.models.small import MLP, SmallCNN
from reducr.models.text import SmallTextClassifier


def small_model(
    num_classes: int,
    *,
    num_tokens: int | None = None,
    has_pairs: int | None = None,
    in_channels: int | None = None,
    image_size: int | None = None,
    num_features: int | None = None,
    dropout: float = 0.0,
) -> nn.Module:
    """A ``SmallTextClassifier`` for tokens, a ``SmallCNN`` for images, an ``MLP`` for other numbers.

    Args:
        num_classes: C.
        num_tokens: size of the vocabulary; None where inputs are not texts.
        has_pairs: whether texts are pairs.
        in_channels: of images; None where inputs are not images.
        image_size: of images, pixels.
        num_features: numbers of an input; None where inputs are texts.
        dropout: of the model.

    Raises:
        ValueError: if nothing is known of the inputs.

    Example:
        >>> small_model(3, num_features=30).layers[0]
        Linear(in_features=30, out_features=256, bias=True)
    """
    if num_tokens is not None:
        return SmallTextClassifier(
            num_classes=num_classes, num_tokens=num_tokens, has_pairs=bool(has_pairs), dropout=dropout
        )
    if in_channels is not None and image_size is not None:
        return SmallCNN(in_channels=in_channels, image_size=image_size, num_classes=num_classes, dropout=dropout)
    if num_features is not None:
        return MLP(num_features=num_features, num_classes=num_classes, dropout=dropout)
    raise ValueError("small_model needs to know its inputs: num_tokens, in_channels and image_size, or num_features.")
