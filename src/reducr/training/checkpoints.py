"""Checkpoints that survive a crash: whole or not there, known by their content, the one before kept."""

from __future__ import annotations

import hashlib
import os
import re
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import torch

from reducr._internal.checks import check_count
from reducr._internal.rng import random_state, set_random_state

_NAME = re.compile(r"step_(\d+)_([0-9a-f]{16})\.ckpt")


class Stateful(Protocol):
    """Anything whose state can be taken and put back: models, optimisers, schedulers, scalers, loaders, selectors."""

    def state_dict(self) -> Any:
        """The state as plain values and tensors."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Put a state back."""


class Checkpoints:
    """A folder of checkpoints, the newest of which a killed run goes on from.

    A file is named after its step and a checksum of step and content, and appears under that name in one move: a crash
    while writing leaves the ones before as they are, and a truncated, altered or renamed file is known by its name. The
    states of torch's, numpy's and Python's global generators are part of every checkpoint. One process at a time writes
    into a folder.

    Args:
        folder: made if needed.
        keep: how many to keep, at least 2, so that there is one before the newest.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> model = torch.nn.Linear(2, 1)
        >>> path = Checkpoints(folder).save(10, model=model)
        >>> Checkpoints(folder).resume(model=torch.nn.Linear(2, 1))
        10
    """

    def __init__(self, folder: Path | str, *, keep: int = 2) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 2:
            raise ValueError(f"keep must be a whole number of at least 2: the newest and one before it; got {keep!r}.")
        self.folder = Path(folder)
        self.keep = keep
        self._since = time.time()

    def save(self, step: int, /, **parts: Stateful) -> Path:
        """Write the states of all ``parts``, and remove the oldest files.

        Args:
            step: of the run, at least 0; a later one takes the place of an earlier one.
            parts: by name: model, optimizer, scheduler, scaler, loader, and whatever else has a state.

        Raises:
            TypeError: for a part without ``state_dict`` and ``load_state_dict``, or whose state holds anything else
                than tensors and plain values.
        """
        _check_parts(parts)
        states = {name: part.state_dict() for name, part in parts.items()}
        return self.write(step, {"step": step, "random": random_state(), "parts": states})

    def resume(self, **parts: Stateful) -> int:
        """Put the states of the newest whole checkpoint into all ``parts``.

        Returns:
            Its step; 0, and nothing is changed, if there is no checkpoint.

        Raises:
            ValueError: if its parts are not those given, or no file is whole.
        """
        _check_parts(parts)
        content = self.read()
        if content is None:
            return 0
        states = content["parts"]
        if states.keys() != parts.keys():
            raise ValueError(
                f"the checkpoints in {self.folder} hold {', '.join(sorted(states))}; asked for "
                f"{', '.join(sorted(parts))}. Resume with the parts that were saved."
            )
        for name, part in parts.items():
            part.load_state_dict(states[name])
        set_random_state(content["random"])
        return int(content["step"])

    def write(self, step: int, content: Any) -> Path:
        """Write one file of any ``content`` that ``torch.load(weights_only=True)`` reads; files of later steps go.

        Raises:
            TypeError: for a content that it would not read, now rather than at the resume.
        """
        return self.write_with(step, lambda path: torch.save(content, path))

    def write_with(self, step: int, save: Callable[[Path], object]) -> Path:
        """Write one file by a function that is given the path to write to, and fills it as ``torch.save`` does."""
        check_count("step", step, least=0)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".step_{step:09d}.{os.getpid()}.partial"
        try:
            save(temporary)
            _check_content(temporary)
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            path = self.folder / f"step_{step:09d}_{_checksum(step, temporary)}.ckpt"
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._remove_all_but(step, path)
        return path

    def _remove_all_but(self, step: int, newest: Path) -> None:
        """Keep ``newest`` and the files of the steps before it; later ones are of a run that has gone back to here."""
        before = [path for found, path in self._found() if found < step]
        kept = {newest, *before[: self.keep - 1]}
        left_by_a_crash = [path for path in self.folder.glob(".step_*.partial") if _modified(path) < self._since]
        for path in [path for path in self.paths() if path not in kept] + left_by_a_crash:
            path.unlink(missing_ok=True)

    def read(self) -> Any:
        """The content of the newest whole file; None if there is no file.

        Raises:
            ValueError: as ``newest``.
        """
        path = self.newest()
        return None if path is None else torch.load(path, map_location="cpu", weights_only=True)

    def newest(self) -> Path | None:
        """The newest whole file; None if there is no file. A damaged one is warned of and passed over.

        Raises:
            ValueError: if there are files, and none is whole.
        """
        found = self._found()
        for step, path in found:
            if path.stem.endswith(_checksum(step, path)):
                return path
            warnings.warn(
                f"checkpoint {path} is damaged (truncated or altered): its content is not what its name says. The one "
                "before it is used, if there is one.",
                RuntimeWarning,
                stacklevel=3,
            )
        if found:
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged (truncated or altered): "
                f"{', '.join(path.name for _, path in found)}. Remove them to start anew, or bring back a copy."
            )
        return None

    def paths(self) -> list[Path]:
        """All files, newest first."""
        return [path for _, path in self._found()]

    def _found(self) -> list[tuple[int, Path]]:
        """Step and path of every file, newest first."""
        named = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("step_*.ckpt"))
        found = [(int(match[1]), path) for match, path in named if match]
        return sorted(found, key=lambda one: (one[0], _modified(one[1])), reverse=True)


def _checksum(step: int, path: Path) -> str:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(str(step).encode())
    return digest.hexdigest()[:16]


def _modified(path: Path) -> float:
    """When the file was last written to; now, if another process has just removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _check_content(path: Path) -> None:
    refused = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if refused:
        raise TypeError(
            "a checkpoint holds tensors and plain values (numbers, texts, None, lists, tuples, dicts) alone, so that "
            f"reading one runs no code; got {', '.join(sorted(refused))}. Let state_dict() give these, such as tensors "
            "for arrays and float() of numpy's numbers."
        )


def _check_parts(parts: dict[str, Any]) -> None:
    if not parts:
        raise ValueError("name what belongs to a checkpoint: model=..., optimizer=..., loader=..., ...; got nothing.")
    for name, part in parts.items():
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise TypeError(
                f"{name} has no state_dict and load_state_dict; got {type(part).__name__}. Give models, optimisers, "
                "schedulers, scalers, loaders and selectors."
            )
