"""The target stage: train one method for one seed and test its checkpoints."""

from __future__ import annotations

import csv
import io
import shutil
import time
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr._internal.distributed import all_gather, barrier, is_main_rank
from reducr._internal.files import replaced_atomically, write_text_atomically
from reducr._internal.run_folder import CHECKPOINT_RULES, ResultRow
from reducr.auxiliary import Auxiliary, AuxiliaryModel, ExtraBatches
from reducr.batch import Batch
from reducr.data import ExampleDataset, ExampleLoader
from reducr.downsampler import Downsampler
from reducr.functional import per_example_cross_entropy
from reducr.lightning import RunProgress, SelectionRecorder, TargetModule, fit_target, model_state
from reducr.metrics import ClassificationReport, summary
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
from reducr.scoring import Holdout, scoring_pass
from reducr.training.checkpoints import Checkpoints

_TEST_BATCH_SIZE = 1000


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
    if is_main_rank():
        if Checkpoints(resume_folder(folder)).newest() is None:
            shutil.rmtree(folder, ignore_errors=True)  # interrupted before the first checkpoint
        folder.mkdir(parents=True, exist_ok=True)
    barrier()
    if method.selector is None:
        return _test_irreducible_model(method, data, stage, folder)
    examples = data.training_examples(method.train_on)
    module, irreducible_seconds = _target_module(config, method, data, stage, num_examples=len(examples))
    recorder = SelectionRecorder(
        folder / "selected.npz", num_examples=len(examples), is_corrupted=examples.is_corrupted
    )
    steps, fit_seconds = _fit(config, method, data, stage, module, recorder=recorder)
    counts = module.downsampler.report()
    rows = _test_checkpoints(
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
        _write_losses(module.model, examples, folder / "point_loss.npy")
    return rows


def _fit(
    config: DictConfig,
    method: Method,
    data: SeedData,
    stage: IrreducibleStage,
    module: TargetModule,
    *,
    recorder: SelectionRecorder,
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
        )
    return steps, module.earlier_seconds + time.perf_counter() - started - module.test_seconds


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
            ExampleLoader(holdout, batch_size=config.holdout.batch_size, sync=True), decay=config.holdout.decay
        ),
        scoring=make_scoring(config, selector, num_examples=num_examples),
        auxiliary=auxiliary,
        distributed=config.distributed,
        seed=stream_seed(data.seed, "selection"),
    )
    test = ExampleLoader(data.splits.test, batch_size=_TEST_BATCH_SIZE, sync=True)
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


def _test_irreducible_model(method: Method, data: SeedData, stage: IrreducibleStage, folder: Path) -> list[ResultRow]:
    """Test the reference model. It has one checkpoint, chosen by ``irreducible.checkpoint_rule``, for all rules."""
    trained = stage.plain_model()
    return _test_checkpoints(
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


def _test_checkpoints(
    method: Method,
    data: SeedData,
    model: nn.Module,
    state_by_rule: dict[str, dict[str, Tensor]],
    folder: Path,
    *,
    num_joint_groups: int | None = None,
    **costs: Any,
) -> list[ResultRow]:
    """Test the state of each checkpoint rule; write ``test_accuracy.csv`` and ``test_predictions.npz``."""
    rows, lines = [], []
    predictions: dict[str, Any] = {}
    for rule, state in state_by_rule.items():
        model.load_state_dict(state)
        batches = ExampleLoader(data.splits.test, batch_size=_TEST_BATCH_SIZE, sync=True)
        report = evaluate(
            model,
            batches,
            num_classes=data.splits.test.num_classes,
            num_groups=data.splits.test.num_groups,
            num_joint_groups=num_joint_groups,
        )
        rows.append(ResultRow(method=method.name, seed=data.seed, checkpoint_rule=rule, **(costs | summary(report))))
        predictions[rule] = report["prediction"].numpy().astype(np.min_scalar_type(data.splits.test.num_classes - 1))
        for part in ("class", "group"):
            values, counts = report[f"{part}_accuracy"].tolist(), report[f"{part}_count"].tolist()
            lines += [[rule, part, place, counts[place], f"{values[place]:.6g}"] for place in range(len(values))]
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(
        [["checkpoint_rule", "partition", "part", "count", "accuracy"], *lines]
    )
    if is_main_rank():
        write_text_atomically(folder / "test_accuracy.csv", text.getvalue())
        with replaced_atomically(folder / "test_predictions.npz") as temporary, temporary.open("wb") as file:
            np.savez_compressed(file, **predictions)
    return rows


@torch.no_grad()
def _write_losses(model: nn.Module, examples: ExampleDataset, path: Path) -> None:
    """Write the loss of every training example in eval mode, (N,) float32."""
    device = next(model.parameters()).device
    losses = []
    with scoring_pass(model, "eval"):
        for batch in ExampleLoader(examples, batch_size=_TEST_BATCH_SIZE, sync=True):
            batch_losses = per_example_cross_entropy(model(batch.input.to(device)).cpu(), batch.target)
            losses.append(torch.cat(all_gather(batch_losses)))
    if is_main_rank():
        with replaced_atomically(path) as temporary, temporary.open("wb") as file:
            np.save(file, torch.cat(losses).numpy().astype(np.float32))


@torch.no_grad()
def evaluate(
    model: nn.Module,
    batches: Iterable[Batch],
    *,
    num_classes: int,
    num_groups: int,
    num_joint_groups: int | None = None,
) -> dict[str, Tensor]:
    """Test ``model`` in eval mode on its own device.

    Args:
        model: predicts (B, C) logits, or (B, C * ``num_joint_groups``) for a joint model.
        batches: the test examples in order; on several ranks, each rank's share.
        num_classes: C.
        num_groups: G.
        num_joint_groups: groups per class in the labels of a joint reference model; None for any other model.

    Returns:
        The values of ``metrics.ClassificationReport``, and ``prediction`` (N,) int64, the predicted class of every
        example of all ranks.
    """
    report = ClassificationReport(num_classes=num_classes, num_groups=num_groups)
    device = next(model.parameters()).device
    predictions = []
    with scoring_pass(model, "eval"):
        for batch in batches:
            logits = model(batch.input.to(device)).cpu()
            if num_joint_groups is not None:
                logits = logits.reshape(len(logits), -1, num_joint_groups).logsumexp(dim=2)
            report.update(logits, batch.target, batch.group)
            predictions.append(torch.cat(all_gather(logits.argmax(dim=1))))
    return report.compute() | {"prediction": torch.cat(predictions)}
