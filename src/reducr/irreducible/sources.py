"""Where a reference reads the outputs of its models: the models themselves, another source of logits, or a table."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from reducr.batch import Batch, model_output
from reducr.irreducible.adjusted import LogitSource
from reducr.irreducible.live import follow_batch
from reducr.irreducible.model_table import ModelTable
from reducr.irreducible.table import TableLogits


class Source(Protocol):
    """Source of what the reference models return for a batch."""

    modules: list[nn.Module]
    """The models, if they are at hand."""
    num_models: int
    num_joint_groups: int | None
    """G of a source that knows that its models predict (target, group) pairs."""

    def outputs(self, batch: Batch) -> list[Any]:
        """Return the output of each model."""


class LiveModels:
    """Models in eval mode, which are run on every batch and follow it to its device."""

    num_joint_groups: int | None = None

    def __init__(self, modules: Sequence[nn.Module], *, is_frozen: bool) -> None:
        self.modules = [module.eval() for module in modules]
        self.num_models = len(self.modules)
        if is_frozen:
            for module in self.modules:
                module.requires_grad_(False)

    def outputs(self, batch: Batch) -> list[Any]:
        """Return the output of each model."""
        for module in self.modules:
            follow_batch(module, batch)
        return [model_output(module, batch.input) for module in self.modules]


class OtherLogits:
    """Logits of anything with ``logits(batch)``."""

    num_models = 1

    def __init__(self, source: LogitSource) -> None:
        self.source = source
        model = getattr(source, "model", None)
        self.modules = [model] if isinstance(model, nn.Module) else []
        self.num_joint_groups: int | None = getattr(source, "num_joint_groups", None)
        if isinstance(source, TableLogits) and source.table.kind == "joint_logits":
            self.num_joint_groups = source.table.values.shape[2]

    def outputs(self, batch: Batch) -> list[Any]:
        """Return the logits, (B, C) or (B, C, G)."""
        return [self.source.logits(batch)]


class TableRows:
    """Rows of a table: outputs (B, C) of one model, or losses (B, M) of M models."""

    num_joint_groups: int | None = None

    def __init__(self, table: ModelTable) -> None:
        self.modules: list[nn.Module] = []
        self.table = table
        self.has_losses = table.table.kind == "group_loss"
        self.num_models = table.table.values.shape[1] if self.has_losses else 1

    def outputs(self, batch: Batch) -> list[Any]:
        """Return the rows of the batch's examples."""
        return [self.table.rows(batch)]


def source_of(model: Any, *, is_frozen: bool) -> Source:
    """Return the source that ``model`` stands for: a module, a list of modules, or another source of logits.

    Raises:
        TypeError: for anything else.
        ValueError: for an empty list.
    """
    if isinstance(model, nn.ModuleList | list | tuple):
        if not len(model):
            raise ValueError("A list of reference models needs one model for each group; got none.")
        for number, module in enumerate(model):
            if not isinstance(module, nn.Module):
                raise TypeError(
                    f"A list of reference models must hold torch.nn.Modules; entry {number} is a "
                    f"{type(module).__name__}."
                )
        return LiveModels(list(model), is_frozen=is_frozen)
    if isinstance(model, nn.Module):
        return LiveModels([model], is_frozen=is_frozen)
    if callable(getattr(model, "logits", None)):
        return OtherLogits(model)
    raise TypeError(
        f"A reference needs a torch.nn.Module, a list of them (one per group), or a source with logits(batch); got "
        f"{type(model).__name__}."
    )


def device_of_modules(modules: Sequence[nn.Module]) -> torch.device:
    """Return the device of the first parameter or buffer; the CPU if there is none."""
    tensors: Any = chain.from_iterable(chain(module.parameters(), module.buffers()) for module in modules)
    tensor: Tensor | None = next(tensors, None)
    return torch.device("cpu") if tensor is None else tensor.device
