"""The irreducible stage: train on the holdout part, then build the table over the training part."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any, Protocol

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from reducr._internal.distributed import all_gather_objects, is_main_rank, num_ranks, raising_on_all_ranks, shard
from reducr._internal.files import file_checksum
from reducr.batch import Batch
from reducr.data import ExampleDataset, ExampleLoader
from reducr.irreducible import (
    AdjustedIrreducibleLoss,
    CrossFitReference,
    DataFingerprint,
    GroupIrreducibleLoss,
    HeadIrreducibleLoss,
    IrreducibleObjective,
    IrreducibleTable,
    LiveLogits,
    PlainIrreducibleLoss,
    TableLogits,
    TableLoss,
    build_table,
    save_table,
)
from reducr.irreducible.ensemble import Ensemble, MultiHead
from reducr.lightning import IrreducibleModule, RunProgress, fit_irreducible, model_state
from reducr.pipeline.finished_stages import FinishedStages, has_record, write_record
from reducr.pipeline.setup import SeedData, make_model, make_optimizer, scoped_seed, stream_seed
from reducr.scoring import IrreducibleLookup
from reducr.selectors import Selector

_TABLE_BATCH_SIZE = 1000
_HELD_NUMBERS = 2**26
"""Losses of all points are held in memory up to so many, 256 MiB; beyond, they are computed as they are needed."""
Groups = tuple[int, ...]


class Display(Protocol):
    """Where progress is shown."""

    def begin(self, description: str, num_steps: int, *, group_names: Sequence[str] | None = None) -> None:
        """A training of ``num_steps`` begins; with ``group_names`` that of a method."""

    def advance(self, step: int, worst_group_accuracy: float | None) -> None:
        """It has come to ``step``."""

    def show_weights(self, weights: Sequence[float]) -> None:
        """The weights of all groups are now ``weights``."""


LearningModel = tuple[nn.Module, Callable[[nn.Module, Batch], Tensor]]
"""A model that keeps learning, and its loss."""


@dataclass(frozen=True)
class TrainedModel:
    """A trained irreducible model, or several in one.

    Args:
        model: with the parameters of the chosen checkpoint.
        checkpoint: its file.
        seconds: wall-clock of the training.
        steps: gradient steps.
        objective: what it was trained to minimise.
    """

    model: nn.Module
    checkpoint: Path
    seconds: float
    steps: int
    objective: IrreducibleObjective


@dataclass(frozen=True)
class IrreducibleLosses:
    """What a selector reads.

    Args:
        lookup: of the losses; None for a rule that needs none.
        seconds: it took to make them.
        learning: reference models that keep learning from the selected examples, each with its loss.
    """

    lookup: IrreducibleLookup | None = None
    seconds: float = 0.0
    learning: list[LearningModel] = field(default_factory=list)


class IrreducibleStage:
    """The irreducible models and tables of one seed; each is made when first asked for, and once.

    Wherever ``groups`` appear, None means the plain model, and a tuple the models weighted for those groups.
    With ``irreducible.dir`` all is read from finished stages instead; in the folder of an interrupted run what it had
    finished is read, and the model that it was training goes on.

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
        parts = {"train": data.splits.train, "irreducible": data.splits.irreducible}
        self.fingerprints = {name: DataFingerprint.of(part) for name, part in parts.items()}
        self.finished = None
        if self.options.dir is not None:
            self.finished = FinishedStages.of(self.options.dir, seed=data.seed, fingerprints=self.fingerprints)
        self.seconds_by_part: dict[str, float] = {}
        self.steps_by_model: dict[str, int] = {}
        self.earlier: FinishedStages | None = None
        if self.finished is None and has_record(folder):
            self.earlier = FinishedStages.of(str(folder), seed=data.seed, fingerprints=self.fingerprints)
            self.seconds_by_part |= self.earlier.records[folder]["seconds"]
            self.steps_by_model |= self.earlier.records[folder]["steps"]
        self._models: dict[str, TrainedModel] = {}
        self._tables: dict[Groups | None, IrreducibleTable] = {}

    def losses_for(self, selector: Selector) -> IrreducibleLosses:
        """The irreducible losses a selector needs; the seconds it took to make them are counted for every user."""
        if not any("irreducible_loss" in need for need in selector.needs):
            return IrreducibleLosses()
        needs_groups = "group_irreducible_loss" in selector.needs
        groups = None
        if needs_groups and self.options.kind != "adjusted":
            groups = tuple(selector.weighted_groups.tolist())
        source, seconds, learning = self._source(groups)
        if groups is not None:
            lookup = source
        elif needs_groups:
            lookup = AdjustedIrreducibleLoss(
                source,
                gradient_weight=self.options.gradient_weight,
                group_of_target=self.data.joint_labels.group_of_target,
            )
        else:
            lookup = PlainIrreducibleLoss(source)
        targets = self.data.splits.train.target
        if groups is None and isinstance(source, TableLogits) and len(targets) * selector.num_groups <= _HELD_NUMBERS:
            started = time.perf_counter()
            lookup = lookup.tabulate(targets)
            seconds += time.perf_counter() - started
        return IrreducibleLosses(lookup, seconds, learning)

    def uses_plain_model(self, selector: Selector) -> bool:
        """Whether the losses for ``selector`` come from the plain model trained on the holdout part."""
        needs = [need for need in selector.needs if "irreducible_loss" in need]
        is_plain = self.options.kind == "adjusted" or "group_irreducible_loss" not in needs
        return bool(needs) and is_plain and self.options.trained_on == "holdout"

    def plain_model(self) -> TrainedModel:
        """The plain irreducible model trained on the holdout part; trained when first asked for."""
        return self._trained(None, None)[0]

    def table(self, groups: Groups | None) -> IrreducibleTable:
        """Logits of the plain model, or losses of these groups' models (other columns NaN), for every training point.

        Stored in ``table_NAME``; built when first asked for.
        """
        if groups not in self._tables:
            name = self.table_name(groups)
            finished = self._finished(name)
            if finished is None:
                self._tables[groups] = self._built_table(groups, name)
            else:
                # a table serves any model, unless one is asked for
                settings = self._settings(of_groups=groups is not None, with_model=self.options.model is not None)
                self._tables[groups], self.seconds_by_part[name] = finished.table(name, groups, settings)
        return self._tables[groups]

    def has_table(self, groups: Groups | None) -> bool:
        """Whether an earlier run, or this one, has built the table."""
        return groups in self._tables or self._finished(self.table_name(groups)) is not None

    def table_name(self, groups: Groups | None) -> str:
        """``plain``, ``all``, or ``class_2_5`` for some groups."""
        if groups is None:
            return "plain"
        is_all = len(groups) == self.data.splits.train.num_groups
        return "all" if is_all else f"class_{'_'.join(map(str, groups))}"

    def _source(self, groups: Groups | None) -> tuple[Any, float, list[LearningModel]]:
        """What gives logits (plain) or losses (groups), the seconds it took to make, and what learns along."""
        if self.options.lookup == "table":
            table = self.table(groups)
            source = TableLogits(table) if groups is None else TableLoss(table)
            return source, self.seconds_by_part[self.table_name(groups)], []
        trained = [self._trained(groups, half) for half in self._halves]
        seconds = sum(one.seconds for part in trained for one in part)
        if self.options.update_rate is None:
            return self._live(trained, groups), seconds, []
        # copies for every user, as they go on learning
        trained = [[replace(one, model=copy.deepcopy(one.model).requires_grad_()) for one in part] for part in trained]
        learning: list[LearningModel] = [(one.model, one.objective) for part in trained for one in part]
        return self._live(trained, groups, is_frozen=False), seconds, learning

    def _live(self, trained: Sequence[Sequence[TrainedModel]], groups: Groups | None, *, is_frozen: bool = True) -> Any:
        """The models themselves as a source; one list of models for each half of twins, else one list."""
        options: dict[str, Any] = {"num_joint_groups": self.data.joint_labels.num_joint_groups, "is_frozen": is_frozen}
        num_groups = self.data.splits.train.num_groups
        sources: list[Any] = []
        for part in trained:
            models = [one.model for one in part]
            if groups is None:
                sources.append(LiveLogits(models[0], **options))
            elif self._has_heads:
                sources.append(HeadIrreducibleLoss(models[0], groups=groups, num_groups=num_groups, **options))
            else:
                model_of = dict(zip(groups, models, strict=True))
                sources.append(GroupIrreducibleLoss([model_of.get(group) for group in range(num_groups)], **options))
        if len(sources) == 1:
            return sources[0]
        return CrossFitReference(*sources, is_in_first=self._is_in_first)

    def _built_table(self, groups: Groups | None, name: str) -> IrreducibleTable:
        trained = [self._trained(groups, half) for half in self._halves]
        started = time.perf_counter()
        source = self._live(trained, groups)
        is_joint = self.data.joint_labels.num_joint_groups is not None
        train = self.data.splits.train
        table = build_table(
            source.logits if groups is None else source.lookup,
            ExampleLoader(train, batch_size=_TABLE_BATCH_SIZE, sync=True),
            num_examples=len(train),
            kind="group_loss" if groups is not None else "joint_logits" if is_joint else "logits",
            sync=True,
        )
        models = [one for part in trained for one in part]
        self.seconds_by_part[name] = sum(one.seconds for one in models) + time.perf_counter() - started
        if is_main_rank():
            # what was written just before an interruption, and not recorded
            shutil.rmtree(self.folder / f"table_{name}", ignore_errors=True)
            save_table(
                self.folder / f"table_{name}",
                table,
                fingerprint=self.fingerprints["train"],
                settings=OmegaConf.to_container(self.options, resolve=True),  # type: ignore[arg-type]
                sources={one.checkpoint.parent.name: file_checksum(one.checkpoint) for one in models},
            )
            self._write_record()
        return table

    @property
    def _has_heads(self) -> bool:
        return self.options.kind in ("ensemble", "multi_headed")

    @property
    def _halves(self) -> tuple[str | None, ...]:
        return (None,) if self.options.trained_on == "holdout" else ("first", "second")

    @cached_property
    def _is_in_first(self) -> Tensor:
        """(N,) bool, the training points that the first twin is trained on: half of them, by seed."""
        size = len(self.data.splits.train)
        generator = torch.Generator().manual_seed(stream_seed(self.data.seed, "irreducible"))
        is_in_first = torch.zeros(size, dtype=torch.bool)
        is_in_first[torch.randperm(size, generator=generator)[: size // 2]] = True
        return is_in_first

    def _points(self, half: str | None) -> ExampleDataset:
        """What the models of that half, or of no half, are trained on."""
        if half is None:
            return self.data.splits.irreducible
        is_in = self._is_in_first if half == "first" else ~self._is_in_first
        return self.data.splits.train.take(torch.nonzero(is_in).flatten())

    def _asked_about(self, half: str | None) -> ExampleDataset:
        """The training points whose losses those models give; of twins the other one's half."""
        return self.data.splits.train if half is None else self._points("second" if half == "first" else "first")

    def _trained(self, groups: Groups | None, half: str | None) -> list[TrainedModel]:
        """The plain model, one model with a head for each group, or one model for each group.

        Several ranks share the models out, each of which is then read by all.
        """
        suffix = "" if half is None else f"_{half}"
        groups_of: dict[str, Groups | None]
        if groups is None:
            groups_of = {f"plain{suffix}": None}
        elif self._has_heads:
            groups_of = {f"{self.options.kind}_{self.table_name(groups)}{suffix}": groups}
        else:
            groups_of = {f"class_{group}{suffix}": (group,) for group in groups}
        new = [name for name in groups_of if name not in self._models and self._finished(f"train {name}") is None]
        with raising_on_all_ranks():
            for place in shard(len(new)):
                self._fit(new[place], groups_of[new[place]], half)
        for seconds, steps in all_gather_objects((self.seconds_by_part, self.steps_by_model)):
            self.seconds_by_part |= seconds
            self.steps_by_model |= steps
        if new and is_main_rank():
            self._write_record()
            for name in new:
                shutil.rmtree(self.folder / name / "resume", ignore_errors=True)
        return [self._model(name, own_groups) for name, own_groups in groups_of.items()]

    def _model(self, name: str, groups: Groups | None) -> TrainedModel:
        """A model that has been trained, by this rank, another or an earlier run."""
        if name not in self._models:
            finished = self._finished(f"train {name}")
            if finished is None:
                parts = self._checkpoint(name), self.seconds_by_part[f"train {name}"], self.steps_by_model[name]
            else:
                parts = finished.checkpoint(name, self._settings(of_groups=groups is not None))
            model = self._new_model(groups)
            model.load_state_dict(model_state(parts[0]))
            self._models[name] = TrainedModel(model, *parts, self._objective(groups))
        return self._models[name]

    def _checkpoint(self, name: str) -> Path:
        return self.folder / name / "model.ckpt"

    def _objective(self, groups: Groups | None) -> IrreducibleObjective:
        return IrreducibleObjective(
            self.data.joint_labels.labels,
            weighted_groups=groups,
            gradient_weight=self.options.gradient_weight,
            weight_normalisation=self.options.weight_normalisation,
        )

    def _finished(self, part: str) -> FinishedStages | None:
        """Where a model or table is to be read from; None if it is to be made."""
        if self.earlier is not None and any(part in record["seconds"] for record in self.earlier.records.values()):
            return self.earlier
        return self.finished

    @property
    def _model_node(self) -> DictConfig:
        node: DictConfig = self.config.model if self.options.model is None else self.options.model
        return node

    def _settings(self, *, of_groups: bool, with_model: bool = True) -> dict[str, Any]:
        """What irreducible models and their losses depend on beside the data, as plain values."""
        # the plain model is the same for every kind and gradient weight
        matters = ["trained_on", *(("kind", "gradient_weight", "weight_normalisation") if of_groups else ())]
        settings = {option: self.options[option] for option in matters}
        # with the closed form, models of single classes are trained one by one
        if settings.get("kind") == "adjusted":
            settings["kind"] = "trained"
        return settings | ({"model": OmegaConf.to_container(self._model_node, resolve=True)} if with_model else {})

    def _new_model(self, groups: Groups | None) -> nn.Module:
        seed = stream_seed(self.data.seed, "irreducible")
        num_labels = self.data.joint_labels.num_labels
        make = partial(make_model, self._model_node, seed=seed, facts=self.data.facts)
        if groups is None or not self._has_heads:
            model = make(num_outputs=num_labels)
        elif self.options.kind == "multi_headed":
            model = MultiHead(make(num_outputs=len(groups) * num_labels), num_heads=len(groups))
        else:
            model = Ensemble([make(num_outputs=num_labels) for _ in groups])
        return self.data.preprocessed(model)

    def _fit(self, name: str, groups: Groups | None, half: str | None) -> None:
        """Train a model."""
        started = time.perf_counter()
        seed = stream_seed(self.data.seed, "irreducible")
        optimizer = self.config.optimizer if self.options.optimizer is None else self.options.optimizer
        objective = self._objective(groups)
        module = IrreducibleModule(
            self._new_model(groups),
            objective=objective,
            optimizer=make_optimizer(optimizer),
            augment=self.data.augment,
        )
        points = ExampleLoader(self._points(half), batch_size=self.options.batch_size, shuffle=True, seed=seed)
        self.display.begin(f"seed {self.data.seed}: irreducible model {name}", self.options.num_epochs * len(points))
        checkpoint = self._checkpoint(name)
        with scoped_seed(seed):
            steps = fit_irreducible(
                module,
                points,
                training_part=ExampleLoader(self._asked_about(half), batch_size=_TABLE_BATCH_SIZE),
                num_epochs=self.options.num_epochs,
                keeps_lowest_loss=self.options.checkpoint_rule == "lowest_loss",
                checkpoint=checkpoint,
                callbacks=[RunProgress(self.display.advance)],
                trainer_options=self.config.trainer,
                resume_seconds=self.config.model_io.resume_seconds,
            )
        seconds = module.earlier_seconds + time.perf_counter() - started
        self.seconds_by_part[f"train {name}"] = seconds
        self.steps_by_model[name] = steps
        self._models[name] = TrainedModel(module.model, checkpoint, seconds, steps, objective)
        if num_ranks() == 1:
            self._write_record()  # as each is finished, lest an interruption loses it

    def _write_record(self) -> None:
        write_record(
            self.folder,
            fingerprints=self.fingerprints,
            settings=self._settings(of_groups=True),
            seconds_by_part=self.seconds_by_part,
            steps_by_model=self.steps_by_model,
        )
