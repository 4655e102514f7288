"""Lightning modules and callbacks for both stages: irreducible model and target model."""

from reducr.integrations.lightning.callbacks import LastCheckpoint, RunProgress, SelectionRecorder
from reducr.integrations.lightning.irreducible import IrreducibleModule
from reducr.integrations.lightning.target import TargetModule

__all__ = ["IrreducibleModule", "LastCheckpoint", "RunProgress", "SelectionRecorder", "TargetModule"]
