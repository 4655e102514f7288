"""The target stage: train one method for one seed and test its checkpoints."""

from __future__ import annotations

import shutil
import time
from functools import partial
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch.optim import Optimizer

from reducr._internal.distributed import barrier, is_main_rank
from reducr._internal.manifest import TrainingProgress, withdraw
from reducr._internal.run_folder import CHECKPOINT_RULES, ResultRow
from reducr.auxiliary import Auxiliary, AuxiliaryModel, ExtraBatches
from reducr.batch import Batch
from reducr.data import ExampleLoader
from reducr.downsampler import Downsampler
from reducr.lightning import RunProgress, SelectionRecorder, TargetModule, fit_target, model_state
from reducr.pipeline.evaluation import TEST_BATCH_SIZE, evaluate_checkpoints, write_losses
from reducr.pipeline.irreducible_stage import IrreducibleStage
from reducr.pipeline.setup import (
    Method,
    SeedData,
    build,
    make_callbacks,
    make_optimizer,
    make_scoring,
    scoped_seed,
    stream_seed,
)
from reducr.scoring import Holdout
from reducr.training.checkpoints import Checkpoints


def train_method(
    config: DictConfig, method: Method, data: SeedData, stage: IrreducibleStage, *, folder: Path
) -> list[ResultRow]:
    """Train one method for one seed and test its checkpoints.

    Args:
        config: the whole configuration.
        method: the method to train.
        data: the data of the seed.
        stage: provides the irreducible losses, and shows progress.
        folder: receives ``csv/metrics.csv``, ``checkpoints/`` with one file for each rule, ``selected.npz``,
            ``test_accuracy.csv``, ``test_predictions.npz`` and ``point_loss.npy``. An interrupted training in it is
            continued.

    Returns:
        One row for each checkpoint rule.
    """
    checkpoints = folder / "checkpoints"
    progress = _progress(folder)
    if is_main_rank():
        step = Checkpoints(resume_folder(folder)).newest_step()
        if step is None:
            withdraw(folder.parents[1], folder)
            shutil.rmtree(folder, ignore_errors=True)  # interrupted before the first checkpoint
        else:
            progress.begin(step)
        folder.mkdir(parents=True, exist_ok=True)
    barrier()
    if method.selector is None:
        return _evaluate_reference_model(method, data, stage, folder)
    examples = data.training_examples(method.train_on)
    module, irreducible_seconds = _target_module(config, method, data, stage, num_examples=len(examples))
    recorder = SelectionRecorder(
        folder / "selected.npz", num_examples=len(examples), is_corrupted=examples.is_corrupted
    )
    steps, fit_seconds = _fit(config, method, data, stage, module, recorder=recorder, progress=progress)
    counts = module.downsampler.report()
    rows = evaluate_checkpoints(
        method,
        data,
        module.model,
        {rule: model_state(checkpoints / f"{rule}.ckpt") for rule in CHECKPOINT_RULES},
        folder,
        steps=steps,
        irreducible_seconds=irreducible_seconds,
        selection_seconds=counts.selection_seconds,
        training_seconds=module.training_seconds,
        total_seconds=irreducible_seconds + fit_seconds,
        selected_fraction=counts.fraction,
        corrupted_fraction=recorder.corrupted_fraction,
    )
    if config.record.point_losses:
        module.model.load_state_dict(model_state(checkpoints / "last.ckpt"))
        write_losses(module.model, examples, folder / "point_loss.npy")
    return rows


def _fit(
    config: DictConfig,
    method: Method,
    data: SeedData,
    stage: IrreducibleStage,
    module: TargetModule,
    *,
    recorder: SelectionRecorder,
    progress: TrainingProgress,
) -> tuple[int, float]:
    """Train ``module``, and return its gradient steps and its seconds, without those of tests."""
    folder = recorder.path.parent
    candidates = ExampleLoader(
        data.training_examples(method.train_on),
        batch_size=config.num_candidates,
        shuffle=True,
        drop_last=True,
        seed=stream_seed(data.seed, "order"),
        sync=True,
        defers_inputs=_selects_before_loading(config, module),
    )
    loggers = [_logger(node, method, data.seed, folder) for node in config.logger.values()]
    names = data.splits.group_names or data.splits.class_names
    stage.display.begin(f"seed {data.seed}: {method.name}", config.num_steps, group_names=names)
    started = time.perf_counter()
    with scoped_seed(stream_seed(data.seed, "target")):
        steps = fit_target(
            module,
            candidates,
            num_steps=config.num_steps,
            refresh_steps=config.holdout.refresh_steps or len(candidates),
            folder=folder / "checkpoints",
            callbacks=[
                *make_callbacks(config),
                recorder,
                RunProgress(stage.display.advance, stage.display.show_weights),
            ],
            loggers=loggers,
            trainer_options=config.trainer,
            resume_seconds=config.model_io.resume_seconds,
            on_resume_point=progress.record,
        )
    return steps, module.earlier_seconds + time.perf_counter() - started - module.test_seconds


def _selects_before_loading(config: DictConfig, module: TargetModule) -> bool:
    """Whether nothing reads the inputs of candidates, so that those of the selected examples are enough."""
    needs_losses = any("irreducible_loss" in need for need in module.selector.needs)
    has_table = config.irreducible.lookup == "table"
    return not module.selector.reads_model and module.augment is None and (has_table or not needs_losses)


def _progress(folder: Path) -> TrainingProgress:
    """Keeps the manifest of the run in step with the training in ``folder``."""
    best = [folder / "checkpoints" / f"{rule}.ckpt" for rule in CHECKPOINT_RULES if rule != "last"]
    return TrainingProgress(folder.parents[1], folder, best)


def resume_folder(folder: Path) -> Path:
    """The states that an interrupted training in ``folder`` resumes from; removed once its results are written."""
    return folder / "checkpoints" / "resume"


def _logger(node: DictConfig, method: Method, seed: int, folder: Path) -> Any:
    """A new logger. ``{method}`` and ``{seed}`` in its options are replaced."""
    options: dict[str, Any] = OmegaConf.to_container(node, resolve=True)  # type: ignore[assignment]
    names = {name: value.format(method=method.name, seed=seed) for name, value in options.items() if "{" in str(value)}
    return build(node)(save_dir=folder, **names)


def _target_module(
    config: DictConfig, method: Method, data: SeedData, stage: IrreducibleStage, *, num_examples: int
) -> tuple[TargetModule, float]:
    """A new target model with its selector and irreducible losses, and the seconds of the irreducible stage."""
    holdout = data.splits.holdout
    selector = method.make_selector(holdout.num_groups)
    irreducible = stage.losses_for(selector)
    make = partial(data.make_model, num_outputs=holdout.num_classes, seed=stream_seed(data.seed, "target"))
    proxy = None if config.proxy.model is None else make(config.proxy.model)
    model, irreducible_seconds = make(config.model), irreducible.seconds
    if method.warm_start:
        trained = stage.plain_model()
        model.load_state_dict(trained.model.state_dict())
        if not stage.uses_plain_model(selector):
            irreducible_seconds += trained.seconds
    num_selected, num_drawn = method.num_examples(config.fraction, config.num_candidates)
    optimizer = make_optimizer(config.optimizer)
    auxiliary = Auxiliary(
        models=[
            *([] if proxy is None else [AuxiliaryModel(proxy, optimizer(proxy.parameters()), is_proxy=True)]),
            *(
                AuxiliaryModel(
                    reference, _slowed(optimizer(reference.parameters()), config.irreducible.update_rate), loss
                )
                for reference, loss in irreducible.learning
            ),
        ],
        extra_batches=_holdout_draws(data, num_drawn) if num_drawn else None,
    )
    downsampler = Downsampler(
        selector,
        irreducible.lookup,
        fraction=num_selected / config.num_candidates if num_drawn else config.fraction,
        holdout=Holdout(
            ExampleLoader(holdout, batch_size=config.holdout.batch_size, sync=True),
            # the Trainer's validations are the refreshes
            refresh_steps="epoch" if config.holdout.decay is None else None,
            decay=config.holdout.decay,
        ),
        scoring=make_scoring(config, selector, num_examples=num_examples),
        auxiliary=auxiliary,
        distributed=config.distributed,
        seed=stream_seed(data.seed, "selection"),
    )
    test = ExampleLoader(data.splits.test, batch_size=TEST_BATCH_SIZE, sync=True)
    module = TargetModule(
        model,
        downsampler,
        optimizer=optimizer,
        num_classes=holdout.num_classes,
        augment=data.augment,
        test=test if config.record.test_accuracy else None,
    )
    return module, irreducible_seconds


def _slowed(optimizer: Optimizer, rate: float) -> Optimizer:
    """The optimizer with its learning rates multiplied by ``rate``."""
    for group in optimizer.param_groups:
        group["lr"] *= rate
    return optimizer


def _holdout_draws(data: SeedData, num_drawn: int) -> ExtraBatches:
    """Batches of ``num_drawn`` holdout examples, augmented as the candidates are."""

    def augmented(batch: Batch) -> Batch:
        return batch if data.augment is None else batch._replace(input=data.augment(batch.input))

    seed = stream_seed(data.seed, "holdout")
    draws = ExampleLoader(data.splits.holdout, batch_size=num_drawn, shuffle=True, drop_last=True, seed=seed)
    return ExtraBatches(draws, transform=augmented)


def _evaluate_reference_model(method: Method, data: SeedData, stage: IrreducibleStage, folder: Path) -> list[ResultRow]:
    """Test the reference model. It has one checkpoint, chosen by ``irreducible.checkpoint_rule``, for all rules."""
    trained = stage.plain_model()
    return evaluate_checkpoints(
        method,
        data,
        trained.model,
        dict.fromkeys(CHECKPOINT_RULES, trained.model.state_dict()),
        folder,
        num_joint_groups=data.joint_labels.num_joint_groups,
        steps=trained.steps,
        irreducible_seconds=trained.seconds,
        selection_seconds=0.0,
        training_seconds=0.0,
        total_seconds=trained.seconds,
        selected_fraction=None,
        corrupted_fraction=None,
    )
