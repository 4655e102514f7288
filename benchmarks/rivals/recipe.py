"""The recipe: classes drawn by weights that follow errors, examples of a class by belief in their labels."""

from __future__ import annotations

import copy
import warnings
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import reducr
from benchmarks.rivals.problems import Examples
from benchmarks.rivals.rivals import Predictor, new_model, predictor
from benchmarks.rivals.training import Balanced, Batches, Run, balanced, descend
from reducr.training.filters import FILTERS

_EVERY = 0.04
_PER_GROUP = 50


@dataclass(frozen=True)
class Recipe:
    """Options of the recipe.

    Args:
        rate: learning rate.
        reference: share of the seconds for the reference model; 0 for none.
        filter: key of ``FILTERS``; None to choose it on the held-back examples.
        refits: shares of the training after which the model itself judges the labels.
        from_holdout: share of each step that is drawn from the holdout set, groups alike.
        eta: step size of the group weights, for errors summed over the whole training; 0 for equal quotas.
        uniform_share: share of the quotas that is equal.
        is_warm: whether the model starts from the reference model.
        average: decay of the moving average of the parameters; 0 for none.
    """

    rate: float = 2e-3
    reference: float = 0.1
    filter: str | None = None
    refits: tuple[float, ...] = (0.4,)
    from_holdout: float = 0.25
    eta: float = 15.0
    uniform_share: float = 0.5
    is_warm: bool = True
    average: float = 0.998


def recipe(run: Run, held_back: Examples, options: Recipe) -> Predictor:
    """Train by the recipe; no step trains on ``held_back``."""
    problem = run.problem
    train, holdout, size = problem.train, problem.holdout, problem.batch_size
    model = new_model(run)
    judge = _Judge(run, held_back, options)
    if options.reference:
        reference = copy.deepcopy(model)
        reference = descend(run, reference, balanced(run, holdout), until=options.reference, rate=options.rate)
        judge.choose(reference)
        if options.is_warm:
            model.load_state_dict(reference.state_dict())
    draws = Balanced(train.group, problem.num_groups, run.random, judge.weights)
    clean_draws = Balanced(holdout.group, problem.num_groups, run.random)
    num_clean = round(options.from_holdout * size)
    priorities = _Priorities(run, held_back, options)

    def batches() -> Batches:
        while True:
            index, more = draws.draw(size - num_clean), clean_draws.draw(max(1, num_clean))[:num_clean]
            x = torch.cat([train.x.index_select(0, index), holdout.x.index_select(0, more)])
            yield x, torch.cat([train.y.index_select(0, index), holdout.y.index_select(0, more)])

    refits = list(options.refits)

    def after_step(progress: float) -> None:
        if priorities.follow(model, progress):
            draws.quota = priorities.quota
        if refits and progress >= refits[0]:
            refits.pop(0)
            draws.reweigh(judge.believe(model))

    trained = descend(run, model, batches(), until=1, rate=options.rate, average=options.average, after_step=after_step)
    run.notes |= {"filters": judge.filters, "weights": [round(float(w), 3) for w in priorities.quota]}
    return predictor(trained)


class _Judge:
    """Chooses the filter, by ``reducr.Belief``, and applies it to what a model believes."""

    def __init__(self, run: Run, held_back: Examples, options: Recipe) -> None:
        self.run = run
        self.options = options
        self.weights: Tensor | None = None
        self.filters: list[str] = []
        problem = run.problem
        spec = reducr.BatchSpec(input=0, target=1, group=2)
        self._belief = reducr.Belief(
            TensorDataset(*problem.train), DataLoader(TensorDataset(*held_back), batch_size=1000), spec=spec,
            batch_size=1000,
        )  # fmt: skip

    def choose(self, model: nn.Module) -> Tensor:
        """Weights of the training examples by a filter that is chosen now, unless it is given."""
        if self.options.filter is not None:
            return self.believe(model)
        self.run.clock.charge_examples(self.run.problem.train.num)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of few held-back examples
            belief = self._belief.fit(model)
        self.filters.append(belief.filter)
        self.weights = belief.weights
        return belief.weights

    def believe(self, model: nn.Module) -> Tensor:
        """Weights by the filter that was chosen; by one that is chosen now if none was."""
        if self.options.filter is None and not self.filters:
            return self.choose(model)
        name = self.options.filter or self.filters[-1]
        train = self.run.problem.train
        self.weights = FILTERS[name].weights(self.run.logits(model, train.x).softmax(dim=1), train.y)
        return self.weights


class _Priorities:
    """Quotas of the groups that follow their errors on the held-back examples."""

    def __init__(self, run: Run, held_back: Examples, options: Recipe) -> None:
        self.run = run
        self.options = options
        num_groups = run.problem.num_groups
        self.watched = held_back.take(
            torch.cat([torch.nonzero(held_back.group == g).flatten()[:_PER_GROUP] for g in range(num_groups)])
        )
        self.quota = torch.full((num_groups,), 1 / num_groups, dtype=torch.float64)
        self._sums = torch.zeros(num_groups, dtype=torch.float64)
        self._last = self._next = 0.0

    def follow(self, model: nn.Module, progress: float) -> bool:
        """Update the quotas if it is time to; returns whether it was."""
        if not self.options.eta or progress < self._next:
            return False
        watched, num_groups = self.watched, len(self.quota)
        is_wrong = (self.run.logits(model, watched.x).argmax(dim=1) != watched.y).double()
        counts = torch.bincount(watched.group, minlength=num_groups).clamp(min=1)
        errors = torch.bincount(watched.group, weights=is_wrong, minlength=num_groups) / counts
        self._sums += errors * (progress - self._last)
        weights = torch.softmax(self.options.eta * self._sums, dim=0)
        share = self.options.uniform_share
        self.quota = share / num_groups + (1 - share) * weights
        self._last, self._next = progress, progress + _EVERY
        return True
