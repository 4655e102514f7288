"""What every selector shares: checks, the treatment of broken points, state, and the two calls."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Sequence
from itertools import chain
from typing import ClassVar

import torch
from torch import Tensor

from reducr._internal.buffers import FixedDtypeBuffers
from reducr._internal.checks import check_count, check_num_groups, check_range
from reducr._internal.distributed import is_main_rank, num_ranks
from reducr.batch import Candidates, Selection
from reducr.selectors.group_weights import GroupWeights
from reducr.selectors.samplers import make_sampler

HOLDOUT_LOSSES = ("cross_entropy", "zero_one")


class Selector(FixedDtypeBuffers):
    """A scoring rule with a sampler: ``select`` reads the state, ``update`` writes it, nothing else does either.

    A candidate with a NaN or infinite loss is never selected, counted in ``num_non_finite``, warned of once, and
    leaves no trace in the payoff. If fewer than ``num_selected`` candidates are finite, those are the selection. What
    float32 cannot hold, above 3.4e38, counts as infinite, so that no sum of payoffs can overflow.

    State:
        step: () int64, updates so far; equal on all ranks.
        epoch: () int64, set by ``set_epoch``; equal on all ranks.
        num_non_finite: () int64, broken candidates seen so far; summed over ranks.
        group_holdout_loss: (G,) float64, NaN until ``set_group_holdout_loss``; equal on all ranks.
        weighting.cumulative_payoff: (G,) float64; summed over ranks.

    Args:
        num_groups: G >= 1.
        sampler: a key of ``SAMPLERS``.
        sampler_options: options of that sampler, and ``uniform_first_epochs``, ``uniform_last_epochs``,
            ``num_epochs`` for uniform selection at the ends of training.

    Raises:
        ValueError: for an unknown sampler or option, or a value outside its range.
    """

    name: ClassVar[str]
    needs: frozenset[str] = frozenset()
    """The fields of Candidates without which this selector cannot score."""
    needs_group_holdout_loss: bool = False
    holdout_loss: str = "cross_entropy"
    """What the group-holdout loss is the mean of: one of ``HOLDOUT_LOSSES``."""
    num_dropout_samples: int = 0
    """How many MC-dropout samples of the logits to score with; 0 for one ordinary forward pass."""
    is_pointwise: ClassVar[bool] = True
    """Whether a score depends on its point and the state alone. A rule that draws, or looks at other candidates, says
    False: broken candidates are then none of those it looks at, and on several ranks it scores the candidates of all,
    so that what it needs of them crosses the network."""
    weights_examples: ClassVar[bool] = False
    """Whether selected losses must be multiplied with ``Selection.example_weights``; such a rule is not
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

    @property
    def group_weights(self) -> Tensor:
        """(G,) float64 on the simplex, the weights the next selection uses; equal for rules without any."""
        return self.weighting.weights()

    @property
    def cumulative_payoff(self) -> Tensor:
        """(G,) float64, the payoff of all selections so far; zeros for rules without group weights."""
        return self.weighting.cumulative_payoff

    @property
    def weighted_groups(self) -> Tensor:
        """(K,) int64, the groups whose irreducible losses can matter: all, unless a weight is fixed at zero."""
        return torch.arange(self.num_groups)

    def score(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) scores, larger is better; not finite where a point is broken."""
        raise NotImplementedError(f"{type(self).__name__} must define score().")

    def payoff(self, selected: Candidates) -> Tensor:
        """(G,) float64, what the selected candidates add to the cumulative payoff."""
        return torch.zeros(self.num_groups, dtype=torch.float64, device=selected.device)

    def example_weights(
        self, candidates: Candidates, valid_scores: Tensor, positions: Tensor, payoff: Tensor
    ) -> Tensor | None:
        """(b,) what the losses of the selected points are to be multiplied with, in the order of the positions.

        Args:
            candidates: all that there are.
            valid_scores: (B,), minus infinity where a point is broken.
            positions: (b,) of the selected points.
            payoff: (G,) of them.

        Returns:
            None where all weights are 1, as always for rules that do not say ``weights_examples``.
        """
        return None

    def selected_index(self, candidates: Candidates, positions: Tensor) -> Tensor | None:
        """(b,) int64, the ids of the selected points, for rules that need them; None for others."""
        if "index" not in self.needs:
            return None
        return candidates.index.long().index_select(0, positions)  # type: ignore[union-attr]  # in self.needs

    def losses(self, candidates: Candidates) -> list[Tensor]:
        """The losses, (B,) or with B rows, that must be finite for a point to be selected."""
        losses = [candidates.model_loss]
        if "irreducible_loss" in self.needs:
            losses.append(candidates.irreducible_loss)
        if "group_irreducible_loss" in self.needs:
            losses.append(candidates.group_losses)
        return [loss for loss in losses if loss is not None]

    def set_group_holdout_loss(self, group_holdout_loss: Tensor) -> None:
        """Put the mean holdout loss of every group (G,) in force from the next selection on.

        In nats, or for a rule whose ``holdout_loss`` is ``zero_one`` the share of wrong predictions. Rules without a
        holdout term only keep it.

        Raises:
            ValueError: if there are not G values or one is not finite.
        """
        try:
            loss = torch.as_tensor(group_holdout_loss).detach()
        except (TypeError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"group_holdout_loss must be a tensor of one value for each of the {self.num_groups} groups; got "
                f"{type(group_holdout_loss).__name__}."
            ) from error
        if loss.is_complex() or loss.dtype == torch.bool:
            raise ValueError(f"group_holdout_loss must hold real numbers; got {loss.dtype}.")
        if loss.shape != (self.num_groups,):
            raise ValueError(
                f"group_holdout_loss must hold one value for each of the {self.num_groups} groups; "
                f"got shape {tuple(loss.shape)}."
            )
        broken = torch.nonzero(~_is_finite(loss)).flatten().tolist()
        if broken:
            raise ValueError(
                f"group_holdout_loss must be finite; group {', '.join(map(str, broken))} is not. "
                "A group without holdout points has no mean: give it some."
            )
        self.group_holdout_loss.copy_(loss)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler's schedules which epoch it is, counted from 0."""
        check_count("epoch", epoch, least=0)
        self.epoch.fill_(epoch)

    @torch.no_grad()
    def select(
        self, candidates: Candidates, *, num_selected: int, generator: torch.Generator | None = None
    ) -> Selection:
        """Choose ``num_selected`` of the candidates; reads the state and changes nothing.

        The candidates of this process alone: ``selectors.sync.select_distributed`` does it on several.

        Args:
            candidates: the fields in ``self.needs``, of B points.
            num_selected: b in [1, B].
            generator: source of randomness for rules and samplers that draw; None uses torch's global one.

        Returns:
            The selection: positions (b,), best first. Fewer than b only if fewer candidates are finite.

        Raises:
            ValueError: if a needed field or the holdout loss is missing, a shape or number is out of range, or no
                candidate is finite.
        """
        self.check_candidates(candidates)
        check_num_selected(num_selected, candidates.num_candidates)
        scores = self.valid_scores(candidates, generator=generator)
        num_non_finite = num_nonfinite(scores)
        positions = self.best(scores, num_selected=num_selected, num_non_finite=num_non_finite, generator=generator)
        payoff = self.total_payoff(candidates, positions)
        return Selection(
            positions=positions,
            scores=scores,
            payoff=payoff,
            num_non_finite=num_non_finite,
            example_weights=self.example_weights(candidates, scores, positions, payoff),
            index=self.selected_index(candidates, positions),
        )

    def valid_scores(self, candidates: Candidates, *, generator: torch.Generator | None) -> Tensor:
        """(B,) scores, minus infinity where a point is broken; some candidates at a time where a rule is pointwise."""
        if not self.is_pointwise:
            return self._scores_among_whole(candidates, generator)
        parts = (self._valid_scores(chunk, generator) for chunk in candidates.chunks())
        return _concatenated(parts, num_rows=candidates.num_candidates)

    def _scores_among_whole(self, candidates: Candidates, generator: torch.Generator | None) -> Tensor:
        losses = self.losses(candidates)
        if all(_are_finite(values) for values in losses):
            return self._valid_scores(candidates, generator)
        is_whole = torch.ones(candidates.num_candidates, dtype=torch.bool, device=candidates.device)
        for loss in losses:
            is_whole &= _is_finite(loss).reshape(len(loss), -1).all(dim=1)
        rows = torch.nonzero(is_whole).flatten()
        scores = torch.full((candidates.num_candidates,), -torch.inf, device=candidates.device)
        if not len(rows):
            return scores
        of_whole = self._valid_scores(candidates.take(rows), generator)
        return scores.to(of_whole.dtype).index_copy_(0, rows, of_whole)

    def _valid_scores(self, candidates: Candidates, generator: torch.Generator | None) -> Tensor:
        scores = self.score(candidates, generator=generator).detach()
        losses = self.losses(candidates)
        if all(_are_finite(values) for values in (scores, *losses)):
            return scores
        is_valid = torch.isfinite(scores)
        for loss in losses:
            is_finite = _is_finite(loss)
            is_valid &= is_finite if loss.ndim == 1 else is_finite.all(dim=1)
        return scores.masked_fill(~is_valid, -torch.inf)

    def best(
        self,
        valid_scores: Tensor,
        *,
        num_selected: int,
        num_non_finite: int,
        generator: torch.Generator | None,
    ) -> Tensor:
        """Positions (b,) that the sampler takes, best first or in the order drawn; fewer if fewer are finite.

        Args:
            valid_scores: (B,), of which ``num_non_finite`` are minus infinity.
            num_selected: b.
            num_non_finite: see above.
            generator: of samplers that draw.

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
                "model has diverged, or its inputs are broken: lower the learning rate, or look at the data of this "
                "batch."
            )
        num_selected = min(num_selected, len(rows))
        return rows[self.sampler(valid_scores[rows], num_selected, epoch=epoch, generator=generator)]

    def total_payoff(self, candidates: Candidates, positions: Tensor) -> Tensor:
        """(G,) payoff of the candidates at ``positions`` (b,), computed some at a time where G is large."""
        if type(self).payoff is Selector.payoff:
            return self.payoff(candidates)
        size = candidates.chunk_size
        if positions.shape[0] <= size:
            return self.payoff(candidates.take(positions, names=self.needs))
        parts = torch.split(positions, size)
        payoffs = (self.payoff(candidates.take(part, names=self.needs)).unsqueeze(0) for part in parts)
        return self.merged_payoff(_concatenated(payoffs, num_rows=len(parts)))

    def merged(self, selections: Sequence[Selection]) -> Selection:
        """Several selections made with the same weights as one, so that ``update`` counts them as one step.

        For gradient accumulation: one selection for each micro-batch, one update for each step of the optimiser.

        Returns:
            Positions in the candidates of all, one selection's after another's; all scores; the payoff of all;
            broken candidates of all. ``loss_weight`` is the mean: every micro-batch's loss has its own, and its own
            ``example_weights``.

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
        """(G,) payoff of one step that is made of several selections, from theirs (K, G)."""
        return payoffs.sum(dim=0)

    def update(self, selection: Selection) -> None:
        """Count the step and add the selection's payoff, which moves the group weights.

        Warns once, at the first selection that had to leave out a NaN or infinite loss.

        Raises:
            TypeError: for anything else than a ``Selection``.
            ValueError: if it is that of a selector of another number of groups.
        """
        if not isinstance(selection, Selection):
            raise TypeError(f"update() takes what select() gave, a Selection; got {type(selection).__name__}.")
        if selection.num_non_finite and not int(self.num_non_finite) and is_main_rank():
            of = len(selection.scores) if num_ranks() == 1 else "all ranks'"
            warnings.warn(
                f"step {int(self.step)}: {selection.num_non_finite} of {of} candidates have a NaN or infinite loss; "
                "such points are never selected and do not move the group weights. Further ones are counted in "
                "selector.num_non_finite without a warning.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.weighting.update(selection.payoff.detach())
        self.step.add_(1)
        if selection.num_non_finite:
            self.num_non_finite.add_(selection.num_non_finite)

    def check_candidates(self, candidates: Candidates) -> None:
        """Raise an error unless ``candidates`` have what the rule needs, in range, and the holdout loss is there."""
        if not isinstance(candidates, Candidates):
            raise TypeError(
                f"a selector chooses among Candidates, such as reducr.Candidates(model_loss=...); got "
                f"{type(candidates).__name__}."
            )
        given = candidates.given()
        if not self.needs <= given.keys():
            missing = sorted(self.needs - given.keys())
            raise ValueError(f"{self.name!r} needs Candidates.{', Candidates.'.join(missing)}; got {sorted(given)}.")
        table = candidates.group_irreducible_loss
        if table is not None and "group_irreducible_loss" in self.needs and table.shape[1] != self.num_groups:
            raise ValueError(
                f"group_irreducible_loss must have one column for each of the {self.num_groups} groups; "
                f"got shape {tuple(table.shape)}."
            )
        if self.needs_group_holdout_loss and math.isnan(self.group_holdout_loss.sum().item()):
            raise ValueError(
                f"{self.name!r} needs the holdout loss before its first selection: evaluate the model on the holdout "
                "set and call selector.set_group_holdout_loss(h)."
            )
        if "targets" in self.needs and "logits" in self.needs:
            check_range("targets", given["targets"], given["logits"].shape[-1])
        if "groups" in self.needs:
            check_range("groups", given["groups"], self.num_groups)
        if "index" in self.needs:
            check_range("index", given["index"], MOST_POINTS)


def num_nonfinite(valid_scores: Tensor) -> int:
    """How many of the ``valid_scores`` (B,) are minus infinity."""
    return 0 if valid_scores.min().item() > -torch.inf else int((valid_scores == -torch.inf).sum())


def _concatenated(parts: Iterator[Tensor], *, num_rows: int) -> Tensor:
    """The rows of all parts, each put in its place at once.

    Small parts that are kept between the large temporaries of one another scatter the heap, which then grows.
    """
    first = next(parts)
    if first.shape[0] == num_rows:
        return first
    whole, end = first.new_empty(num_rows, *first.shape[1:]), 0
    for part in chain((first,), parts):
        start, end = end, end + part.shape[0]
        whole[start:end] = part
    return whole


def _is_finite(values: Tensor) -> Tensor:
    """Where ``values`` are finite in float32, whatever they are in."""
    return torch.isfinite(values.float())


def _are_finite(values: Tensor) -> bool:
    """Whether all ``values`` are finite in float32."""
    if not values.numel():
        return True
    least, largest = torch.aminmax(values)  # NaN if there is one
    return least.item() >= -_LARGEST and largest.item() <= _LARGEST


_LARGEST = torch.finfo(torch.float32).max
MOST_POINTS = 2**31
"""What is remembered of each point has room for so many; larger indices are no numbers of points."""


def check_num_selected(num_selected: int, num_candidates: int, *, where: str = "") -> None:
    """Raise TypeError or ValueError unless ``num_selected`` is a whole number in [1, num_candidates]."""
    if isinstance(num_selected, bool) or not isinstance(num_selected, int):
        raise TypeError(f"num_selected must be a whole number; got {num_selected!r}.")
    if not 1 <= num_selected <= num_candidates:
        raise ValueError(
            f"num_selected must be between 1 and the number of candidates{where}, {num_candidates}; got {num_selected}."
        )
