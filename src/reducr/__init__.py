"""Robust data downsampling: choose the best part of every large batch so that the worst class does well."""

from reducr.auxiliary import Auxiliary, AuxiliaryModel, ExtraBatches
from reducr.batch import Batch, BatchSpec, Candidates, Selection, SelectionReport, indexed
from reducr.downsampler import Downsampler
from reducr.irreducible import (
    AdjustedIrreducibleLoss,
    LiveLogits,
    PlainIrreducibleLoss,
    Reference,
    TableLogits,
    build_logit_table,
    fit_reference,
)
from reducr.scoring import Holdout, Scoring, ScoringBudget
from reducr.selectors import SELECTORS, Selector, make_selector
from reducr.training.belief import Belief
from reducr.training.calibration import LogitAdjustment, fit_logit_adjustment
from reducr.training.checkpoints import Checkpoints
from reducr.training.loader import SelectiveLoader
from reducr.training.loop import train
from reducr.training.sampler import SelectiveBatchSampler

__version__ = "0.1.0"
__all__ = [
    "SELECTORS",
    "AdjustedIrreducibleLoss",
    "Auxiliary",
    "AuxiliaryModel",
    "Batch",
    "BatchSpec",
    "Belief",
    "Candidates",
    "Checkpoints",
    "Downsampler",
    "ExtraBatches",
    "Holdout",
    "LiveLogits",
    "LogitAdjustment",
    "PlainIrreducibleLoss",
    "Reference",
    "Scoring",
    "ScoringBudget",
    "Selection",
    "SelectionReport",
    "SelectiveBatchSampler",
    "SelectiveLoader",
    "Selector",
    "TableLogits",
    "build_logit_table",
    "fit_logit_adjustment",
    "fit_reference",
    "indexed",
    "make_selector",
    "train",
]
