"""``run.json`` of a run folder: what started the run and in which environment, and what happened to it since."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reducr._internal.files import naming_file
from reducr._internal.manifest import NAME as MANIFEST
from reducr._internal.manifest import announce_text, write_recorded
from reducr._internal.reading import DamagedFileError, read_json

START = "run.json"
_FORMAT = 1
_WRITTEN_FIRST = {START, MANIFEST, "config.yaml", "command.txt"}
_EFFECTS = {
    "reducr": "results, where the program itself has changed",
    "torch": "results, from the first rounding that differs",
    "numpy": "the random draws of the data",
    "python": "nothing as a rule",
    "num_threads": "results, from the first sum that is added in another order",
    "num_ranks": "results, from the first sum that is added in another order",
    "device": "results, from the first rounding that differs",
}


@dataclass(frozen=True)
class RunStart:
    """The content of ``run.json``.

    Args:
        folder: the run folder.
        command: ``run``, ``train`` or ``irreducible``.
        started_in: the working directory at the start, from which relative paths in the configuration count. It may be
            gone.
        environment: versions and number of threads at the start; empty for a run of an earlier version.
        has_manifest: whether the run wrote a manifest of its files.
        data_dir: the folder of the data, if the run was moved; None for that in the configuration.
        accepted: changes of files that a user has accepted: ``time`` and ``files``.
    """

    folder: Path
    command: str
    started_in: Path
    environment: Mapping[str, Any]
    has_manifest: bool
    data_dir: Path | None
    accepted: tuple[Mapping[str, Any], ...]

    @classmethod
    def read(cls, folder: Path) -> RunStart:
        """Read ``run.json``.

        Raises:
            FileNotFoundError: if ``folder`` is not a run folder.
            ValueError: if another version wrote it, or it is damaged.
        """
        start = _read(folder)
        moves = start.get("data_dir") or []
        try:
            return cls(
                folder,
                command=str(start["command"]),
                started_in=Path(start["started_in"]),
                environment=dict(start.get("environment") or {}),
                has_manifest=bool(start.get("has_manifest")),
                data_dir=Path(moves[-1]["data_dir"]) if moves else None,
                accepted=tuple({"time": str(one["time"]), "files": dict(one["files"])} for one in _accepted(start)),
            )
        except (TypeError, KeyError, ValueError, AttributeError) as error:
            raise DamagedFileError(
                f"{folder / START} is damaged: an entry has another type than expected. Restore a copy of it."
            ) from error

    @property
    def directory(self) -> Path:
        """The directory to work in: where the run was started, or the current one if that is gone."""
        return self.started_in if self.started_in.is_dir() else Path.cwd()

    def differences(self) -> list[str]:
        """What is other than at the start, and what that may change."""
        now = environment()
        return [
            f"{name.replace('num_', 'number of ')} was {was} and is {now[name]} ({_EFFECTS[name]})"
            for name, was in self.environment.items()
            if name in _EFFECTS and now[name] != was
        ]


def never_began(folder: Path) -> bool:
    """Whether a process has claimed this folder for a new run and has written nothing else into it but its command."""
    return (
        (folder / START).is_file()
        and not (folder / START).stat().st_size
        and {path.name for path in folder.iterdir() if not path.name.startswith(".")} <= _WRITTEN_FIRST
    )


def write_start(folder: Path, *, command: str) -> None:
    """Write ``run.json``, which ``reducr resume`` reads to continue an interrupted run."""
    start = {
        "format": _FORMAT,
        "command": command,
        "started_in": str(Path.cwd()),
        "has_manifest": (folder / MANIFEST).is_file(),
        "environment": environment(),
    }
    write_recorded(folder, folder / START, _text(start))


def add_to_start(folder: Path, name: str, **facts: Any) -> None:
    """Append an entry with the time and ``facts`` to the list ``name`` of ``run.json``.

    The file is written in place, because processes hold their lock on it: in one call and never shorter than before,
    so that a killed process leaves the old text or the new one.
    """
    start = _read(folder)
    time = datetime.now().astimezone().isoformat(timespec="seconds")
    start[name] = [*start.get(name, []), {"time": time, **facts}]
    path = folder / START
    text = _text(start).ljust(path.stat().st_size)
    announce_text(folder, path, text)
    with naming_file(path), path.open("r+b", buffering=0) as file:
        file.write(text.encode())
        os.fsync(file.fileno())


def environment() -> dict[str, Any]:
    """What results may depend on beside the configuration and the data."""
    return {
        "reducr": sys.modules["reducr"].__version__,
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": platform.python_version(),
        "num_threads": torch.get_num_threads(),
        "num_ranks": int(os.environ.get("WORLD_SIZE", "1")),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
    }


def _accepted(start: Mapping[str, Any]) -> list[Any]:
    return list(start.get("accepted") or [])


def _read(folder: Path) -> dict[str, Any]:
    path = folder / START
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not a run folder: it has no {START}. Give a folder made by `reducr run`, `reducr train` or "
            "`reducr irreducible`."
        )
    if never_began(folder):
        raise ValueError(
            f"The run in {folder} never began: its process is just starting, or was stopped before it had read a "
            f"single example. There is nothing to continue or report. If no process is left, remove {folder} and "
            "start the run again."
        )
    start = read_json(path, "the start of a run")
    if start.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {start.get('format')!r}; this version reads format {_FORMAT}.")
    return read_json(path, "the start of a run", names=("command", "started_in"))


def _text(start: Mapping[str, Any]) -> str:
    return json.dumps(start, indent=2) + "\n"
