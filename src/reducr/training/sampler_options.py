"""Further options of a ``SelectiveBatchSampler``."""

from __future__ import annotations

from dataclasses import dataclass

from reducr._internal.checks import check_count, check_flag
from reducr.batch import BatchSpec, PerExampleLoss


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """Further options of a ``SelectiveBatchSampler``; see there."""

    refresh_steps: int | None = None
    accumulate_steps: int = 1
    drop_last: bool = False
    loss: PerExampleLoss | None = None
    spec: BatchSpec | None = None
    distributed: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        check_count("accumulate_steps", self.accumulate_steps)
        check_flag("drop_last", self.drop_last)
        if self.distributed == "local":
            raise ValueError(
                "distributed='local' does not apply to a batch sampler: every rank chooses from the candidates of all, "
                "without an exchange, and takes its share. Use distributed='global'."
            )
