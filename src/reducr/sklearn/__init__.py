"""Robust classification from features, the scikit-learn way."""

from reducr.sklearn.classifier import RobustClassifier

__all__ = ["RobustClassifier"]
