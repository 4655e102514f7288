"""Further options of a ``SelectiveBatchSampler``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from reducr._internal.checks import check_count, check_flag
from reducr._internal.names import unknown_name
from reducr.batch import BatchSpec, PerExampleLoss
from reducr.functional import TokenLoss
from reducr.scoring import Holdout
from reducr.selectors import Selector


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """Further options of a ``SelectiveBatchSampler``; see there."""

    refresh_steps: int | str | None = None
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
    "holdout_fraction": "a batch holds indices of the training data only; use SelectiveLoader",
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


def check_holdout(holdout: Holdout | None) -> None:
    """Raise ValueError for a holdout set whose examples are to be trained on."""
    if holdout is not None and holdout.fraction:
        raise ValueError(
            f"SelectiveBatchSampler cannot mix in holdout examples (a Holdout with fraction={holdout.fraction}): "
            f"{_ELSEWHERE['holdout_fraction']}."
        )
