"""The rows of the tables, and their trials."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from benchmarks.rivals import rivals
from benchmarks.rivals.problems import SETTINGS, Examples, Problem, problem, stratified, with_holdout
from benchmarks.rivals.recipe import Recipe, recipe
from benchmarks.rivals.rivals import Predictor
from benchmarks.rivals.training import NominalClock, Run
from reducr.functional.offsets import group_accuracy
from reducr.training.calibration import adjustment_of

HELD_BACK = 0.25


class Row(NamedTuple):
    """A row of the tables: how to train, and whether it needs true labels."""

    train: Callable[[Run, Examples], Predictor]
    is_oracle: bool = False


def _rival(function: Callable[..., Predictor], **options: Any) -> Row:
    return Row(lambda run, _: function(run, **options))


def _ours(**options: Any) -> Row:
    return Row(lambda run, held_back: recipe(run, held_back, Recipe(**options)))


_RATE = 2e-3
ROWS: dict[str, Row] = {
    "recipe": _ours(),
    "... no filter": _ours(filter="none"),
    "... belief^0.5": _ours(filter="belief^0.5"),
    "... drop": _ours(filter="drop"),
    "... equal quotas": _ours(eta=0.0),
    "... no average": _ours(average=0.0),
    "... cold start": _ours(is_warm=False),
    "... judged once": _ours(refits=()),
    "... no reference, judged by itself": _ours(reference=0.0, refits=(0.5,)),
    "all examples": _rival(rivals.plain, part="both", rate=_RATE),
    "class-balanced": _rival(rivals.class_balanced, part="both", rate=_RATE),
    "clean examples alone": _rival(rivals.class_balanced, part="holdout", rate=_RATE),
    "fine-tuned on clean": _rival(rivals.fine_tuned, share=0.7, rate=_RATE),
    "last layer retrained (DFR)": _rival(rivals.last_layer, rate=_RATE),
    "logit-adjusted loss": _rival(rivals.logit_adjusted, part="both", rate=_RATE),
    "gold loss correction": _rival(rivals.gold_correction, share=0.4, rate=_RATE),
    "ELR": _rival(rivals.elr, rate=_RATE),
    "GCE": _rival(rivals.class_balanced, part="both", rate=_RATE, loss=rivals.generalised_cross_entropy),
    "SCE": _rival(rivals.class_balanced, part="both", rate=_RATE, loss=rivals.symmetric_cross_entropy),
    "mixup": _rival(rivals.mixup, rate=_RATE),
    "co-teaching": _rival(rivals.co_teaching, rate=_RATE, forget=0.2),
    "group DRO": _rival(rivals.group_dro, rate=_RATE, step_size=0.01),
    "cleanlab": _rival(rivals.cleanlab, rate=_RATE, with_clean=True),
    "filtered by the clean model": _rival(rivals.two_stage, rate=_RATE, rounds=2, share=0.2),
    "true labels, class-balanced": Row(
        lambda run, _: rivals.class_balanced(run, part="both", rate=_RATE, is_true=True), is_oracle=True
    ),
}


def trial(job: tuple[str, int, str, Path, float | None]) -> dict[str, Any]:
    """Train one row and test it on the development examples."""
    setting, seed, name, folder, seconds = job
    torch.set_num_threads(1)
    full = _problem(setting, seed, folder)
    back, rest = stratified(full.holdout.group, HELD_BACK, seed=seed)
    held_back = full.holdout.take(back)
    options = SETTINGS[setting]
    run = Run(
        with_holdout(full, rest), seconds or options.seconds, NominalClock(options.step / 1e3, options.example / 1e6)
    )
    predict = ROWS[name].train(run, held_back)
    logits = predict(full.development.x).float()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of few held-back examples: it then adjusts nothing
        groups = held_back.group if full.has_groups else None
        adjustment = adjustment_of(predict(held_back.x), held_back.y, groups)
    outcome = {"setting": setting, "seed": seed, "row": name, "steps": run.steps, "notes": run.notes}
    for kind, adjusted in (("trained", logits), ("adjusted", adjustment(logits))):
        outcome[kind] = accuracies(adjusted, full.development, full.num_groups)
    return outcome


def accuracies(logits: Tensor, examples: Examples, num_groups: int) -> tuple[float, float]:
    """Accuracy of the worst group, and of all examples."""
    predicted = logits.argmax(dim=1)
    by_group = group_accuracy(predicted, examples.y, examples.group, num_groups)
    return round(float(by_group.min()), 4), round(float((predicted == examples.y).double().mean()), 4)


@cache
def _problem(setting: str, seed: int, folder: Path) -> Problem:
    return problem(setting, seed, folder)
