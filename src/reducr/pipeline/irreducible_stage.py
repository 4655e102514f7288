"""The irreducible stage: train on the holdout part, then build the table over the training part."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn

from reducr.data import PointLoader
from reducr.files import file_checksum, write_text_atomically
from reducr.integrations.lightning import IrreducibleModule, fit_irreducible
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
from reducr.step import IrreducibleLookup

Reporter = Callable[[int, float | None], None]
_TABLE_BATCH_SIZE = 1000


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

    Args:
        config: the whole configuration.
        data: of the seed.
        folder: where checkpoints and tables go.
    """

    def __init__(self, config: DictConfig, data: SeedData, folder: Path) -> None:
        self.config = config
        self.options = config.irreducible
        self.data = data
        self.folder = folder
        self.seconds_by_part: dict[str, float] = {}
        self._models: dict[int | None, TrainedModel] = {}
        self._tables: dict[str, IrreducibleTable] = {}

    def lookup_for(self, needs: frozenset[str], advance: Reporter) -> tuple[IrreducibleLookup | None, float]:
        """The irreducible losses a selector needs, and the seconds it took to make them (counted for every user).

        Args:
            needs: fields of Candidates.
            advance: progress of the training.
        """
        if "group_irreducible_loss" in needs:
            if self.options.kind == "trained":
                return self._trained_lookup(advance)
            source, seconds = self._logit_source(advance)
            adjusted = AdjustedIrreducibleLoss(
                source,
                gradient_weight=self.options.gradient_weight,
                group_of_target=self.data.outcomes.group_of_target,
            )
            return adjusted, seconds
        if "irreducible_loss" in needs:
            source, seconds = self._logit_source(advance)
            return PlainIrreducibleLoss(source), seconds
        return None, 0.0

    def model(self, gradient_weighted_class: int | None, advance: Reporter) -> TrainedModel:
        """The irreducible model of that class, or the plain one for None; trained when first asked for."""
        if gradient_weighted_class not in self._models:
            self._models[gradient_weighted_class] = self._train(gradient_weighted_class, advance)
        return self._models[gradient_weighted_class]

    def num_training_steps(self) -> int:
        """Gradient steps of one irreducible model."""
        return int(self.options.num_epochs) * len(self._holdout_loader())

    def build_table(self, gradient_weighted_class: int | str | None, advance: Reporter) -> IrreducibleTable:
        """The table of the plain model's logits (None), every class's losses (``all``), or one class's losses."""
        num_groups = self.data.splits.train.num_groups
        classes = range(num_groups) if gradient_weighted_class == "all" else [gradient_weighted_class]
        trained = [self.model(group, advance) for group in classes]  # type: ignore[arg-type]  # "all" is a range here
        started = time.perf_counter()
        batches = PointLoader(self.data.splits.train, batch_size=_TABLE_BATCH_SIZE)
        num_points = len(self.data.splits.train)
        joint = self.data.outcomes.num_joint_groups
        if gradient_weighted_class is None:
            name = "plain"
            table = build_logit_table(trained[0].model, batches, num_points=num_points, num_joint_groups=joint)
        else:
            name = "all" if gradient_weighted_class == "all" else f"class_{gradient_weighted_class}"
            models = [one.model if joint is None else TargetMarginal(one.model, joint) for one in trained]
            table = build_loss_table(models, batches, num_points=num_points)
            if gradient_weighted_class != "all":
                table = IrreducibleTable(np.ascontiguousarray(table.values[:, 0]), kind="loss")
        save_table(
            self.folder / f"table_{name}",
            table,
            fingerprint=DataFingerprint.of(self.data.splits.train),
            settings=OmegaConf.to_container(self.options, resolve=True),  # type: ignore[arg-type]
            sources={f"{one.checkpoint.parent.name}/{one.checkpoint.name}": file_checksum(one.checkpoint) for one in trained},
        )
        training_seconds = sum(one.seconds for one in trained)
        self.seconds_by_part[name] = training_seconds + time.perf_counter() - started
        write_text_atomically(self.folder / "seconds.json", json.dumps(self.seconds_by_part, indent=2) + "\n")
        return table

    def _logit_source(self, advance: Reporter) -> tuple[TableLogits | LiveLogits, float]:
        if self.options.dir is not None:
            return TableLogits(self._finished_table("plain")), self.seconds_by_part.get("plain", 0.0)
        if self.options.lookup == "live":
            trained = self.model(None, advance)
            live = LiveLogits(trained.model, num_joint_groups=self.data.outcomes.num_joint_groups)
            return live, trained.seconds
        if "plain" not in self._tables:
            self._tables["plain"] = self.build_table(None, advance)
        return TableLogits(self._tables["plain"]), self.seconds_by_part["plain"]

    def _trained_lookup(self, advance: Reporter) -> tuple[IrreducibleLookup, float]:
        if self.options.dir is not None:
            return TableLoss(self._finished_table("all")), self.seconds_by_part.get("all", 0.0)
        if self.options.lookup == "live":
            trained = [self.model(group, advance) for group in range(self.data.splits.train.num_groups)]
            joint = self.data.outcomes.num_joint_groups
            models = [one.model if joint is None else TargetMarginal(one.model, joint) for one in trained]
            return GroupIrreducibleLoss(models), sum(one.seconds for one in trained)
        if "all" not in self._tables:
            self._tables["all"] = self.build_table("all", advance)
        return TableLoss(self._tables["all"]), self.seconds_by_part["all"]

    def _finished_table(self, name: str) -> IrreducibleTable:
        """A table of the stage that the user points to, with the seconds it took."""
        folder = Path(self.options.dir)
        if name not in self._tables:
            fingerprint = DataFingerprint.of(self.data.splits.train)
            self._tables[name] = load_table(folder / f"table_{name}", fingerprint=fingerprint)
            seconds = folder / "seconds.json"
            if seconds.is_file():
                self.seconds_by_part |= json.loads(seconds.read_text(encoding="utf-8"))
        return self._tables[name]

    def _holdout_loader(self) -> PointLoader:
        return PointLoader(
            self.data.splits.holdout,
            batch_size=self.options.batch_size,
            shuffle=True,
            seed=stream_seed(self.data.seed, "irreducible"),
        )

    def _train(self, gradient_weighted_class: int | None, advance: Reporter) -> TrainedModel:
        started = time.perf_counter()
        name = "plain" if gradient_weighted_class is None else f"class_{gradient_weighted_class}"
        seed = stream_seed(self.data.seed, "irreducible")
        module = IrreducibleModule(
            make_model(self.options.model, num_outputs=self.data.outcomes.num_outcomes, seed=seed),
            optimizer=make_optimizer(self.options.optimizer),
            outcome=self.data.outcomes.outcome,
            gradient_weighted_class=gradient_weighted_class,
            gradient_weight=self.options.gradient_weight,
            weight_normalisation=self.options.weight_normalisation,
        )
        checkpoint = self.folder / name / "model.ckpt"
        with scoped_seed(seed):
            steps = fit_irreducible(
                module,
                self._holdout_loader(),
                training_part=PointLoader(self.data.splits.train, batch_size=_TABLE_BATCH_SIZE),
                num_epochs=self.options.num_epochs,
                keeps_lowest_loss=self.options.checkpoint_rule == "lowest_loss",
                checkpoint=checkpoint,
                advance=advance,
                trainer_options=self.config.trainer,
            )
        return TrainedModel(module.model, checkpoint, time.perf_counter() - started, steps)


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
