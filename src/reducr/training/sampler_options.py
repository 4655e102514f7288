"""Further options of a ``SelectiveBatchSampler``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from reducr._internal.checks import check_count, check_flag
from reducr._internal.names import unknown_name
from reducr.batch import BatchSpec, PerExampleLoss
from reducr.functional import TokenLoss
from reducr.selectors import Selector


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """Further options of a ``SelectiveBatchSampler``; see there."""

    refresh_steps: int | str | None = None
    holdout_fraction: float | None = None
    accumulate_steps: int = 1
    drop_last: bool = False
    loss: PerExampleLoss | None = None
    spec: BatchSpec | None = None
    distributed: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("accumulate_steps", self.accumulate_steps)
        check_flag("drop_last", self.drop_last)
        if isinstance(self.loss, TokenLoss):
            raise ValueError(  # noqa: TRY004  (an option of this sampler)
                "A batch sampler chooses whole examples before they are loaded, and TokenLoss selects tokens. Use "
                "loss=reducr.functional.sequence_loss, or SelectiveLoader to select by token."
            )
        if self.distributed == "local":
            raise ValueError(
                "distributed='local' does not apply to a batch sampler: every rank chooses from the candidates of all, "
                "without an exchange, and takes its share. Use distributed='global'."
            )


_ELSEWHERE = {
    "scoring": "no rule here scores with the model",
    "auxiliary": "the sampler sees no batches to train other models on",
    "weights_examples": "indices have no weights; use SelectiveLoader",
    "short_batches": "a last batch for a single example is left out, and smaller ones are with `drop_last=True`",
}
"""Options of ``SelectiveLoader`` that a batch sampler does not have -> why."""


def split_options(options: Mapping[str, Any], selector: str | Selector) -> tuple[SamplerOptions, dict[str, Any]]:
    """Return the options of a sampler, and those of a rule that is given by its name.

    Raises:
        ValueError: for an option that a sampler does not have; says why, or names the nearest ones.
    """
    names = [field.name for field in fields(SamplerOptions)]
    others = {name: value for name, value in options.items() if name not in names}
    for name in others:
        if name in _ELSEWHERE:
            raise ValueError(f"SelectiveBatchSampler has no option {name!r}: {_ELSEWHERE[name]}.")
        if not isinstance(selector, str):
            raise unknown_name("option", name, names, of="SelectiveBatchSampler with a rule that is already made")
    return SamplerOptions(**{name: value for name, value in options.items() if name in names}), others


def check_rule(selector: Selector, *, draws_from_all: bool, batch_size: int) -> None:
    """Raise ValueError for a rule that reads the model, weights examples, or would select the same ones every time."""
    if selector.reads_model:
        raise ValueError(
            f"{selector.name!r} scores candidates by the model, so they must be loaded first. Use SelectiveLoader, "
            "or a rule that reads no model output, such as 'priority_sampling' or 'class_balanced'."
        )
    if selector.weights_examples:
        raise ValueError(
            f"{selector.name!r} weights the losses of examples, and indices have no weights. Use SelectiveLoader."
        )
    if draws_from_all and selector.is_pointwise:
        raise ValueError(
            f"With fraction=None, {selector.name!r} would select the same {batch_size} examples of the data set in "
            "every step. Set `fraction`, or use a rule that draws."
        )


def check_layout(saved: Mapping[str, Any], own: Mapping[str, Any]) -> None:
    """Raise ValueError if a state was ``saved`` by a sampler with other batches; says what differs."""
    differences = [
        f"{name} is {saved.get(name)} in the state and {own.get(name)} here"
        for name in {**own, **saved}
        if saved.get(name) != own.get(name)
    ]
    if differences:
        raise ValueError(
            f"The state is of a sampler with other batches: {', '.join(differences)}. Use the same data and options."
        )
