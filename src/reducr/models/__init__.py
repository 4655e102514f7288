"""Models: small models for a CPU, residual networks, text classifiers, and published models."""

from reducr.models.by_input import small_model
from reducr.models.pretrained import TransformersImageClassifier, timm_model, transformers_image_model
from reducr.models.resnet import ResNet, resnet8, resnet18, resnet50
from reducr.models.small import MLP, SmallCNN
from reducr.models.text import SmallTextClassifier, TransformersTextClassifier

__all__ = [
    "MLP",
    "ResNet",
    "SmallCNN",
    "SmallTextClassifier",
    "TransformersImageClassifier",
    "TransformersTextClassifier",
    "resnet8",
    "resnet18",
    "resnet50",
    "small_model",
    "timm_model",
    "transformers_image_model",
]
