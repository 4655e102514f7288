"""Irreducible losses, or the logits they come from, computed once for every training point."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reducr.batch import Batch

KINDS = {"loss": "(N,)", "group_loss": "(N, G)", "logits": "(N, C)", "joint_logits": "(N, C, G)"}
_AXES = {"loss": 1, "group_loss": 2, "logits": 2, "joint_logits": 3}


class IrreducibleTable:
    """One row for every training point, read by index; a memory-mapped file serves as well as an array.

    Valid only where a training point always looks the same, or where the value of the un-augmented point is meant.

    Args:
        values: (N,), (N, G), (N, C) or (N, C, G) floats, as ``kind`` says.
        kind: ``loss``, ``group_loss``, ``logits`` or ``joint_logits``.

    Raises:
        ValueError: for an unknown kind, or values of another number of axes.
    """

    def __init__(self, values: NDArray[np.floating], *, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind of a table must be one of {', '.join(KINDS)}; got {kind!r}.")
        if values.ndim != _AXES[kind]:
            raise ValueError(f"a table of kind {kind!r} has shape {KINDS[kind]}; got {values.shape}.")
        self.values = values
        self.kind = kind

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor) -> Tensor:
        """The rows of the points ``index`` (B,), on its device.

        Raises:
            ValueError: if an index has no row; names the first.
        """
        positions = index.cpu().numpy()
        if positions.size and (positions.min() < 0 or positions.max() >= len(self)):
            first = positions[(positions < 0) | (positions >= len(self))][0]
            raise ValueError(
                f"index {first} has no row in an irreducible table of {len(self)} points: the table belongs to "
                "other data, or the loader's indices are not those of the data set it was built for."
            )
        return torch.from_numpy(self.values[positions]).to(index.device)


class TableLoss:
    """Losses read from a table: (B,) for kind ``loss``, (B, G) for kind ``group_loss``.

    Raises:
        ValueError: for a table of logits, which ``AdjustedIrreducibleLoss`` and ``PlainIrreducibleLoss`` read.
    """

    def __init__(self, table: IrreducibleTable) -> None:
        if table.kind not in ("loss", "group_loss"):
            raise ValueError(
                f"TableLoss reads losses; this table holds {table.kind}. Wrap it in TableLogits and give that to "
                "PlainIrreducibleLoss or AdjustedIrreducibleLoss."
            )
        self.table = table

    def lookup(self, batch: Batch) -> Tensor:
        """The rows of ``batch.index``."""
        return self.table.rows(batch.index)


class TableLogits:
    """Logits of the plain irreducible model read from a table: (B, C), or (B, C, G) for a joint model.

    Raises:
        ValueError: for a table of losses, which ``TableLoss`` reads.
    """

    def __init__(self, table: IrreducibleTable) -> None:
        if table.kind not in ("logits", "joint_logits"):
            raise ValueError(f"TableLogits reads logits; this table holds {table.kind}. Use TableLoss.")
        self.table = table

    def logits(self, batch: Batch) -> Tensor:
        """The rows of ``batch.index``."""
        return self.table.rows(batch.index)
