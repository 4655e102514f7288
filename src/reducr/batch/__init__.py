"""Batches of examples, the candidates that a selector sees, and the selection that it makes."""

from reducr.batch.batch import Batch, BatchSpec, Entry
from reducr.batch.candidates import Candidates, LazyGroupLoss, Selection
from reducr.batch.model_output import PerExampleLoss, logits_of, model_output

__all__ = [
    "Batch",
    "BatchSpec",
    "Candidates",
    "Entry",
    "LazyGroupLoss",
    "PerExampleLoss",
    "Selection",
    "logits_of",
    "model_output",
]
