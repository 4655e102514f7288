"""Crash-safe checkpoints: written atomically, verified by checksum, with the previous one kept."""

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

from reducr._internal.checks import check_count, check_flag
from reducr._internal.distributed import broadcast, is_main_rank, raising_on_all_ranks, rank
from reducr._internal.files import naming_file, open_regular
from reducr._internal.reading import read_checkpoint
from reducr._internal.rng import random_state, set_random_state
from reducr.training.rank_states import check_not_sharded, content_of_rank, merged, sharded_state, whole_state

_NAME = re.compile(r"step_(\d+)_([0-9a-f]{16})\.ckpt")


class Stateful(Protocol):
    """Anything whose state can be saved and restored: models, optimisers, schedulers, scalers, loaders, selectors."""

    def state_dict(self) -> Any:
        """The state as plain values and tensors."""

    def load_state_dict(self, state: Any, /) -> Any:
        """Restore a state."""


class Checkpoints:
    """A folder of checkpoints; a killed run resumes from the newest.

    The name of a file holds its step and a checksum of step and content, so truncated, altered and renamed files are
    detected. A file is renamed to that name once it is complete, so a crash while writing leaves the earlier files
    intact. ``save`` and ``resume`` include the states of the global generators of torch, numpy and Python. Only one
    process may write to a folder at a time.

    With ``sync``, all ranks of a training call ``save`` and ``resume`` together. Rank 0 writes one file with the states
    of all ranks, equal tensors once: random states and loaders differ between ranks, models and optimizers do not.
    Sharded models and optimizers (FSDP) are gathered on rank 0, and divided again by ``resume``.

    Args:
        folder: created if needed; with ``sync`` one that all ranks can read.
        keep: number of checkpoints to keep, at least 2: the newest and one before it.
        sync: whether all ranks save and resume together.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> path = Checkpoints(folder).save(10, model=torch.nn.Linear(2, 1))
        >>> Checkpoints(folder).resume(model=torch.nn.Linear(2, 1))
        10
    """

    def __init__(self, folder: Path | str, *, keep: int = 2, sync: bool = False) -> None:
        if isinstance(keep, bool) or not isinstance(keep, int) or keep < 2:
            raise ValueError(f"keep must be a whole number of at least 2: the newest and one before it; got {keep!r}.")
        check_flag("sync", sync)
        self.folder = Path(folder)
        self.keep = keep
        self.sync = sync
        self._since = time.time()

    def save(self, step: int, /, **parts: Stateful) -> Path:
        """Save the states of all ``parts``; remove the oldest files and those of later steps.

        Args:
            step: step of the run, at least 0.
            parts: model, optimizer, scheduler, scaler, loader, and anything else with a state, by name.

        Returns:
            Path of the file.

        Raises:
            TypeError: if a part has no ``state_dict`` and ``load_state_dict``, or its state holds anything but tensors
                and plain values.
            ValueError: for a sharded model or optimizer without ``sync``, or one that cannot be gathered.
        """
        _check_parts(parts)
        if not self.sync:
            for name, part in parts.items():
                check_not_sharded(name, part)
            states = {name: part.state_dict() for name, part in parts.items()}
            return self.write(step, {"step": step, "random": random_state(), "rank": rank(), "parts": states})
        states = {name: whole_state(name, part) for name, part in parts.items()}
        content = merged({"random": random_state(), "parts": states})
        path = self.folder
        with raising_on_all_ranks():
            if is_main_rank():
                path = self.write(step, {"step": step, **content})
        return self.folder / str(broadcast(path.name))

    def resume(self, **parts: Stateful) -> int:
        """Restore the states of all ``parts`` from the newest intact checkpoint.

        Returns:
            The step of the checkpoint; 0 if there is none, in which case nothing changes.

        Raises:
            ValueError: if the checkpoint holds other parts, is that of other ranks, or every file is damaged; for a
                sharded model or optimizer without ``sync``.
        """
        _check_parts(parts)
        file = self._read_on_all_ranks() if self.sync else self.read()
        if not self.sync:
            for name, part in parts.items():
                check_not_sharded(name, part)
        if file is None:
            return 0
        if self.sync != ("ranks" in file):
            raise ValueError(
                f"the checkpoints in {self.folder} were saved with sync={not self.sync}, and are resumed with "
                f"sync={self.sync}. Use what they were saved with."
            )
        content = content_of_rank(file) if self.sync else file
        _warn_of_other_rank(content)
        states = content["parts"]
        if states.keys() != parts.keys():
            raise ValueError(
                f"the checkpoints in {self.folder} hold {', '.join(sorted(states))}; got "
                f"{', '.join(sorted(parts))}. Resume with the parts that were saved."
            )
        for name, part in parts.items():
            part.load_state_dict(sharded_state(part, states[name]) if self.sync else states[name])
        set_random_state(content["random"])
        return int(file["step"])

    def _read_on_all_ranks(self) -> Any:
        """Read the newest intact file of rank 0 on every rank."""
        name = None
        with raising_on_all_ranks():
            if is_main_rank():
                path = self.newest()
                name = None if path is None else path.name
        name = broadcast(name)
        if name is None:
            return None
        with raising_on_all_ranks():
            if not (self.folder / name).exists():
                raise ValueError(
                    f"rank 0 found {name} in {self.folder}, and rank {rank()} does not see it. With `sync=True` all "
                    "ranks must be able to read the folder."
                )
            return torch.load(self.folder / name, map_location="cpu", weights_only=True)

    def write(self, step: int, content: Any) -> Path:
        """Write one file with any ``content`` that ``torch.load(weights_only=True)`` can read.

        Raises:
            TypeError: if ``torch.load`` could not read the content again.
        """
        return self.write_with(step, lambda path: torch.save(content, path))

    def write_with(self, step: int, save: Callable[[Path], object]) -> Path:
        """Write one file with ``save(path)``, which must write to ``path`` as ``torch.save`` does."""
        check_count("step", step, least=0)
        self.folder.mkdir(parents=True, exist_ok=True)
        temporary = self.folder / f".step_{step:09d}.{os.getpid()}.partial"
        try:
            with naming_file(self.folder / f"step_{step:09d}.ckpt"):
                save(temporary)
                _check_content(temporary)
                with temporary.open("rb") as file:
                    os.fsync(file.fileno())
            path = self.folder / f"step_{step:09d}_{_checksum(step, temporary)}.ckpt"
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        self._remove_all_but(step, path)
        return path

    def _remove_all_but(self, step: int, newest: Path) -> None:
        """Keep ``newest`` and files of earlier steps; a run that went back to ``step`` has left the later ones."""
        earlier = [path for other_step, path in self._files() if other_step < step]
        kept = {newest, *earlier[: self.keep - 1]}
        crashed = [path for path in self.folder.glob(".step_*.partial") if _modification_time(path) < self._since]
        for path in [path for path in self.paths() if path not in kept] + crashed:
            path.unlink(missing_ok=True)

    def read(self) -> Any:
        """Read the newest intact file; None if there are no files.

        Raises:
            ValueError: if every file is damaged.
        """
        path = self.newest()
        return None if path is None else read_checkpoint(path)

    def newest(self) -> Path | None:
        """Path of the newest intact file; None if there are no files. Warns of damaged files and skips them.

        Raises:
            ValueError: if every file is damaged.
        """
        files = self._files()
        for step, path in files:
            if path.stem.endswith(_checksum(step, path)):
                return path
            warnings.warn(
                f"checkpoint {path} is damaged (truncated or altered): its checksum does not match its name. Trying "
                "the checkpoint before it.",
                RuntimeWarning,
                stacklevel=3,
            )
        if files:
            raise ValueError(
                f"every checkpoint in {self.folder} is damaged (truncated or altered): "
                f"{', '.join(path.name for _, path in files)}. Restore a copy, or remove them to start again."
            )
        return None

    def newest_step(self) -> int | None:
        """The step of the newest intact file; None if there are no files."""
        path = self.newest()
        return None if path is None else next(step for step, other in self._files() if other == path)

    def paths(self) -> list[Path]:
        """Paths of all files, newest first."""
        return [path for _, path in self._files()]

    def _files(self) -> list[tuple[int, Path]]:
        """Step and path of every file, newest first."""
        matches = ((_NAME.fullmatch(path.name), path) for path in self.folder.glob("step_*.ckpt"))
        files = [(int(match[1]), path) for match, path in matches if match]
        return sorted(files, key=lambda file: (file[0], _modification_time(file[1])), reverse=True)


def _checksum(step: int, path: Path) -> str:
    with open_regular(path) as file:
        digest = hashlib.file_digest(file, "sha256")
    digest.update(str(step).encode())
    return digest.hexdigest()[:16]


def _modification_time(path: Path) -> float:
    """Modification time of the file; the current time if another process has just removed it."""
    try:
        return path.stat().st_mtime
    except FileNotFoundError:
        return time.time()


def _warn_of_other_rank(content: dict[str, Any]) -> None:
    saved_by = content.get("rank", rank())
    if saved_by != rank():
        warnings.warn(
            f"Rank {rank()} resumes from the checkpoint of rank {saved_by}: its random numbers and the place of its "
            "loader become those of that rank. Use `Checkpoints(folder, sync=True)` on all ranks for an exact resume.",
            RuntimeWarning,
            stacklevel=3,
        )


def _check_content(path: Path) -> None:
    unsafe_types = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    if unsafe_types:
        raise TypeError(
            "a checkpoint may only hold tensors and plain values (numbers, strings, None, lists, tuples, dicts), so "
            f"that reading it runs no code; got {', '.join(sorted(unsafe_types))}. Convert them in state_dict(), "
            "such as arrays to tensors and numpy scalars to float."
        )


def _check_parts(parts: dict[str, Any]) -> None:
    if not parts:
        raise ValueError(
            "a checkpoint needs at least one part, such as model=..., optimizer=..., loader=...; got none."
        )
    for name, part in parts.items():
        if not (hasattr(part, "state_dict") and hasattr(part, "load_state_dict")):
            raise TypeError(
                f"{name} must have state_dict() and load_state_dict(); got {type(part).__name__}. Pass models, "
                "optimisers, schedulers, scalers, loaders or selectors."
            )
