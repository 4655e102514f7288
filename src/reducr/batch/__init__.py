"""Batches of examples, the candidates that a selector sees, and the selection that it makes."""

from reducr.batch.batch import Batch, BatchReader, BatchSpec, Entry
from reducr.batch.candidates import Candidates, LazyGroupLoss, Selection
from reducr.batch.model_output import PerExampleLoss, logits_of, model_output
from reducr.batch.report import SelectionReport

__all__ = [
    "Batch",
    "BatchReader",
    "BatchSpec",
    "Candidates",
    "Entry",
    "LazyGroupLoss",
    "PerExampleLoss",
    "Selection",
    "SelectionReport",
    "logits_of",
    "model_output",
]
