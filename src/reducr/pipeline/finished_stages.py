"""``stage.json`` of an irreducible stage, and the stages that earlier runs have left on disk."""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reducr._internal.files import file_checksum
from reducr._internal.manifest import write_recorded
from reducr._internal.moved import with_current_targets
from reducr._internal.reading import DamagedFileError, healing_of, read_json, run_of
from reducr._internal.run_check import check_unchanged
from reducr.irreducible import DataFingerprint, IrreducibleTable, load_table

_RECORD = "stage.json"
_EXPECTED = "the record of an irreducible stage"
_FORMAT = 2


def write_record(
    folder: Path,
    *,
    fingerprints: Mapping[str, DataFingerprint],
    settings: Mapping[str, Any],
    seconds_by_part: Mapping[str, float],
    steps_by_model: Mapping[str, int],
) -> None:
    """Write ``stage.json``: the data and options that a stage was made with, and its cost.

    Args:
        folder: the stage's folder.
        fingerprints: of the part that tables have rows for (``train``) and the part that models are trained on
            (``irreducible``).
        settings: options of the models and tables, plain values.
        seconds_by_part: wall-clock time of each model and table.
        steps_by_model: gradient steps of each model.
    """
    record = {
        "format": _FORMAT,
        "data_fingerprints": {part: fingerprint.to_dict() for part, fingerprint in fingerprints.items()},
        "settings": dict(settings),
        "seconds": dict(seconds_by_part),
        "steps": dict(steps_by_model),
    }
    write_recorded(folder.parents[1], folder / _RECORD, json.dumps(record, indent=2) + "\n")


def remove_states_of_finished_models(folder: Path) -> None:
    """Remove the states to resume from of the models that ``stage.json`` says are trained."""
    if not has_record(folder):
        return
    record = read_json(folder / _RECORD, _EXPECTED)
    for states in folder.glob("*/resume"):
        if f"train {states.parent.name}" in (record.get("seconds") or {}):
            shutil.rmtree(states, ignore_errors=True)


def has_record(folder: Path) -> bool:
    """Whether ``folder`` holds a stage, complete or interrupted."""
    return (folder / _RECORD).is_file()


@dataclass(frozen=True)
class FinishedStages:
    """The stages of one seed that ``irreducible.dir`` names.

    Args:
        records: contents of ``stage.json`` by folder, one for each run that has this seed.
        fingerprint: of the current training part.
    """

    records: Mapping[Path, dict[str, Any]]
    fingerprint: DataFingerprint

    @classmethod
    def read(
        cls, patterns: str | Sequence[str], *, seed: int, fingerprints: Mapping[str, DataFingerprint]
    ) -> FinishedStages:
        """Read the records of the stages.

        Args:
            patterns: a run folder, a pattern such as ``runs/irreducible/*``, or a list of them.
            seed: of the data.
            fingerprints: of the current parts, as in ``write_record``.

        Raises:
            FileNotFoundError: if there is no finished stage of the seed.
            ValueError: if a stage belongs to other data.
        """
        given = [patterns] if isinstance(patterns, str) else list(patterns)
        folders = [folder for pattern in given for folder in _matches(pattern)]
        stages = [_stage_folder(folder, seed) for folder in folders]
        # A single folder must have this seed; of several, those without it are left out.
        stages = [stage for stage in stages if len(stages) == 1 or has_record(stage)]
        if not stages:
            raise FileNotFoundError(f"irreducible.dir={patterns} holds no finished irreducible stage of seed {seed}.")
        return cls({stage: _read_record(stage, fingerprints) for stage in stages}, fingerprints["train"])

    def table(
        self, name: str, groups: Sequence[int] | None, settings: Mapping[str, Any]
    ) -> tuple[IrreducibleTable, float]:
        """The table ``table_NAME``, or the columns of its groups' own tables combined; and its cost in seconds.

        Raises:
            FileNotFoundError: if no stage has it.
            ValueError: if it was made with other ``settings``, or is damaged.
        """
        stage = self._stage_with(f"table_{name}", settings)
        if stage is not None:
            return self._load(stage, name)
        if groups is None:
            raise FileNotFoundError(
                f"There is no table_plain in {self._names}. Build it with `reducr irreducible "
                "gradient_weighted_class=null`, and add its run folder to `irreducible.dir`."
            )
        stages = {group: self._stage_with(f"table_class_{group}", settings) for group in groups}
        missing = [group for group, stage in stages.items() if stage is None]
        if missing:
            raise FileNotFoundError(
                f"There is no table_{name} in {self._names}, and no table of class "
                f"{', '.join(map(str, missing))} alone. Build it with `reducr irreducible "
                "gradient_weighted_class=all`, or the missing ones with `gradient_weighted_class=NUMBER`, and add all "
                "run folders to `irreducible.dir`."
            )
        tables = {group: self._load(stage, f"class_{group}") for group, stage in stages.items() if stage is not None}
        losses = np.stack([tables[group][0].values[:, group] for group in groups], axis=1)
        values = np.full((len(losses), tables[groups[0]][0].values.shape[1]), np.nan, dtype=losses.dtype)
        values[:, list(groups)] = losses
        return IrreducibleTable(values, kind="group_loss"), sum(seconds for _, seconds in tables.values())

    def checkpoint(self, name: str, settings: Mapping[str, Any]) -> tuple[Path, float, int]:
        """The checkpoint of the model ``name``, the seconds that its training took, and its gradient steps.

        Raises:
            FileNotFoundError: if no stage has it.
            ValueError: if it was made with other ``settings``.
        """
        stage = self._stage_with(f"{name}/model.ckpt", settings)
        if stage is None:
            raise FileNotFoundError(
                f"There is no reference model {name}/model.ckpt in {self._names}. Train it with `reducr irreducible` "
                "(gradient_weighted_class=null: the plain model; a number: the model of a class; all: every class), "
                "or leave irreducible.dir out."
            )
        record = self.records[stage]
        _check_source(stage, name)
        return stage / name / "model.ckpt", record["seconds"][f"train {name}"], record["steps"][name]

    @property
    def _names(self) -> str:
        return " or ".join(map(str, self.records))

    def _stage_with(self, name: str, settings: Mapping[str, Any]) -> Path | None:
        """The first stage that has a file or folder ``name`` made with ``settings``; None if no stage has the name.

        Raises:
            ValueError: if all that have the name were made with other settings.
        """
        mismatches = []
        for stage, record in self.records.items():
            if not (stage / name).exists():
                continue
            made_with = record["settings"]
            option = next((option for option, value in settings.items() if made_with[option] != value), None)
            if option is None:
                return stage
            mismatches.append(
                f"{stage / name} was made with irreducible.{option}={made_with[option]}; this run has "
                f"{settings[option]}."
            )
        if mismatches:
            raise ValueError(f"{mismatches[0]} Use the same value, or make it again with `reducr irreducible`.")
        return None

    def _load(self, stage: Path, name: str) -> tuple[IrreducibleTable, float]:
        table = load_table(stage / f"table_{name}", fingerprint=self.fingerprint)
        return table, self.records[stage]["seconds"][name]


def _matches(pattern: str) -> list[Path]:
    """The folders of a pattern. A folder of that very name, with brackets in it perhaps, is meant itself."""
    if Path(pattern).exists():
        return [Path(pattern)]
    return [Path(match) for match in sorted(glob.glob(pattern)) or [pattern]]  # noqa: PTH207


def _check_stage_unchanged(stage: Path) -> None:
    """Raise ValueError if a file of the stage is not as its run wrote it."""
    run = run_of(stage.resolve() / _RECORD)
    if run is not None:
        prefix = f"{stage.resolve().relative_to(run).as_posix()}/"
        check_unchanged(run, lambda file: file.startswith(prefix), command="resume")


def _check_source(stage: Path, name: str) -> None:
    """Raise ValueError if the checkpoint of a model is not the one that a table of the stage was built from."""
    path = stage / name / "model.ckpt"
    for manifest in sorted(stage.glob("table_*/manifest.json")):
        sources = read_json(manifest, "the manifest of a table").get("sources") or {}
        if name in sources and sources[name] != file_checksum(path):
            raise DamagedFileError(
                f"{path} is not the checkpoint that {manifest.parent} was built from. {healing_of(path)}"
            )


def _stage_folder(folder: Path, seed: int) -> Path:
    """The stage of ``seed`` if ``folder`` is a run folder; else ``folder`` itself."""
    in_run = folder / f"seed_{seed}" / "irreducible"
    return in_run if in_run.is_dir() else folder


def _read_record(stage: Path, fingerprints: Mapping[str, DataFingerprint]) -> dict[str, Any]:
    path = stage / _RECORD
    if not path.is_file():
        raise FileNotFoundError(
            f"irreducible.dir={stage} is not a finished irreducible stage: {_RECORD} is missing. Give a run folder of "
            "`reducr irreducible` or `reducr run` that has this seed, or its seed_N/irreducible."
        )
    _check_stage_unchanged(stage)
    record = read_json(path, _EXPECTED)
    if record.get("format") != _FORMAT:
        raise ValueError(
            f"{path} has format {record.get('format')!r}; this version reads format {_FORMAT}. Make the stage again "
            "with `reducr irreducible`."
        )
    record = read_json(path, _EXPECTED, names=("data_fingerprints", "settings", "seconds", "steps"))
    settings = record["settings"] = with_current_targets(record["settings"])
    if settings["trained_on"] == "twins":  # the old name
        settings["trained_on"] = "cross_fit"
    # Cross-fitted models are trained on the training part alone.
    parts = ("train",) if settings["trained_on"] == "cross_fit" else ("train", "irreducible")
    for part in parts:
        differences = DataFingerprint.from_dict(record["data_fingerprints"][part]).differences(fingerprints[part])
        if differences:
            what = "does not belong to this data" if part == "train" else "was trained on another holdout part"
            raise ValueError(
                f"irreducible.dir={stage} {what}: {'; '.join(differences)}. Use the data, seed and options that it was "
                "made with, or make a stage for this data with `reducr irreducible`."
            )
    return record
