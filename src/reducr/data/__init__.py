"""Data sets of the training program, with their splits, class imbalance and noise."""

from reducr.data.core.dataset import ExampleDataset, ExampleLoader
from reducr.data.core.module import DataModule, Splits
from reducr.data.core.raw import RawData

__all__ = ["DataModule", "ExampleDataset", "ExampleLoader", "RawData", "Splits"]
