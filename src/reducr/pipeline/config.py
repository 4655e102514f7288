"""Options of the training program: their types, defaults and meaning.

Each section of a configuration is a class that checks its own values. Models, data modules, optimisers, loggers and
callbacks may hold any options of their ``_target_``; their defaults are YAML files in ``reducr/configs``.
"""

from __future__ import annotations

import difflib
import re
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigKeyError, MissingMandatoryValue, OmegaConfBaseException, ValidationError

from reducr._internal.checks import check_count, check_gradient_weight, is_finite_number
from reducr._internal.deprecation import warn_renamed
from reducr._internal.distributed import check_mode_name
from reducr._internal.moved import with_current_targets
from reducr._internal.names import unknown_name
from reducr.irreducible import WEIGHT_NORMALISATIONS
from reducr.scoring import SCORING_MODES, num_selected_of

IRREDUCIBLE_KINDS = ("adjusted", "trained", "ensemble", "multi_headed")
_OLD_VALUES = {"irreducible.trained_on": {"twins": "cross_fit"}}
_FIXED_TRAINER_OPTIONS = {
    "max_steps": "use num_steps",
    "max_epochs": "use num_steps, or irreducible.num_epochs",
    "val_check_interval": "use holdout.refresh_steps",
    "check_val_every_n_epoch": "use holdout.refresh_steps",
    "limit_val_batches": "every pass over the holdout set is complete",
    "accumulate_grad_batches": "one batch of candidates is one gradient step",
    "logger": "use logger=csv, tensorboard, wandb, mlflow or many",
    "callbacks": "use callbacks, for example '+callbacks.early={_target_:lightning.pytorch.callbacks.Timer,...}'",
    "default_root_dir": "use model_io.home_dir or model_io.run_dir",
}
_TYPE_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}
_PLURALS = {int: "whole numbers", str: "names"}
_INTERPOLATION = re.compile(r"(\\*)\$\{")
Number = int | float
"""OmegaConf keeps whole numbers as they are; it would turn them into floats for ``float``."""


@dataclass
class Irreducible:
    """The reference model (the paper's irreducible model), and how selectors get its losses."""

    # adjusted: one model; every group's loss follows from it in closed form
    # trained: one model per group, with the weight of the group's examples raised (as published)
    # ensemble: the models of `trained`, trained and evaluated together in one vectorised pass
    # multi_headed: one model with a head per group (as published)
    kind: str = "adjusted"
    # cross_fit: two models, each trained on one half of the training part and evaluated on the other half
    trained_on: str = "holdout"
    # table: losses computed once per training example; live: the models run on every batch of candidates
    lookup: str = "table"
    # live models keep learning from the selected examples at this multiple of the learning rate (published: 0.01)
    update_rate: Number | None = None
    gradient_weight: Number = 10.0  # weight of a group's examples in the model of that group
    num_epochs: int = 10
    batch_size: int = 64
    checkpoint_rule: str = "lowest_loss"  # on the training part (as published); last: the final epoch
    weight_normalisation: str = "weights"  # or points: see docs/deviations.md
    # trained models to use: folder of a run of `reducr irreducible` or `reducr run`, a pattern, or a list of these
    dir: Any = None
    model: Any = None  # null: the architecture of the target model; another one: model@irreducible.model=NAME
    optimizer: Any = None  # null: that of the target model; another one: optimizer@irreducible.optimizer=NAME

    def __post_init__(self) -> None:
        """Raise ValueError for an option out of range."""
        _check_choice("irreducible.kind", self.kind, IRREDUCIBLE_KINDS)
        _check_choice("irreducible.trained_on", self.trained_on, ("holdout", "cross_fit"))
        _check_choice("irreducible.lookup", self.lookup, ("table", "live"))
        _check_choice("irreducible.checkpoint_rule", self.checkpoint_rule, ("lowest_loss", "last"))
        _check_choice("irreducible.weight_normalisation", self.weight_normalisation, WEIGHT_NORMALISATIONS)
        check_count("irreducible.num_epochs", self.num_epochs)
        check_count("irreducible.batch_size", self.batch_size)
        check_gradient_weight(self.gradient_weight)
        if self.update_rate is None:
            return
        if not 0 < self.update_rate <= 1:
            raise ValueError(
                "irreducible.update_rate must be in (0, 1], a multiple of the learning rate (published: 0.01), or null "
                f"to keep the models fixed; got {self.update_rate}."
            )
        if self.lookup == "table" or self.trained_on == "cross_fit":
            raise ValueError(
                "With irreducible.update_rate the models keep learning from the selected examples, so their losses "
                "cannot be in a table, and cross-fitted models would see each other's half. Set "
                f"`irreducible.lookup=live` and `irreducible.trained_on=holdout`; got {self.lookup} and "
                f"{self.trained_on}."
            )


@dataclass
class Proxy:
    """A smaller model that scores the candidates for the target model, and learns from the same selected examples."""

    model: Any = None  # null: the target model scores; another one: model@proxy.model=NAME


@dataclass
class Scoring:
    """Cheaper scoring than a full pass over all candidates: docs/performance.md, "Below the floor"."""

    budget: Number | None = None  # in (0, 1]: share of the candidates to score, chosen by their earlier losses
    oldest_fraction: Number | None = None  # share of the budget for the candidates scored longest ago; null: 0.1
    autocast: str | None = None  # bfloat16 or float16; null: the Trainer's precision
    compile: bool = False  # by torch.compile
    batch_size: int | None = None  # score in chunks of at most this many examples, for less memory; null: all
    resolution: Number | None = None  # in (0, 1): share of an image's height and width; for models that take any size


@dataclass
class Holdout:
    """How the group holdout loss is kept up to date."""

    refresh_steps: int | None = None  # steps between two passes over the holdout set; null: an epoch (as published)
    batch_size: int = 1000
    decay: Number | None = None  # in (0, 1): moving average over one holdout batch per step instead

    def __post_init__(self) -> None:
        """Raise ValueError for an option out of range."""
        check_count("holdout.batch_size", self.batch_size)
        if self.refresh_steps is not None and self.refresh_steps < 1:
            raise ValueError(f"holdout.refresh_steps must be at least 1, or null; got {self.refresh_steps}.")
        if self.decay is not None and not 0 < self.decay < 1:
            raise ValueError(
                f"holdout.decay must be in (0, 1), or null to refresh the whole holdout loss; got {self.decay}."
            )


@dataclass
class Record:
    """What is recorded for the report: docs/report.md. Reported seconds leave out the time for it."""

    page: bool = True  # write report.html at the end; `reducr report RUN` writes it at any time
    test_accuracy: bool = False  # evaluate on the test part at every refresh of the holdout loss, for curves
    point_losses: bool = True  # evaluate the last model on every example that it could select


@dataclass
class ModelIO:
    """Where the files of a run go."""

    home_dir: str = "runs"  # new run folders are made here
    run_dir: str | None = None  # use this folder, which must be new or empty
    resume_seconds: Number = 30  # minimum time between two states for `reducr resume RUN`; 0: at every refresh

    def __post_init__(self) -> None:
        """Raise ValueError for an option out of range."""
        if not (is_finite_number(self.resume_seconds) and self.resume_seconds >= 0):
            raise ValueError(f"model_io.resume_seconds must be a number of at least 0; got {self.resume_seconds}.")


@dataclass
class Config:
    """All options of ``reducr run | irreducible | train``. Experiments override some of them."""

    datamodule: Any = field(default_factory=dict)
    model: Any = field(default_factory=dict)
    optimizer: Any = field(default_factory=dict)
    irreducible: Irreducible = field(default_factory=Irreducible)
    proxy: Proxy = field(default_factory=Proxy)
    trainer: dict[str, Any] = field(default_factory=dict)  # keyword arguments of lightning.pytorch.Trainer
    logger: dict[str, Any] = field(default_factory=dict)
    callbacks: dict[str, Any] = field(default_factory=dict)  # Lightning callbacks of the target model's training
    methods: dict[str, Any] = field(default_factory=dict)  # one for each selector, with its options, and two baselines

    # methods to compare, and their seeds
    compare: list[str] = field(
        default_factory=lambda: [
            "uniform",
            "train_loss",
            "rho_loss",
            "reducr",
            "irreducible_model",
            "uniform_with_holdout",
            "class_balanced",
        ]
    )
    seeds: list[int] = field(default_factory=lambda: [0, 1, 2, 3, 4])
    # one method or one seed instead of compare and seeds
    selection_method: str | None = None
    seed: int | None = None

    # models that `reducr irreducible` trains; null: the plain one; a number: that class's; all: every class's
    gradient_weighted_class: int | str | None = None

    # for all methods; for one method: '+methods.reducr.warm_start=true'
    warm_start: bool = False  # start the target model from the parameters of the reference model
    holdout_fraction: Number = 0.0  # in [0, 1): share of the examples of each gradient step drawn from the holdout part

    num_candidates: int = 320  # B, examples scored per step
    fraction: Number = 0.1  # share of the candidates to train on, in (0, 1]
    num_steps: int = 1000  # gradient steps
    scoring_mode: str = "train"  # train (as published), eval, train_frozen_statistics
    # with torchrun; global: select from the candidates of all ranks together; local: each rank selects from its own
    distributed: str | None = None
    scoring: Scoring = field(default_factory=Scoring)
    holdout: Holdout = field(default_factory=Holdout)
    record: Record = field(default_factory=Record)
    model_io: ModelIO = field(default_factory=ModelIO)
    name: str = "experiment"  # of the folder in model_io.home_dir

    def __post_init__(self) -> None:
        """Raise ValueError for an option out of range."""
        check_count("num_candidates", self.num_candidates)
        check_count("num_steps", self.num_steps)
        num_selected_of(self.fraction, self.num_candidates)
        check_mode_name(self.distributed)
        _check_choice("scoring_mode", self.scoring_mode, SCORING_MODES)
        _check_trainer(self.trainer)


def checked_config(config: DictConfig) -> DictConfig:
    """``config`` with current names and types, and the defaults of options it lacks.

    Raises:
        ValueError: for an unknown option, or a value of the wrong type or out of range.

    Warns:
        FutureWarning: for a ``_target_`` or a value that has a new name.
    """
    plain: Any = with_current_targets(OmegaConf.to_container(config, resolve=False))
    for name, kind in typing.get_type_hints(Config).items():
        if is_dataclass(kind) and not isinstance(plain.get(name, {}), dict):
            raise ValueError(f"{name} must be a mapping of options; got {plain[name]!r}.")
    _rename_values(plain)
    try:
        typed = OmegaConf.merge(OmegaConf.structured(Config), plain)
    except OmegaConfBaseException as error:
        raise (option_error(error) or error) from error
    try:
        OmegaConf.to_object(typed)  # every section checks itself
    except MissingMandatoryValue as error:
        raise ValueError(f"{error.full_key} has no value yet: give `{error.full_key}=VALUE`.") from error
    assert isinstance(typed, DictConfig)
    return typed


def yaml_of(config: DictConfig) -> str:
    """``config`` as YAML, with its interpolations resolved. Names of files that are no text are escaped."""
    text = OmegaConf.to_yaml(config, resolve=True)
    try:
        text.encode()
    except UnicodeEncodeError:
        text = yaml.safe_dump(OmegaConf.to_container(config, resolve=True), sort_keys=False)
    return text


def as_literals(node: Any) -> Any:
    r"""Copy of nested dicts and lists in which OmegaConf takes every ``${`` as text.

    Example:
        >>> as_literals({"name": "a${b}"})
        {'name': 'a\\${b}'}
    """
    if isinstance(node, dict):
        return {name: as_literals(value) for name, value in node.items()}
    if isinstance(node, list):
        return [as_literals(value) for value in node]
    return _INTERPOLATION.sub(lambda match: match[1] * 2 + "\\${", node) if isinstance(node, str) else node


def option_error(error: OmegaConfBaseException) -> ValueError | None:
    """The error of an unknown option or a value of the wrong type; None for any other error."""
    name = error.full_key
    if name is None:
        return None
    if isinstance(error, ConfigKeyError) and is_dataclass(error.object_type):
        near = difflib.get_close_matches(name, list(_option_names()), n=3, cutoff=0.6)
        suggestion = f"Did you mean {' or '.join(near)}? " if near else ""
        return ValueError(f"There is no option {name}. {suggestion}`reducr run --cfg job` shows all options.")
    hint = _type_hint(name)
    if isinstance(error, ValidationError) and hint is not None:
        return ValueError(f"{name} must be {_description(hint)}; got {error.value!r}.")
    return None


def _option_names(section: type = Config, prefix: str = "") -> Iterator[str]:
    """Dotted names of all options except those of a ``_target_``."""
    types = typing.get_type_hints(section)
    for option in fields(section):
        name = f"{prefix}{option.name}"
        if is_dataclass(types[option.name]):
            yield from _option_names(types[option.name], f"{name}.")
        else:
            yield name


def _check_choice(option: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise unknown_name(option, value, choices)


def _check_trainer(trainer: dict[str, Any]) -> None:
    """Raise ValueError for an option of the Trainer that this program sets itself."""
    devices, num_nodes = trainer.get("devices", 1), trainer.get("num_nodes", 1)
    if devices not in (1, "1") or num_nodes != 1:
        raise ValueError(
            "trainer.devices and trainer.num_nodes are set by this program. For several processes start it with "
            "`torchrun --nproc-per-node=2 -m reducr.cli run distributed=global ...`; got "
            f"devices={devices}, num_nodes={num_nodes}."
        )
    for option, advice in _FIXED_TRAINER_OPTIONS.items():
        if option in trainer:
            raise ValueError(f"trainer.{option} is set by this program: {advice}.")


def _rename_values(plain: dict[str, Any]) -> None:
    """Replace deprecated values of options in place."""
    for name, new_values in _OLD_VALUES.items():
        section, option = name.split(".")
        options = plain.get(section)
        value = options.get(option) if isinstance(options, dict) else None
        if isinstance(value, str) and value in new_values:
            warn_renamed(f"{name}={value}", f"{name}={new_values[value]}", removed_in="0.3.0", stacklevel=4)
            plain[section][option] = new_values[value]


def _type_hint(name: str) -> Any:
    """The type of an option, a section, or an item such as ``seeds[0]``; None if it has no type."""
    hint: Any = Config
    option, bracket, _ = name.partition("[")
    for part in option.split("."):
        hint = typing.get_type_hints(hint).get(part) if is_dataclass(hint) else None
    return typing.get_args(hint)[0] if bracket and typing.get_origin(hint) is list else hint


def _description(hint: Any) -> str:
    """A type in words."""
    if typing.get_origin(hint) is list:
        return f"a list of {_PLURALS[typing.get_args(hint)[0]]}"
    if typing.get_origin(hint) is dict or is_dataclass(hint):
        return "a mapping of options"
    kinds = typing.get_args(hint) or (hint,)
    return " or ".join(_TYPE_NAMES[kind] for kind in kinds if kind is not int or float not in kinds)
