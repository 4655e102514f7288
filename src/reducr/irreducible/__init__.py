"""Irreducible losses: the loss of each example under a reference model trained on clean holdout data.

The reference model is the paper's irreducible model. Every source of losses here has ``lookup(batch) -> Tensor``, of
shape (B,) or (B, G) in nats, and can be passed to a loader as ``irreducible``.
"""

from reducr.irreducible.adjusted import AdjustedGroupLoss, AdjustedIrreducibleLoss, PlainIrreducibleLoss
from reducr.irreducible.build import build_logit_table, build_loss_table, build_table
from reducr.irreducible.cross_fit import CrossFitReference
from reducr.irreducible.fingerprint import DataFingerprint
from reducr.irreducible.fit import fit_reference, held_out_report
from reducr.irreducible.held_out import HeldOutReport
from reducr.irreducible.live import GroupIrreducibleLoss, HeadIrreducibleLoss, LiveLogits
from reducr.irreducible.objective import WEIGHT_NORMALISATIONS, IrreducibleObjective
from reducr.irreducible.reference import Reference
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
    "HeldOutReport",
    "IrreducibleObjective",
    "IrreducibleTable",
    "LiveLogits",
    "PlainIrreducibleLoss",
    "Reference",
    "TableLogits",
    "TableLoss",
    "build_logit_table",
    "build_loss_table",
    "build_table",
    "fit_reference",
    "held_out_report",
    "load_table",
    "save_table",
]
