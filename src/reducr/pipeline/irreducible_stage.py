"""The irreducible stage: train on the holdout part, then build the table over the training part."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from reducr.data import PointLoader
from reducr.files import file_checksum, write_text_atomically
from reducr.integrations.lightning import IrreducibleModule, fit_irreducible, model_state
from reducr.irreducible import (
    AdjustedIrreducibleLoss,
    DataFingerprint,
    GroupIrreducibleLoss,
    IrreducibleTable,
    LiveLogits,
    PlainIrreducibleLoss,
    TableLogits,
    TableLoss,
    build_logit_table,
    build_loss_table,
    load_table,
    save_table,
)
from reducr.pipeline.setup import SeedData, make_model, make_optimizer, scoped_seed, stream_seed
from reducr.selectors import Selector
from reducr.step import IrreducibleLookup

_TABLE_BATCH_SIZE = 1000
_RECORD = "stage.json"


class Display(Protocol):
    """Where progress is shown."""

    def begin(self, description: str, num_steps: int) -> None:
        """A training of ``num_steps`` begins."""

    def advance(self, step: int, worst_group_accuracy: float | None) -> None:
        """It has come to ``step``."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained irreducible model.

    Args:
        model: with the parameters of the chosen checkpoint.
        checkpoint: its file.
        seconds: wall-clock of the training.
        steps: gradient steps.
    """

    model: nn.Module
    checkpoint: Path
    seconds: float
    steps: int


class IrreducibleStage:
    """The irreducible models and tables of one seed; each is made when first asked for, and once.

    With ``irreducible.dir`` they are read from a finished stage instead.

    Args:
        config: the whole configuration.
        data: of the seed.
        folder: where checkpoints and tables go.
        display: shows the training of the models.
    """

    def __init__(self, config: DictConfig, data: SeedData, folder: Path, display: Display) -> None:
        self.config = config
        self.options = config.irreducible
        self.data = data
        self.folder = folder
        self.display = display
        self.finished = None if self.options.dir is None else _stage_folder(Path(self.options.dir), data.seed)
        self.fingerprint = DataFingerprint.of(data.splits.train)
        record = self._finished_record()
        self.seconds_by_part: dict[str, float] = record["seconds"]
        self.steps_by_model: dict[str, int] = record["steps"]
        self._models: dict[int | None, TrainedModel] = {}
        self._tables: dict[str, IrreducibleTable] = {}

    def lookup_for(self, selector: Selector) -> tuple[IrreducibleLookup | None, float]:
        """The irreducible losses a selector needs, and the seconds it took to make them (counted for every user)."""
        if "group_irreducible_loss" in selector.needs:
            if self.options.kind == "trained":
                return self._trained_losses(selector.weighted_groups.tolist())
            source, seconds = self._plain_logits()
            adjusted = AdjustedIrreducibleLoss(
                source,
                gradient_weight=self.options.gradient_weight,
                group_of_target=self.data.outcomes.group_of_target,
            )
            return adjusted, seconds
        if "irreducible_loss" in selector.needs:
            source, seconds = self._plain_logits()
            return PlainIrreducibleLoss(source), seconds
        return None, 0.0

    def model(self, gradient_weighted_class: int | None) -> TrainedModel:
        """The irreducible model of that class, or the plain one for None; trained when first asked for."""
        if gradient_weighted_class not in self._models:
            self._models[gradient_weighted_class] = (
                self._train(gradient_weighted_class)
                if self.finished is None
                else self._read_finished_model(gradient_weighted_class, self.finished)
            )
        return self._models[gradient_weighted_class]

    def build_plain_table(self) -> IrreducibleTable:
        """The logits of the plain model for every training point, stored in ``table_plain``."""
        trained = self.model(None)
        return self._build(
            "plain",
            [trained],
            lambda batches, num_points: build_logit_table(
                trained.model, batches, num_points=num_points, num_joint_groups=self.data.outcomes.num_joint_groups
            ),
        )

    def build_group_table(self, groups: Sequence[int]) -> IrreducibleTable:
        """The losses of these groups' trained models, the other columns NaN, stored in ``table_NAME``."""
        trained = [self.model(group) for group in groups]
        models = self._model_by_group(groups)
        return self._build(
            self.table_name(groups),
            trained,
            lambda batches, num_points: build_loss_table(models, batches, num_points=num_points),
        )

    def table_name(self, groups: Sequence[int]) -> str:
        """``all``, or ``class_2_5`` for some groups."""
        is_all = len(groups) == self.data.splits.train.num_groups
        return "all" if is_all else f"class_{'_'.join(map(str, groups))}"

    def _plain_logits(self) -> tuple[TableLogits | LiveLogits, float]:
        if self.options.lookup == "live":
            trained = self.model(None)
            return LiveLogits(trained.model, num_joint_groups=self.data.outcomes.num_joint_groups), trained.seconds
        return TableLogits(self._table("plain", self.build_plain_table)), self.seconds_by_part["plain"]

    def _trained_losses(self, groups: list[int]) -> tuple[IrreducibleLookup, float]:
        if self.options.lookup == "live":
            seconds = sum(self.model(group).seconds for group in groups)
            return GroupIrreducibleLoss(self._model_by_group(groups)), seconds
        name = self.table_name(groups)
        return TableLoss(self._table(name, lambda: self.build_group_table(groups))), self.seconds_by_part[name]

    def _model_by_group(self, groups: Sequence[int]) -> list[nn.Module | None]:
        joint = self.data.outcomes.num_joint_groups

        def of_targets(model: nn.Module) -> nn.Module:
            return model if joint is None else TargetMarginal(model, joint)

        num_groups = self.data.splits.train.num_groups
        return [of_targets(self.model(group).model) if group in groups else None for group in range(num_groups)]

    def _table(self, name: str, build: Callable[[], IrreducibleTable]) -> IrreducibleTable:
        if name not in self._tables:
            finished = self.finished
            self._tables[name] = build() if finished is None else self._read_finished_table(name, finished)
        return self._tables[name]

    def _build(
        self,
        name: str,
        trained: Sequence[TrainedModel],
        build: Callable[[PointLoader, int], IrreducibleTable],
    ) -> IrreducibleTable:
        started = time.perf_counter()
        train = self.data.splits.train
        table = build(PointLoader(train, batch_size=_TABLE_BATCH_SIZE), len(train))
        save_table(
            self.folder / f"table_{name}",
            table,
            fingerprint=self.fingerprint,
            settings=OmegaConf.to_container(self.options, resolve=True),  # type: ignore[arg-type]
            sources={one.checkpoint.parent.name: file_checksum(one.checkpoint) for one in trained},
        )
        self.seconds_by_part[name] = sum(one.seconds for one in trained) + time.perf_counter() - started
        self._write_record()
        return table

    def _read_finished_table(self, name: str, finished: Path) -> IrreducibleTable:
        # the plain model's logits are the same for every gradient weight
        matters = () if name == "plain" else ("gradient_weight", "weight_normalisation")
        return load_table(
            finished / f"table_{name}",
            fingerprint=self.fingerprint,
            settings={option: self.options[option] for option in matters},
        )

    def _read_finished_model(self, gradient_weighted_class: int | None, finished: Path) -> TrainedModel:
        name = _model_name(gradient_weighted_class)
        checkpoint = finished / name / "model.ckpt"
        if not checkpoint.is_file():
            raise FileNotFoundError(
                f"no irreducible model {checkpoint}: train it with `reducr irreducible` and "
                f"gradient_weighted_class={'null' if gradient_weighted_class is None else gradient_weighted_class}, or "
                "leave irreducible.dir out."
            )
        model = make_model(self.options.model, num_outputs=self.data.outcomes.num_outcomes, seed=0)
        model.load_state_dict(model_state(checkpoint))
        return TrainedModel(model, checkpoint, self.seconds_by_part[f"train {name}"], self.steps_by_model[name])

    def _finished_record(self) -> dict[str, Any]:
        """Seconds and steps of a finished stage, so that its cost is counted where it is used."""
        if self.finished is None:
            return {"seconds": {}, "steps": {}}
        path = self.finished / _RECORD
        if not path.is_file():
            raise FileNotFoundError(
                f"irreducible.dir={self.finished} is not a finished irreducible stage: {_RECORD} is missing. Give "
                "the folder of a run of `reducr irreducible` or `reducr run` that has this seed, or its "
                "seed_N/irreducible."
            )
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        differences = DataFingerprint.from_dict(record["data_fingerprint"]).differences(self.fingerprint)
        if differences:
            raise ValueError(
                f"irreducible.dir={self.finished} does not belong to this data: {'; '.join(differences)}. Use the "
                "data, seed and options it was made with, or make one for this data with `reducr irreducible`."
            )
        return record

    def _write_record(self) -> None:
        record = {
            "data_fingerprint": self.fingerprint.to_dict(),
            "seconds": self.seconds_by_part,
            "steps": self.steps_by_model,
        }
        write_text_atomically(self.folder / _RECORD, json.dumps(record, indent=2) + "\n")

    def _train(self, gradient_weighted_class: int | None) -> TrainedModel:
        started = time.perf_counter()
        name = _model_name(gradient_weighted_class)
        seed = stream_seed(self.data.seed, "irreducible")
        module = IrreducibleModule(
            make_model(self.options.model, num_outputs=self.data.outcomes.num_outcomes, seed=seed),
            optimizer=make_optimizer(self.options.optimizer),
            outcome=self.data.outcomes.outcome,
            gradient_weighted_class=gradient_weighted_class,
            gradient_weight=self.options.gradient_weight,
            weight_normalisation=self.options.weight_normalisation,
        )
        holdout = PointLoader(self.data.splits.holdout, batch_size=self.options.batch_size, shuffle=True, seed=seed)
        self.display.begin(f"seed {self.data.seed}: irreducible model {name}", self.options.num_epochs * len(holdout))
        checkpoint = self.folder / name / "model.ckpt"
        with scoped_seed(seed):
            steps = fit_irreducible(
                module,
                holdout,
                training_part=PointLoader(self.data.splits.train, batch_size=_TABLE_BATCH_SIZE),
                num_epochs=self.options.num_epochs,
                keeps_lowest_loss=self.options.checkpoint_rule == "lowest_loss",
                checkpoint=checkpoint,
                advance=self.display.advance,
                trainer_options=self.config.trainer,
            )
        seconds = time.perf_counter() - started
        self.seconds_by_part[f"train {name}"] = seconds
        self.steps_by_model[name] = steps
        self._write_record()
        return TrainedModel(module.model, checkpoint, seconds, steps)


def _stage_folder(folder: Path, seed: int) -> Path:
    """The stage of ``seed`` where ``folder`` is that of a whole run; else ``folder`` itself."""
    in_run = folder / f"seed_{seed}" / "irreducible"
    return in_run if in_run.is_dir() else folder


def _model_name(gradient_weighted_class: int | None) -> str:
    return "plain" if gradient_weighted_class is None else f"class_{gradient_weighted_class}"


class TargetMarginal(nn.Module):
    """Target logits of a joint (target, group) model: the outcomes of each target summed over the groups.

    Args:
        joint_model: gives (B, C * G) logits, target-major.
        num_groups: G.
    """

    def __init__(self, joint_model: nn.Module, num_groups: int) -> None:
        super().__init__()
        self.joint_model = joint_model
        self.num_groups = num_groups

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002  (the field's name in Batch)
        """(B, C) unnormalised log-probabilities."""
        joint: torch.Tensor = self.joint_model(input)
        return joint.reshape(len(joint), -1, self.num_groups).logsumexp(dim=2)
