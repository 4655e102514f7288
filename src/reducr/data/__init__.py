"""Data sets of the training program: indexed, split, corrupted and imbalanced as an experiment says."""

from reducr.data.core.dataset import ExampleDataset, ExampleLoader
from reducr.data.core.module import DataModule, Splits

__all__ = ["DataModule", "ExampleDataset", "ExampleLoader", "Splits"]
