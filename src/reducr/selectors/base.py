"""What every selector shares: checks, the treatment of broken points, state, and the two calls."""

from __future__ import annotations

import warnings
from typing import ClassVar

import torch
from torch import Tensor

from reducr.batch import Candidates, Selection
from reducr.checks import check_num_groups, check_range
from reducr.group_weights import GroupWeights
from reducr.selectors.samplers import make_sampler
from reducr.state import ExactState


class Selector(ExactState):
    """A scoring rule with a sampler: ``select`` reads the state, ``update`` writes it, nothing else does either.

    A candidate with a NaN or infinite loss is never selected, counted in ``num_non_finite``, warned of once, and
    leaves no trace in the payoff. If fewer than ``num_selected`` candidates are finite, those are the selection.

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
    num_dropout_samples: int = 0
    """How many MC-dropout samples of the logits to score with; 0 for one ordinary forward pass."""
    default_sampler: ClassVar[str] = "top_k"

    step: Tensor
    epoch: Tensor
    num_non_finite: Tensor
    group_holdout_loss: Tensor

    def __init__(self, *, num_groups: int, sampler: str | None = None, **sampler_options: float | str | None) -> None:
        super().__init__()
        check_num_groups(num_groups)
        self.num_groups = num_groups
        self.sampler = make_sampler(sampler or self.default_sampler, **sampler_options)
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

    def losses(self, candidates: Candidates) -> list[Tensor]:
        """The losses (B,) or (B, G) that must be finite for a point to be selected."""
        given = candidates.given()
        names = ("model_loss", "irreducible_loss", "group_irreducible_loss")
        return [given[name] for name in names if name in given and (name in self.needs or name == "model_loss")]

    def set_group_holdout_loss(self, group_holdout_loss: Tensor) -> None:
        """Put the mean holdout loss of every group (G,), in nats, in force from the next selection on.

        Rules without a holdout term only keep it.

        Raises:
            ValueError: if there are not G values or one is not finite.
        """
        loss = torch.as_tensor(group_holdout_loss).detach()
        if loss.shape != (self.num_groups,):
            raise ValueError(
                f"group_holdout_loss must hold one value for each of the {self.num_groups} groups; "
                f"got shape {tuple(loss.shape)}."
            )
        broken = torch.nonzero(~torch.isfinite(loss)).flatten().tolist()
        if broken:
            raise ValueError(
                f"group_holdout_loss must be finite; group {', '.join(map(str, broken))} is not. "
                "A group without holdout points has no mean: give it some."
            )
        self.group_holdout_loss.copy_(loss)

    def set_epoch(self, epoch: int) -> None:
        """Tell the sampler's schedules which epoch it is, counted from 0."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0; got {epoch}.")
        self.epoch.fill_(epoch)

    @torch.no_grad()
    def select(
        self, candidates: Candidates, *, num_selected: int, generator: torch.Generator | None = None
    ) -> Selection:
        """Choose ``num_selected`` of the candidates; reads the state and changes nothing.

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
        self._check_select(candidates, num_selected)
        # a copy: the score of a rule may be one of the caller's own tensors
        scores = self.score(candidates, generator=generator).detach().clone()
        is_valid = torch.isfinite(scores)
        for loss in self.losses(candidates):
            is_finite = torch.isfinite(loss)
            is_valid &= is_finite if loss.ndim == 1 else is_finite.all(dim=1)
        num_valid = int(is_valid.sum())
        if num_valid == len(scores):
            positions = self._sample(scores, num_selected, generator)
        elif num_valid > 0:
            rows = torch.nonzero(is_valid).flatten()
            positions = rows[self._sample(scores[rows], min(num_selected, num_valid), generator)]
            scores = scores.masked_fill(~is_valid, -torch.inf)
        else:
            raise ValueError(
                f"step {int(self.step)}: the losses of all {len(scores)} candidates are NaN or infinite. The model "
                "has diverged, or its inputs are broken: lower the learning rate, or look at the data of this batch."
            )
        return Selection(
            positions=positions,
            scores=scores,
            payoff=self.payoff(candidates.take(positions)),
            num_non_finite=len(scores) - num_valid,
        )

    @torch.no_grad()
    def update(self, selection: Selection) -> None:
        """Count the step and add the selection's payoff, which moves the group weights.

        Warns once, at the first selection that had to leave out a NaN or infinite loss.
        """
        if selection.num_non_finite and not int(self.num_non_finite):
            warnings.warn(
                f"step {int(self.step)}: {selection.num_non_finite} of {len(selection.scores)} candidates have a "
                "NaN or infinite loss; such points are never selected and do not move the group weights. Further "
                "ones are counted in selector.num_non_finite without a warning.",
                RuntimeWarning,
                stacklevel=2,
            )
        self.step += 1
        self.num_non_finite += selection.num_non_finite
        self.weighting.update(selection.payoff)

    def _sample(self, scores: Tensor, num_selected: int, generator: torch.Generator | None) -> Tensor:
        return self.sampler(scores, num_selected, epoch=int(self.epoch), generator=generator)

    def _check_select(self, candidates: Candidates, num_selected: int) -> None:
        given = candidates.given()
        missing = sorted(self.needs - given.keys())
        if missing:
            raise ValueError(f"{self.name!r} needs Candidates.{', Candidates.'.join(missing)}; got {sorted(given)}.")
        if isinstance(num_selected, bool) or not isinstance(num_selected, int):
            raise TypeError(f"num_selected must be a whole number; got {num_selected!r}.")
        if not 1 <= num_selected <= candidates.num_candidates:
            raise ValueError(
                f"num_selected must be between 1 and the number of candidates, {candidates.num_candidates}; "
                f"got {num_selected}."
            )
        table = candidates.group_irreducible_loss
        if table is not None and "group_irreducible_loss" in self.needs and table.shape[1] != self.num_groups:
            raise ValueError(
                f"group_irreducible_loss must have one column for each of the {self.num_groups} groups; "
                f"got shape {tuple(table.shape)}."
            )
        if self.needs_group_holdout_loss and bool(torch.isnan(self.group_holdout_loss).any()):
            raise ValueError(
                f"{self.name!r} needs the holdout loss before its first selection: evaluate the model on the holdout "
                "set and call selector.set_group_holdout_loss(h)."
            )
        if "targets" in self.needs and "logits" in self.needs:
            check_range("targets", given["targets"], given["logits"].shape[-1])
        if "groups" in self.needs:
            check_range("groups", given["groups"], self.num_groups)
