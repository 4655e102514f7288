"""How a model scores the candidates."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch

from reducr._internal.checks import check_count, check_flag, is_finite_number
from reducr._internal.names import unknown_name
from reducr.scoring.budget import ScoringBudget
from reducr.selectors import Selector

SCORING_MODES = ("train", "eval", "train_frozen_statistics")
_PRECISIONS = (None, torch.bfloat16, torch.float16)


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """How the scoring pass runs the model; the default is as published.

    Args:
        mode: ``train`` (as published: dropout is on, batch norms use the statistics of the candidates and update their
            running statistics with them), ``eval``, or ``train_frozen_statistics`` (as ``train``, but every buffer is
            put back). A model in train mode keeps layers that its owner has put into eval mode. The mode of every
            module is left as it was.
        autocast: ``torch.bfloat16`` or ``torch.float16`` for the scoring pass of the model; None for the precision of
            the context. The reference model and the holdout loss always have the precision of the context.
        compile: score through ``torch.compile``.
        resolution: fraction of an image's height and width to score at, in (0, 1); None for whole images. The model
            must take images of any size.
        budget: score only the candidates that could be selected, by their remembered losses: a fraction in (0, 1] of
            the candidates, or a ``ScoringBudget``, of which every training uses its own copy. None scores all.
        batch_size: score the candidates in chunks of at most this many, of equal size as far as possible, so that
            memory depends on the chunk and not on B; None for all at once. In mode ``eval`` scores are the same up to
            rounding, but for rules with MC-dropout, which draw it for each chunk. In the other modes dropout is drawn
            for each chunk, and batch norms use the statistics of each chunk (with ``train`` the running statistics are
            updated once per chunk), so scores of a model with batch norms depend on ``batch_size``.

    Raises:
        ValueError: for an unknown mode, another precision, or a number out of range.
        TypeError: for a budget that is neither a number nor a ``ScoringBudget``.

    Example:
        >>> Scoring(mode="eval", batch_size=64).batch_size
        64
    """

    mode: str = "train"
    autocast: torch.dtype | None = None
    compile: bool = False
    resolution: float | None = None
    budget: float | ScoringBudget | None = None
    batch_size: int | None = None

    def __post_init__(self) -> None:
        if self.mode not in SCORING_MODES:
            raise unknown_name("scoring mode", self.mode, SCORING_MODES)
        if self.autocast not in _PRECISIONS:
            raise ValueError(f"`autocast` must be torch.bfloat16, torch.float16 or None; got {self.autocast}.")
        check_flag("compile", self.compile)
        if self.resolution is not None and not (is_finite_number(self.resolution) and 0 < self.resolution < 1):
            raise ValueError(
                f"`resolution` must be in (0, 1), the fraction of an image's height and width; got {self.resolution}. "
                "Use None for whole images."
            )
        if self.batch_size is not None:
            check_count("batch_size", self.batch_size)
        self.new_budget()

    def new_budget(self) -> ScoringBudget | None:
        """Return a budget of its own for one training; None if every candidate is scored."""
        budget: Any = self.budget
        if budget is None:
            return None
        if isinstance(budget, ScoringBudget):
            return copy.deepcopy(budget)
        if isinstance(budget, bool) or not isinstance(budget, int | float):
            raise TypeError(
                f"`budget` must be a fraction of the candidates or a ScoringBudget; got {type(budget).__name__}. To "
                "score two fifths of the candidates, pass `budget=0.4`."
            )
        return ScoringBudget(budget)

    def check_fit(self, selector: Selector, *, fraction: float, distributed: str | None) -> None:
        """See that these options can serve a rule.

        Args:
            selector: the rule. A budget serves pointwise rules that read the model loss and no logits.
            fraction: of the candidates to be selected; at most that of the budget.
            distributed: must be None for a budget, since each rank would remember losses of its own.

        Raises:
            ValueError: for an option that does not fit the rule.
        """
        if self.compile and "features" in selector.needs:
            raise ValueError(
                f"{selector.name!r} reads the input of the model's last layer, which a compiled model hides. Use "
                "`compile=False`, or choose another rule."
            )
        budget = self.budget.fraction if isinstance(self.budget, ScoringBudget) else self.budget
        if budget is None:
            return
        if "model_loss" not in selector.needs or "logits" in selector.needs or not selector.is_pointwise:
            needs = ", ".join(sorted(selector.needs)) or "nothing"
            raise ValueError(
                "A scoring budget ranks candidates by remembered model losses, so it serves rules that score each "
                f"example by its model loss, such as 'reducr' and 'rho_loss'; {selector.name!r} reads {needs}. Choose "
                "such a rule, or leave `budget` out."
            )
        if fraction > budget:
            raise ValueError(
                f"A scoring budget of {budget:g} of the candidates cannot select {fraction:g} of them: only scored "
                "examples are selected. Raise `budget`, or lower `fraction`."
            )
        if distributed is not None:
            raise ValueError(
                f"A scoring budget does not work with distributed={distributed!r}: each rank would remember losses of "
                "its own. Leave one of the two out."
            )
