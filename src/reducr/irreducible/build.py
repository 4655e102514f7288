"""Building tables: one pass of the irreducible models over the training points."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from torch import Tensor, nn

from reducr.batch import Batch
from reducr.irreducible.live import GroupIrreducibleLoss, LiveLogits
from reducr.irreducible.table import IrreducibleTable


def build_logit_table(
    model: nn.Module, batches: Iterable[Batch], *, num_points: int, num_joint_groups: int | None = None
) -> IrreducibleTable:
    """The logits of one irreducible model for every training point, in float32.

    Args:
        model: gives (B, C) logits, or (B, C * G) for a joint model; put into eval mode.
        batches: cover every index in [0, N) once, in any order, un-augmented.
        num_points: N.
        num_joint_groups: G for a joint model, else None.

    Returns:
        A table of kind ``logits``, or ``joint_logits`` for a joint model.

    Raises:
        ValueError: if an index comes twice, not at all, or outside [0, N).
    """
    source = LiveLogits(model, num_joint_groups=num_joint_groups)
    kind = "logits" if num_joint_groups is None else "joint_logits"
    rows = _rows_by_index(((batch.index, source.logits(batch)) for batch in batches), num_points)
    return IrreducibleTable(rows, kind=kind)


def build_loss_table(
    models: Sequence[nn.Module | None], batches: Iterable[Batch], *, num_points: int
) -> IrreducibleTable:
    """The loss of one trained irreducible model per group for every training point, in float32.

    Args:
        models: G models that give (B, C) logits, model c trained with the weighting of group c; put into eval mode.
            None for a group whose column is not needed, which is then NaN.
        batches: as for ``build_logit_table``.
        num_points: N.

    Returns:
        A table of kind ``group_loss``.

    Raises:
        ValueError: if an index comes twice, not at all, or outside [0, N), or every model is None.
    """
    live = GroupIrreducibleLoss(models)
    rows = _rows_by_index(((batch.index, live.lookup(batch)) for batch in batches), num_points)
    return IrreducibleTable(rows, kind="group_loss")


def _rows_by_index(pairs: Iterable[tuple[Tensor, Tensor]], num_points: int) -> np.ndarray:
    rows: np.ndarray | None = None
    times_seen = np.zeros(num_points, dtype=np.int64)
    for index, values in pairs:
        positions = index.cpu().numpy()
        if positions.min() < 0 or positions.max() >= num_points:
            raise ValueError(
                f"indices must be in 0..{num_points - 1}; got {positions.min()}..{positions.max()}. Give the data "
                "set whose points the table is for, with index i at position i."
            )
        if rows is None:
            rows = np.empty((num_points, *values.shape[1:]), dtype=np.float32)
        rows[positions] = values.float().cpu().numpy()
        np.add.at(times_seen, positions, 1)
    wrong = np.flatnonzero(times_seen != 1)
    if rows is None or len(wrong):
        raise ValueError(
            f"every one of the {num_points} points must come exactly once; {len(wrong)} do not, the first is index "
            f"{wrong[0]}, which came {times_seen[wrong[0]]} times. Use a loader without sampling or drop_last."
        )
    return rows
