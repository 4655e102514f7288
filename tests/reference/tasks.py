"""Per-example losses of tasks other than classification, over Python floats."""

import math

from reference.tokens import log_probability, pixel_losses, sequence_losses


def multi_label(logits, targets):
    """Mean binary cross-entropy over the labels of each example."""

    def one(logit, target):
        return math.log1p(math.exp(-abs(logit))) + max(logit, 0.0) - logit * target

    return [
        sum(one(logit, target) for logit, target in zip(row, labels, strict=True)) / len(row)
        for row, labels in zip(logits, targets, strict=True)
    ]


def soft_labels(logits, targets):
    """Cross-entropy with a distribution over the classes."""
    return [
        -sum(y * log_probability(row, c) for c, y in enumerate(labels))
        for row, labels in zip(logits, targets, strict=True)
    ]


def regression(outputs, targets):
    """Mean squared error over the outputs of each example."""
    return [
        sum((a - b) ** 2 for a, b in zip(row, own, strict=True)) / len(row)
        for row, own in zip(outputs, targets, strict=True)
    ]


def segmentation(logits, targets):
    """Mean cross-entropy over the pixels of each image; pixels of 255 have no class."""
    return pixel_losses(logits, targets, ignore_index=255)


def tagging(logits, targets):
    """Mean cross-entropy over the tagged tokens of each sequence."""
    return sequence_losses(logits, targets, is_causal=False)
