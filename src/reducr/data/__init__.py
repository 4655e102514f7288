"""Data sets of the training program: indexed, split, corrupted and imbalanced as an experiment says."""

from reducr.data.dataset import PointDataset, PointLoader
from reducr.data.module import DataModule, Splits

__all__ = ["DataModule", "PointDataset", "PointLoader", "Splits"]
