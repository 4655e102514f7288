"""Checks of a configuration against its data and its models, before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from omegaconf import DictConfig

from reducr._internal.distributed import check_mode, num_ranks
from reducr.batch import Batch
from reducr.data import DataModule
from reducr.pipeline.setup import Method, SeedData, make_callbacks, make_optimizer, make_scoring, scoped_seed
from reducr.scoring import (
    Scoring,
    ScoringForward,
    check_model_output,
    dropout_samples,
    score_candidates,
    scoring_pass,
)

_PART_NAMES = {
    "train": "training part",
    "holdout": "holdout part",
    "train_and_holdout": "combined training and holdout part",
}


def check_setup(config: DictConfig, methods: Sequence[Method], data: SeedData, *, trains_irreducible: bool) -> None:
    """Check a configuration with the data of the first seed.

    Args:
        config: the whole configuration.
        methods: the methods to train.
        data: the data of the first seed.
        trains_irreducible: whether the run trains the reference models that it needs.

    Raises:
        ValueError: if options contradict each other, a part has fewer examples than ``num_candidates``, or a model does
            not fit the data.
        TypeError: if ``callbacks`` holds anything but Lightning callbacks, or an optimiser does not take its options.
    """
    _check_together(config)
    make_callbacks(config)
    for optimizer in filter(None, (config.optimizer, config.irreducible.optimizer)):
        make_optimizer(optimizer)
    train = data.splits.train
    _check_num_candidates(config, methods, {name: len(part) for name, part in data.splits.by_name().items()})
    _check_augment(data)
    _check_model("model", config.model, data, train.num_classes)
    if config.irreducible.model is not None:
        _check_model("irreducible.model", config.irreducible.model, data, data.joint_labels.num_labels)
    if config.proxy.model is not None:
        _check_model("proxy.model", config.proxy.model, data, train.num_classes)
    for method in methods:
        if method.selector is not None:
            _check_scoring(config, method, data)
    for method in methods:
        if method.selector is None:
            _check_irreducible_model(config, method, trains_irreducible=trains_irreducible)
        else:
            _check_method(config, method, data, trains_irreducible=trains_irreducible)
            if method.warm_start:
                _check_warm_start(config, method, data, trains_irreducible=trains_irreducible)


def check_seeds(config: DictConfig, methods: Sequence[Method], datamodule: DataModule, seeds: Sequence[int]) -> None:
    """Check the sizes of the parts of further ``seeds``, without decoding any inputs.

    Raises:
        ValueError: if a part of a seed has fewer examples than ``num_candidates``.
    """
    for seed in seeds:
        try:
            _check_num_candidates(config, methods, datamodule.sizes(seed=seed))
        except ValueError as error:
            raise ValueError(f"seed {seed}: {error}") from error


def _check_num_candidates(config: DictConfig, methods: Sequence[Method], sizes: Mapping[str, int]) -> None:
    """Raise ValueError if a part that is trained on has fewer examples than ``num_candidates``."""
    for part in dict.fromkeys(["train", *(method.train_on for method in methods if method.selector is not None)]):
        size = sum(sizes[name] for name in part.split("_and_"))
        if config.num_candidates > size:
            raise ValueError(
                f"num_candidates={config.num_candidates}, but the {_PART_NAMES[part]} has {size} examples. Choose at "
                "most that many."
            )


def _check_scoring(config: DictConfig, method: Method, data: SeedData) -> None:
    """Check the scoring options against the method and the model that scores."""
    selector = method.make_selector(data.splits.train.num_groups)
    selector.check_num_candidates(config.num_candidates)
    scoring = make_scoring(config, selector)
    num_selected, _ = method.num_examples(config.fraction, config.num_candidates)
    scoring.check_fit(selector, fraction=num_selected / config.num_candidates, distributed=config.distributed)
    scorer = config.model if config.proxy.model is None else config.proxy.model
    model = data.make_model(scorer, num_outputs=data.splits.train.num_classes, seed=0)
    forward = ScoringForward(model, scoring)
    if forward.resolution is not None:
        with scoring_pass(model, "eval"), torch.no_grad():
            forward(_probe(data).input)


def _check_irreducible_model(config: DictConfig, method: Method, *, trains_irreducible: bool) -> None:
    if not trains_irreducible and config.irreducible.dir is None:
        raise ValueError(
            f"{method.name!r} tests a reference model, and `reducr train` trains none. Set `irreducible.dir=RUN` to a "
            "run of `reducr irreducible`, or leave the method out of `compare`."
        )
    if config.irreducible.trained_on == "cross_fit":
        raise ValueError(
            f"{method.name!r} tests the reference model trained on the holdout part, but "
            "irreducible.trained_on=cross_fit trains none there. Leave it out of `compare`."
        )


def _check_warm_start(config: DictConfig, method: Method, data: SeedData, *, trains_irreducible: bool) -> None:
    """Raise ValueError unless there will be a reference model whose parameters fit the target model."""
    fault = f"warm_start of {method.name!r} needs the parameters of the reference model, but"
    if not trains_irreducible and config.irreducible.dir is None:
        raise ValueError(f"{fault} `reducr train` trains none. Set `irreducible.dir=RUN`, or use `reducr run`.")
    if config.irreducible.trained_on == "cross_fit":
        raise ValueError(
            f"{fault} cross-fitting trains two. Set `irreducible.trained_on=holdout`, or `warm_start=false`."
        )
    node = config.model if config.irreducible.model is None else config.irreducible.model
    target = data.make_model(config.model, num_outputs=data.splits.train.num_classes, seed=0)
    reference = data.make_model(node, num_outputs=data.joint_labels.num_labels, seed=0)
    expected, shapes = (
        {name: tuple(value.shape) for name, value in model.state_dict().items()} for model in (target, reference)
    )
    if shapes != expected:
        name = next(name for name in [*expected, *shapes] if expected.get(name) != shapes.get(name))
        raise ValueError(
            f"{fault} its {name} is {shapes.get(name, 'missing')}, and that of the target model is "
            f"{expected.get(name, 'missing')}. Leave irreducible.model at null, or warm_start at false."
        )


def _check_method(config: DictConfig, method: Method, data: SeedData, *, trains_irreducible: bool) -> None:
    train = data.splits.train
    selector = method.make_selector(train.num_groups)
    _, num_drawn = method.num_examples(config.fraction, config.num_candidates)
    if num_drawn and config.distributed is not None:
        raise ValueError(
            f"holdout_fraction={method.holdout_fraction} of {method.name!r} works in one process only. Leave "
            f"distributed={config.distributed} out, or set it to 0."
        )
    if num_drawn > len(data.splits.holdout):
        raise ValueError(
            f"holdout_fraction={method.holdout_fraction} draws {num_drawn} examples per step, but the holdout part has "
            f"{len(data.splits.holdout)}. Choose a smaller share."
        )
    needs_irreducible = any("irreducible_loss" in field for field in selector.needs)
    if needs_irreducible and not trains_irreducible and config.irreducible.dir is None:
        raise ValueError(
            f"{method.name!r} needs irreducible losses, and `reducr train` trains no reference model. Run `reducr "
            "irreducible` with the same experiment and seeds and set `irreducible.dir=RUN` to its run folder, or use "
            "`reducr run`, which does both."
        )
    if needs_irreducible and method.train_on != "train":
        setting = f"methods.{method.name}.train_on={method.train_on} with a rule that needs irreducible losses"
        if config.irreducible.trained_on == "cross_fit":
            raise ValueError(
                f"{setting}: cross-fitted models give losses for the training part only. Set "
                "`irreducible.trained_on=holdout` and `irreducible.lookup=live`, or `train_on=train`."
            )
        if config.irreducible.lookup == "table":
            raise ValueError(
                f"{setting}: a table has rows for the training part only. Set `irreducible.lookup=live`, or "
                "`train_on=train`."
            )
    if "features" in selector.needs:
        scorer = config.model if config.proxy.model is None else config.proxy.model
        model = data.make_model(scorer, num_outputs=train.num_classes, seed=0)
        score_candidates(model, _probe(data), selector, scoring=Scoring(mode="eval"))
    if selector.num_dropout_samples:
        scorer = config.model if config.proxy.model is None else config.proxy.model
        model = data.make_model(scorer, num_outputs=train.num_classes, seed=0)
        dropout_samples(model, _probe(data).input, num_samples=1)


def _check_together(config: DictConfig) -> None:
    """Check options that depend on each other or on the processes, but not on the data."""
    check_mode(config.distributed)
    if config.distributed is not None and config.num_candidates < num_ranks():
        raise ValueError(
            f"num_candidates={config.num_candidates} is the number of all {num_ranks()} ranks together. Give at least "
            "one per rank."
        )
    is_several = config.proxy.model is not None or config.irreducible.update_rate is not None
    if is_several and config.trainer.get("gradient_clip_val") is not None:
        raise ValueError(
            "trainer.gradient_clip_val would clip the gradients of the target model together with those of the models "
            "trained beside it. Leave it out, or proxy.model and irreducible.update_rate."
        )


def _probe(data: SeedData) -> Batch:
    train = data.splits.train
    return train.batch(torch.arange(min(len(train), 4)))


def _check_augment(data: SeedData) -> None:
    if data.augment is None:
        return
    probe = _probe(data)
    try:
        with scoped_seed(0):
            data.augment(probe.input)
    except (ValueError, RuntimeError, TypeError, IndexError) as error:
        raise ValueError(
            f"datamodule.augment ({type(data.augment).__name__}) cannot be run on inputs of shape "
            f"{tuple(probe.input.shape)} and type {probe.input.dtype}: {str(error).rstrip('.')}. Choose another one, "
            "or `augment@datamodule.augment=none`."
        ) from error


def _check_model(option: str, node: DictConfig, data: SeedData, num_outputs: int) -> None:
    probe = _probe(data)
    try:
        check_model_output(data.make_model(node, num_outputs=num_outputs, seed=0), probe, num_outputs)
    except (RuntimeError, TypeError, IndexError) as error:
        choice = "model" if option == "model" else f"model@{option}"
        raise ValueError(
            f"{option} ({node._target_}) cannot be run on inputs of shape {tuple(probe.input.shape)} and type "
            f"{probe.input.dtype}: {error}. Choose a model for this data with `{choice}=NAME`, or set its sizes."
        ) from error
