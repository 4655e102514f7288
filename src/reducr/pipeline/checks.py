"""Everything that can be wrong with a configuration, found before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from omegaconf import DictConfig, OmegaConf

from reducr._internal.checks import check_gradient_weight
from reducr._internal.distributed import check_mode, num_ranks
from reducr._internal.names import unknown_name
from reducr.batch import Batch
from reducr.data import DataModule
from reducr.irreducible import WEIGHT_NORMALISATIONS
from reducr.pipeline.setup import Method, SeedData, make_scoring_budget, scoped_seed, scoring_options
from reducr.scoring.budget import ScoringForward, check_budget, check_compiled
from reducr.scoring.scorer import (
    SCORING_MODES,
    check_model_output,
    dropout_samples,
    num_selected_of,
    score_candidates,
    scoring_pass,
)

_OWN_TRAINER_OPTIONS = {
    "max_steps": "use num_steps",
    "max_epochs": "use num_steps, or irreducible.num_epochs",
    "val_check_interval": "use holdout.refresh_steps",
    "check_val_every_n_epoch": "use holdout.refresh_steps",
    "limit_val_batches": "every pass over the holdout set is a whole one",
    "accumulate_grad_batches": "one large batch is one gradient step in this version",
    "logger": "use logger=csv, tensorboard, wandb, mlflow or many",
    "callbacks": "this version takes none from a configuration",
    "default_root_dir": "use model_io.home_dir or model_io.run_dir",
}

_PART_NAMES = {
    "train": "training part",
    "holdout": "holdout part",
    "train_and_holdout": "training and holdout part together",
}


def check_setup(config: DictConfig, methods: Sequence[Method], data: SeedData, *, trains_irreducible: bool) -> None:
    """Find what is wrong before the first step, with the data of the first seed.

    Args:
        config: the whole configuration.
        methods: to be trained.
        data: of the first seed.
        trains_irreducible: whether missing irreducible losses will be made, or must be there.

    Raises:
        ValueError: for options out of range, too few points for one large batch, or a model that does not fit the
            data; says what was expected, what came and what to do.
    """
    _check_options(config)
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
            check_compiled(method.make_selector(train.num_groups), config.scoring.compile)
    _check_scoring(config, data)
    for method in methods:
        if method.selector is None:
            _check_irreducible_model(config, method, trains_irreducible=trains_irreducible)
        else:
            _check_method(config, method, data, trains_irreducible=trains_irreducible)
            if method.warm_start:
                _check_warm_start(config, method, data, trains_irreducible=trains_irreducible)


def check_seeds(config: DictConfig, methods: Sequence[Method], datamodule: DataModule, seeds: Sequence[int]) -> None:
    """Try the draws of further ``seeds``, whose inputs are not encoded.

    Raises:
        ValueError: for a seed, which it names, with a part that lacks points.
    """
    for seed in seeds:
        try:
            _check_num_candidates(config, methods, datamodule.sizes(seed=seed))
        except ValueError as error:
            raise ValueError(f"seed {seed}: {error}") from error


def _check_num_candidates(config: DictConfig, methods: Sequence[Method], sizes: Mapping[str, int]) -> None:
    """Raise ValueError unless what is trained on gives one large batch."""
    for part in dict.fromkeys(["train", *(method.train_on for method in methods if method.selector is not None)]):
        size = sum(sizes[name] for name in part.split("_and_"))
        if config.num_candidates > size:
            raise ValueError(
                f"num_candidates={config.num_candidates}, but the {_PART_NAMES[part]} has {size} points; choose at "
                "most that many."
            )


def _check_scoring(config: DictConfig, data: SeedData) -> None:
    """See that the model that scores can be called as it is to be."""
    scorer = config.model if config.proxy.model is None else config.proxy.model
    model = data.make_model(scorer, num_outputs=data.splits.train.num_classes, seed=0)
    options = scoring_options(config)
    forward = ScoringForward(
        model,
        scoring_mode=config.scoring_mode,
        autocast=options["autocast"],
        is_compiled=options["scoring_compile"],
        resolution=options["scoring_resolution"],
    )
    if forward.resolution is not None:
        with scoring_pass(model, "eval"), torch.no_grad():
            forward(_probe(data).input)


def _check_irreducible_model(config: DictConfig, method: Method, *, trains_irreducible: bool) -> None:
    if not trains_irreducible and config.irreducible.dir is None:
        raise ValueError(
            f"{method.name!r} has no target training: give irreducible.dir=RUN of `reducr irreducible` to test its "
            "model, leave it out of compare, or name one method with selection_method."
        )
    if config.irreducible.trained_on == "twins":
        raise ValueError(
            f"{method.name!r} tests the one model trained on the holdout part; with irreducible.trained_on=twins there "
            "is none. Leave it out of compare."
        )


def _check_warm_start(config: DictConfig, method: Method, data: SeedData, *, trains_irreducible: bool) -> None:
    """See that there will be an irreducible model whose parameters fit the target model."""
    given = f"warm_start of {method.name!r} begins with the parameters of the irreducible model, but"
    if not trains_irreducible and config.irreducible.dir is None:
        raise ValueError(f"{given} `reducr train` trains none: give irreducible.dir=RUN, or use `reducr run`.")
    if config.irreducible.trained_on == "twins":
        raise ValueError(f"{given} twins are two: set irreducible.trained_on=holdout, or warm_start=false.")
    node = config.model if config.irreducible.model is None else config.irreducible.model
    target = data.make_model(config.model, num_outputs=data.splits.train.num_classes, seed=0)
    irreducible = data.make_model(node, num_outputs=data.joint_labels.num_labels, seed=0)
    shapes, own = (
        {name: tuple(value.shape) for name, value in one.state_dict().items()} for one in (irreducible, target)
    )
    if shapes != own:
        name = next(name for name in [*own, *shapes] if own.get(name) != shapes.get(name))
        raise ValueError(
            f"{given} its {name} is {shapes.get(name, 'not there')} where the target model's is "
            f"{own.get(name, 'not there')}. Leave irreducible.model at null, or warm_start at false."
        )


def _check_method(config: DictConfig, method: Method, data: SeedData, *, trains_irreducible: bool) -> None:
    train = data.splits.train
    selector = method.make_selector(train.num_groups)
    num_selected, num_drawn = method.num_examples(config.fraction, config.num_candidates)
    if num_drawn and config.distributed is not None:
        raise ValueError(
            f"holdout_fraction={method.holdout_fraction} of {method.name!r} is for one process in this version: leave "
            f"distributed={config.distributed} out, or set it to 0."
        )
    if num_drawn > len(data.splits.holdout):
        raise ValueError(
            f"holdout_fraction={method.holdout_fraction} draws {num_drawn} points a step, but the holdout part has "
            f"{len(data.splits.holdout)}; choose a smaller share."
        )
    budget = make_scoring_budget(config, selector)
    fraction = num_selected / config.num_candidates
    check_budget(budget, selector, fraction=fraction, distributed=config.distributed)
    needs_irreducible = any("irreducible_loss" in field for field in selector.needs)
    if needs_irreducible and not trains_irreducible and config.irreducible.dir is None:
        raise ValueError(
            f"{method.name!r} needs irreducible losses and `reducr train` trains no irreducible model: run `reducr "
            "irreducible` with the same experiment and seeds and give irreducible.dir=RUN, the folder it leaves, or "
            "use `reducr run`, which does both."
        )
    if needs_irreducible and method.train_on != "train":
        given = f"methods.{method.name}.train_on={method.train_on} with a rule that needs irreducible losses"
        if config.irreducible.trained_on == "twins":
            raise ValueError(
                f"{given}: twins share out the training part only, so neither may be asked about a holdout point. Set "
                "irreducible.trained_on=holdout and irreducible.lookup=live, or train_on=train."
            )
        if config.irreducible.lookup == "table":
            raise ValueError(
                f"{given}: a table has rows for the training part only. Set irreducible.lookup=live, or train_on=train."
            )
    if "features" in selector.needs:
        scorer = config.model if config.proxy.model is None else config.proxy.model
        model = data.make_model(scorer, num_outputs=train.num_classes, seed=0)
        score_candidates(model, _probe(data), selector, None, scoring_mode="eval")
    if selector.num_dropout_samples:
        scorer = config.model if config.proxy.model is None else config.proxy.model
        model = data.make_model(scorer, num_outputs=train.num_classes, seed=0)
        dropout_samples(model, _probe(data).input, num_samples=1)


def _check_options(config: DictConfig) -> None:
    """Options that can be judged without the data."""
    num_selected_of(config.fraction, config.num_candidates)
    check_mode(config.distributed)
    if config.distributed is not None and config.num_candidates < num_ranks():
        raise ValueError(
            f"num_candidates={config.num_candidates} are of all {num_ranks()} ranks together; give at least one each."
        )
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
    _check_irreducible_options(config.irreducible)
    learns_along = config.proxy.model is not None or config.irreducible.update_rate is not None
    if learns_along and config.trainer.get("gradient_clip_val") is not None:
        raise ValueError(
            "trainer.gradient_clip_val would clip the gradients of the model and of those that learn along with it "
            "together: leave it out, or proxy.model and irreducible.update_rate."
        )


def _check_irreducible_options(options: DictConfig) -> None:
    for option, known in (
        ("kind", ("adjusted", "trained", "ensemble", "multi_headed")),
        ("trained_on", ("holdout", "twins")),
        ("lookup", ("table", "live")),
        ("checkpoint_rule", ("lowest_loss", "last")),
        ("weight_normalisation", WEIGHT_NORMALISATIONS),
    ):
        if options[option] not in known:
            raise unknown_name(f"irreducible.{option}", options[option], known)
    rate = options.update_rate
    if rate is None:
        return
    if not 0 < rate <= 1:
        raise ValueError(
            f"irreducible.update_rate must be in (0, 1], a multiple of the learning rate (published: 0.01), or null "
            f"for models that stay as they are; got {rate}."
        )
    if options.lookup == "table" or options.trained_on == "twins":
        raise ValueError(
            "irreducible.update_rate lets irreducible models go on learning from the selected points, so their losses "
            "cannot be in a table, nor be those of twins, which must not see each other's half: set "
            f"irreducible.lookup=live and irreducible.trained_on=holdout; got {options.lookup} and "
            f"{options.trained_on}."
        )


def _check_trainer(trainer: DictConfig) -> None:
    """Options of the Trainer that this program cannot leave to the user."""
    if trainer.get("devices", 1) not in (1, "1") or trainer.get("num_nodes", 1) != 1:
        raise ValueError(
            "trainer.devices and trainer.num_nodes are set by this program. For several processes start it by "
            "torchrun --nproc-per-node=2 -m reducr.cli run distributed=global ...; got devices="
            f"{trainer.get('devices')}, num_nodes={trainer.get('num_nodes', 1)}."
        )
    taken = sorted(_OWN_TRAINER_OPTIONS.keys() & trainer.keys())
    if taken:
        raise ValueError(f"trainer.{taken[0]} is set by this program: {_OWN_TRAINER_OPTIONS[taken[0]]}.")


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
            "or none: augment@datamodule.augment=none."
        ) from error


def _check_model(option: str, node: DictConfig, data: SeedData, num_outputs: int) -> None:
    probe = _probe(data)
    try:
        check_model_output(data.make_model(node, num_outputs=num_outputs, seed=0), probe, num_outputs)
    except (RuntimeError, TypeError, IndexError) as error:
        choice = "model" if option == "model" else f"model@{option}"
        raise ValueError(
            f"{option} ({node._target_}) cannot be run on inputs of shape {tuple(probe.input.shape)} and type "
            f"{probe.input.dtype}: {error}. Choose a model for this data with {choice}=NAME, or set its "
            "sizes."
        ) from error
