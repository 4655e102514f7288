"""Irreducible stages that an earlier run, or several parallel ones, left on disk."""

from __future__ import annotations

import glob
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reducr._internal.files import write_text_atomically
from reducr._internal.moved import with_current_targets
from reducr.irreducible import DataFingerprint, IrreducibleTable, load_table

_RECORD = "stage.json"
_FORMAT = 2


def write_record(
    folder: Path,
    *,
    fingerprints: Mapping[str, DataFingerprint],
    settings: Mapping[str, Any],
    seconds_by_part: Mapping[str, float],
    steps_by_model: Mapping[str, int],
) -> None:
    """Write ``stage.json``: what a stage belongs to, how it was made, and what it cost.

    Args:
        folder: of the stage.
        fingerprints: of the part that tables have rows for (``train``) and that models are trained on
            (``irreducible``).
        settings: of the models and tables, plain values.
        seconds_by_part: for each model and table.
        steps_by_model: gradient steps.
    """
    record = {
        "format": _FORMAT,
        "data_fingerprints": {part: fingerprint.to_dict() for part, fingerprint in fingerprints.items()},
        "settings": dict(settings),
        "seconds": dict(seconds_by_part),
        "steps": dict(steps_by_model),
    }
    write_text_atomically(folder / _RECORD, json.dumps(record, indent=2) + "\n")


def has_record(folder: Path) -> bool:
    """Whether ``folder`` holds a stage, or a part of one that was interrupted."""
    return (folder / _RECORD).is_file()


@dataclass(frozen=True)
class FinishedStages:
    """The stages of one seed that ``irreducible.dir`` names.

    Args:
        records: what ``stage.json`` says, by folder: one for each run that has this seed.
        fingerprint: of the training part at hand.
    """

    records: Mapping[Path, dict[str, Any]]
    fingerprint: DataFingerprint

    @classmethod
    def of(
        cls, given: str | Sequence[str], *, seed: int, fingerprints: Mapping[str, DataFingerprint]
    ) -> FinishedStages:
        """Read the records of the stages.

        Args:
            given: a run folder, a pattern such as ``runs/irreducible/*``, or a list of them.
            seed: of the data.
            fingerprints: of the parts at hand, as in ``write_record``.

        Raises:
            FileNotFoundError: if there is no finished stage of the seed.
            ValueError: if one belongs to other data.
        """
        patterns = [given] if isinstance(given, str) else list(given)
        named = [Path(match) for pattern in patterns for match in sorted(glob.glob(pattern)) or [pattern]]  # noqa: PTH207
        stages = [_stage_folder(folder, seed) for folder in named]
        # of several runs only those that have this seed; a single one must have it
        stages = [stage for stage in stages if len(stages) == 1 or has_record(stage)]
        if not stages:
            raise FileNotFoundError(f"irreducible.dir={given} holds no finished irreducible stage of seed {seed}.")
        return cls({stage: _read_record(stage, fingerprints) for stage in stages}, fingerprints["train"])

    def table(
        self, name: str, groups: Sequence[int] | None, settings: Mapping[str, Any]
    ) -> tuple[IrreducibleTable, float]:
        """The table of that name, or the columns of its groups' own tables put together; and its cost in seconds.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it was made with other ``settings``, or is damaged.
        """
        stage = self._stage_with(f"table_{name}", settings)
        if stage is not None:
            return self._loaded(stage, name)
        if groups is None:
            raise FileNotFoundError(
                f"no irreducible table table_plain in {self._names}: build it with `reducr irreducible` and "
                "gradient_weighted_class=null, and name its run folder in irreducible.dir too."
            )
        parts = [(group, self._stage_with(f"table_class_{group}", settings)) for group in groups]
        missing = [group for group, part in parts if part is None]
        if missing:
            raise FileNotFoundError(
                f"no irreducible table table_{name} in {self._names}, and none for class "
                f"{', '.join(map(str, missing))} alone. Build it with `reducr irreducible "
                "gradient_weighted_class=all`, or the missing ones with gradient_weighted_class=NUMBER, and name all "
                "run folders in irreducible.dir."
            )
        loaded = {group: self._loaded(part, f"class_{group}") for group, part in parts if part is not None}
        values = np.stack([loaded[group][0].values[:, group] for group in groups], axis=1)
        columns = np.full((len(values), loaded[groups[0]][0].values.shape[1]), np.nan, dtype=values.dtype)
        columns[:, list(groups)] = values
        return IrreducibleTable(columns, kind="group_loss"), sum(seconds for _, seconds in loaded.values())

    def checkpoint(self, name: str, settings: Mapping[str, Any]) -> tuple[Path, float, int]:
        """The checkpoint of the model of that name, the seconds it took to train, and its gradient steps.

        Raises:
            FileNotFoundError: if there is none.
            ValueError: if it was made with other ``settings``.
        """
        stage = self._stage_with(f"{name}/model.ckpt", settings)
        if stage is None:
            raise FileNotFoundError(
                f"no irreducible model {name}/model.ckpt in {self._names}: train it with `reducr irreducible` "
                "(gradient_weighted_class=null for the plain model, a number for that class's, all for every one's), "
                "or leave irreducible.dir out."
            )
        record = self.records[stage]
        return stage / name / "model.ckpt", record["seconds"][f"train {name}"], record["steps"][name]

    @property
    def _names(self) -> str:
        return " or ".join(map(str, self.records))

    def _stage_with(self, name: str, settings: Mapping[str, Any]) -> Path | None:
        """The first stage that has a file or folder ``name``, made with these ``settings``; None where none has one."""
        stages = [stage for stage in self.records if (stage / name).exists()]
        others = []
        for stage in stages:
            made_with = self.records[stage]["settings"]
            other = next((option for option, value in settings.items() if made_with[option] != value), None)
            if other is None:
                return stage
            others.append(
                f"{stage / name} was made with irreducible.{other}={made_with[other]}; this run has {settings[other]}."
            )
        if others:
            raise ValueError(f"{others[0]} Use the same value, or make it with this one by `reducr irreducible`.")
        return None

    def _loaded(self, stage: Path, name: str) -> tuple[IrreducibleTable, float]:
        table = load_table(stage / f"table_{name}", fingerprint=self.fingerprint)
        return table, self.records[stage]["seconds"][name]


def _stage_folder(folder: Path, seed: int) -> Path:
    """The stage of ``seed`` where ``folder`` is that of a whole run; else ``folder`` itself."""
    in_run = folder / f"seed_{seed}" / "irreducible"
    return in_run if in_run.is_dir() else folder


def _read_record(stage: Path, fingerprints: Mapping[str, DataFingerprint]) -> dict[str, Any]:
    path = stage / _RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"irreducible.dir={stage} is not a finished irreducible stage: {_RECORD} is missing. Give the folder of a "
            "run of `reducr irreducible` or `reducr run` that has this seed, or its seed_N/irreducible."
        )
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if record.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has format {record.get('format')!r}; this version reads format {_FORMAT}. Make the stage again "
            "with `reducr irreducible`."
        )
    settings = record["settings"] = with_current_targets(record["settings"])
    if settings["trained_on"] == "twins":  # the old name
        settings["trained_on"] = "cross_fit"
    # Cross-fitted models are trained on the training part alone.
    parts = ("train",) if settings["trained_on"] == "cross_fit" else ("train", "irreducible")
    for part in parts:
        made_for = DataFingerprint.from_dict(record["data_fingerprints"][part])
        differences = made_for.differences(fingerprints[part])
        if differences:
            what = "does not belong to this data" if part == "train" else "was trained on another holdout part"
            raise ValueError(
                f"irreducible.dir={stage} {what}: {'; '.join(differences)}. Use the data, seed and options it was "
                "made with, or make one for this data with `reducr irreducible`."
            )
    return record
