"""Small models for experiments on two cores."""

from reducr.models.small import MLP, SmallCNN

__all__ = ["MLP", "SmallCNN"]
