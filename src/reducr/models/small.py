"""Small models that train in seconds on a CPU."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn


class MLP(nn.Module):
    """Fully connected layers with ReLU: (B, num_features) to (B, num_classes).

    Args:
        num_features: size of a flat input.
        num_classes: C.
        hidden_sizes: width of each hidden layer.
        dropout: probability after each hidden layer; above 0 for MC-dropout rules.
    """

    def __init__(
        self, *, num_features: int, num_classes: int, hidden_sizes: Sequence[int] = (256, 256), dropout: float = 0.0
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = num_features
        for hidden in hidden_sizes:
            layers += [nn.Linear(width, hidden), nn.ReLU()]
            if dropout:
                layers.append(nn.Dropout(dropout))
            width = hidden
        self.layers = nn.Sequential(*layers, nn.Linear(width, num_classes))

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        """(B, num_classes) logits of (B, ...) inputs, which are flattened."""
        logits: Tensor = self.layers(input.flatten(1))
        return logits


class SmallCNN(nn.Module):
    """Three convolutions of stride 2 with ReLU, then two linear layers: (B, K, S, S) to (B, num_classes).

    Strides instead of pooling make a forward pass on a CPU several times cheaper.

    Args:
        in_channels: K.
        image_size: S.
        num_classes: C.
        widths: channels of the three convolutions.
        hidden_size: width of the linear layer before the last.
        dropout: probability before each linear layer; above 0 for MC-dropout rules.
    """

    def __init__(
        self,
        *,
        in_channels: int,
        image_size: int,
        num_classes: int,
        widths: tuple[int, int, int] = (12, 24, 48),
        hidden_size: int = 96,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = in_channels
        for width, kernel_size in zip(widths, (5, 3, 3), strict=True):
            layers += [
                nn.Conv2d(channels, width, kernel_size, stride=2, padding=kernel_size // 2),
                nn.ReLU(),
            ]
            channels = width
            image_size = (image_size + 1) // 2
        self.features = nn.Sequential(*layers)
        num_features = channels * image_size**2
        self.classifier = nn.Sequential(
            nn.Dropout(dropout),
            nn.Linear(num_features, hidden_size),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_size, num_classes),
        )

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        """(B, num_classes) logits."""
        logits: Tensor = self.classifier(self.features(input).flatten(1))
        return logits
