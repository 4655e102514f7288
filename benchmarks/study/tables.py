"""The tables of the study: rows, data, options and seconds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from benchmarks.study.runs import Row

Options = tuple[str, ...]
_FROM_HOLDOUT = "holdout_fraction=0.25"
_OURS = ("methods.priority_sampling.options.step_size=3e-4", _FROM_HOLDOUT)
_RATE = "optimizer.lr=2e-3"
_ALONE = "+methods.holdout_alone={selector:uniform,train_on:holdout,options:{}}"
_BALANCED_ON_BOTH = (
    "+methods.class_balanced_with_holdout={selector:class_balanced,train_on:train_and_holdout,options:{}}"
)


class Contender(NamedTuple):
    """A row before tuning.

    Args:
        row: the part that all its trials share.
        trials: the options of each trial; several mean that the row is tuned.
    """

    row: Row
    trials: tuple[Options, ...] = ((),)


@dataclass(frozen=True)
class Table:
    """A table of the study.

    Args:
        title: title of the table.
        experiment: experiment of `reducr run`.
        seconds: seconds of one core for each run.
        contenders: its rows; the first is compared with the others.
        options: options of `reducr run`, for all rows.
        num_seeds: number of reported seeds.
    """

    title: str
    experiment: str
    seconds: float
    contenders: tuple[Contender, ...]
    options: Options = ()
    num_seeds: int = 5


def _rates(*rates: str) -> tuple[Options, ...]:
    return tuple((f"optimizer.lr={rate}",) for rate in rates)


def _rates_and_option(option: str, first: str, second: str) -> tuple[Options, ...]:
    """Three trials of a learning rate and an option of the method."""
    return (
        ("optimizer.lr=1e-3", f"{option}={first}"),
        ("optimizer.lr=2e-3", f"{option}={first}"),
        ("optimizer.lr=2e-3", f"{option}={second}"),
    )


def _methods(
    num_selected: int, *, step_sizes: tuple[str, str] = ("3e-4", "1e-3"), holdout_fraction: float = 0.25
) -> Iterable[Contender]:
    """Every method with three trials: learning rates, or learning rates and an option of the method.

    Args:
        num_selected: examples per step.
        step_sizes: step sizes that are tried for the published rule; priority sampling by losses uses the first one,
            by errors 3e-4.
        holdout_fraction: holdout fraction of priority sampling.
    """
    rates = _rates("1e-3", "2e-3", "4e-3")
    ours = "methods.priority_sampling.options"
    from_holdout = f"holdout_fraction={holdout_fraction}"
    by_losses = (f"{ours}.step_size={step_sizes[0]}", from_holdout)
    for label, *options in (
        ("", *by_losses),
        (", warm start", *by_losses, "warm_start=true"),
        (" by errors", f"{ours}.step_size=3e-4", from_holdout, f"{ours}.holdout_loss=zero_one"),
    ):
        yield Contender(
            Row(f"REDUCR, priority sampling{label}", "priority_sampling", tuple(options)),
            _rates_and_option(f"{ours}.irreducible_temperature", "2", "1"),
        )
    yield Contender(
        Row("REDUCR, as published", "reducr"), _rates_and_option("methods.reducr.options.step_size", *step_sizes)
    )
    yield Contender(Row("RHO-LOSS", "rho_loss"), rates)
    yield Contender(
        Row("irreducible model alone", "holdout_alone", (_ALONE,), in_parts=True),
        rates,
    )
    yield Contender(Row("all examples, train + holdout", "uniform_with_holdout", in_parts=True), rates)
    yield Contender(
        Row("class-balanced, train + holdout", "class_balanced_with_holdout", (_BALANCED_ON_BOTH,)),
        rates,
    )
    yield Contender(Row("class-balanced", "class_balanced"), rates)
    yield Contender(Row("all examples", "uniform", in_parts=True), rates)
    yield Contender(Row("uniform", "uniform"), rates)
    yield Contender(Row("train loss", "train_loss"), rates)
    yield Contender(Row("DRoP", "drop"), rates)
    yield Contender(Row("DivBS", "divbs"), rates)
    yield Contender(Row("RS2", "rs2"), rates)
    yield Contender(Row("RCAP", "rcap"), _rates_and_option("methods.rcap.options.loss_temperature", "2", "0.5"))
    # on all examples, as published
    yield Contender(
        Row("group DRO", "group_dro", ("fraction=1", f"num_candidates={num_selected}")),
        _rates_and_option("methods.group_dro.options.step_size", "0.01", "0.1"),
    )
    yield Contender(
        Row("InfoBatch", "infobatch"), _rates_and_option("methods.infobatch.options.prune_probability", "0.5", "0.25")
    )
    yield Contender(Row("Bayesian selection", "bayesian_selection", ("model.dropout=0.2",)), rates)


def _holdout_sizes() -> Iterable[Contender]:
    """Methods that train on the holdout set or use it, at five sizes; irreducible models take about equal steps."""
    for size, num_epochs in ((500, 40), (1000, 20), (2000, 10), (5000, 5), (10_000, 3)):
        options = (f"datamodule.holdout_size={size}", f"irreducible.num_epochs={num_epochs}", _RATE)
        for row in (
            Row("REDUCR, priority sampling", "priority_sampling", _OURS),
            Row("REDUCR, priority sampling, warm start", "priority_sampling", (*_OURS, "warm_start=true")),
            Row("REDUCR, as published", "reducr", ("methods.reducr.options.step_size=3e-4",)),
            Row("irreducible model alone", "holdout_alone", (_ALONE,), in_parts=True),
            Row("all examples, train + holdout", "uniform_with_holdout", in_parts=True),
            Row("class-balanced, train + holdout", "class_balanced_with_holdout", (_BALANCED_ON_BOTH,)),
        ):
            yield Contender(row._replace(options=(*row.options, *options), block=f"{size:,} holdout examples"))


def _imbalances() -> Iterable[Contender]:
    """The paper's methods and three more, with the hardest class at frequency p."""
    for share in (0.1, 0.025, 0.01):
        rare = f"{{kind:probability,classes:[6],probability:{share}}}"
        options = (*(f"datamodule.imbalance.{part}={rare}" for part in ("train", "holdout")), _RATE)
        for row in (
            Row("REDUCR, as published", "reducr", ("methods.reducr.options.step_size=3e-4",)),
            Row("RHO-LOSS", "rho_loss"),
            Row("train loss", "train_loss"),
            Row("uniform", "uniform"),
            Row("REDUCR, priority sampling", "priority_sampling", _OURS),
            Row("irreducible model alone", "holdout_alone", (_ALONE,), in_parts=True),
            Row("class-balanced, train + holdout", "class_balanced_with_holdout", (_BALANCED_ON_BOTH,)),
        ):
            yield Contender(row._replace(options=(*row.options, *options), block=f"p = {100 * share:g} %"))


def _options() -> Iterable[Contender]:
    """The effect of each option of priority sampling, and of this package's options for the published rule."""
    ours = "methods.priority_sampling.options"
    base = Row("as in the table above", "priority_sampling", (*_OURS, _RATE), block="priority sampling")
    yield Contender(base)
    for label, *options in (
        ("weights by errors", f"{ours}.holdout_loss=zero_one"),
        ("no uniform share", f"{ours}.uniform_share=0"),
        ("equal quotas, no weights", f"{ours}.uniform_share=1"),
        ("examples of a class drawn uniformly", f"{ours}.irreducible_temperature=1e6"),
        ("temperature 0.5", f"{ours}.irreducible_temperature=0.5"),
        ("temperature 1", f"{ours}.irreducible_temperature=1"),
        ("temperature 4", f"{ours}.irreducible_temperature=4"),
        ("no holdout examples in the steps", "holdout_fraction=0"),
        ("half of each step from the holdout part", "holdout_fraction=0.5"),
        ("warm start", "warm_start=true"),
        ("weights with decay", f"{ours}.payoff_decay=0.99", f"{ours}.step_size=3e-3"),
    ):
        yield Contender(base.with_options(*options)._replace(label=label))
    published = Row("as published", "reducr", ("methods.reducr.options.step_size=3e-4", _RATE), block="REDUCR")
    yield Contender(published)
    for label, option in (
        ("warm start", "warm_start=true"),
        ("a quarter of each step from the holdout part", "holdout_fraction=0.25"),
        ("three tenths of the candidates scored", "scoring.budget=0.3"),
    ):
        yield Contender(published.with_options(option)._replace(label=label))


def _options_where_holdout_is_noisy() -> Iterable[Contender]:
    """Weights by errors or losses, with and without training on the holdout set, on tweets."""
    ours = "methods.priority_sampling.options"
    by_errors = (f"{ours}.holdout_loss=zero_one", f"{ours}.step_size=3e-4", f"{ours}.irreducible_temperature=1")
    options = (*by_errors, "holdout_fraction=0", _RATE)
    base = Row("priority sampling", "priority_sampling", options, block="weights by errors")
    yield Contender(base)
    for label, option in (
        ("a quarter of each step from the holdout part", "holdout_fraction=0.25"),
        ("examples of a class drawn uniformly", f"{ours}.irreducible_temperature=1e6"),
        ("three quarters of the quotas uniform", f"{ours}.uniform_share=0.75"),
        ("equal quotas, no weights", f"{ours}.uniform_share=1"),
    ):
        yield Contender(base.with_options(option)._replace(label=label))
    by_losses = base.with_options(f"{ours}.holdout_loss=cross_entropy")._replace(block="weights by losses")
    yield Contender(by_losses._replace(label="at the same step size"))
    slower = by_losses.with_options(f"{ours}.step_size=3e-5")
    yield Contender(slower._replace(label="at a tenth of it"))
    with_holdout = slower.with_options("holdout_fraction=0.25")
    yield Contender(with_holdout._replace(label="and a quarter of each step from the holdout part"))


def _ablations() -> Iterable[Contender]:
    """The ablations of the paper, one at a time."""
    reducr = "methods.reducr.options"
    base = Row("as published", "reducr", (_RATE, f"{reducr}.step_size=3e-4"))
    yield Contender(base)
    yield Contender(Row("max-min payoff", "payoff", (_RATE,)))
    for label, option in (
        ("without clipping", f"{reducr}.clip=false"),
        ("without holdout term", f"{reducr}.use_holdout=false"),
        ("without irreducible term", f"{reducr}.use_irreducible=false"),
        ("without model loss, not clipped", f"{reducr}.use_model_loss=false"),
        *(
            (f"step size {value}", f"{reducr}.step_size={value}")
            for value in ("1e-4", "1e-3", "1e-2", "1e-1", "1", "10")
        ),
        *((f"gradient weight {value}", f"irreducible.gradient_weight={value}") for value in (1, 5, 20, 100)),
        *((f"fraction {value}", f"fraction={value}") for value in (0.05, 0.25, 0.5, 1.0)),
    ):
        more = (f"{reducr}.clip=false",) if "model loss" in label else ()
        yield Contender(base.with_options(option, *more)._replace(label=label))


_FASHION_MNIST = {"experiment": "fashion_mnist", "seconds": 25.0}
_ON_A_FASTER_CORE = {"experiment": "fashion_mnist", "seconds": 17.0, "num_seeds": 3}  # about as many steps
_TWEETS = {
    "experiment": "tweeteval_emoji",
    "seconds": 15.0,
    "options": ("irreducible.num_epochs=3", "holdout.refresh_steps=100"),
}
TABLES = {
    "digits": Table(
        "Handwritten digits: 490 examples, 30 % wrong labels, imbalance 10:1, 100 clean holdout examples",
        "digits",
        2.0,
        tuple(_methods(10)),
        num_seeds=20,
    ),
    "fashion_mnist": Table(
        "Fashion-MNIST: 22,477 examples, 30 % wrong labels, imbalance 10:1, 5,000 clean holdout examples",
        contenders=tuple(_methods(32)),
        options=("irreducible.num_epochs=5",),
        **_FASHION_MNIST,
    ),
    "cifar10n_worse": Table(
        "CIFAR-10N: 40 % wrong labels by human annotators, imbalance 10:1, 2,000 clean holdout examples",
        "cifar10n_worse",
        30.0,
        tuple(_methods(32)),
        ("irreducible.num_epochs=10",),
    ),
    "tweeteval_emoji": Table(
        "Tweets: 44,629 with 20 emojis, natural imbalance 10:1, 4,980 holdout tweets as noisy as the rest",
        contenders=tuple(_methods(32, step_sizes=("3e-5", "1e-4"), holdout_fraction=0)),
        **_TWEETS,
    ),
    "tweeteval_emoji_options": Table(
        "Options, on tweets",
        contenders=tuple(_options_where_holdout_is_noisy()),
        num_seeds=3,
        **_TWEETS,
    ),
    "cifar10_clean": Table(
        "CIFAR-10, clean and balanced: 25,000 examples, 25,000 holdout examples, a ResNet-8 of width 8",
        "cifar10_resnet18_uniform",
        50.0,
        tuple(_methods(32)),
        (
            "selection_method=null",
            "augment@datamodule.augment=none",
            "model=cifar_resnet8",
            "model.width=8",
            "irreducible.num_epochs=1",
            "irreducible.checkpoint_rule=last",
            "holdout.refresh_steps=500",
        ),
    ),
    "options": Table(
        "Options, on Fashion-MNIST",
        contenders=tuple(_options()),
        options=("irreducible.num_epochs=5",),
        num_seeds=3,
        **_FASHION_MNIST,
    ),
    "holdout_size": Table(
        "Size of the holdout set, on Fashion-MNIST",
        contenders=tuple(_holdout_sizes()),
        **_ON_A_FASTER_CORE,
    ),
    "imbalance": Table(
        "One class with frequency p, on Fashion-MNIST with clean labels",
        contenders=tuple(_imbalances()),
        options=("datamodule.label_noise.train=null", "irreducible.num_epochs=5"),
        **_ON_A_FASTER_CORE,
    ),
    "ablations": Table(
        "The paper's ablations, on Fashion-MNIST",
        contenders=tuple(_ablations()),
        options=("irreducible.num_epochs=5",),
        **_ON_A_FASTER_CORE,
    ),
}
