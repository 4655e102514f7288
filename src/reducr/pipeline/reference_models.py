"""Train the reference models (the paper's irreducible models) of one seed, or read those of an earlier run."""

from __future__ import annotations

import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from reducr._internal.distributed import all_gather_objects, is_main_rank, num_ranks, raising_on_all_ranks, shard
from reducr._internal.manifest import TrainingProgress, record_files
from reducr.data import ExampleDataset, ExampleLoader
from reducr.irreducible import DataFingerprint, IrreducibleObjective
from reducr.irreducible.ensemble import Ensemble, MultiHead
from reducr.lightning import IrreducibleModule, RunProgress, fit_irreducible, model_state
from reducr.pipeline.finished_stages import FinishedStages, has_record, write_record
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.setup import SeedData, make_model, make_optimizer, scoped_seed, stream_seed
from reducr.training.checkpoints import Checkpoints

TABLE_BATCH_SIZE = 1000
Groups = tuple[int, ...]


@dataclass(frozen=True)
class TrainedModel:
    """A trained reference model, or several in one module.

    Args:
        model: has the parameters of the chosen checkpoint.
        checkpoint: its file.
        seconds: wall-clock time of the training.
        steps: gradient steps.
        objective: the loss that it was trained to minimise.
    """

    model: nn.Module
    checkpoint: Path
    seconds: float
    steps: int
    objective: IrreducibleObjective


class ReferenceModels:
    """The reference models of one seed. Each is trained once, when it is first needed.

    ``groups`` is None for the plain model, or the groups whose examples get a larger weight in their models.
    ``half`` is None, or with cross-fitting the half of the training part that a model is trained on: ``first`` or
    ``second``.

    With ``irreducible.dir`` the models of finished stages are read instead. In the folder of an interrupted run the
    finished models are read, and the training of an unfinished one resumes.

    Args:
        config: the whole configuration.
        data: the data of the seed.
        folder: the stage's folder for checkpoints and ``stage.json``.
        display: shows progress.
    """

    def __init__(self, config: DictConfig, data: SeedData, folder: Path, display: RunDisplay) -> None:
        self.config = config
        self.options = config.irreducible
        self.data = data
        self.folder = folder
        self.display = display
        self.fingerprints = {
            "train": DataFingerprint.of(data.splits.train),
            "irreducible": DataFingerprint.of(data.splits.irreducible),
        }
        self.seconds_by_part: dict[str, float] = {}
        self.steps_by_model: dict[str, int] = {}
        self._finished: FinishedStages | None = None
        self._interrupted: FinishedStages | None = None
        if self.options.dir is not None:
            self._finished = FinishedStages.read(self.options.dir, seed=data.seed, fingerprints=self.fingerprints)
        elif has_record(folder):
            self._interrupted = FinishedStages.read(str(folder), seed=data.seed, fingerprints=self.fingerprints)
            self.seconds_by_part |= self._interrupted.records[folder]["seconds"]
            self.steps_by_model |= self._interrupted.records[folder]["steps"]
        self._models: dict[str, TrainedModel] = {}

    @property
    def has_heads(self) -> bool:
        """Whether one module holds the models of all groups."""
        return self.options.kind in ("ensemble", "multi_headed")

    @property
    def halves(self) -> tuple[str | None, ...]:
        """One entry for each set of models: ``(None,)``, or both halves."""
        return (None,) if self.options.trained_on == "holdout" else ("first", "second")

    @cached_property
    def is_in_first(self) -> Tensor:
        """(N,) bool, whether a training example is in the first half. The halves are drawn by seed."""
        size = len(self.data.splits.train)
        generator = torch.Generator().manual_seed(stream_seed(self.data.seed, "irreducible"))
        is_in_first = torch.zeros(size, dtype=torch.bool)
        is_in_first[torch.randperm(size, generator=generator)[: size // 2]] = True
        return is_in_first

    def groups_name(self, groups: Groups | None) -> str:
        """``plain``, ``all``, or ``class_2_5`` for some of the groups."""
        if groups is None:
            return "plain"
        is_all = len(groups) == self.data.splits.train.num_groups
        return "all" if is_all else f"class_{'_'.join(map(str, groups))}"

    def trained(self, groups: Groups | None, half: str | None = None) -> list[TrainedModel]:
        """The plain model, one model with a head per group, or one model per group.

        Several ranks train one model each and then read those of the others.
        """
        suffix = "" if half is None else f"_{half}"
        groups_by_name: dict[str, Groups | None]
        if groups is None:
            groups_by_name = {f"plain{suffix}": None}
        elif self.has_heads:
            groups_by_name = {f"{self.options.kind}_{self.groups_name(groups)}{suffix}": groups}
        else:
            groups_by_name = {f"class_{group}{suffix}": (group,) for group in groups}
        untrained = [
            name for name in groups_by_name if name not in self._models and self.stages_with(f"train {name}") is None
        ]
        with raising_on_all_ranks():
            for place in shard(len(untrained)):
                self._train(untrained[place], groups_by_name[untrained[place]], half)
        for seconds, steps in all_gather_objects((self.seconds_by_part, self.steps_by_model)):
            self.seconds_by_part |= seconds
            self.steps_by_model |= steps
        if untrained and is_main_rank():
            self.write_record(untrained if num_ranks() > 1 else ())
            for name in untrained:
                shutil.rmtree(self.folder / name / "resume", ignore_errors=True)
        return [self._model(name, own_groups) for name, own_groups in groups_by_name.items()]

    def stages_with(self, part: str) -> FinishedStages | None:
        """The earlier stages to read a model or table from; None if this stage has to make it."""
        records = [] if self._interrupted is None else self._interrupted.records.values()
        return self._interrupted if any(part in record["seconds"] for record in records) else self._finished

    def settings(self, *, of_groups: bool, with_model: bool = True) -> dict[str, Any]:
        """Options, as plain values, that the models and their losses depend on."""
        options = ["trained_on"]
        if of_groups:  # The plain model does not depend on these.
            options += ["kind", "gradient_weight", "weight_normalisation"]
        settings = {option: self.options[option] for option in options}
        # With the closed form, models of single classes are trained one by one.
        if settings.get("kind") == "adjusted":
            settings["kind"] = "trained"
        return settings | ({"model": OmegaConf.to_container(self._model_node, resolve=True)} if with_model else {})

    def write_record(self, trained: Sequence[str] = ()) -> None:
        """Write ``stage.json``, after the checksums of the checkpoints of the models ``trained``."""
        record_files(self.folder.parents[1], *(self.folder / name for name in trained))
        write_record(
            self.folder,
            fingerprints=self.fingerprints,
            settings=self.settings(of_groups=True),
            seconds_by_part=self.seconds_by_part,
            steps_by_model=self.steps_by_model,
        )

    def _model(self, name: str, groups: Groups | None) -> TrainedModel:
        """A model trained by this rank, another rank or an earlier run."""
        if name not in self._models:
            stages = self.stages_with(f"train {name}")
            if stages is None:
                facts = self._checkpoint(name), self.seconds_by_part[f"train {name}"], self.steps_by_model[name]
            else:
                facts = stages.checkpoint(name, self.settings(of_groups=groups is not None))
            model = self._new_model(groups)
            model.load_state_dict(model_state(facts[0]))
            self._models[name] = TrainedModel(model, *facts, self._objective(groups))
        return self._models[name]

    def _train(self, name: str, groups: Groups | None, half: str | None) -> None:
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
        batches = ExampleLoader(
            self._training_examples(half), batch_size=self.options.batch_size, shuffle=True, seed=seed
        )
        self.display.begin(f"seed {self.data.seed}: reference model {name}", self.options.num_epochs * len(batches))
        checkpoint = self._checkpoint(name)
        progress = TrainingProgress(self.folder.parents[1], checkpoint.parent, [checkpoint])
        progress.begin(Checkpoints(checkpoint.parent / "resume").newest_step() or 0)
        with scoped_seed(seed):
            steps = fit_irreducible(
                module,
                batches,
                training_part=ExampleLoader(self._unseen_examples(half), batch_size=TABLE_BATCH_SIZE),
                num_epochs=self.options.num_epochs,
                keeps_lowest_loss=self.options.checkpoint_rule == "lowest_loss",
                checkpoint=checkpoint,
                callbacks=[RunProgress(self.display.advance)],
                trainer_options=self.config.trainer,
                resume_seconds=self.config.model_io.resume_seconds,
                on_resume_point=progress.record,
            )
        seconds = module.earlier_seconds + time.perf_counter() - started
        self.seconds_by_part[f"train {name}"] = seconds
        self.steps_by_model[name] = steps
        self._models[name] = TrainedModel(module.model, checkpoint, seconds, steps, objective)
        if num_ranks() == 1:
            self.write_record([name])  # after each model, so that an interruption loses only the next one

    def _training_examples(self, half: str | None) -> ExampleDataset:
        """The examples that the models of a half are trained on."""
        if half is None:
            return self.data.splits.irreducible
        is_in_half = self.is_in_first if half == "first" else ~self.is_in_first
        return self.data.splits.train.take(torch.nonzero(is_in_half).flatten())

    def _unseen_examples(self, half: str | None) -> ExampleDataset:
        """The training examples whose losses come from the models of a half: with cross-fitting, the other half."""
        if half is None:
            return self.data.splits.train
        return self._training_examples("second" if half == "first" else "first")

    def _new_model(self, groups: Groups | None) -> nn.Module:
        seed = stream_seed(self.data.seed, "irreducible")
        num_labels = self.data.joint_labels.num_labels
        make = partial(make_model, self._model_node, seed=seed, facts=self.data.facts)
        if groups is None or not self.has_heads:
            model = make(num_outputs=num_labels)
        elif self.options.kind == "multi_headed":
            model = MultiHead(make(num_outputs=len(groups) * num_labels), num_heads=len(groups))
        else:
            model = Ensemble([make(num_outputs=num_labels) for _ in groups])
        return self.data.preprocessed(model)

    def _objective(self, groups: Groups | None) -> IrreducibleObjective:
        return IrreducibleObjective(
            self.data.joint_labels.labels,
            weighted_groups=groups,
            gradient_weight=self.options.gradient_weight,
            weight_normalisation=self.options.weight_normalisation,
        )

    def _checkpoint(self, name: str) -> Path:
        return self.folder / name / "model.ckpt"

    @property
    def _model_node(self) -> DictConfig:
        node: DictConfig = self.config.model if self.options.model is None else self.options.model
        return node
