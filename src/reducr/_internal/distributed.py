"""Training on several processes, called ranks: what crosses between them. In one process all is the identity.

Every rank scores candidates of its own. Two modes say which of them are selected:

``global``
    The best ``num_selected`` of all ranks' candidates together, as one process would choose from the candidates of rank
    0, of rank 1, ... one after another. Each rank trains on those that are its own. Scores and the losses of the
    selected points cross the network, never inputs or logits.
``local``
    Every rank selects ``num_selected`` of its own candidates. Only payoffs cross, which are summed.

In both the group weights are the same on all ranks, bit for bit.

``loss_weight``: ranks average their gradients, as DistributedDataParallel does, but rarely have equally many of the b
selected points. Rank r, with b_r of them, multiplies its mean loss by ``loss_weight = b_r R / b``, so that the average
over the R ranks is the gradient of the mean over all selected points::

    1/R sum_r (b_r R / b) (1/b_r) sum_{i on rank r} g_i  =  1/b sum_i g_i

A rank without a selected point takes part in the step all the same, with a stand-in: one of its own candidates at
loss_weight 0. Without batch statistics (BatchNorm) the step is that of one process up to rounding.

A rank that raises in one of these exchanges makes all of them raise. One that dies, or raises elsewhere and ends,
breaks the connection: the others raise when their backend sees that, which gloo does at once. One that hangs, they wait
for as long as the ``timeout`` of ``torch.distributed.init_process_group`` (by default 30 minutes with gloo, 10 with
nccl).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from reducr._internal.names import unknown_name

MODES = ("global", "local")
_CHUNK_ELEMENTS = 2**22


def num_ranks() -> int:
    """R, the number of processes that train together."""
    return dist.get_world_size() if _is_initialized() else 1


def rank() -> int:
    """The number of this process, in [0, R)."""
    return dist.get_rank() if _is_initialized() else 0


def is_main_rank() -> bool:
    """Whether this process is the one that writes files and warns: rank 0."""
    return rank() == 0


def barrier() -> None:
    """Go on when every rank has come here."""
    if num_ranks() > 1:
        dist.barrier()


def broadcast(value: Any) -> Any:
    """What rank 0 has as ``value``, which can be pickled, on every rank."""
    if num_ranks() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_gather_objects(value: Any) -> list[Any]:
    """What every rank has as ``value``, which can be pickled, in the order of the ranks."""
    if num_ranks() == 1:
        return [value]
    values = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def process_group(*, timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """Let the processes that torchrun has started meet, and part in the end; nothing in one process.

    Args:
        timeout: how long one that waits for another waits at most.
    """
    if os.environ.get("WORLD_SIZE", "1") == "1" or not dist.is_available() or dist.is_initialized():
        yield
        return
    has_gpu = torch.cuda.is_available()
    if has_gpu:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    dist.init_process_group("cpu:gloo,cuda:nccl" if has_gpu else "gloo", timeout=timeout)
    try:
        yield
    finally:
        dist.destroy_process_group()


def shard(num_items: int) -> range:
    """Which of ``num_items`` are this rank's, when all ranks share them out: every R-th.

    Example:
        >>> list(shard(3))
        [0, 1, 2]
    """
    return range(rank(), num_items, num_ranks())


def check_mode_name(mode: str | None) -> None:
    """Raise ValueError unless ``mode`` is None or one of ``MODES``."""
    if mode is not None and mode not in MODES:
        raise unknown_name("distributed mode", mode, MODES)


def check_mode(mode: str | None) -> None:
    """See that ``mode`` fits the processes there are; call it when they have met, before the first selection.

    Raises:
        ValueError: for an unknown mode, no mode with several ranks, or a mode where several processes were started
            that have not met.
    """
    check_mode_name(mode)
    if mode is None and num_ranks() > 1:
        raise ValueError(
            f"{num_ranks()} ranks train together with distributed=None: each would select by itself, and their group "
            "weights would drift apart. Choose distributed='global' (the best of all ranks' candidates together) or "
            "'local' (the best of each rank's)."
        )
    if mode is not None and (started := os.environ.get("WORLD_SIZE", "1")) != "1" and not _is_initialized():
        raise ValueError(
            f"distributed={mode!r}, and WORLD_SIZE={started} processes were started, but torch.distributed is not "
            "initialised, so that each would train alone. Call torch.distributed.init_process_group() first."
        )


def all_gather_stacked(tensor: Tensor) -> Tensor:
    """(R, ...) the tensors of all ranks, bit for bit, which must agree in shape and dtype."""
    if num_ranks() == 1 or not tensor.numel():
        return tensor.detach().expand(num_ranks(), *tensor.shape)
    # as bytes, because no backend carries every dtype
    own = tensor.detach().to(_device_for(tensor)).contiguous().reshape(-1).view(torch.uint8)
    everyone = [torch.empty_like(own) for _ in range(num_ranks())]
    dist.all_gather(everyone, own)
    return torch.stack(everyone).view(tensor.dtype).reshape(num_ranks(), *tensor.shape).to(tensor.device)


def all_gather(tensor: Tensor, *, sizes: list[int] | None = None) -> list[Tensor]:
    """The tensors of all ranks, bit for bit, in the order of the ranks; their first axes may differ, also be 0.

    Args:
        tensor: at least one axis; dtype and further axes agree on all ranks.
        sizes: lengths of the first axes of all ranks, where they are known; else they are exchanged first.
    """
    if num_ranks() == 1:
        return [tensor]
    if sizes is None:
        sizes = all_gather_stacked(torch.tensor(len(tensor))).tolist()
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    return [rows[:size] for rows, size in zip(all_gather_stacked(padded), sizes, strict=True)]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """The sum over all ranks, added in their order: the same bits on every rank, whatever the backend."""
    return all_gather_stacked(tensor).sum(dim=0)


def all_reduce_sum_(values: Tensor) -> None:
    """Replace whole numbers by their sums over all ranks, a chunk at a time, so that no second copy is needed.

    Floats of which only one rank has any, and the others zeros, are summed exactly as ``values.view(torch.int32)``.

    Args:
        values: contiguous integers, of one shape on all ranks.
    """
    if num_ranks() == 1:
        return
    for chunk in torch.split(values.reshape(-1), _CHUNK_ELEMENTS):
        sums = chunk.to(_device_for(chunk))
        dist.all_reduce(sums)
        if sums is not chunk:
            chunk.copy_(sums)


def raise_on_all_ranks(error: Exception | None) -> None:
    """If any rank has an ``error``, raise on all: its own there, elsewhere one that names the first such rank.

    Every rank must call it, those without an error with None.
    """
    if num_ranks() == 1:
        if error is not None:
            raise error
        return
    text = b"" if error is None else f"{type(error).__name__}: {error}".encode()
    messages = [bytes(part.tolist()) for part in all_gather(torch.tensor(list(text), dtype=torch.uint8))]
    if error is not None:
        raise error
    for number, message in enumerate(messages):
        if message:
            kind = ValueError if message.startswith(b"ValueError") else RuntimeError
            raise kind(f"rank {number} raised {message.decode()}")


@contextmanager
def raising_on_all_ranks() -> Iterator[None]:
    """What any rank raises in this block is raised on all (see ``raise_together``); all must run through it."""
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    raise_on_all_ranks(error)


def _is_initialized() -> bool:
    return dist.is_available() and dist.is_initialized()


def _device_for(tensor: Tensor) -> torch.device:
    """The tensor's own device if the backend serves it, else the one it does: nccl carries nothing from a CPU."""
    served = [part.split(":")[0] for part in dist.get_backend_config().split(",")]
    return tensor.device if tensor.device.type in served else torch.device(served[0])
