"""Building tables: one pass of the irreducible models over the training points.

On several ranks there are two ways to share the work. Either every rank gives batches of its own part of the points,
and ``sync=True`` merges their rows; or every rank has the models of some of the groups
(``distributed.share(num_groups)``), gives them all points, and ``merged_columns`` merges the columns. Either way every
rank ends with the whole table, bit for bit that of one process, and needs no second copy of it on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from reducr._internal.distributed import all_gather, all_gather_stacked, all_reduce_sum_, raising_on_all_ranks
from reducr.batch import Batch
from reducr.irreducible.reference import GroupIrreducibleLoss, LiveLogits
from reducr.irreducible.table import IrreducibleTable

_CHUNK_ROWS = 2**16


def build_logit_table(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_examples: int,
    num_joint_groups: int | None = None,
    sync: bool = False,
) -> IrreducibleTable:
    """The logits of one irreducible model for every training point, in float32.

    Args:
        model: gives (B, C) logits, or (B, C * G) for a joint model; put into eval mode.
        batches: cover every index in [0, N) once, in any order, un-augmented.
        num_examples: N.
        num_joint_groups: G for a joint model, else None.
        sync: as for ``build_table``.

    Returns:
        A table of kind ``logits``, or ``joint_logits`` for a joint model.

    Raises:
        ValueError: if an index comes twice, not at all, or outside [0, N).
    """
    source = LiveLogits(model, num_joint_groups=num_joint_groups)
    kind = "logits" if num_joint_groups is None else "joint_logits"
    return build_table(source.logits, batches, num_examples=num_examples, kind=kind, sync=sync)


def build_loss_table(
    models: Sequence[nn.Module | None],
    batches: Iterable[Batch],
    *,
    num_examples: int,
    num_joint_groups: int | None = None,
    sync: bool = False,
) -> IrreducibleTable:
    """The loss of one trained irreducible model per group for every training point, in float32.

    Args:
        models: G models that give (B, C) logits, model c trained with the weighting of group c; put into eval mode.
            None for a group whose column is not needed, which is then NaN.
        batches: as for ``build_logit_table``.
        num_examples: N.
        num_joint_groups: as for ``build_logit_table``.
        sync: as for ``build_table``.

    Returns:
        A table of kind ``group_loss``.

    Raises:
        ValueError: if an index comes twice, not at all, or outside [0, N), or every model is None.
    """
    live = GroupIrreducibleLoss(models, num_joint_groups=num_joint_groups)
    return build_table(live.lookup, batches, num_examples=num_examples, kind="group_loss", sync=sync)


def build_table(
    values: Callable[[Batch], Tensor],
    batches: Iterable[Batch],
    *,
    num_examples: int,
    kind: str,
    sync: bool = False,
) -> IrreducibleTable:
    """What ``values`` gives for every training point, in float32.

    Args:
        values: the rows of a batch: a live source's ``lookup`` or ``logits``.
        batches: cover every index in [0, N) once, in any order, un-augmented.
        num_examples: N.
        kind: of the table (see ``IrreducibleTable``).
        sync: the batches of all ranks together cover every index once; all of them must call this then, get the
            whole table, and raise if any of them does.

    Raises:
        ValueError: if an index comes twice, not at all, or outside [0, N).
    """
    times_seen = torch.zeros(num_examples, dtype=torch.int64)
    with raising_on_all_ranks() if sync else nullcontext():
        rows = _rows_by_index(((batch.index, values(batch)) for batch in batches), times_seen)
    if sync:
        rows = _of_common_shape(rows)
        all_reduce_sum_(times_seen)
    wrong = torch.nonzero(times_seen != 1).flatten()
    if rows is None or len(wrong):
        raise ValueError(
            f"every one of the {num_examples} points must come exactly once; {len(wrong)} do not, the first is index "
            f"{wrong[0]}, which came {times_seen[wrong[0]]} times. Use a loader without sampling or drop_last."
            + (" A DistributedSampler repeats points; distributed.share(num_points) does not." if sync else "")
        )
    if sync:
        all_reduce_sum_(rows.view(torch.int32))
    return IrreducibleTable(rows.numpy(), kind=kind)


def merged_columns(table: IrreducibleTable | None) -> IrreducibleTable:
    """One table of group losses from those of all ranks, each of which has the columns of some groups.

    All ranks must call it, get the whole table, and raise if any of them does.

    Args:
        table: (N, G) of kind ``group_loss``; columns of groups that are not this rank's are NaN. Filled in place where
            it is an array in memory. None on a rank that has no group.

    Returns:
        The table, in which a column is NaN that no rank has.

    Raises:
        ValueError: if two ranks have a column of one group, tables differ in shape, or there is none.

    Example:
        >>> merged_columns(IrreducibleTable(np.array([[0.5, np.nan]], dtype=np.float32), kind="group_loss")).values
        array([[0.5, nan]], dtype=float32)
    """
    with raising_on_all_ranks():
        if table is not None and table.kind != "group_loss":
            raise ValueError(f"merged_columns() merges tables of kind 'group_loss'; got kind {table.kind!r}.")
    own = None if table is None else np.require(table.values, dtype=np.float32, requirements=["C", "W"])
    values = _of_common_shape(None if own is None else torch.from_numpy(own))
    if values is None:
        raise ValueError("merged_columns() needs the table of at least one rank; got None on all.")
    is_own = torch.zeros(values.shape[1], dtype=torch.bool)
    if table is not None:
        for part in torch.split(values, _CHUNK_ROWS):
            is_own |= ~part.isnan().all(dim=0)
    num_owners = all_gather_stacked(is_own).sum(dim=0)
    if bool((num_owners > 1).any()):
        raise ValueError(
            f"group {int((num_owners > 1).nonzero()[0])} has a column on {int(num_owners.max())} ranks; every group "
            "belongs to one, see reducr._internal.distributed.share(num_groups)."
        )
    values[:, ~is_own] = 0
    all_reduce_sum_(values.view(torch.int32))
    values[:, num_owners == 0] = torch.nan
    return IrreducibleTable(values.numpy(), kind="group_loss")


def _rows_by_index(pairs: Iterable[tuple[Tensor, Tensor]], times_seen: Tensor) -> Tensor | None:
    """(N, ...) the values of every index, zeros where none came; counts in ``times_seen``; None if there is no pair."""
    rows: Tensor | None = None
    num_examples = len(times_seen)
    ones = torch.ones(0, dtype=torch.int64)
    for index, values in pairs:
        positions = index.cpu().long()
        if len(positions) > len(ones):
            ones = torch.ones_like(positions)
        try:
            times_seen.index_add_(0, positions, ones[: len(positions)])
        except IndexError:
            raise ValueError(
                f"indices must be in 0..{num_examples - 1}; got {positions.min()}..{positions.max()}. Give the data "
                "set whose points the table is for, with index i at position i."
            ) from None
        if rows is None:
            rows = torch.zeros(num_examples, *values.shape[1:], dtype=torch.float32)
        rows.index_copy_(0, positions, values.detach().float().cpu())
    return rows


def _of_common_shape(values: Tensor | None) -> Tensor | None:
    """This rank's values, or zeros in the shape of the other ranks' where it has none; None if no rank has any."""
    own = torch.tensor([] if values is None else values.shape, dtype=torch.int64)
    shapes = {tuple(shape.tolist()) for shape in all_gather(own)} - {()}
    if len(shapes) > 1:
        raise ValueError(f"the ranks' parts of a table must have one shape; got {sorted(shapes)}.")
    if values is None and shapes:
        return torch.zeros(shapes.pop(), dtype=torch.float32)
    return values
