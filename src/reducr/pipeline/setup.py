"""Methods, seeds and data of a run, and the objects that its configuration describes."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import lightning.pytorch as pl
import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from torch import nn

from reducr._internal.checks import is_finite_number
from reducr._internal.moved import with_current_targets
from reducr._internal.names import check_options, unknown_name
from reducr._internal.rng import seeded_python
from reducr._internal.seeds import mixed_seed
from reducr.data import DataModule, ExampleDataset, Splits
from reducr.irreducible.joint_labels import JointLabels
from reducr.models.preprocessed import Preprocessed
from reducr.pipeline.config import as_literals
from reducr.scoring import Scoring, ScoringBudget, num_selected_of
from reducr.selectors import Selector, make_selector

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
"""Method names of the original repository -> our names."""
TRAINED_ON = ("train", "holdout", "train_and_holdout")
_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_STREAMS = ("target", "irreducible", "selection", "order", "holdout")


@dataclass(frozen=True, kw_only=True)
class Method:
    """A method of the comparison.

    Args:
        name: a key of the ``methods`` configuration.
        selector: a key of ``SELECTORS``; None for the reference model itself.
        train_on: parts to select from: ``train``, ``train_and_holdout`` or ``holdout``.
        options: keyword arguments of the selector.
        warm_start: whether the target model starts from the parameters of the reference model.
        holdout_fraction: share of the examples of each gradient step that are drawn from the holdout part, in [0, 1).
    """

    name: str
    selector: str | None
    train_on: str
    options: dict[str, Any]
    warm_start: bool = False
    holdout_fraction: float = 0.0

    def num_examples(self, fraction: float, num_candidates: int) -> tuple[int, int]:
        """Numbers of examples of each gradient step that are selected, and that are drawn from the holdout part.

        Their sum is ``fraction`` of the candidates.

        Raises:
            ValueError: if the holdout fraction is outside [0, 1), or one of the two would be 0.
        """
        share = self.holdout_fraction
        if not (is_finite_number(share) and 0 <= share < 1):
            raise ValueError(
                "holdout_fraction must be in [0, 1), the share of the examples of each gradient step that are drawn "
                f"from the holdout part; got {share} for {self.name!r}."
            )
        total = num_selected_of(fraction, num_candidates)
        num_drawn = math.floor(share * total + 0.5)
        if num_drawn == total or (share and not num_drawn):
            raise ValueError(
                f"holdout_fraction={share} of {self.name!r} draws {num_drawn} of the {total} examples per step from "
                f"the holdout part, so none would be {'selected' if num_drawn else 'drawn'}. Choose another share, or "
                "more candidates."
            )
        return total - num_drawn, num_drawn

    def make_selector(self, num_groups: int) -> Selector:
        """A new selector."""
        if self.selector is None:
            raise ValueError(f"method {self.name!r} has no selector.")
        return make_selector(self.selector, num_groups=num_groups, **self.options)


@dataclass(frozen=True)
class SeedData:
    """The data of one seed.

    Args:
        seed: of the random draws.
        splits: the parts.
        joint_labels: the labels that the plain reference model predicts.
        preprocess: applied to the inputs of every model; None for nothing.
        augment: random changes of the inputs in training; None for none.
        facts: properties of the preprocessed inputs that models need: ``num_features``, ``in_channels`` and
            ``image_size``, or properties given by the data set such as ``num_tokens``.
    """

    seed: int
    splits: Splits
    joint_labels: JointLabels
    preprocess: nn.Module | None
    augment: nn.Module | None
    facts: Mapping[str, int]

    @classmethod
    def of(cls, datamodule: DataModule, seed: int) -> SeedData:
        """Draw the parts of ``seed``."""
        with seeded_python(stream_seed(seed, "order")):
            splits = datamodule.splits(seed=seed)
        holdout = splits.holdout  # clean labels, so any mapping from targets to groups shows without exceptions
        joint_labels = JointLabels.of(
            holdout.target, holdout.group, num_classes=holdout.num_classes, num_groups=holdout.num_groups
        )
        probe = splits.train.batch(torch.arange(1)).input
        if datamodule.preprocess is not None:
            probe = datamodule.preprocess(probe)
        facts = {"num_features": probe[0].numel()} if probe.is_floating_point() else {}
        if probe.ndim == 4:
            facts |= {"in_channels": probe.shape[1], "image_size": probe.shape[-1]}
        return cls(seed, splits, joint_labels, datamodule.preprocess, datamodule.augment, facts | dict(splits.facts))

    def make_model(self, node: DictConfig, *, num_outputs: int, seed: int) -> nn.Module:
        """A new model for these inputs. Its initial parameters depend only on ``seed``."""
        return self.preprocessed(make_model(node, num_outputs=num_outputs, seed=seed, facts=self.facts))

    def preprocessed(self, model: nn.Module) -> nn.Module:
        """``model`` preceded by the preprocessing of this data set."""
        return model if self.preprocess is None else Preprocessed(copy.deepcopy(self.preprocess), model)

    def training_examples(self, train_on: str) -> ExampleDataset:
        """The examples that a method selects from."""
        train, holdout = self.splits.train, self.splits.holdout
        return {"train": train, "holdout": holdout}.get(train_on) or train.concatenated(holdout)


def stream_seed(seed: int, stream: str) -> int:
    """The seed of one of a run's independent random streams."""
    return mixed_seed(seed, _STREAMS.index(stream))


@contextmanager
def scoped_seed(seed: int) -> Iterator[None]:
    """Seed the global random states of torch, numpy and Python inside the block, and restore them afterwards."""
    with torch.random.fork_rng(), seeded_python(seed):
        torch.random.manual_seed(seed)
        yield


def methods_of(config: DictConfig) -> list[Method]:
    """The methods to compare, in order.

    Raises:
        ValueError: if a name is not in ``methods``, or occurs twice; names the nearest methods.
    """
    names = [config.selection_method] if config.selection_method is not None else list(config.compare)
    names = [METHOD_ALIASES.get(name, name) for name in names]
    if len(set(names)) != len(names) or not names:
        raise ValueError(f"`compare` must name at least one method, each once; got {names}.")
    methods = []
    for name in names:
        if name not in config.methods:
            raise unknown_name("method", name, [*config.methods, *METHOD_ALIASES])
        if re.search(r"[/\\\0]", name) or name.startswith(".") or name == "irreducible":
            raise ValueError(
                "The name of a method is that of a folder: no slash, no dot at the start, not `irreducible`; got "
                f"{name!r}."
            )
        values: dict[str, Any] = OmegaConf.to_container(config.methods[name], resolve=True)  # type: ignore[assignment]
        if values["train_on"] not in TRAINED_ON:
            raise unknown_name(f"methods.{name}.train_on", values["train_on"], TRAINED_ON)
        check_options(f"method {name!r}", Method, values)
        # Options for all methods, which a method may override.
        common = {option: config[option] for option in ("warm_start", "holdout_fraction")} if values["selector"] else {}
        values["options"] = values.get("options") or {}
        methods.append(Method(name=name, **common | values))
    return methods


def seeds_of(config: DictConfig) -> list[int]:
    """The seeds to run, in order.

    Raises:
        ValueError: if there is none, or one is negative or occurs twice.
    """
    seeds = [config.seed] if config.seed is not None else list(config.seeds)
    if not seeds or len(set(seeds)) != len(seeds) or any(not isinstance(s, int) or s < 0 for s in seeds):
        raise ValueError(f"seeds must be whole numbers of at least 0, each once; got {seeds}.")
    return seeds


def make_scoring(config: DictConfig, selector: Selector, *, num_examples: int | None = None) -> Scoring:
    """Return how the model scores the candidates for one rule.

    A rule that does not run the model gets no budget.

    Args:
        config: the whole configuration.
        selector: the rule.
        num_examples: N, for the memory of the budget.

    Raises:
        ValueError: for an option out of range or without effect.
    """
    options = config.scoring
    if options.autocast not in (None, *_PRECISIONS):
        raise unknown_name("scoring.autocast", options.autocast, list(_PRECISIONS))
    if options.budget is None and options.oldest_fraction is not None:
        raise ValueError(
            f"scoring.oldest_fraction={options.oldest_fraction} is a fraction of `scoring.budget`, which is null. Set "
            "both."
        )
    budget = None
    if options.budget is not None and not selector.needs.isdisjoint(("model_loss", "logits")):
        oldest = {} if options.oldest_fraction is None else {"oldest_fraction": options.oldest_fraction}
        budget = ScoringBudget(options.budget, num_examples=num_examples, **oldest)
    return Scoring(
        mode=config.scoring_mode,
        autocast=_PRECISIONS.get(options.autocast),
        compile=options.compile,
        resolution=options.resolution,
        budget=budget,
        batch_size=options.batch_size,
    )


def build(node: DictConfig, **options: Any) -> Any:
    """Instantiate ``node``. An error of its ``_target_`` is raised as it is, without Hydra's wrapper.

    A ``${`` in a resolved value is text, which Hydra would resolve once more.
    """
    if OmegaConf.is_config(node):
        plain = with_current_targets(OmegaConf.to_container(node, resolve=True))
        literal = as_literals(as_literals(plain))  # Hydra evaluates a node, and then its copy
        node = OmegaConf.create(literal)
        if literal != plain:  # a "${" in a name of a file
            options = {"_convert_": "all"} | options
    try:
        return instantiate(node, **options)
    except InstantiationException as error:
        if error.__cause__ is None:
            raise ValueError(str(error)) from error
        raise error.__cause__ from error


def make_model(node: DictConfig, *, num_outputs: int, seed: int, facts: Mapping[str, int]) -> nn.Module:
    """A new model. Its initial parameters depend only on ``seed``.

    Options that are null in ``node`` are taken from ``facts``.

    Raises:
        TypeError: if ``node`` makes anything but a module.
    """
    known = {name: value for name, value in facts.items() if name in node and node[name] is None}
    with scoped_seed(seed):
        model = build(node, num_classes=num_outputs, **known)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model._target_ must make a torch.nn.Module; {node._target_} made a {type(model).__name__}.")
    return model


def make_callbacks(config: DictConfig) -> list[pl.Callback]:
    """New Lightning callbacks of the ``callbacks`` section.

    Raises:
        TypeError: if a node makes anything else.
    """
    callbacks = []
    for name, node in config.callbacks.items():
        if "_target_" not in (node if isinstance(node, DictConfig) else ()):
            raise TypeError(f"callbacks.{name} must have a _target_, the class of a Lightning callback; got {node!r}.")
        callback = build(node)
        if not isinstance(callback, pl.Callback):
            raise TypeError(
                f"callbacks.{name}._target_ must be a Lightning callback; {node._target_} made a "
                f"{type(callback).__name__}."
            )
        callbacks.append(callback)
    return callbacks


def make_optimizer(node: DictConfig) -> partial[torch.optim.Optimizer]:
    """A function that makes the optimiser of given parameters.

    Raises:
        TypeError: if ``node`` lacks ``_partial_: true``, or has options of another type.
    """
    optimizer = build(node)
    if not isinstance(optimizer, partial):
        raise TypeError(f"The optimizer {node._target_} needs `_partial_: true` in its configuration.")
    try:
        optimizer([nn.Parameter(torch.zeros(2, 2))])
    except TypeError as error:
        raise TypeError(f"{node._target_} does not take the options of `optimizer`: {error}.") from error
    except (ValueError, RuntimeError):  # perhaps of this parameter; those of the model come later
        pass
    return optimizer
