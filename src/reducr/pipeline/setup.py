"""Everything that can be wrong with a configuration, found before the first step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from reducr.batch import Batch
from reducr.checks import check_gradient_weight
from reducr.data import DataModule, PointDataset, PointLoader, Splits
from reducr.data.outcomes import Outcomes
from reducr.integrations.lightning.irreducible import WEIGHT_NORMALISATIONS
from reducr.names import unknown_name
from reducr.seeds import mixed_seed
from reducr.selectors import Selector, make_selector
from reducr.step import SCORING_MODES, check_model_output, dropout_samples, num_selected_of

# names of the original repository, and ours
METHOD_ALIASES = {
    "robust_reducible_loss_selection": "reducr",
    "reducible_loss_selection": "rho_loss",
    "irreducible_loss_selection": "irreducible_loss",
    "uniform_selection": "uniform",
    "train_loss_selection": "train_loss",
    "weighted_reducible_loss_selection": "fixed_weights",
    "payoff_selection": "payoff",
    "gradnorm_ub_selection": "gradient_norm",
    "entropy_selection": "entropy",
    "conditional_entropy_selection": "conditional_entropy",
    "bald_selection": "bald",
    "ce_loss_minus_conditional_entropy": "loss_minus_conditional_entropy",
    "ce_loss_plus_conditional_entropy": "loss_plus_conditional_entropy",
}
TRAINED_ON = ("train", "holdout", "train_and_holdout")
_OWN_TRAINER_OPTIONS = {
    "max_steps": "use num_steps",
    "max_epochs": "use num_steps, or irreducible.num_epochs",
    "val_check_interval": "use holdout.refresh_steps",
    "check_val_every_n_epoch": "use holdout.refresh_steps",
    "limit_val_batches": "every pass over the holdout set is a whole one",
    "accumulate_grad_batches": "one large batch is one gradient step in this version",
    "logger": "use logger=csv, tensorboard, wandb or many",
    "callbacks": "this version takes none from a configuration",
    "default_root_dir": "use model_io.home_dir or model_io.run_dir",
}
_STREAMS = ("target", "irreducible", "selection", "order")


@dataclass(frozen=True)
class Method:
    """One line of the comparison.

    Args:
        name: a key of the ``methods`` configuration.
        selector: a key of ``SELECTORS``; None for the irreducible model itself.
        train_on: ``train``, ``train_and_holdout`` or ``holdout``.
        options: of the selector.
    """

    name: str
    selector: str | None
    train_on: str
    options: dict[str, Any]

    def make_selector(self, num_groups: int) -> Selector:
        """A fresh selector."""
        if self.selector is None:
            raise ValueError(f"method {self.name!r} has no selector.")
        return make_selector(self.selector, num_groups=num_groups, **self.options)


@dataclass(frozen=True)
class SeedData:
    """The data of one seed, and what its irreducible model predicts."""

    seed: int
    splits: Splits
    outcomes: Outcomes

    @classmethod
    def of(cls, datamodule: DataModule, seed: int) -> SeedData:
        """Make the splits of ``seed``."""
        splits = datamodule.splits(seed=seed)
        holdout = splits.holdout  # clean, so a group that follows from the target does so without exception
        outcomes = Outcomes.of(
            holdout.target, holdout.group, num_classes=holdout.num_classes, num_groups=holdout.num_groups
        )
        return cls(seed, splits, outcomes)

    def training_points(self, train_on: str) -> PointDataset:
        """The points a method may select from."""
        train, holdout = self.splits.train, self.splits.holdout
        return {"train": train, "holdout": holdout}.get(train_on) or train.concatenated(holdout)


def stream_seed(seed: int, stream: str) -> int:
    """A seed for one of the independent streams of randomness of a run."""
    return mixed_seed(seed, _STREAMS.index(stream))


@contextmanager
def scoped_seed(seed: int) -> Iterator[None]:
    """Draw from ``seed`` inside the block; torch's global random state is afterwards as it was before."""
    with torch.random.fork_rng():
        torch.random.manual_seed(seed)
        yield


def methods_of(config: DictConfig) -> list[Method]:
    """The methods to compare, in order.

    Raises:
        ValueError: for a name that is not in ``methods`` (with the nearest ones), or one that comes twice.
    """
    names = [config.selection_method] if config.selection_method is not None else list(config.compare)
    names = [METHOD_ALIASES.get(name, name) for name in names]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"compare must name at least one method, each once; got {names}.")
    methods = []
    for name in names:
        if name not in config.methods:
            raise unknown_name("method", name, [*config.methods, *METHOD_ALIASES])
        values: dict[str, Any] = OmegaConf.to_container(config.methods[name], resolve=True)  # type: ignore[assignment]
        if values["train_on"] not in TRAINED_ON:
            raise unknown_name(f"methods.{name}.train_on", values["train_on"], TRAINED_ON)
        methods.append(Method(name, values["selector"], values["train_on"], values.get("options") or {}))
    return methods


def seeds_of(config: DictConfig) -> list[int]:
    """The seeds to run, in order.

    Raises:
        ValueError: if there is none, or one is negative or comes twice.
    """
    seeds = [config.seed] if config.seed is not None else list(config.seeds)
    if not seeds or len(set(seeds)) != len(seeds) or any(not isinstance(s, int) or s < 0 for s in seeds):
        raise ValueError(f"seeds must be whole numbers of at least 0, each once; got {seeds}.")
    return seeds


def build(node: DictConfig, **options: Any) -> Any:
    """What ``node._target_`` makes; an error within it comes as it was raised.

    Hydra wraps the errors of what it makes, which hides the message that is meant for the user.
    """
    try:
        return instantiate(node, **options)
    except InstantiationException as error:
        if error.__cause__ is None:
            raise ValueError(str(error)) from error
        raise error.__cause__ from error


def make_model(node: DictConfig, *, num_outputs: int, seed: int) -> nn.Module:
    """A new model whose initial parameters depend on ``seed`` alone."""
    with scoped_seed(seed):
        model = build(node, num_classes=num_outputs)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model._target_ must make a torch.nn.Module; {node._target_} made {type(model).__name__}.")
    return model


def make_optimizer(node: DictConfig) -> partial[torch.optim.Optimizer]:
    """A function from parameters to an optimiser.

    Raises:
        TypeError: if the node lacks ``_partial_: true``.
    """
    optimizer = build(node)
    if not isinstance(optimizer, partial):
        raise TypeError(f"the optimizer configuration of {node._target_} needs `_partial_: true`.")
    return optimizer


def check_setup(config: DictConfig, methods: Sequence[Method], data: SeedData, *, trains_irreducible: bool) -> None:
    """Find what is wrong before the first step, with the data of the first seed.

    Args:
        config: the whole configuration.
        methods: to be trained.
        data: of the first seed.
        trains_irreducible: whether missing irreducible losses will be made, or must be there.

    Raises:
        ValueError: for options out of range, too few training points for one large batch, or a model that does not
            fit the data; says what was expected, what came and what to do.
    """
    _check_options(config)
    train = data.splits.train
    if config.num_candidates > len(train):
        raise ValueError(
            f"num_candidates={config.num_candidates}, but the training part has {len(train)} points; choose at most "
            f"that many."
        )
    probe = next(iter(PointLoader(train, batch_size=min(len(train), 4))))
    _check_model(config.model, probe, train.num_classes)
    _check_model(config.irreducible.model, probe, data.outcomes.num_outcomes)
    for method in methods:
        if method.selector is None and not trains_irreducible and config.irreducible.dir is None:
            raise ValueError(
                f"{method.name!r} has no target training: give irreducible.dir=RUN of `reducr irreducible` to test its "
                "model, leave it out of compare, or name one method with selection_method."
            )
        if method.selector is not None:
            _check_method(config, method, probe, train, trains_irreducible=trains_irreducible)


def _check_method(
    config: DictConfig, method: Method, probe: Batch, train: PointDataset, *, trains_irreducible: bool
) -> None:
    selector = method.make_selector(train.num_groups)
    needs_irreducible = any("irreducible_loss" in field for field in selector.needs)
    if needs_irreducible and not trains_irreducible and config.irreducible.dir is None:
        raise ValueError(
            f"{method.name!r} needs irreducible losses and `reducr train` trains no irreducible model: run `reducr "
            "irreducible` with the same experiment and seeds and give irreducible.dir=RUN, the folder it leaves, or "
            "use `reducr run`, which does both."
        )
    if needs_irreducible and method.train_on != "train" and config.irreducible.lookup == "table":
        raise ValueError(
            f"methods.{method.name}.train_on={method.train_on} with a rule that needs irreducible losses: a table has "
            "rows for the training part only. Set irreducible.lookup=live, or train_on=train."
        )
    if selector.num_dropout_samples:
        dropout_samples(make_model(config.model, num_outputs=train.num_classes, seed=0), probe.input, num_samples=1)


def _check_options(config: DictConfig) -> None:
    """Options that can be judged without the data."""
    num_selected_of(config.fraction, config.num_candidates)
    for name in (
        "num_candidates",
        "num_steps",
        "holdout.batch_size",
        "irreducible.num_epochs",
        "irreducible.batch_size",
    ):
        value = OmegaConf.select(config, name)
        if not isinstance(value, int) or value < 1:
            raise ValueError(f"{name} must be a whole number of at least 1; got {value!r}.")
    if config.holdout.refresh_steps is not None and config.holdout.refresh_steps < 1:
        raise ValueError(f"holdout.refresh_steps must be at least 1, or null; got {config.holdout.refresh_steps}.")
    check_gradient_weight(config.irreducible.gradient_weight)
    if config.holdout.decay is not None and not 0 < config.holdout.decay < 1:
        raise ValueError(
            f"holdout.decay must be in (0, 1), or null to refresh the whole holdout loss; got {config.holdout.decay}."
        )
    _check_trainer(config.trainer)
    if config.scoring_mode not in SCORING_MODES:
        raise unknown_name("scoring_mode", config.scoring_mode, SCORING_MODES)
    for option, known in (
        ("kind", ("adjusted", "trained")),
        ("lookup", ("table", "live")),
        ("checkpoint_rule", ("lowest_loss", "last")),
        ("weight_normalisation", WEIGHT_NORMALISATIONS),
    ):
        if config.irreducible[option] not in known:
            raise unknown_name(f"irreducible.{option}", config.irreducible[option], known)


def _check_trainer(trainer: DictConfig) -> None:
    """Options of the Trainer that this program cannot leave to the user."""
    if trainer.get("devices", 1) not in (1, "1") or trainer.get("num_nodes", 1) != 1:
        raise ValueError(
            "this version trains in one process: set trainer.devices=1 and leave trainer.num_nodes out; got devices="
            f"{trainer.get('devices')}, num_nodes={trainer.get('num_nodes', 1)}."
        )
    taken = sorted(_OWN_TRAINER_OPTIONS.keys() & trainer.keys())
    if taken:
        raise ValueError(f"trainer.{taken[0]} is set by this program: {_OWN_TRAINER_OPTIONS[taken[0]]}.")


def _check_model(node: DictConfig, probe: Batch, num_outputs: int) -> None:
    model = make_model(node, num_outputs=num_outputs, seed=0)
    try:
        check_model_output(model, probe, num_outputs)
    except RuntimeError as error:
        raise ValueError(
            f"{node._target_} cannot be run on inputs of shape {tuple(probe.input.shape)}: {error}. Choose a model for "
            "this data with model=NAME, or set its sizes."
        ) from error
