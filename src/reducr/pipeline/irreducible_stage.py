"""The irreducible stage of one seed: reference models, tables of their losses, and what selectors read of them."""

from __future__ import annotations

import copy
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import Tensor, nn

from reducr._internal.distributed import is_main_rank
from reducr._internal.files import file_checksum
from reducr._internal.manifest import record_files, withdraw
from reducr.batch import Batch
from reducr.data import ExampleLoader
from reducr.irreducible import (
    AdjustedIrreducibleLoss,
    CrossFitReference,
    GroupIrreducibleLoss,
    HeadIrreducibleLoss,
    IrreducibleTable,
    LiveLogits,
    PlainIrreducibleLoss,
    TableLogits,
    TableLoss,
    build_table,
    save_table,
)
from reducr.pipeline.progress import RunDisplay
from reducr.pipeline.reference_models import TABLE_BATCH_SIZE, Groups, ReferenceModels, TrainedModel
from reducr.pipeline.setup import SeedData
from reducr.scoring import IrreducibleLookup
from reducr.selectors import Selector

_MAX_TABULATED = 2**26
"""Losses, 256 MiB of them, that are computed at once and kept in memory; more are computed batch by batch."""
LearningModel = tuple[nn.Module, Callable[[nn.Module, Batch], Tensor]]
"""A model that keeps learning, and its loss."""


@dataclass(frozen=True)
class IrreducibleLosses:
    """The irreducible losses for a selector.

    Args:
        lookup: gives the losses of a batch; None for a rule that needs none.
        seconds: the time it took to make them.
        learning: reference models that keep learning from the selected examples, each with its loss.
    """

    lookup: IrreducibleLookup | None = None
    seconds: float = 0.0
    learning: list[LearningModel] = field(default_factory=list)


class IrreducibleStage:
    """The reference models and tables of one seed. Each is made once, when it is first needed.

    ``groups`` is None for the plain model, or the groups whose examples get a larger weight in their models. Models and
    tables of finished stages (``irreducible.dir``) or of an interrupted run are read.

    Args:
        config: the whole configuration.
        data: the data of the seed.
        folder: for checkpoints and tables.
        display: shows progress.
    """

    def __init__(self, config: DictConfig, data: SeedData, folder: Path, display: RunDisplay) -> None:
        self.options = config.irreducible
        self.data = data
        self.folder = folder
        self.display = display
        self.models = ReferenceModels(config, data, folder, display)
        self._tables: dict[Groups | None, IrreducibleTable] = {}

    def losses_for(self, selector: Selector) -> IrreducibleLosses:
        """The losses that ``selector`` needs. Their seconds are counted in full for every selector."""
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
                checks_groups=False,  # the data module knows; label noise corrupts targets only
            )
        else:
            lookup = PlainIrreducibleLoss(source)
        targets = self.data.splits.train.target
        if groups is None and isinstance(source, TableLogits) and len(targets) * selector.num_groups <= _MAX_TABULATED:
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
        """The plain model trained on the holdout part."""
        return self.models.trained(None)[0]

    def table(self, groups: Groups | None) -> IrreducibleTable:
        """The table stored in ``table_NAME``, one row for each training example.

        A row has the logits of the plain model, or the losses of the groups' models (NaN for other groups).
        """
        if groups not in self._tables:
            name = self.models.groups_name(groups)
            stages = self.models.stages_with(name)
            if stages is None:
                self._tables[groups] = self._build_table(groups, name)
            else:
                # A table of any model will do, unless the configuration names one.
                settings = self.models.settings(of_groups=groups is not None, with_model=self.options.model is not None)
                self._tables[groups], self.models.seconds_by_part[name] = stages.table(name, groups, settings)
        return self._tables[groups]

    def has_table(self, groups: Groups | None) -> bool:
        """Whether this run or an earlier one has built the table."""
        return groups in self._tables or self.models.stages_with(self.models.groups_name(groups)) is not None

    def _source(self, groups: Groups | None) -> tuple[Any, float, list[LearningModel]]:
        """A source of logits (plain) or losses (groups), its seconds, and the models that keep learning."""
        if self.options.lookup == "table":
            table = self.table(groups)
            source = TableLogits(table) if groups is None else TableLoss(table)
            return source, self.models.seconds_by_part[self.models.groups_name(groups)], []
        trained = [self.models.trained(groups, half) for half in self.models.halves]
        seconds = sum(model.seconds for models in trained for model in models)
        if self.options.update_rate is None:
            return self._live(trained, groups), seconds, []
        # Each selector gets copies, because they keep learning.
        copies = [
            [replace(model, model=copy.deepcopy(model.model).requires_grad_()) for model in models]
            for models in trained
        ]
        learning: list[LearningModel] = [(model.model, model.objective) for models in copies for model in models]
        return self._live(copies, groups, is_frozen=False), seconds, learning

    def _live(self, trained: Sequence[Sequence[TrainedModel]], groups: Groups | None, *, is_frozen: bool = True) -> Any:
        """The models themselves as a source.

        Args:
            trained: one list of models; with cross-fitting, one for each half.
            groups: of the models.
            is_frozen: whether the models stay as they are.
        """
        options: dict[str, Any] = {"num_joint_groups": self.data.joint_labels.num_joint_groups, "is_frozen": is_frozen}
        num_groups = self.data.splits.train.num_groups
        sources: list[Any] = []
        for models in trained:
            modules = [model.model for model in models]
            if groups is None:
                sources.append(LiveLogits(modules[0], **options))
            elif self.models.has_heads:
                sources.append(HeadIrreducibleLoss(modules[0], groups=groups, num_groups=num_groups, **options))
            else:
                by_group = dict(zip(groups, modules, strict=True))
                sources.append(GroupIrreducibleLoss([by_group.get(group) for group in range(num_groups)], **options))
        if len(sources) == 1:
            return sources[0]
        return CrossFitReference(*sources, is_in_first=self.models.is_in_first)

    def _build_table(self, groups: Groups | None, name: str) -> IrreducibleTable:
        trained = [self.models.trained(groups, half) for half in self.models.halves]
        started = time.perf_counter()
        source = self._live(trained, groups)
        is_joint = self.data.joint_labels.num_joint_groups is not None
        train = self.data.splits.train
        table = build_table(
            source.logits if groups is None else source.lookup,
            ExampleLoader(train, batch_size=TABLE_BATCH_SIZE, sync=True),
            num_examples=len(train),
            kind="group_loss" if groups is not None else "joint_logits" if is_joint else "logits",
            sync=True,
        )
        models = [model for part in trained for model in part]
        seconds = sum(model.seconds for model in models) + time.perf_counter() - started
        self.models.seconds_by_part[name] = seconds
        if is_main_rank():
            # An interrupted run may have written a table just before its record.
            folder = self.folder / f"table_{name}"
            withdraw(self.folder.parents[1], folder)
            shutil.rmtree(folder, ignore_errors=True)
            save_table(
                folder,
                table,
                fingerprint=self.models.fingerprints["train"],
                settings=OmegaConf.to_container(self.options, resolve=True),  # type: ignore[arg-type]
                sources={model.checkpoint.parent.name: file_checksum(model.checkpoint) for model in models},
            )
            record_files(self.folder.parents[1], folder)
            self.models.write_record()
        return table
