"""Score only the candidates that could be selected, by what is remembered of their losses."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from reducr._internal.buffers import MAX_EXAMPLES, FixedDtypeBuffers
from reducr._internal.checks import check_count, is_finite_number
from reducr.batch import Candidates
from reducr.functional import top_k
from reducr.selectors import Selector

_LARGE_LOSS = 100.0  # nats; so high that the irreducible losses alone decide


class ScoringBudget(FixedDtypeBuffers):
    """Score only the candidates that could be selected by their remembered losses, and a few to keep those fresh.

    The budget remembers, per example, its last model loss and the step at which the model had it. Of B candidates the
    model scores ``fraction`` B. Most of these are the best by the selector's own score, computed from the remembered
    model losses and from irreducible losses and group weights as they are now; an example that was never scored counts
    with the highest loss of the last scored batch. The rest are those scored longest ago, ties broken at random, so
    that no example is forgotten. The selector then chooses among the scored candidates by their new losses.

    Memory is 8 bytes per example, up to the largest index or a little beyond. Irreducible losses are looked up for all
    candidates: a table costs next to nothing, a live reference model a forward pass.

    State:
        loss: (N,) float32 nats, last model loss of each example.
        scored_step: (N,) int32, ``step`` at which it was computed; -1 if never.
        step: () int32, batches so far.
        high_loss: () float32 nats, loss that an example counts with until it is scored.

    Args:
        fraction: of the candidates to score, in (0, 1]; 1 selects as without a budget.
        oldest_fraction: fraction of the scored examples that is chosen by age alone, in [0, 1].
        num_examples: N, if it is known, to allocate the memory once. Without it, a batch on a GPU has to be waited for
            to read its largest index.

    Raises:
        ValueError: for an option out of range.

    Example:
        >>> from reducr import Candidates, make_selector
        >>> budget, selector = ScoringBudget(0.5, oldest_fraction=0.0), make_selector("train_loss", num_groups=2)
        >>> budget.reserve(torch.arange(4))
        >>> budget.remember(torch.arange(4), torch.tensor([0.1, 2.0, 0.3, 1.0]))
        >>> candidates = Candidates(groups=torch.tensor([0, 1, 0, 1]))
        >>> budget.positions(torch.tensor([3, 2, 1, 0]), candidates, selector, num_selected=1)
        tensor([0, 2])
    """

    growing = frozenset({"loss", "scored_step"})

    loss: Tensor
    scored_step: Tensor
    step: Tensor
    high_loss: Tensor

    def __init__(self, fraction: float, *, oldest_fraction: float = 0.1, num_examples: int | None = None) -> None:
        super().__init__()
        if not (is_finite_number(fraction) and 0 < fraction <= 1):
            raise ValueError(
                "The fraction of a scoring budget must be in (0, 1], the fraction of the candidates to score; got "
                f"{fraction}."
            )
        if not (is_finite_number(oldest_fraction) and 0 <= oldest_fraction <= 1):
            raise ValueError(
                "`oldest_fraction` must be in [0, 1], the fraction of the scored examples that is chosen by age "
                f"alone; got {oldest_fraction}."
            )
        if num_examples is not None:
            check_count("num_examples", num_examples)
        self.fraction = float(fraction)
        self.oldest_fraction = float(oldest_fraction)
        self.num_examples = num_examples
        self.register_buffer("loss", torch.zeros(num_examples or 0))
        self.register_buffer("scored_step", torch.full((num_examples or 0,), -1, dtype=torch.int32))
        self.register_buffer("step", torch.zeros((), dtype=torch.int32))
        self.register_buffer("high_loss", torch.tensor(_LARGE_LOSS))

    def reserve(self, index: Tensor | None) -> None:
        """Grow the memory to hold the examples ``index`` (B,); cheapest before the index goes to a GPU.

        Raises:
            ValueError: if there is no index, or it is not one integer in range per example.
        """
        if index is None:
            raise ValueError(
                "A scoring budget remembers the loss of every example by its index, and these batches have none. Let "
                "the data set yield (index, input, target), say where the index is with `spec=BatchSpec(index=...)`, "
                "or leave `budget` out."
            )
        if index.ndim != 1 or index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
            raise ValueError(f"An index must be one integer per example, (B,); got {index.dtype} {tuple(index.shape)}.")
        is_trusted = self.num_examples is not None and index.device.type != "cpu"
        if is_trusted or not len(index):
            return
        smallest, largest = (int(bound) for bound in index.aminmax())
        most = self.num_examples or MAX_EXAMPLES
        if smallest < 0 or largest >= most:
            raise ValueError(
                f"A scoring budget needs indices in 0..{most - 1}; got {smallest if smallest < 0 else largest}. Number "
                "the examples of the data set from 0."
            )
        if largest >= len(self.loss):
            more = max(largest + 1, 2 * len(self.loss)) - len(self.loss)
            self.loss = torch.cat([self.loss, self.loss.new_zeros(more)])
            self.scored_step = torch.cat([self.scored_step, self.scored_step.new_full((more,), -1)])

    def positions(
        self,
        index: Tensor,
        candidates: Candidates,
        selector: Selector,
        *,
        num_selected: int,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Return the positions of the candidates to score, in ascending order. Changes nothing.

        Args:
            index: (B,) ids of the candidates, which ``reserve`` has seen.
            candidates: every field that the selector needs, but the model loss.
            selector: the rule with its current group weights.
            num_selected: b in [1, B], the number of candidates that will be selected.
            generator: source of random tie-breaks; None uses torch's global one.

        Returns:
            (K,) int64 with ``K = max(b, floor(fraction * B))``.
        """
        index = index.long()
        num_scored = max(num_selected, math.floor(self.fraction * len(index) + 1e-9))
        if num_scored >= len(index):
            return torch.arange(len(index), device=index.device)
        scored_step = self.scored_step.index_select(0, index)
        loss = torch.where(scored_step < 0, self.high_loss, self.loss.index_select(0, index))
        scores = selector.valid_scores(replace(candidates, model_loss=loss), generator=generator)
        best = top_k(scores, num_scored - round(self.oldest_fraction * num_scored))
        drawn_on = index.device if generator is None else generator.device
        chance = torch.rand(len(index), dtype=torch.float64, generator=generator, device=drawn_on).to(index.device)
        age = self.step - scored_step + chance
        return top_k(age.index_fill(0, best, torch.inf), num_scored).sort().values

    def remember(self, index: Tensor, model_loss: Tensor) -> None:
        """Store the model losses (K,) of the examples ``index`` (K,). Call it once per batch."""
        index = index.long()
        loss = model_loss.float()
        self.loss.index_copy_(0, index, loss)
        self.scored_step.index_copy_(0, index, self.step.expand(index.shape))
        self.step.add_(1)
        self.high_loss.copy_(loss.max().nan_to_num(nan=_LARGE_LOSS, posinf=_LARGE_LOSS))

    def _fault(self, name: str, value: Any, buffer: Tensor) -> str | None:
        is_memory = name in self.growing and isinstance(value, Tensor) and value.ndim == 1
        if not is_memory or value.dtype != buffer.dtype:
            return super()._fault(name, value, buffer)
        return (
            None if self.num_examples in (None, len(value)) else f"has {len(value)} examples, not {self.num_examples}"
        )
