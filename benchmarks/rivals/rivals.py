"""What one would do without selection by reducible losses: plain training, and robust and balanced losses."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from benchmarks.rivals.problems import Examples, Problem
from benchmarks.rivals.training import Balanced, Batches, Run, balanced, descend, logits_of, passes, together

Predictor = Callable[[Tensor], Tensor]
"""Inputs (N, ...) -> logits (N, C)."""


def new_model(run: Run) -> nn.Module:
    """The initial model of a run, the same for all rows."""
    return run.problem.model(run.problem.seed)


def predictor(model: nn.Module) -> Predictor:
    """The logits of a model, off the clock."""
    return partial(logits_of, model)


def everything(problem: Problem, part: str, *, is_true: bool = False) -> Examples:
    """The examples of ``train``, ``holdout`` or ``both``."""
    train = problem.train
    if is_true:
        assert problem.true_y is not None
        group = train.group if problem.has_groups else problem.true_y
        train = Examples(train.x, problem.true_y, group)
    return {"train": train, "holdout": problem.holdout}.get(part) or train + problem.holdout


def plain(run: Run, *, part: str, rate: float) -> Predictor:
    """All examples, in random passes."""
    return predictor(descend(run, new_model(run), passes(run, everything(run.problem, part)), until=1, rate=rate))


def class_balanced(run: Run, *, part: str, rate: float, loss: Any = cross_entropy, is_true: bool = False) -> Predictor:
    """Every group alike."""
    examples = everything(run.problem, part, is_true=is_true)
    return predictor(descend(run, new_model(run), balanced(run, examples), until=1, rate=rate, loss=loss))


def fine_tuned(run: Run, *, share: float, rate: float) -> Predictor:
    """All examples for a share of the seconds, then the holdout set, class-balanced, at half the rate."""
    model = descend(run, new_model(run), passes(run, everything(run.problem, "both")), until=share, rate=rate)
    return predictor(descend(run, model, balanced(run, run.problem.holdout), until=1, rate=rate / 2))


def logit_adjusted(run: Run, *, part: str, rate: float, tau: float = 1.0) -> Predictor:
    """Logit-adjusted loss (Menon et al. 2021, arXiv 2007.07314): cross-entropy of the logits + tau log prior."""
    examples = everything(run.problem, part)
    prior = torch.bincount(examples.y, minlength=run.problem.num_classes).double()
    offset = tau * (prior / prior.sum()).log().float()

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return cross_entropy(logits + offset, y)

    return predictor(descend(run, new_model(run), passes(run, examples), until=1, rate=rate, loss=loss))


def gold_correction(run: Run, *, share: float, rate: float) -> Predictor:
    """Gold loss correction (Hendrycks et al. 2018, arXiv 1802.05300)."""
    problem = run.problem
    noisy = descend(run, new_model(run), passes(run, problem.train), until=share, rate=rate)
    probability = run.logits(noisy, problem.holdout.x).softmax(dim=1)
    matrix = torch.stack([probability[problem.holdout.y == k].mean(dim=0) for k in range(problem.num_classes)])
    size = problem.batch_size
    num_clean = max(1, round(size * problem.holdout.num / (problem.holdout.num + problem.train.num)))
    parts = [
        (part, Balanced(part.group * 0, 1, run.random), num)
        for part, num in ((problem.train, size - num_clean), (problem.holdout, num_clean))
    ]

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        corrected = (logits[:-num_clean].softmax(dim=1) @ matrix).gather(1, y[:-num_clean, None])
        losses = (
            cross_entropy(logits[-num_clean:], y[-num_clean:], reduction="sum") - corrected.clamp(min=1e-8).log().sum()
        )
        return losses / size

    return predictor(descend(run, new_model(run), together(parts), until=1, rate=rate, loss=loss))


def generalised_cross_entropy(logits: Tensor, y: Tensor, q: float = 0.7) -> Tensor:
    """(1 - p^q) / q (Zhang and Sabuncu 2018)."""
    return ((1 - logits.softmax(dim=1).gather(1, y[:, None]).pow(q)) / q).mean()


def symmetric_cross_entropy(logits: Tensor, y: Tensor) -> Tensor:
    """0.1 CE + reverse CE with log 0 = -4 (Wang et al. 2019)."""
    reverse = 4 * (1 - logits.softmax(dim=1).gather(1, y[:, None])).mean()
    return 0.1 * cross_entropy(logits, y) + reverse


def elr(run: Run, *, rate: float, strength: float = 3.0, decay: float = 0.7) -> Predictor:
    """Early-learning regularisation (Liu et al. 2020, arXiv 2007.00151), class-balanced, on both parts."""
    examples = everything(run.problem, "both")
    memory = torch.zeros(examples.num, run.problem.num_classes)
    draws = Balanced(examples.group, run.problem.num_groups, run.random)
    drawn: list[Tensor] = []

    def batches() -> Batches:
        while True:
            drawn[:] = [draws.draw(run.problem.batch_size)]
            yield examples.x.index_select(0, drawn[0]), examples.y.index_select(0, drawn[0])

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        probability = logits.softmax(dim=1).clamp(1e-4, 1 - 1e-4)
        kept = probability.detach()
        memory[drawn[0]] = decay * memory[drawn[0]] + (1 - decay) * kept / kept.sum(dim=1, keepdim=True)
        inner = (memory[drawn[0]] * probability).sum(dim=1).clamp(max=1 - 1e-4)
        return cross_entropy(logits, y) + strength * (1 - inner).log().mean()

    return predictor(descend(run, new_model(run), batches(), until=1, rate=rate, loss=loss))


def mixup(run: Run, *, rate: float, alpha: float = 0.2) -> Predictor:
    """Mixup of class-balanced draws of both parts; inputs that are token numbers are not mixed, so not for texts."""
    examples = everything(run.problem, "both")
    share: list[float] = [1.0]
    random = np.random.default_rng(run.problem.seed)

    def batches() -> Batches:
        for x, y in balanced(run, examples):
            share[0] = float(random.beta(alpha, alpha))
            values = x.float() / 255 if x.dtype == torch.uint8 else x.float()  # as models read images
            yield share[0] * values + (1 - share[0]) * values.flip(0), y

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        return share[0] * cross_entropy(logits, y) + (1 - share[0]) * cross_entropy(logits, y.flip(0))

    return predictor(descend(run, new_model(run), batches(), until=1, rate=rate, loss=loss))


def co_teaching(run: Run, *, rate: float, forget: float) -> Predictor:
    """Co-teaching (Han et al. 2018): two models, each trained on what the other has the smallest losses of."""
    problem = run.problem
    examples = everything(problem, "both")
    models = [new_model(run), problem.model(problem.seed + 1)]
    both = nn.ModuleList(models)

    class Pair(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.models = both
            self.num_models = 2

        def forward(self, x: Tensor) -> Tensor:
            return torch.stack([model(x) for model in self.models])

    state = {"progress": 0.0}

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        losses = torch.stack([cross_entropy(part, y, reduction="none") for part in logits])
        num = max(1, round(len(y) * (1 - forget * min(1.0, state["progress"] / 0.3))))
        chosen = [row.detach().topk(num, largest=False).indices for row in losses]
        return losses[0][chosen[1]].mean() + losses[1][chosen[0]].mean()

    descend(
        run,
        Pair(),
        balanced(run, examples),
        until=1,
        rate=rate,
        loss=loss,
        after_step=lambda progress: state.update(progress=progress),
    )
    return predictor(models[0])


def group_dro(run: Run, *, rate: float, step_size: float) -> Predictor:
    """Group DRO (Sagawa et al. 2020) on both parts, in the draws of plain training; weights follow group losses."""
    problem = run.problem
    examples = everything(problem, "both")
    weights = torch.full((problem.num_groups,), 1 / problem.num_groups)
    groups: list[Tensor] = []

    def batches() -> Batches:
        while True:
            order = torch.randperm(examples.num, generator=run.random)
            for index in order.split(problem.batch_size):
                groups[:] = [examples.group.index_select(0, index)]
                yield examples.x.index_select(0, index), examples.y.index_select(0, index)

    def loss(logits: Tensor, y: Tensor) -> Tensor:
        losses = cross_entropy(logits, y, reduction="none")
        counts = torch.bincount(groups[0], minlength=problem.num_groups)
        by_group = torch.zeros(problem.num_groups).index_add(0, groups[0], losses) / counts.clamp(min=1)
        weights.mul_((step_size * by_group.detach()).exp()).div_(weights.sum())
        return (weights * by_group).sum()

    return predictor(descend(run, new_model(run), batches(), until=1, rate=rate, loss=loss))


def cleanlab(run: Run, *, rate: float, with_clean: bool, folds: int = 3) -> Predictor:
    """Confident learning (arXiv 1911.00068): out-of-fold probabilities for half of the seconds, drop, train again."""
    from cleanlab.filter import find_label_issues

    problem = run.problem
    train = problem.train
    probability = torch.zeros(train.num, problem.num_classes)
    order = torch.randperm(train.num, generator=run.random)
    for fold in range(folds):
        is_out = torch.zeros(train.num, dtype=torch.bool)
        is_out[order[fold::folds]] = True
        inside = train.take(torch.nonzero(~is_out).flatten())
        model = descend(run, new_model(run), balanced(run, inside), until=0.5 * (fold + 1) / folds, rate=rate)
        probability[is_out] = run.logits(model, train.x[is_out]).softmax(dim=1)
    is_issue = find_label_issues(train.y.numpy(), probability.double().numpy(), n_jobs=1)
    kept = train.take(torch.from_numpy(np.flatnonzero(~is_issue)))
    run.notes["dropped"] = round(float(is_issue.mean()), 4)
    examples = kept + problem.holdout if with_clean else kept
    return predictor(descend(run, new_model(run), balanced(run, examples), until=1, rate=rate))


def last_layer(run: Run, *, rate: float, refits: int = 20) -> Predictor:
    """Deep feature reweighting (Kirichenko et al. 2023, arXiv 2204.02937) on all examples' model.

    Standardised inputs of the last layer; L1 logistic regression on group-balanced parts of the holdout set, its
    strength chosen by the worst group on half of it; the mean of 20 refits. A fifth of the seconds is for it.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    problem = run.problem
    model = descend(run, new_model(run), passes(run, everything(problem, "train")), until=0.8, rate=rate)
    layer = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]

    def features(x: Tensor) -> np.ndarray:
        parts: list[Tensor] = []
        hook = layer.register_forward_pre_hook(lambda _, inputs: parts.append(inputs[0].detach()))
        logits_of(model, x)
        hook.remove()
        return torch.cat(parts).numpy()

    known, y, group = features(problem.holdout.x), problem.holdout.y.numpy(), problem.holdout.group.numpy()
    mean, deviation = known.mean(axis=0), known.std(axis=0) + 1e-6
    known = (known - mean) / deviation
    random = np.random.RandomState(problem.seed)

    def fit(rows: np.ndarray, strength: float) -> tuple[np.ndarray, np.ndarray]:
        fewest = min(np.bincount(group[rows], minlength=problem.num_groups))
        drawn = np.concatenate([random.permutation(rows[group[rows] == g])[:fewest] for g in range(problem.num_groups)])
        head = LogisticRegression(l1_ratio=1.0, C=strength, solver="saga", max_iter=30, tol=1e-2)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # 30 passes are what the seconds allow
            head.fit(known[drawn], y[drawn])
        weight, bias = head.coef_, head.intercept_
        if len(weight) == 1:
            weight, bias = np.concatenate([-weight, weight]) / 2, np.concatenate([-bias, bias]) / 2
        return weight, bias

    order = random.permutation(len(y))
    half, other = order[::2], order[1::2]

    def worst(strength: float) -> float:
        weight, bias = fit(half, strength)
        right = (known[other] @ weight.T + bias).argmax(axis=1) == y[other]
        return min(right[group[other] == g].mean() for g in np.unique(group[other]))

    best = max((1, 0.3, 0.1, 0.03, 0.01), key=worst)
    heads = []
    while len(heads) < refits and (run.spent < 1 or not heads):
        heads.append(fit(order, best))
    weight, bias = (np.mean(part, axis=0) for part in zip(*heads, strict=True))
    run.notes["refits"] = len(heads)
    return lambda x: torch.from_numpy((features(x) - mean) / deviation @ weight.T + bias)


def two_stage(run: Run, *, rate: float, rounds: int, share: float) -> Predictor:
    """A model of the clean examples; drop what it believes least; train on the rest and the clean ones.

    As CLIPCleaner (arXiv 2408.10012) with the model at hand: a share of the training examples over all is dropped.
    """
    problem = run.problem
    model = descend(run, new_model(run), balanced(run, problem.holdout), until=0.15, rate=rate)
    for number in range(1, rounds + 1):
        belief = run.logits(model, problem.train.x).softmax(dim=1).gather(1, problem.train.y[:, None])[:, 0]
        kept = problem.train.take(belief.argsort()[int(share * problem.train.num) :])
        examples = kept + problem.holdout
        model = descend(run, new_model(run), balanced(run, examples), until=0.15 + 0.85 * number / rounds, rate=rate)
    return predictor(model)
