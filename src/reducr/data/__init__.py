"""Data sets of the training program: indexed, split, corrupted and imbalanced as an experiment says."""

from reducr.data.dataset import PointDataset, PointLoader
from reducr.data.module import DataModule, Splits
from reducr.data.streaming import ShardedStream, read_tar

__all__ = ["DataModule", "PointDataset", "PointLoader", "ShardedStream", "Splits", "read_tar"]
