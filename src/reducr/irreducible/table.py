"""Tables of irreducible losses, or of the logits they come from, computed once for every training example."""

from __future__ import annotations

import warnings

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from reducr.batch import Batch
from reducr.irreducible.group_check import GroupsOfTargets

KINDS = {"loss": "(N,)", "group_loss": "(N, G)", "logits": "(N, C)", "joint_logits": "(N, C, G)"}
_AXES = {"loss": 1, "group_loss": 2, "logits": 2, "joint_logits": 3}


class IrreducibleTable:
    """One row per training example, read by index.

    It holds the values of unaugmented examples, so augmentation does not change the rows read.

    Args:
        values: (N,), (N, G), (N, C) or (N, C, G) floats, depending on ``kind``; an array or a memory-mapped file.
        kind: ``loss``, ``group_loss``, ``logits`` or ``joint_logits``.

    Raises:
        TypeError: if ``values`` is not an array of floats.
        ValueError: if ``kind`` is unknown, or ``values`` has the wrong number of axes.

    Example:
        >>> table = IrreducibleTable(np.array([0.5, 2.0, 0.1]), kind="loss")
        >>> table.rows(torch.tensor([1]))
        tensor([2.], dtype=torch.float64)
    """

    def __init__(self, values: NDArray[np.floating], *, kind: str) -> None:
        if kind not in KINDS:
            raise ValueError(f"kind of a table must be one of {', '.join(KINDS)}; got {kind!r}.")
        if not isinstance(values, np.ndarray) or values.dtype not in (np.float16, np.float32, np.float64):
            type_name = values.dtype if hasattr(values, "dtype") else type(values).__name__
            raise TypeError(
                f"values of a table must be a numpy array of float16, float32 or float64; got {type_name}. For a "
                "tensor, give values.numpy()."
            )
        if values.ndim != _AXES[kind]:
            raise ValueError(f"a table of kind {kind!r} has shape {KINDS[kind]}; got {values.shape}.")
        self.values = values
        self.kind = kind
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The given NumPy array is not writable")  # rows are only read
            self._rows = torch.from_numpy(values if min(values.strides) >= 0 else np.ascontiguousarray(values))

    def __len__(self) -> int:
        return len(self.values)

    def rows(self, index: Tensor | None) -> Tensor:
        """The rows of the examples ``index`` (B,), on the device of ``index``.

        Raises:
            ValueError: if ``index`` is None, is not one integer per example, or has no row in the table.
        """
        if index is None:
            raise ValueError(
                "a table of irreducible losses needs the index of every example, but these batches have none. Wrap "
                "the data set, reducr.indexed(dataset), or name the index with spec=BatchSpec(index=...). A "
                "`collate_fn` of your own must keep it: collate_fn=dataset.collating(collate_fn). For a stream without "
                "indices, use the reference model itself, reducr.Reference(model)."
            )
        if index.ndim != 1 or index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise ValueError(
                f"index must hold one integer per example, (B,); got {index.dtype} {tuple(index.shape)}. Floats cannot "
                "tell examples apart beyond 2^24."
            )
        positions = index.to("cpu", torch.int64)
        try:
            return self._rows.index_select(0, positions).to(index.device)
        except (IndexError, RuntimeError) as error:
            outside = positions[(positions < 0) | (positions >= len(self))]
            if not len(outside):  # index_select refuses an empty index into an empty table
                return self._rows[positions].to(index.device)
            raise ValueError(
                f"index {int(outside[0])} has no row in an irreducible table of {len(self)} examples. Use the data set "
                "that the table was built for, with its indices."
            ) from error


class TableLoss:
    """Losses read from a table: (B,) for kind ``loss``, (B, G) for kind ``group_loss``.

    Args:
        table: of losses.
        groups: the groups that the columns stand for, where they follow from the targets; None for no check.

    Raises:
        ValueError: for a table of logits; read these with ``AdjustedIrreducibleLoss`` or ``PlainIrreducibleLoss``.
    """

    def __init__(self, table: IrreducibleTable, *, groups: GroupsOfTargets | None = None) -> None:
        if table.kind not in ("loss", "group_loss"):
            raise ValueError(
                f"TableLoss reads losses; this table holds {table.kind}. Use "
                "AdjustedIrreducibleLoss(TableLogits(table)) or PlainIrreducibleLoss(TableLogits(table))."
            )
        self.table = table
        self.groups = groups

    def lookup(self, batch: Batch) -> Tensor:
        """The rows of ``batch.index``."""
        if self.groups is not None:
            self.groups.check(batch)
        return self.table.rows(batch.index)


class TableLogits:
    """Logits of the plain reference model, read from a table: (B, C), or (B, C, G) for a joint model.

    Raises:
        ValueError: for a table of losses; read these with ``TableLoss``.
    """

    def __init__(self, table: IrreducibleTable) -> None:
        if table.kind not in ("logits", "joint_logits"):
            raise ValueError(f"TableLogits reads logits; this table holds {table.kind}. Use TableLoss.")
        self.table = table

    def logits(self, batch: Batch) -> Tensor:
        """The rows of ``batch.index``."""
        return self.table.rows(batch.index)
