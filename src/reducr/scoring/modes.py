"""Run a model in a scoring mode and leave it as it was."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reducr._internal.distributed import num_ranks
from reducr._internal.names import unknown_name
from reducr._internal.rng import random_state, set_random_state
from reducr.scoring.options import SCORING_MODES

_AUTOCAST_DEVICES = ("cuda", "cpu")


def scoring_pass(model: nn.Module, mode: str) -> AbstractContextManager[None]:
    """Run ``model`` in a scoring mode (see ``Scoring``), then restore every module's mode and any frozen buffers.

    Autocast stays as it is, but without its cache, which would hand weights that were cast without gradients to the
    training step.
    """
    if mode not in SCORING_MODES:
        raise unknown_name("scoring mode", mode, SCORING_MODES)
    if num_ranks() > 1 and any(isinstance(module, DistributedDataParallel) for module in model.modules()):
        return _scoring_pass(model, mode)
    changes_nothing = mode == "train" and model.training
    if changes_nothing and not any(torch.is_autocast_enabled(device_type) for device_type in _AUTOCAST_DEVICES):
        return nullcontext()
    return _scoring_pass(model, mode)


@contextmanager
def _scoring_pass(model: nn.Module, mode: str) -> Iterator[None]:
    with _autocast_without_cache(), _without_broadcasts(model):
        if mode == "train" and model.training:
            yield  # layers that their owner keeps in eval mode stay there
            return
        modes = [(module, module.training) for module in model.modules()]
        freezes_buffers = mode == "train_frozen_statistics"
        buffers = [(buffer, buffer.clone()) for buffer in model.buffers()] if freezes_buffers else []
        if mode == "eval":
            model.eval()
        elif not model.training:
            model.train()
        try:
            yield
        finally:
            for module, is_training in modes:
                module.training = is_training
            with torch.no_grad():
                for buffer, before in buffers:
                    buffer.copy_(before)


@contextmanager
def _autocast_without_cache() -> Iterator[None]:
    with ExitStack() as stack:
        for device_type in _AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device_type):
                dtype = torch.get_autocast_dtype(device_type)
                stack.enter_context(torch.autocast(device_type, dtype=dtype, cache_enabled=False))
        yield


@contextmanager
def _without_broadcasts(model: nn.Module) -> Iterator[None]:
    """Let a DistributedDataParallel inside ``model`` broadcast no buffers, for which it would wait for all ranks."""
    wrappers = [module for module in model.modules() if isinstance(module, DistributedDataParallel)]
    states = [wrapper.require_forward_param_sync for wrapper in wrappers]
    for wrapper in wrappers:
        wrapper.require_forward_param_sync = False
    try:
        yield
    finally:
        for wrapper, state in zip(wrappers, states, strict=True):
            wrapper.require_forward_param_sync = state


def repeat_without_trace(call: Callable[[], object], model: nn.Module, num_calls: int) -> None:
    """Run a forward pass of ``model`` some times more, and put its buffers and the random states back."""
    if not num_calls:
        return
    buffers, state = [(buffer, buffer.clone()) for buffer in model.buffers()], random_state()
    for _ in range(num_calls):
        call()
    set_random_state(state)
    with torch.no_grad():
        for buffer, before in buffers:
            buffer.copy_(before)


def device_of(model: nn.Module) -> torch.device:
    """Return the device that a model computes on: that of its first parameter or buffer; the CPU if it has none."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    if tensor is None:
        return torch.device("cpu")
    mesh: Any = getattr(tensor, "device_mesh", None)
    is_offloaded = mesh is not None and mesh.device_type != tensor.device.type  # FSDP keeps its parameters on the CPU
    return torch.device(mesh.device_type) if is_offloaded else tensor.device


def without_wrappers(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, whose own forward pass waits for all ranks."""
    inner = model._modules.get("_orig_mod", model)  # under torch.compile
    if isinstance(inner, DistributedDataParallel):
        module: nn.Module = inner.module
        return module
    return model


def has_collective_forward(model: nn.Module, *, mode: str) -> bool:
    """Whether the forward pass of ``model`` is a collective, which all ranks must run equally often.

    It is under FSDP, where the ranks gather the parameters of each layer, and for SyncBatchNorm in train mode.

    Args:
        model: without wrappers.
        mode: of the scoring pass.
    """
    if num_ranks() == 1:
        return False
    kinds = _fsdp_kinds() if mode == "eval" else (*_fsdp_kinds(), nn.SyncBatchNorm)
    return any(isinstance(module, kinds) for module in model.modules())


def models_in(value: Any, *, depth: int = 6) -> list[nn.Module]:
    """Return the models that an object holds in its attributes, such as those behind irreducible losses."""
    if isinstance(value, nn.Module):
        return [value]
    parts = value if isinstance(value, list | tuple) else vars(value).values() if hasattr(value, "__dict__") else ()
    return [model for part in parts for model in models_in(part, depth=depth - 1)] if depth else []


def check_data_parallel(model: nn.Module) -> None:
    """See that all ranks read candidates of their own, as far as the sharding of ``model`` shows.

    Raises:
        ValueError: for parameters divided over a part of the ranks, or along more than one axis of a mesh, or by
            anything but FSDP.
    """
    if num_ranks() == 1:
        return
    kinds = _fsdp_kinds()
    is_fsdp = any(isinstance(module, kinds) for module in model.modules())
    parameter: Any
    for name, parameter in model.named_parameters():
        mesh = getattr(parameter, "device_mesh", None)
        if mesh is None:
            continue
        num_shardings = sum(placement.is_shard() for placement in parameter.placements)
        if is_fsdp and mesh.size() == num_ranks() and num_shardings <= 1:
            continue
        raise ValueError(
            f"Parameter {name!r} is divided over a mesh of {mesh.size()} of the {num_ranks()} processes as "
            f"{tuple(map(str, parameter.placements))}. Selection needs processes that each read candidates of their "
            "own: shard with fully_shard over all of them. Tensor and pipeline parallelism are not supported."
        )


def _fsdp_kinds() -> tuple[type, ...]:
    # imported here, because the import takes long and one process does not need it
    from torch.distributed import fsdp

    kinds = (getattr(fsdp, name, None) for name in ("FSDPModule", "FullyShardedDataParallel"))
    return tuple(kind for kind in kinds if kind is not None)
