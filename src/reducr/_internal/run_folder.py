"""The run folder: create it, lock it, and read and write its ``results.csv``."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from reducr._internal.manifest import write_recorded
from reducr._internal.reading import DamagedFileError, reading, run_of
from reducr._internal.run_start import START, never_began

try:
    import fcntl
except ModuleNotFoundError:  # Windows has no fcntl; runs are not locked there
    fcntl = None  # type: ignore[assignment]

_RESERVED_NAMES = {
    "CON",
    "PRN",
    "AUX",
    "NUL",
    *(f"{port}{number}" for port in ("COM", "LPT") for number in range(1, 10)),
}
_MAX_NAME_BYTES = 200
_RESULTS = "results.csv"
CHECKPOINT_RULES = ("last", "best_worst_group", "best_mean")


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One line of ``results.csv``: test accuracies and costs of one method, seed and checkpoint rule.

    Seconds are wall-clock. ``total_seconds`` covers the irreducible stage (for methods that use it) and target
    training, including holdout evaluations, logs and checkpoints. A cell that does not apply is None.
    """

    method: str
    seed: int
    checkpoint_rule: str
    worst_class_accuracy: float
    worst_group_accuracy: float
    mean_accuracy: float
    steps: int
    irreducible_seconds: float
    selection_seconds: float
    training_seconds: float
    total_seconds: float
    selected_fraction: float | None
    corrupted_fraction: float | None


RESULT_COLUMNS = tuple(field.name for field in fields(ResultRow))
_TEXT_COLUMNS = ("method", "checkpoint_rule")
_INTEGER_COLUMNS = ("seed", "steps")


def create_run_folder(home: Path, name: str, *, run_dir: Path | None = None) -> Path:
    """Create an empty folder: ``run_dir``, or ``home/name/DATE_TIME`` with a number appended if that exists.

    Raises:
        ValueError: if ``name`` is not one of a folder in ``home``.
        PermissionError: if ``home`` cannot be made.
        FileExistsError: if ``run_dir`` exists and is not empty; a run is never overwritten.
    """
    if run_dir is not None:
        if run_dir.is_dir() and never_began(run_dir):
            raise FileExistsError(
                f"Another process is just starting a run in {run_dir}, or was stopped before that run began. Set "
                "`model_io.run_dir` to another folder; or, if no process is left, remove this one first."
            )
        if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            raise FileExistsError(
                f"{run_dir} exists and is not empty; a run is never overwritten. Set `model_io.run_dir` to another "
                "folder, or omit it to have one created."
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        return run_dir
    check_folder_name("name", name)
    parent = home / name
    try:
        parent.mkdir(parents=True, exist_ok=True)
    except PermissionError as error:
        raise PermissionError(
            f"{parent.absolute()} cannot be made: you may not write there. Set `model_io.home_dir` to another folder."
        ) from error
    stamp = datetime.now().astimezone().strftime("%Y-%m-%d_%H-%M-%S")
    attempt = 1
    while True:
        folder = parent / (stamp if attempt == 1 else f"{stamp}_{attempt}")
        try:
            folder.mkdir()
        except FileExistsError:
            attempt += 1
        else:
            return folder


def claim(folder: Path) -> None:
    """Take a new run folder for this process alone: of several that find it empty at once, one gets it.

    Raises:
        FileExistsError: if another process has it.
    """
    try:
        (folder / START).touch(exist_ok=False)
    except FileExistsError:
        raise FileExistsError(
            f"Another process has just started a run in {folder}. Set `model_io.run_dir` to another folder."
        ) from None


def check_folder_name(option: str, name: str) -> None:
    """Raise ValueError unless ``name`` is that of a folder inside of another one; it may have parts between slashes."""
    parts = name.split("/")
    fault = next((fault for part in parts if (fault := _fault_of_name(part)) is not None), None)
    if fault is not None:
        raise ValueError(
            f"`{option}` must be the name of a folder inside of `model_io.home_dir`, such as digits or mine/digits, "
            f"{fault}; got {name!r}. Set `model_io.home_dir` or `model_io.run_dir` to write elsewhere."
        )


def _fault_of_name(part: str) -> str | None:
    if part in ("", ".", ".."):
        return "and may not leave it"
    if any(ord(character) < 32 or ord(character) == 127 or character == "\\" for character in part):
        return "without backslashes and control characters"
    if part.partition(".")[0].upper() in _RESERVED_NAMES:
        return "which every system allows"
    if len(os.fsencode(part)) > _MAX_NAME_BYTES:
        return f"of at most {_MAX_NAME_BYTES} bytes"
    return None


@contextmanager
def run_lock(folder: Path) -> Iterator[None]:
    """Lock a run folder, which must have its ``run.json``, against other processes.

    Raises:
        ValueError: if another process holds the lock.
    """
    with (folder / START).open("rb") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"Another process is using {folder}. Wait for it, or stop it first.") from None
        yield


def is_locked(folder: Path) -> bool:
    """Whether a process holds the ``run_lock`` of this folder; False on Windows."""
    path = folder / START
    if fcntl is None or not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def has_results(folder: Path) -> bool:
    """Whether ``results.csv`` exists, which is once the first method finishes."""
    return (folder / _RESULTS).is_file()


def write_results(folder: Path, rows: Iterable[ResultRow]) -> None:
    """Write ``results.csv`` atomically, and its checksum into the manifest of the run."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=RESULT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in asdict(row).items()})
    write_recorded(run_of(folder / _RESULTS) or folder, folder / _RESULTS, text.getvalue())


def read_results(folder: Path) -> list[ResultRow]:
    """The rows of ``results.csv``.

    Raises:
        FileNotFoundError: if the folder has no ``results.csv``.
        ValueError: if its columns differ from those of this version.
    """
    path = folder / _RESULTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no {_RESULTS}: it is not a run folder, or no method has finished yet. Give a folder made by "
            "`reducr run` or `reducr train`."
        )
    with reading(path, "a table of results"), path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != RESULT_COLUMNS:
            raise DamagedFileError(f"{path} has the columns {reader.fieldnames}; expected {list(RESULT_COLUMNS)}.")
        return [ResultRow(**{name: _value(name, cell) for name, cell in line.items()}) for line in reader]  # type: ignore[arg-type]


def _cell(value: float | str | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(name: str, cell: str) -> float | str | None:
    if name in _TEXT_COLUMNS:
        return cell
    if name in _INTEGER_COLUMNS:
        return int(cell)
    return float(cell) if cell else None
