"""The Lightning callback ``SelectiveTraining``, and the modules and callbacks of the training program."""

from reducr.lightning.callbacks import (
    BestCheckpoints,
    BestMembers,
    LastCheckpoint,
    ResumeCheckpoint,
    RunProgress,
    SelectionRecorder,
)
from reducr.lightning.csv_metrics import CSVMetrics
from reducr.lightning.fit import fit_irreducible, fit_target, model_state
from reducr.lightning.irreducible import IrreducibleModule
from reducr.lightning.selection import SelectiveTraining
from reducr.lightning.target import TargetModule

__all__ = [
    "BestCheckpoints",
    "BestMembers",
    "CSVMetrics",
    "IrreducibleModule",
    "LastCheckpoint",
    "ResumeCheckpoint",
    "RunProgress",
    "SelectionRecorder",
    "SelectiveTraining",
    "TargetModule",
    "fit_irreducible",
    "fit_target",
    "model_state",
]
