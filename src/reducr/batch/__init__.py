"""Batches of examples, the candidates that a selector sees, and the selection that it makes."""

from reducr.batch.batch import Batch, BatchReader, BatchSpec, Entry
from reducr.batch.candidates import Candidates, LazyGroupLoss, Selection
from reducr.batch.carried import INDEX_KEY, without_index
from reducr.batch.indexed import CarryingCollator, IndexedDataset, indexed
from reducr.batch.model_output import PerExampleLoss, logits_of, model_output
from reducr.batch.report import SelectionReport

__all__ = [
    "INDEX_KEY",
    "Batch",
    "BatchReader",
    "BatchSpec",
    "Candidates",
    "CarryingCollator",
    "Entry",
    "IndexedDataset",
    "LazyGroupLoss",
    "PerExampleLoss",
    "Selection",
    "SelectionReport",
    "indexed",
    "logits_of",
    "model_output",
    "without_index",
]
