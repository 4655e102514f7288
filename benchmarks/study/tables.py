"""The tables of the study: what is trained on what, with which options, for how long."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.study.runs import Row

Options = tuple[str, ...]


class Contender(NamedTuple):
    """A row before it is tuned.

    Args:
        row: what all its trials have in common.
        trials: the options that are tried; it is tuned if there are several.
    """

    row: Row
    trials: tuple[Options, ...] = ((),)


@dataclass(frozen=True)
class Table:
    """A table of the study.

    Args:
        title: above it.
        experiment: of `reducr run`.
        seconds: of one core, for each run.
        contenders: its rows; the first is what the others are compared with.
        options: of `reducr run`, for all rows.
        num_seeds: of the report.
    """

    title: str
    experiment: str
    seconds: float
    contenders: tuple[Contender, ...]
    options: Options = ()
    num_seeds: int = 5


def _rates(*rates: str) -> tuple[Options, ...]:
    return tuple((f"optimizer.lr={rate}",) for rate in rates)


def _own(option: str, first: str, second: str) -> tuple[Options, ...]:
    """Three trials of a learning rate and an option."""
    return (
        ("optimizer.lr=1e-3", f"{option}={first}"),
        ("optimizer.lr=2e-3", f"{option}={first}"),
        ("optimizer.lr=2e-3", f"{option}={second}"),
    )


def _added(name: str, selector: str, train_on: str) -> str:
    return f"+methods.{name}={{selector:{selector},train_on:{train_on},options:{{}}}}"


def _methods(num_selected: int) -> Iterable[Contender]:
    """Every method with three trials: of the learning rate alone, or of it and an option of the method's own."""
    rates = _rates("1e-3", "2e-3", "4e-3")
    ours = "methods.priority_sampling.options"
    balanced = _added("class_balanced_with_holdout", "class_balanced", "train_and_holdout")
    yield Contender(
        Row("REDUCR, priority sampling", "priority_sampling", (f"{ours}.step_size=3e-4", "holdout_fraction=0.25")),
        _own(f"{ours}.irreducible_temperature", "2", "1"),
    )
    yield Contender(Row("REDUCR, as published", "reducr"), _own("methods.reducr.options.step_size", "3e-4", "1e-3"))
    yield Contender(Row("RHO-LOSS", "rho_loss"), rates)
    yield Contender(
        Row(
            "irreducible model alone", "holdout_alone", (_added("holdout_alone", "uniform", "holdout"),), in_parts=True
        ),
        rates,
    )
    yield Contender(Row("all points, train + holdout", "uniform_with_holdout", in_parts=True), rates)
    yield Contender(
        Row("class-balanced, train + holdout", "class_balanced_with_holdout", (balanced,)),
        rates,
    )
    yield Contender(Row("class-balanced", "class_balanced"), rates)
    yield Contender(Row("all points", "uniform", in_parts=True), rates)
    yield Contender(Row("uniform", "uniform"), rates)
    yield Contender(Row("train loss", "train_loss"), rates)
    yield Contender(Row("DRoP", "drop"), rates)
    yield Contender(Row("DivBS", "divbs"), rates)
    yield Contender(Row("RS2", "rs2"), rates)
    # on all points, as published
    yield Contender(
        Row("group DRO", "group_dro", ("fraction=1", f"num_candidates={num_selected}")),
        _own("methods.group_dro.options.step_size", "0.01", "0.1"),
    )
    yield Contender(Row("InfoBatch", "infobatch"), _own("methods.infobatch.options.prune_probability", "0.5", "0.25"))
    yield Contender(Row("Bayesian selection", "bayesian_selection", ("model.dropout=0.2",)), rates)


TABLES = {
    "digits": Table(
        "Handwritten digits: 490 points, 30 % wrong labels, imbalance 10:1, 100 clean holdout points",
        "digits",
        4.0,
        tuple(_methods(10)),
    ),
    "fashion_mnist": Table(
        "Fashion-MNIST: 22,477 points, 30 % wrong labels, imbalance 10:1, 5,000 clean holdout points",
        "fashion_mnist",
        25.0,
        tuple(_methods(32)),
        ("irreducible.num_epochs=5",),
    ),
    "cifar10n_worse": Table(
        "CIFAR-10N: 40 % wrong labels of people, imbalance 10:1, 2,000 clean holdout points",
        "cifar10n_worse",
        40.0,
        tuple(_methods(32)),
        ("irreducible.num_epochs=10",),
    ),
}
