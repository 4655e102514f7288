"""Write Lightning's checkpoints beside their final place."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO

from reducr._internal.files import replaced_atomically


class CheckpointFiles(TorchCheckpointIO):
    """Write each checkpoint in the folder that it belongs to, and rename it once it is complete.

    Lightning writes it to ``$TMPDIR`` first, which may be smaller than a checkpoint, or on another file system, from
    where a file cannot be moved in one step.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        """Write ``checkpoint`` to ``path``."""
        content = io.BytesIO()
        torch.save(checkpoint, content)
        path = Path(path)
        if path.suffix == ".partial":  # the caller renames it
            path.write_bytes(content.getbuffer())
            return
        with replaced_atomically(path) as temporary:
            temporary.write_bytes(content.getbuffer())
