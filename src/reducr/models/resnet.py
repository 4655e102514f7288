"""Residual networks for small images."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut: (B, in_channels, S, S) to (B, width, S / stride, S / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(in_channels, width, 3, stride), nn.ReLU(), *_convolution(width, width, 3)
        )
        self.shortcut = _shortcut(in_channels, width, stride)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (as in the models)
        """``relu(layers(x) + shortcut(x))``."""
        return F.relu(self.layers(input) + self.shortcut(input))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions and a shortcut: (B, in_channels, S, S) to (B, 4 width, S / stride, S / stride).

    The 3x3 convolution has the stride, so that every input position is read.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            *_convolution(in_channels, width, 1),
            nn.ReLU(),
            *_convolution(width, width, 3, stride),
            nn.ReLU(),
            *_convolution(width, 4 * width, 1),
        )
        self.shortcut = _shortcut(in_channels, 4 * width, stride)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (as in the models)
        """``relu(layers(x) + shortcut(x))``."""
        return F.relu(self.layers(input) + self.shortcut(input))


class ResNet(nn.Module):
    """Residual network for small images: (B, K, S, S) to (B, num_classes).

    Its first layer is a 3x3 convolution with stride 1 instead of the 7x7 convolution and pooling used on ImageNet.

    Args:
        block: ``BasicBlock`` or ``Bottleneck``.
        num_blocks: number of blocks per stage; each stage after the first halves the image and doubles the width.
        num_classes: C.
        in_channels: K.
        width: channels of the first stage, 64 in the paper.
        dropout: probability before the last layer; above 0 for MC-dropout rules.

    Source: He et al. 2015 (arXiv 1512.03385), table 1, and section 4.2 for the first layer and ``resnet8``.
    """

    def __init__(
        self,
        block: type[BasicBlock] | type[Bottleneck],
        num_blocks: Sequence[int],
        *,
        num_classes: int,
        in_channels: int = 3,
        width: int = 64,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = [*_convolution(in_channels, width, 3), nn.ReLU()]
        channels = width
        for stage, count in enumerate(num_blocks):
            for position in range(count):
                stride = 2 if stage and position == 0 else 1
                layers.append(block(channels, width * 2**stage, stride))
                channels = block.expansion * width * 2**stage
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(nn.Dropout(dropout), nn.Linear(channels, num_classes))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        """(B, num_classes) logits."""
        logits: Tensor = self.classifier(self.features(input).mean(dim=(2, 3)))
        return logits


def resnet8(num_classes: int, *, in_channels: int = 3, width: int = 16, dropout: float = 0.0) -> ResNet:
    """ResNet-8, one block per stage: 78,042 parameters for 10 classes. Arguments as for ``ResNet``."""
    return ResNet(BasicBlock, (1, 1, 1), num_classes=num_classes, in_channels=in_channels, width=width, dropout=dropout)


def resnet18(num_classes: int, *, in_channels: int = 3, width: int = 64, dropout: float = 0.0) -> ResNet:
    """ResNet-18 for small images: 11,173,962 parameters for 10 classes. Arguments as for ``ResNet``."""
    return ResNet(
        BasicBlock, (2, 2, 2, 2), num_classes=num_classes, in_channels=in_channels, width=width, dropout=dropout
    )


def resnet50(num_classes: int, *, in_channels: int = 3, width: int = 64, dropout: float = 0.0) -> ResNet:
    """ResNet-50 for small images: 23,520,842 parameters for 10 classes. Arguments as for ``ResNet``."""
    return ResNet(
        Bottleneck, (3, 4, 6, 3), num_classes=num_classes, in_channels=in_channels, width=width, dropout=dropout
    )


def _convolution(in_channels: int, out_channels: int, kernel_size: int, stride: int = 1) -> list[nn.Module]:
    convolution = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
    return [convolution, nn.BatchNorm2d(out_channels)]


def _shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """The identity if the shape does not change, else a 1x1 convolution."""
    if stride == 1 and in_channels == out_channels:
        return nn.Identity()
    return nn.Sequential(*_convolution(in_channels, out_channels, 1, stride))
