"""Run a model in a scoring mode and leave it as it was."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from itertools import chain

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from reducr._internal.names import unknown_name
from reducr.scoring.options import SCORING_MODES

_AUTOCAST_DEVICES = ("cuda", "cpu")


def scoring_pass(model: nn.Module, mode: str) -> AbstractContextManager[None]:
    """Run ``model`` in a scoring mode (see ``Scoring``), then restore every module's mode and any frozen buffers.

    Autocast stays as it is, but without its cache, which would hand weights that were cast without gradients to the
    training step.
    """
    if mode not in SCORING_MODES:
        raise unknown_name("scoring mode", mode, SCORING_MODES)
    changes_nothing = mode == "train" and model.training
    if changes_nothing and not any(torch.is_autocast_enabled(device_type) for device_type in _AUTOCAST_DEVICES):
        return nullcontext()
    return _scoring_pass(model, mode)


@contextmanager
def _scoring_pass(model: nn.Module, mode: str) -> Iterator[None]:
    with _autocast_without_cache():
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


def device_of(model: nn.Module) -> torch.device:
    """Return the device of a model's first parameter or buffer; the CPU if it has none."""
    tensor = next(chain(model.parameters(), model.buffers()), None)
    return torch.device("cpu") if tensor is None else tensor.device


def without_wrappers(model: nn.Module) -> nn.Module:
    """Return the model inside DistributedDataParallel, whose own forward pass waits for all ranks."""
    inner = model._modules.get("_orig_mod", model)  # under torch.compile
    if isinstance(inner, DistributedDataParallel):
        module: nn.Module = inner.module
        return module
    return model
