"""Compare a run folder with its manifest: refuse, accept or make again what has changed."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from reducr._internal.manifest import (
    NAME,
    Change,
    Manifest,
    deciding_files,
    entry_of,
    record_files,
    rewrite_manifest,
    withdraw,
)
from reducr._internal.reading import DamagedFileError
from reducr._internal.run_folder import ResultRow, is_locked, read_results, write_results
from reducr._internal.run_start import START, RunStart, add_to_start

UNVERIFIED = "unverified: an earlier version wrote this run, without checksums of its files"
_NUM_NAMED = 4
_NUM_TRIES, _SECONDS_BETWEEN = 2, 0.1
_ALWAYS_LISTED = ("config.yaml", "command.txt", START, "results.csv")
_KEPT_IN_TRAINING = "results.csv"


class ChangedFilesError(ValueError):
    """Files of a run folder are not as the run wrote them."""


def is_verified(folder: Path) -> bool:
    """Whether the run wrote a manifest that its files can be compared with."""
    return (folder / NAME).is_file() or RunStart.read(folder).has_manifest


def check_unchanged(folder: Path, is_checked: Callable[[str], bool] = lambda file: True, *, command: str) -> None:
    """Raise an error unless the files are as the run wrote them. A run without a manifest passes.

    Args:
        folder: the run folder.
        is_checked: which files matter, by path in the folder.
        command: that reads them, such as ``report``, for the message.

    Raises:
        ChangedFilesError: with the names of the files, and what to do.
    """
    changes = changed_files(folder, is_checked)
    for _ in range(_NUM_TRIES):
        if not changes or not is_locked(folder):
            break
        time.sleep(_SECONDS_BETWEEN)  # a file was written between the reading of the manifest and of the file
        changes = changed_files(folder, is_checked)
    if not changes:
        return
    named = ", ".join(f"{change.file} ({change.fault})" for change in changes[:_NUM_NAMED])
    others = f" and {len(changes) - _NUM_NAMED} more" if len(changes) > _NUM_NAMED else ""
    is_lost = any(_is_lost(change.file) for change in changes)
    again = "" if is_lost else f" Or make again what they belong to: `reducr resume {folder} --make-again`."
    raise ChangedFilesError(
        f"{folder} is not as the run wrote it: {named}{others}. Restore copies of these files.{again} Or accept them "
        f"as they are, which run.json records: `reducr {command} {folder} --accept-changes`."
    )


def changed_files(folder: Path, is_checked: Callable[[str], bool] = lambda file: True) -> list[Change]:
    """The files that differ from the manifest or are missing there; none for a run without a manifest."""
    manifest = Manifest.read(folder)
    if manifest is None:
        try:
            is_missing = RunStart.read(folder).has_manifest
        except (DamagedFileError, FileNotFoundError):
            return []
        return [Change(NAME, "is missing")] if is_missing else []
    changes = manifest.changes(is_checked)
    known = {change.file for change in changes} | manifest.entries.keys()
    for file in deciding_files(folder=folder):
        if file not in known and is_checked(file) and _is_finished(folder, file, manifest):
            changes.append(Change(file, f"is not in {NAME}"))
    return changes


def lost_files(folder: Path) -> list[str]:
    """The files of finished trainings that the run wrote and that are gone, but for checkpoints, which take room."""
    manifest = Manifest.read(folder) or Manifest(folder)
    finished = {file.removesuffix(_KEPT_IN_TRAINING) for file in manifest.entries if file.endswith(_KEPT_IN_TRAINING)}
    return [
        file
        for file in manifest.entries
        if file.startswith("seed_")
        and not file.endswith(".ckpt")
        and not (folder / file).exists()
        and any(file.startswith(training) for training in finished - {""})
    ]


def accept_changes(folder: Path) -> list[str]:
    """Make the files as they are those of the run, and record in ``run.json`` which had changed; their names."""
    changes = changed_files(folder)
    if not changes:
        return []
    manifest = Manifest.read(folder) or Manifest(folder)
    names = list(dict.fromkeys(change.file for change in changes))
    now = {name: entry_of(folder, folder / name) for name in names if (folder / name).is_file()}
    facts = {
        name: {"was": manifest.entries.get(name, {}).get("sha256"), "is": now.get(name, {}).get("sha256")}
        for name in names
    }
    if NAME in names:
        now = {file: entry_of(folder, folder / file) for file in deciding_files(folder=folder)}
    rewrite_manifest(folder, manifest.entries | {name: entry for name, entry in now.items() if name != NAME})
    add_to_start(folder, "accepted", files=facts)
    return names


def make_again(folder: Path) -> list[str]:
    """Remove what changed files belong to, for ``reducr resume`` to make it again; the paths that were removed.

    Raises:
        ChangedFilesError: if a file has changed that cannot be made again.
    """
    removed: list[str] = []
    changes = changed_files(folder)
    lost = [change.file for change in changes if _is_lost(change.file)]
    if lost:
        raise ChangedFilesError(
            f"{lost[0]} in {folder} is not as the run wrote it, and cannot be made again. Restore a copy of it, or "
            f"accept it as it is, which run.json records: `reducr resume {folder} --accept-changes`."
        )
    for place in dict.fromkeys(_place(change.file) for change in changes):
        path = folder / place
        if path.is_dir():
            withdraw(folder, path)
            shutil.rmtree(path)
        else:  # keeps its entry: the new file must equal the old one
            path.unlink(missing_ok=True)
        removed.append(place)
    if changes:
        _rebuild_results(folder)
    return removed


def _is_lost(file: str) -> bool:
    """Whether a file cannot be made again: ``config.yaml``, ``run.json``, ``inputs.npz``, the manifest."""
    return not file.startswith("seed_") and file != "results.csv"


def _place(file: str) -> str:
    """The folder to make again for a changed file, or the file itself: ``seed_0/reducr``, ``seed_0/data.npz``."""
    return "/".join(file.split("/")[:2]) if file.startswith("seed_") else file


def _rebuild_results(folder: Path) -> None:
    """Write ``results.csv`` from the results in the folders of the trainings, in the order in which they ended."""
    manifest = Manifest.read(folder) or Manifest(folder)
    files = [folder / file for file in manifest.entries if file.endswith(f"/{_KEPT_IN_TRAINING}")]
    rows = [row for file in files if file.is_file() for row in read_results(file.parent)]
    withdraw(folder, folder / "results.csv")
    (folder / "results.csv").unlink(missing_ok=True)
    if rows:
        write_results(folder, rows)


def _is_finished(folder: Path, file: str, manifest: Manifest) -> bool:
    """Whether a file must be in the manifest, because what lists it was written after it."""
    if file in _ALWAYS_LISTED:
        return True
    parts = file.split("/")
    if len(parts) < 3 or not parts[0].startswith("seed_"):
        return False
    if parts[1] == "irreducible":
        return parts[2] == "stage.json"
    return f"{parts[0]}/{parts[1]}/{_KEPT_IN_TRAINING}" in manifest.entries


def record_training(folder: Path, training: Path, rows: Sequence[ResultRow]) -> None:
    """Add the files of a finished training to the manifest of the run, and then its own ``results.csv``."""
    record_files(folder, training, withdrawn=[training])
    write_results(training, rows)
