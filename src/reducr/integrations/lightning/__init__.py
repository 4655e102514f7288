"""Lightning modules for both stages, irreducible model and target model, and how to fit them."""

from reducr.integrations.lightning.callbacks import LastCheckpoint, RunProgress, SelectionRecorder
from reducr.integrations.lightning.fit import fit_irreducible, fit_target, model_state
from reducr.integrations.lightning.irreducible import IrreducibleModule
from reducr.integrations.lightning.target import TargetModule

__all__ = [
    "IrreducibleModule",
    "LastCheckpoint",
    "RunProgress",
    "SelectionRecorder",
    "TargetModule",
    "fit_irreducible",
    "fit_target",
    "model_state",
]
