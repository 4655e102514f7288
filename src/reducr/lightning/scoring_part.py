"""The part of a LightningModule that scores the candidates."""

from __future__ import annotations

import operator
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning.pytorch as pl
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from reducr._internal.names import unknown_name

PartName = str | Callable[..., Any]


class ScoringPart(nn.Module):
    """The part of the module that scores, in the precision of the Trainer and without DistributedDataParallel."""

    def __init__(self, module: pl.LightningModule, part: PartName | None, trainer: pl.Trainer) -> None:
        super().__init__()
        self.scored = module
        self.function = part if callable(part) else None
        self.precision = trainer.precision_plugin
        if isinstance(part, str):
            self.scored = _part_of(module, part)
        elif part is None and type(module).forward is pl.LightningModule.forward:
            names = ", ".join(name for name, _ in module.named_children()) or "none"
            raise ValueError(
                f"{type(module).__name__} has no forward() to score with. Define it, or pass `model=`: the name of the "
                f"part that returns logits (there are: {names}), or a function (module, input) -> logits."
            )

    def autocast(self) -> AbstractContextManager[Any]:
        """The Trainer's autocast, if its precision is a mixed one: for reference models and the holdout loss."""
        is_mixed = isinstance(self.precision, MixedPrecision)
        return self.precision.forward_context() if is_mixed else nullcontext()

    def forward(self, *arguments: Any, **options: Any) -> Any:
        """Return the output of the scoring part."""
        with self.precision.forward_context():
            if self.function is not None:
                return self.function(self.scored, *arguments, **options)
            return self.scored(*arguments, **options)


def _part_of(module: pl.LightningModule, name: str) -> Any:
    try:
        part = operator.attrgetter(name)(module)
    except AttributeError:
        raise unknown_name("model", name, [name for name, _ in module.named_modules() if name]) from None
    if not isinstance(part, nn.Module):
        raise TypeError(
            f"model={name!r} must name a torch.nn.Module in {type(module).__name__}; it is a {type(part).__name__}. "
            "Pass a function (module, input) -> logits instead."
        )
    return part
