"""Build tables: one pass of the reference models over the training examples.

Several ranks can share the work in two ways. Either each rank passes batches of its own examples, and ``sync=True``
merges the rows; or each rank holds the models of some groups (``distributed.shard(num_groups)``), passes all examples,
and ``merge_columns`` merges the columns. Both ways every rank gets the whole table, bit for bit that of one process,
without a second copy of it in memory.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from reducr._internal.distributed import all_gather, all_gather_stacked, all_reduce_sum_, raising_on_all_ranks
from reducr.batch import Batch
from reducr.irreducible.live import GroupIrreducibleLoss, LiveLogits
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
    """Build a table with the float32 logits of one reference model for every training example.

    Args:
        model: returns (B, C) logits, or (B, C * G) logits for a joint model; put into eval mode.
        batches: every index in [0, N) exactly once, in any order, without augmentation.
        num_examples: N.
        num_joint_groups: G for a joint model, else None.
        sync: as for ``build_table``.

    Returns:
        A table of kind ``logits``, or ``joint_logits`` for a joint model.

    Raises:
        ValueError: if an index is missing, repeated or outside [0, N).
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
    """Build a table with the float32 loss of one trained reference model per group for every training example.

    Args:
        models: G models that return (B, C) logits, model c trained with the weighting of group c; put into eval mode.
            None for a group whose column is not needed; that column is NaN.
        batches: as for ``build_logit_table``.
        num_examples: N.
        num_joint_groups: as for ``build_logit_table``.
        sync: as for ``build_table``.

    Returns:
        A table of kind ``group_loss``.

    Raises:
        ValueError: if an index is missing, repeated or outside [0, N), or every model is None.
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
    """Build a table of the float32 values that ``values`` returns for every training example.

    Args:
        values: returns the rows of a batch, such as ``lookup`` or ``logits`` of a live source.
        batches: every index in [0, N) exactly once, in any order, without augmentation.
        num_examples: N.
        kind: kind of the table (see ``IrreducibleTable``).
        sync: the batches of all ranks together cover every index. All ranks must call this function; each gets the
            whole table, and all raise if one does.

    Raises:
        ValueError: if an index is missing, repeated or outside [0, N).
    """
    times_seen = torch.zeros(num_examples, dtype=torch.int64)
    with raising_on_all_ranks() if sync else nullcontext():
        rows = _rows_by_index(((batch.index, values(batch)) for batch in batches), times_seen)
    if sync:
        rows = _of_common_shape(rows)
        all_reduce_sum_(times_seen)
    wrong_indices = torch.nonzero(times_seen != 1).flatten()
    if rows is None or len(wrong_indices):
        first = wrong_indices[0]
        raise ValueError(
            f"each of the {num_examples} examples must come exactly once; {len(wrong_indices)} did not, such as index "
            f"{first}, which came {times_seen[first]} times. Use a loader without sampling or drop_last."
            + (" A DistributedSampler repeats examples; distributed.shard(num_examples) does not." if sync else "")
        )
    if sync:
        all_reduce_sum_(rows.view(torch.int32))
    return IrreducibleTable(rows.numpy(), kind=kind)


def merge_columns(table: IrreducibleTable | None) -> IrreducibleTable:
    """Merge the tables of group losses of all ranks, each of which holds the columns of some groups.

    All ranks must call this function; each gets the whole table, and all raise if one does.

    Args:
        table: (N, G) of kind ``group_loss``; columns of other ranks' groups are NaN. Filled in place if it is a
            writable array in memory. None on a rank without groups.

    Returns:
        The merged table. A column that no rank holds is NaN.

    Raises:
        ValueError: if two ranks hold the column of one group, tables differ in shape, or no rank has a table.

    Example:
        >>> merge_columns(IrreducibleTable(np.array([[0.5, np.nan]], dtype=np.float32), kind="group_loss")).values
        array([[0.5, nan]], dtype=float32)
    """
    with raising_on_all_ranks():
        if table is not None and table.kind != "group_loss":
            raise ValueError(f"merge_columns() merges tables of kind 'group_loss'; got kind {table.kind!r}.")
    own = None if table is None else np.require(table.values, dtype=np.float32, requirements=["C", "W"])
    values = _of_common_shape(None if own is None else torch.from_numpy(own))
    if values is None:
        raise ValueError("merge_columns() needs a table on at least one rank; got None on all.")
    is_own = torch.zeros(values.shape[1], dtype=torch.bool)
    if table is not None:
        for chunk in torch.split(values, _CHUNK_ROWS):
            is_own |= ~chunk.isnan().all(dim=0)
    num_owners = all_gather_stacked(is_own).sum(dim=0)
    if bool((num_owners > 1).any()):
        raise ValueError(
            f"group {int((num_owners > 1).nonzero()[0])} has a column on {int(num_owners.max())} ranks; every group "
            "must belong to one. Use reducr._internal.distributed.shard(num_groups)."
        )
    values[:, ~is_own] = 0
    all_reduce_sum_(values.view(torch.int32))
    values[:, num_owners == 0] = torch.nan
    return IrreducibleTable(values.numpy(), kind="group_loss")


def _rows_by_index(pairs: Iterable[tuple[Tensor, Tensor]], times_seen: Tensor) -> Tensor | None:
    """The values by index (N, ...), zero for missing indices; None without pairs. Counts indices in ``times_seen``."""
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
                f"indices must be in 0..{num_examples - 1}; got {positions.min()}..{positions.max()}. Example i of the "
                "data set must have index i."
            ) from None
        if rows is None:
            rows = torch.zeros(num_examples, *values.shape[1:], dtype=torch.float32)
        rows.index_copy_(0, positions, values.detach().float().cpu())
    return rows


def _of_common_shape(values: Tensor | None) -> Tensor | None:
    """This rank's values, or zeros in the other ranks' shape if it has none; None if no rank has values."""
    own = torch.tensor([] if values is None else values.shape, dtype=torch.int64)
    shapes = {tuple(shape.tolist()) for shape in all_gather(own)} - {()}
    if len(shapes) > 1:
        raise ValueError(f"the tables of all ranks must have the same shape; got {sorted(shapes)}.")
    if values is None and shapes:
        return torch.zeros(shapes.pop(), dtype=torch.float32)
    return values
