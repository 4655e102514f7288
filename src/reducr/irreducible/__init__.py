"""Irreducible losses: what a reference model that has seen clean holdout data cannot explain of a point.

Everything here that a selector can be fed from has ``lookup(batch) -> Tensor``, of shape (B,) or (B, G).
"""

from reducr.irreducible.adjusted import AdjustedGroupLoss, AdjustedIrreducibleLoss, PlainIrreducibleLoss
from reducr.irreducible.build import build_logit_table, build_loss_table, build_table
from reducr.irreducible.cross_fit import CrossFitReference
from reducr.irreducible.fingerprint import DataFingerprint
from reducr.irreducible.objective import WEIGHT_NORMALISATIONS, IrreducibleObjective
from reducr.irreducible.reference import GroupIrreducibleLoss, HeadIrreducibleLoss, LiveLogits
from reducr.irreducible.store import load_table, save_table
from reducr.irreducible.table import IrreducibleTable, TableLogits, TableLoss

__all__ = [
    "WEIGHT_NORMALISATIONS",
    "AdjustedGroupLoss",
    "AdjustedIrreducibleLoss",
    "CrossFitReference",
    "DataFingerprint",
    "GroupIrreducibleLoss",
    "HeadIrreducibleLoss",
    "IrreducibleObjective",
    "IrreducibleTable",
    "LiveLogits",
    "PlainIrreducibleLoss",
    "TableLogits",
    "TableLoss",
    "build_logit_table",
    "build_loss_table",
    "build_table",
    "load_table",
    "save_table",
]
