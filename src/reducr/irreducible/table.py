"""Irreducible losses, or the logits they come from, computed once for every training point."""

from __future__ import annotations

import warnings

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
        TypeError: for values that are no array of floats.
        ValueError: for an unknown kind, or values of another number of axes.
    """

    def __init__(self, values: NDArray[np.floating], *, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind of a table must be one of {', '.join(KINDS)}; got {kind!r}.")
        if not isinstance(values, np.ndarray) or values.dtype not in (np.float16, np.float32, np.float64):
            found = values.dtype if hasattr(values, "dtype") else type(values).__name__
            raise TypeError(
                f"values of a table must be a numpy array of floats of at most 64 bits; got {found}. Of a tensor give "
                "values.numpy()."
            )
        if values.ndim != _AXES[kind]:
            raise ValueError(f"a table of kind {kind!r} has shape {KINDS[kind]}; got {values.shape}.")
        self.values = values
        self.kind = kind
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # nothing here writes
            self._rows = torch.from_numpy(values if min(values.strides) >= 0 else np.ascontiguousarray(values))

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor | None) -> Tensor:
        """The rows of the points ``index`` (B,), on its device.

        Raises:
            ValueError: if there is no index, indices are not one integer for each point, or one has no row; names the
                first.
        """
        if index is None:
            raise ValueError(
                "a table of irreducible losses needs the index of every point, and these batches have none. Let the "
                "data set yield (index, input, target), or say where the index is with spec=BatchSpec(index=...); for "
                "a stream without one give the irreducible model itself, such as LiveLogits."
            )
        if index.ndim != 1 or index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise ValueError(
                f"an index must be one integer for each point, (B,); got {index.dtype} {tuple(index.shape)}. Floats "
                "cannot tell points apart beyond 2^24."
            )
        positions = index.to("cpu", torch.int64)
        try:
            return self._rows.index_select(0, positions).to(index.device)
        except (IndexError, RuntimeError) as error:
            outside = positions[(positions < 0) | (positions >= len(self))]
            if not len(outside):  # no points of a table of none, which index_select refuses
                return self._rows[positions].to(index.device)
            raise ValueError(
                f"index {int(outside[0])} has no row in an irreducible table of {len(self)} points: the table belongs "
                "to other data, or the loader's indices are not those of the data set it was built for."
            ) from error


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
