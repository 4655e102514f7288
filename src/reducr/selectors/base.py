"""Base class of the selectors: ``select``, ``update``, their state, and the handling of non-finite losses."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from reducr._internal.checks import check_count, check_num_groups
from reducr._internal.distributed import is_main_rank, num_ranks
from reducr.batch import Candidates, Selection
from reducr.selectors.checks import (
    are_finite,
    check_fields,
    check_num_selected,
    checked_holdout_loss,
    is_finite,
    num_nonfinite,
)
from reducr.selectors.group_weights import GroupWeights
from reducr.selectors.named_state import NamedState
from reducr.selectors.samplers import make_sampler

HOLDOUT_LOSSES = ("cross_entropy", "zero_one")
_FIELDS_OF_MODEL = frozenset({"model_loss", "logits", "features"})


class Selector(NamedState):
    """A scoring rule with a sampler. ``select`` reads its state, only ``update`` and the ``set_`` methods change it.

    A candidate with a NaN or infinite loss is never selected and adds nothing to the payoff. It is counted in
    ``num_non_finite``; the first one causes a warning. If fewer than ``num_selected`` candidates have finite losses,
    these are the selection. Losses above 3.4e38, the largest float32, count as infinite, so sums of payoffs cannot
    overflow.

    State:
        step: () int64, number of updates; equal on all ranks.
        epoch: () int64, set by ``set_epoch``; equal on all ranks.
        num_non_finite: () int64, number of candidates with a non-finite loss so far; summed over ranks.
        group_holdout_loss: (G,) float64, NaN until ``set_group_holdout_loss``; equal on all ranks.
        weighting.cumulative_payoff: (G,) float64; summed over ranks.
        _extra_state: uint8, the name of the rule in UTF-8.

    Args:
        num_groups: G >= 1.
        sampler: a key of ``SAMPLERS``; None for the rule's ``default_sampler``.
        sampler_options: options of the sampler, and ``uniform_first_epochs``, ``uniform_last_epochs`` and
            ``num_epochs`` to select uniformly at the start and the end of training.

    Raises:
        ValueError: for an unknown sampler or option, or a value outside its range.
    """

    name: ClassVar[str]
    needs: frozenset[str] = frozenset()
    """Fields of ``Candidates`` that the rule reads."""
    needs_group_holdout_loss: bool = False
    holdout_loss: str = "cross_entropy"
    """Loss whose mean over a group is the group-holdout loss: one of ``HOLDOUT_LOSSES``."""
    num_dropout_samples: int = 0
    """Number of MC-dropout forward passes that the rule scores with; 0 for one ordinary forward pass."""
    is_pointwise: ClassVar[bool] = True
    """Whether a score depends only on its example and the state. False for rules that draw random numbers or compare
    candidates. Such a rule gets only candidates with finite losses. On several ranks it scores the candidates of all,
    so the fields that it needs are sent over the network."""
    weights_examples: ClassVar[bool] = False
    """Whether the losses of selected examples must be multiplied by ``Selection.example_weights``. Such a rule is not
    pointwise."""
    default_sampler: ClassVar[str] = "top_k"
    nan_before_use = frozenset({"group_holdout_loss"})

    step: Tensor
    epoch: Tensor
    num_non_finite: Tensor
    group_holdout_loss: Tensor

    def __init__(self, *, num_groups: int, sampler: str | None = None, **sampler_options: float | str | None) -> None:
        super().__init__()
        check_num_groups(num_groups)
        self.num_groups = num_groups
        self.sampler = make_sampler(self.default_sampler if sampler is None else sampler, **sampler_options)
        self.weighting = GroupWeights(num_groups, step_size=0.0)
        for counter in ("step", "epoch", "num_non_finite"):
            self.register_buffer(counter, torch.zeros((), dtype=torch.int64))
        self.register_buffer("group_holdout_loss", torch.full((num_groups,), torch.nan, dtype=torch.float64))

    @classmethod
    def has_groups(cls) -> bool:
        """Whether the rule treats each group by itself, so that it must know how many there are."""
        return cls.needs_group_holdout_loss or not cls.needs.isdisjoint(("groups", "group_irreducible_loss"))

    @property
    def reads_model(self) -> bool:
        """Whether the rule reads losses or outputs of the model. If not, it can choose before inputs are loaded."""
        return bool(self.needs & _FIELDS_OF_MODEL) or self.num_dropout_samples > 0

    @property
    def group_weights(self) -> Tensor:
        """(G,) float64 on the simplex, the weights of the next selection; equal for rules without group weights."""
        return self.weighting.weights()

    @property
    def cumulative_payoff(self) -> Tensor:
        """(G,) float64, the payoff of all selections so far; zeros for rules without group weights."""
        return self.weighting.cumulative_payoff

    @property
    def weighted_groups(self) -> Tensor:
        """(K,) int64, the groups whose irreducible losses are needed: all, unless a weight is fixed at zero."""
        return torch.arange(self.num_groups)

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """Scores (B,), larger is better. They may be non-finite where a loss is."""
        raise NotImplementedError(f"{type(self).__name__} must define score().")

    def score_for(
        self, candidates: Candidates, *, num_selected: int | None, generator: torch.Generator | None
    ) -> Tensor:
        """Scores (B,) for a selection of ``num_selected``, which only rules such as ``QuotaSelector`` read.

        Args:
            candidates: B examples.
            num_selected: b in [1, B]; may be None for pointwise rules.
            generator: random generator for rules that draw.
        """
        return self.score(candidates, generator=generator)

    def payoff(self, selected: Candidates) -> Tensor:
        """Payoff (G,) float64 of the selected candidates, which ``update`` adds to the cumulative payoff."""
        return torch.zeros(self.num_groups, dtype=torch.float64, device=selected.device)

    def example_weights(
        self, candidates: Candidates, valid_scores: Tensor, positions: Tensor, payoff: Tensor
    ) -> Tensor | None:
        """Weights (b,) for the losses of the selected examples, in the order of ``positions``.

        Args:
            candidates: all candidates.
            valid_scores: (B,), minus infinity where a loss is not finite.
            positions: (b,) of the selected examples.
            payoff: (G,) of the selection.

        Returns:
            (b,), or None if all weights are 1, as for every rule without ``weights_examples``.
        """
        return None

    def selected_index(self, candidates: Candidates, positions: Tensor) -> Tensor | None:
        """Indices (b,) int64 of the selected examples if the rule needs them, else None."""
        if "index" not in self.needs:
            return None
        return candidates.index.long().index_select(0, positions)  # type: ignore[union-attr]  # in self.needs

    def losses(self, candidates: Candidates) -> list[Tensor]:
        """Tensors with B rows. A candidate with a non-finite value in one of them is not selected."""
        losses = [candidates.model_loss]
        if "irreducible_loss" in self.needs:
            losses.append(candidates.irreducible_loss)
        if "group_irreducible_loss" in self.needs:
            losses.append(candidates.group_losses)
        return [loss for loss in losses if loss is not None]

    def set_group_holdout_loss(self, group_holdout_loss: Tensor) -> None:
        """Set the mean holdout loss of every group for the selections from now on.

        Args:
            group_holdout_loss: (G,) nats; shares of wrong predictions if ``holdout_loss`` is ``zero_one``. Rules
                without a holdout term only store it.

        Raises:
            ValueError: unless there are G finite real numbers.
        """
        self.group_holdout_loss.copy_(checked_holdout_loss(group_holdout_loss, self.num_groups))

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch, counted from 0, for the schedules of the sampler."""
        check_count("epoch", epoch, least=0)
        self.epoch.fill_(epoch)

    @torch.no_grad()
    def select(
        self, candidates: Candidates, *, num_selected: int, generator: torch.Generator | None = None
    ) -> Selection:
        """Choose ``num_selected`` of this process's candidates. Changes no state.

        ``selectors.distributed.select_distributed`` chooses across processes.

        Args:
            candidates: B examples with the fields in ``self.needs``.
            num_selected: b in [1, B].
            generator: random generator for rules and samplers that draw; None for torch's global one.

        Returns:
            The selection with positions (b,), best first or in the order drawn. There are fewer than b only if fewer
            candidates have finite losses.

        Raises:
            ValueError: for a missing field or holdout loss, a shape or number out of range, or if no candidate has a
                finite loss.
        """
        self.check_candidates(candidates)
        check_num_selected(num_selected, candidates.num_candidates)
        scores = self.valid_scores(candidates, num_selected=num_selected, generator=generator)
        num_non_finite = num_nonfinite(scores)
        positions = self.sample(scores, num_selected=num_selected, num_non_finite=num_non_finite, generator=generator)
        payoff = self.total_payoff(candidates, positions)
        return Selection(
            positions=positions,
            scores=scores,
            payoff=payoff,
            num_non_finite=num_non_finite,
            example_weights=self.example_weights(candidates, scores, positions, payoff),
            index=self.selected_index(candidates, positions),
        )

    def valid_scores(
        self, candidates: Candidates, *, num_selected: int | None = None, generator: torch.Generator | None
    ) -> Tensor:
        """Scores (B,), minus infinity where a loss is not finite. Pointwise rules score in chunks.

        Args:
            candidates: B examples.
            num_selected: b in [1, B]; None for pointwise rules only.
            generator: random generator for rules that draw.
        """
        if not self.is_pointwise:
            return self._scores_of_finite(candidates, num_selected, generator)
        parts = (self._masked_scores(chunk, None, generator) for chunk in candidates.chunks())
        return _concatenation(parts, num_rows=candidates.num_candidates)

    def _scores_of_finite(
        self, candidates: Candidates, num_selected: int | None, generator: torch.Generator | None
    ) -> Tensor:
        """Valid scores (B,) of a rule that sees only the candidates with finite losses."""
        losses = self.losses(candidates)
        if all(are_finite(values) for values in losses):
            scores = self.score_for(candidates, num_selected=num_selected, generator=generator).detach()
            return scores if are_finite(scores) else scores.masked_fill(~torch.isfinite(scores), -torch.inf)
        has_finite_loss = torch.ones(candidates.num_candidates, dtype=torch.bool, device=candidates.device)
        for loss in losses:
            has_finite_loss &= is_finite(loss).reshape(len(loss), -1).all(dim=1)
        rows = torch.nonzero(has_finite_loss).flatten()
        scores = torch.full((candidates.num_candidates,), -torch.inf, device=candidates.device)
        if not len(rows):
            return scores
        num_selected = None if num_selected is None else min(num_selected, len(rows))
        finite_scores = self._masked_scores(candidates.take(rows), num_selected, generator)
        return scores.to(finite_scores.dtype).index_copy_(0, rows, finite_scores)

    def _masked_scores(
        self, candidates: Candidates, num_selected: int | None, generator: torch.Generator | None
    ) -> Tensor:
        """Scores (B,) with minus infinity where the score or a loss is not finite."""
        scores = self.score_for(candidates, num_selected=num_selected, generator=generator).detach()
        losses = self.losses(candidates)
        if all(are_finite(values) for values in (scores, *losses)):
            return scores
        is_valid = torch.isfinite(scores)
        for loss in losses:
            has_finite_loss = is_finite(loss)
            is_valid &= has_finite_loss if loss.ndim == 1 else has_finite_loss.all(dim=1)
        return scores.masked_fill(~is_valid, -torch.inf)

    def sample(
        self,
        valid_scores: Tensor,
        *,
        num_selected: int,
        num_non_finite: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Positions (b,) that the sampler chooses; fewer if fewer scores are finite.

        Args:
            valid_scores: (B,).
            num_selected: b.
            num_non_finite: how many of the scores are minus infinity.
            generator: random generator for samplers that draw.

        Raises:
            ValueError: if no score is finite.
        """
        epoch = int(self.epoch)
        if not num_non_finite:
            return self.sampler(valid_scores, num_selected, epoch=epoch, generator=generator)
        rows = torch.nonzero(valid_scores > -torch.inf).flatten()
        if not len(rows):
            raise ValueError(
                f"step {int(self.step)}: the losses of all {len(valid_scores)} candidates are NaN or infinite. The "
                "model has diverged or its inputs are not finite. Lower the learning rate, or inspect this batch."
            )
        num_selected = min(num_selected, len(rows))
        return rows[self.sampler(valid_scores[rows], num_selected, epoch=epoch, generator=generator)]

    def total_payoff(self, candidates: Candidates, positions: Tensor) -> Tensor:
        """Payoff (G,) of the candidates at ``positions`` (b,), computed in chunks if G is large."""
        if type(self).payoff is Selector.payoff:
            return self.payoff(candidates)
        size = candidates.chunk_size
        if positions.shape[0] <= size:
            return self.payoff(candidates.take(positions, names=self.needs))
        parts = torch.split(positions, size)
        payoffs = (self.payoff(candidates.take(part, names=self.needs)).unsqueeze(0) for part in parts)
        return self.merged_payoff(_concatenation(payoffs, num_rows=len(parts)))

    def merged(self, selections: Sequence[Selection]) -> Selection:
        """One selection from several, which ``update`` counts as one step.

        For gradient accumulation: one selection per micro-batch, one update per step of the optimiser. All selections
        must be made with the same group weights.

        Returns:
            Positions in the concatenated candidates; all scores; the payoff of all; the number of non-finite losses in
            all. ``loss_weight`` is the mean. ``example_weights`` are left out: each micro-batch's loss needs its own.

        Raises:
            ValueError: if there is none.
        """
        if not selections:
            raise ValueError("merged() needs at least one selection; got none.")
        if len(selections) == 1:
            return selections[0]
        has_index = selections[0].index is not None
        starts = [0]
        for selection in selections[:-1]:
            starts.append(starts[-1] + len(selection.scores))
        return Selection(
            positions=torch.cat([part.positions + start for part, start in zip(selections, starts, strict=True)]),
            scores=torch.cat([part.scores for part in selections]),
            payoff=self.merged_payoff(torch.stack([part.payoff for part in selections])),
            num_non_finite=sum(part.num_non_finite for part in selections),
            loss_weight=sum(part.loss_weight for part in selections) / len(selections),
            index=torch.cat([part.index for part in selections if part.index is not None]) if has_index else None,
        )

    def merged_payoff(self, payoffs: Tensor) -> Tensor:
        """Payoff (G,) of one step from the payoffs (K, G) of its K selections."""
        return payoffs.sum(dim=0)

    def update(self, selection: Selection) -> None:
        """Count a step and add the payoff of ``selection``, which moves the group weights.

        Warns at the first selection that left out a NaN or infinite loss.

        Raises:
            TypeError: for anything but a ``Selection``.
            ValueError: for a selection with another number of groups.
        """
        if not isinstance(selection, Selection):
            raise TypeError(f"update() takes the Selection that select() returned; got {type(selection).__name__}.")
        if selection.num_non_finite and not int(self.num_non_finite) and is_main_rank():
            total = len(selection.scores) if num_ranks() == 1 else "all ranks'"
            warnings.warn(
                f"step {int(self.step)}: {selection.num_non_finite} of {total} candidates have a NaN or infinite loss. "
                "They are never selected and do not move the group weights. Later ones are counted in "
                "`selector.num_non_finite` without a warning.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.weighting.update(selection.payoff.detach())
        self.step.add_(1)
        if selection.num_non_finite:
            self.num_non_finite.add_(selection.num_non_finite)

    def check_num_candidates(self, num_candidates: int) -> None:
        """Raise ValueError if the rule cannot handle B candidates at once; most rules can handle any number."""

    def check_candidates(self, candidates: Candidates) -> None:
        """Raise an error unless ``candidates`` have the fields in ``needs``, in range, and the holdout loss is set."""
        check_fields(candidates, self.needs, rule=self.name, num_groups=self.num_groups)
        if self.needs_group_holdout_loss and math.isnan(self.group_holdout_loss.sum().item()):
            raise ValueError(
                f"{self.name!r} needs the holdout loss before its first selection. Evaluate the model on the holdout "
                "set and call selector.set_group_holdout_loss(h)."
            )


def _concatenation(parts: Iterator[Tensor], *, num_rows: int) -> Tensor:
    """Concatenate parts along the first axis, copying each into the result as it comes.

    Small parts that stay allocated between the large temporaries of the next would fragment the heap.
    """
    first = next(parts)
    if first.shape[0] == num_rows:
        return first
    whole, end = first.new_empty(num_rows, *first.shape[1:]), 0
    for part in chain((first,), parts):
        start, end = end, end + part.shape[0]
        whole[start:end] = part
    return whole
