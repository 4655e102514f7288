"""Collective operations between training processes, called ranks. With one process they return what they are given.

The distributed modes ``global`` and ``local`` are explained in ``reducr.selectors.distributed``.

An exception inside ``raising_on_all_ranks`` is raised on every rank. A rank that dies, or exits with any other
exception, closes its connection: the others raise as soon as their backend notices, which gloo does at once. If a rank
hangs, the others wait for the ``timeout`` of ``torch.distributed.init_process_group`` (by default 30 minutes with gloo,
10 with nccl).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from reducr._internal.names import unknown_name

MODES = ("global", "local")
_CHUNK_ELEMENTS = 2**22
_IS_ALONE: ContextVar[bool] = ContextVar("is_alone", default=False)


@contextmanager
def alone() -> Iterator[None]:
    """Act as the only process inside the block: what runs there is the same on every rank and needs no exchange."""
    token = _IS_ALONE.set(True)
    try:
        yield
    finally:
        _IS_ALONE.reset(token)


def num_ranks() -> int:
    """Number of processes R that train together; 1 without a process group."""
    return dist.get_world_size() if _is_initialized() else 1


def rank() -> int:
    """Rank of this process, in [0, R)."""
    return dist.get_rank() if _is_initialized() else 0


def is_main_rank() -> bool:
    """Whether this is rank 0, which writes files and emits warnings for all ranks."""
    return rank() == 0


def barrier() -> None:
    """Wait until every rank has called this."""
    if num_ranks() > 1:
        dist.barrier()


def broadcast(value: Any) -> Any:
    """The ``value`` of rank 0, on every rank. It must be picklable."""
    if num_ranks() == 1:
        return value
    values = [value]
    dist.broadcast_object_list(values, src=0)
    return values[0]


def all_gather_objects(value: Any) -> list[Any]:
    """The ``value`` of every rank, in the order of the ranks. It must be picklable."""
    if num_ranks() == 1:
        return [value]
    values = [None] * num_ranks()
    dist.all_gather_object(values, value)
    return values


@contextmanager
def process_group(*, timeout: timedelta = timedelta(minutes=30)) -> Iterator[None]:
    """Initialise ``torch.distributed`` for the processes that torchrun started, and destroy the group at the end.

    Does nothing with one process, or if a group is already initialised.

    Args:
        timeout: longest time that a rank waits for another.
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
    """Positions of this rank's items when ``num_items`` are divided between all ranks: every R-th.

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
    """Check ``mode`` against the process group. Call it once the group is initialised, before the first selection.

    Raises:
        ValueError: for an unknown mode, for None with several ranks, or for a mode if several processes were started
            without a process group.
    """
    check_mode_name(mode)
    if mode is None and num_ranks() > 1:
        raise ValueError(
            f"{num_ranks()} processes train together and `distributed` is None: each would select alone, and their "
            "group weights would drift apart. Set `distributed='global'` (the best of all processes' candidates) or "
            "`distributed='local'` (the best of each process's own)."
        )
    if mode is not None and (started := os.environ.get("WORLD_SIZE", "1")) != "1" and not _is_initialized():
        raise ValueError(
            f"distributed={mode!r} and WORLD_SIZE={started}, but torch.distributed is not initialised, so every "
            "process would train alone. Call torch.distributed.init_process_group() first."
        )


def all_gather_stacked(tensor: Tensor) -> Tensor:
    """Stack the tensors (...) of all ranks, bit for bit, to (R, ...). Shapes and dtypes must agree."""
    if num_ranks() == 1 or not tensor.numel():
        return tensor.detach().expand(num_ranks(), *tensor.shape)
    # as bytes, because no backend supports every dtype
    own_bytes = tensor.detach().to(_device_for(tensor)).contiguous().reshape(-1).view(torch.uint8)
    all_bytes = [torch.empty_like(own_bytes) for _ in range(num_ranks())]
    dist.all_gather(all_bytes, own_bytes)
    return torch.stack(all_bytes).view(tensor.dtype).reshape(num_ranks(), *tensor.shape).to(tensor.device)


def all_gather(tensor: Tensor, *, sizes: list[int] | None = None) -> list[Tensor]:
    """The tensors of all ranks, bit for bit, in the order of the ranks.

    Args:
        tensor: (n_r, ...), where n_r >= 0 may differ between ranks; dtype and further axes must agree.
        sizes: n_r of every rank; None exchanges them first.

    Returns:
        R tensors (n_r, ...) on the device of ``tensor``, without gradients if there are several ranks.
    """
    if num_ranks() == 1:
        return [tensor]
    if sizes is None:
        sizes = all_gather_stacked(torch.tensor(len(tensor))).tolist()
    padded = tensor.new_zeros(max(sizes), *tensor.shape[1:])
    padded[: len(tensor)] = tensor.detach()
    return [rows[:size] for rows, size in zip(all_gather_stacked(padded), sizes, strict=True)]


def all_reduce_sum(tensor: Tensor) -> Tensor:
    """Sum of the tensors of all ranks. They are added in the order of the ranks, so every rank gets the same bits."""
    return all_gather_stacked(tensor).sum(dim=0)


def all_reduce_sum_(values: Tensor) -> None:
    """Replace integers by their sums over all ranks, in chunks, without a second copy of the whole tensor.

    Float32 values that are zero on all ranks but one are summed exactly as ``values.view(torch.int32)``.

    Args:
        values: contiguous integers; the same shape on all ranks.
    """
    if num_ranks() == 1:
        return
    for chunk in torch.split(values.reshape(-1), _CHUNK_ELEMENTS):
        sums = chunk.to(_device_for(chunk))
        dist.all_reduce(sums)
        if sums is not chunk:
            chunk.copy_(sums)


def raise_on_all_ranks(error: Exception | None) -> None:
    """Raise on every rank if any rank has an ``error``. Every rank must call this, with None if it has no error.

    Raises:
        Exception: ``error`` itself on a rank that has one; elsewhere a ValueError or RuntimeError that names the first
            rank with an error.
    """
    if num_ranks() == 1:
        if error is not None:
            raise error
        return
    text = b"" if error is None else f"{type(error).__name__}: {error}".encode(errors="backslashreplace")
    messages = [bytes(part.tolist()) for part in all_gather(torch.tensor(list(text), dtype=torch.uint8))]
    if error is not None:
        raise error
    for number, message in enumerate(messages):
        if message:
            kind = ValueError if message.startswith(b"ValueError") else RuntimeError
            raise kind(f"rank {number} raised {message.decode()}")


@contextmanager
def raising_on_all_ranks() -> Iterator[None]:
    """Raise an exception of this block on every rank (see ``raise_on_all_ranks``). Every rank must enter the block."""
    error = None
    try:
        yield
    except Exception as caught:
        error = caught
    raise_on_all_ranks(error)


def _is_initialized() -> bool:
    return not _IS_ALONE.get() and dist.is_available() and dist.is_initialized()


def _device_for(tensor: Tensor) -> torch.device:
    """The tensor's own device if the backend supports it, else one that it supports: nccl cannot read CPU memory."""
    supported = [part.split(":")[0] for part in dist.get_backend_config().split(",")]
    return tensor.device if tensor.device.type in supported else torch.device(supported[0])
