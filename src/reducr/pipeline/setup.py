"""What a run is made of: its methods, its seeds, the data of each, and models and optimisers from a configuration."""

from __future__ import annotations

import copy
import math
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
from reducr._internal.seeds import mixed_seed
from reducr.data import DataModule, ExampleDataset, Splits
from reducr.irreducible.joint_labels import JointLabels
from reducr.models.preprocessed import Preprocessed
from reducr.scoring import Scoring, ScoringBudget, num_selected_of
from reducr.selectors import Selector, make_selector

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
_PRECISIONS = {"bfloat16": torch.bfloat16, "float16": torch.float16}
_STREAMS = ("target", "irreducible", "selection", "order", "holdout")


@dataclass(frozen=True, kw_only=True)
class Method:
    """One line of the comparison.

    Args:
        name: a key of the ``methods`` configuration.
        selector: a key of ``SELECTORS``; None for the irreducible model itself.
        train_on: ``train``, ``train_and_holdout`` or ``holdout``.
        options: of the selector.
        warm_start: whether the target model begins with the parameters of the irreducible model.
        holdout_fraction: share of the points of every gradient step that are drawn from the holdout part, in [0, 1).
    """

    name: str
    selector: str | None
    train_on: str
    options: dict[str, Any]
    warm_start: bool = False
    holdout_fraction: float = 0.0

    def num_examples(self, fraction: float, num_candidates: int) -> tuple[int, int]:
        """How many points of every gradient step are selected, and how many drawn from the holdout part.

        Together they are as many as ``fraction`` of the candidates.

        Raises:
            ValueError: for a holdout fraction outside [0, 1), or one that leaves none of either.
        """
        share = self.holdout_fraction
        if not (is_finite_number(share) and 0 <= share < 1):
            raise ValueError(
                "holdout_fraction must be in [0, 1), the share of the points of every gradient step that are drawn "
                f"from the holdout part; got {share} for {self.name!r}."
            )
        in_all = num_selected_of(fraction, num_candidates)
        drawn = math.floor(share * in_all + 0.5)
        if drawn == in_all or (share and not drawn):
            raise ValueError(
                f"holdout_fraction={share} of {in_all} points a step is {drawn}, which leaves none of "
                f"{'the selected' if drawn else 'the holdout'} points for {self.name!r}: choose another share, or more "
                "candidates."
            )
        return in_all - drawn, drawn

    def make_selector(self, num_groups: int) -> Selector:
        """A fresh selector."""
        if self.selector is None:
            raise ValueError(f"method {self.name!r} has no selector.")
        return make_selector(self.selector, num_groups=num_groups, **self.options)


@dataclass(frozen=True)
class SeedData:
    """The data of one seed, what its irreducible model predicts, and what models need to know of the inputs.

    Args:
        seed: of the draws.
        splits: the parts.
        joint_labels: labels that the plain irreducible model predicts.
        preprocess: what every model does to its inputs first; None for nothing.
        augment: random changes of the inputs trained on; None for none.
        facts: of the preprocessed inputs: ``num_features``, ``in_channels`` and ``image_size``, or what the data set
            says of them, such as ``num_tokens``.
    """

    seed: int
    splits: Splits
    joint_labels: JointLabels
    preprocess: nn.Module | None
    augment: nn.Module | None
    facts: Mapping[str, int]

    @classmethod
    def of(cls, datamodule: DataModule, seed: int) -> SeedData:
        """Make the splits of ``seed``."""
        splits = datamodule.splits(seed=seed)
        holdout = splits.holdout  # clean, so a group that follows from the target does so without exception
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
        """A new model for these inputs; its initial parameters depend on ``seed`` alone."""
        return self.preprocessed(make_model(node, num_outputs=num_outputs, seed=seed, facts=self.facts))

    def preprocessed(self, model: nn.Module) -> nn.Module:
        """``model`` with this data set's preprocessing in front of it."""
        return model if self.preprocess is None else Preprocessed(copy.deepcopy(self.preprocess), model)

    def training_examples(self, train_on: str) -> ExampleDataset:
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
        check_options(f"method {name!r}", Method, values)
        # what is said of all methods, where this one says nothing
        common = {option: config[option] for option in ("warm_start", "holdout_fraction")} if values["selector"] else {}
        values["options"] = values.get("options") or {}
        methods.append(Method(name=name, **common | values))
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
    """What ``node._target_`` makes; an error within it comes as it was raised.

    Hydra wraps the errors of what it makes, which hides the message that is meant for the user.
    """
    if OmegaConf.is_config(node):
        node = OmegaConf.create(with_current_targets(OmegaConf.to_container(node, resolve=True)))
    try:
        return instantiate(node, **options)
    except InstantiationException as error:
        if error.__cause__ is None:
            raise ValueError(str(error)) from error
        raise error.__cause__ from error


def make_model(node: DictConfig, *, num_outputs: int, seed: int, facts: Mapping[str, int]) -> nn.Module:
    """A new model whose initial parameters depend on ``seed`` alone.

    Options that its configuration leaves at null are taken from ``facts``, where they are among them.
    """
    known = {name: value for name, value in facts.items() if name in node and node[name] is None}
    with scoped_seed(seed):
        model = build(node, num_classes=num_outputs, **known)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model._target_ must make a torch.nn.Module; {node._target_} made {type(model).__name__}.")
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
    """A function from parameters to an optimiser.

    Raises:
        TypeError: if the node lacks ``_partial_: true``.
    """
    optimizer = build(node)
    if not isinstance(optimizer, partial):
        raise TypeError(f"the optimizer configuration of {node._target_} needs `_partial_: true`.")
    return optimizer
