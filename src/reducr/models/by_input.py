"""Choose a small model by the kind of input."""

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
    """Build a ``SmallTextClassifier`` for texts, a ``SmallCNN`` for images, or an ``MLP`` for feature vectors.

    Args:
        num_classes: C.
        num_tokens: vocabulary size; None if inputs are not texts.
        has_pairs: whether each input is a pair of texts.
        in_channels: channels of the images; None if inputs are not images.
        image_size: height and width of the images, in pixels.
        num_features: number of features; None if inputs are texts.
        dropout: dropout probability of the model, in [0, 1).

    Raises:
        ValueError: if the arguments describe no kind of input.

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
    raise ValueError(
        "small_model needs `num_tokens` for texts, `in_channels` and `image_size` for images, or `num_features`; got "
        "none of them."
    )
