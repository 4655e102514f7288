"""The run folder: made once, never overwritten, usable at any moment."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from reducr._internal.files import write_text_atomically

try:
    import fcntl
except ModuleNotFoundError:  # Windows has none, and no claims then
    fcntl = None  # type: ignore[assignment]

_FORMAT = 1
_START = "run.json"
_RESULTS = "results.csv"
CHECKPOINT_RULES = ("last", "best_worst_group", "best_mean")


@dataclass(frozen=True, kw_only=True)
class ResultRow:
    """One line of ``results.csv``: test accuracies and costs of one method, seed and checkpoint rule.

    Seconds are wall-clock. ``total_seconds`` is the irreducible stage (for methods that use it) and the whole of
    target training with its holdout evaluations, logs and checkpoints. A cell that does not apply is None.
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
_WHOLE_COLUMNS = ("seed", "steps")


def create_run_folder(home: Path, name: str, *, run_dir: Path | None = None) -> Path:
    """A new, empty folder: ``run_dir`` if given, else ``home/name/DATE_TIME``, with a number if that exists.

    Raises:
        FileExistsError: if ``run_dir`` exists and is not empty; a run is never overwritten.
    """
    if run_dir is not None:
        if run_dir.exists() and (not run_dir.is_dir() or any(run_dir.iterdir())):
            raise FileExistsError(
                f"run folder {run_dir} exists and is not empty; a run is never overwritten. Choose another "
                "model_io.run_dir, or leave it out to have one made."
            )
        run_dir.mkdir(parents=True, exist_ok=True)
        return run_dir
    parent = home / name
    parent.mkdir(parents=True, exist_ok=True)
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


def write_start(folder: Path, *, command: str) -> None:
    """Write ``run.json``: what an interrupted run was, so that ``reducr resume`` can go on with it."""
    start = {"format": _FORMAT, "command": command, "started_in": str(Path.cwd())}
    write_text_atomically(folder / _START, json.dumps(start, indent=2) + "\n")


def read_start(folder: Path) -> tuple[str, Path]:
    """The command of a run, and the folder that it was started in.

    Raises:
        FileNotFoundError: if ``folder`` is that of no run, or the folder that it was started in is gone.
        ValueError: if it was written by another version.
    """
    path = folder / _START
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is not the folder of a run: it has no {_START}. Give a folder that `reducr run`, `reducr train` "
            "or `reducr irreducible` made."
        )
    start = json.loads(path.read_text(encoding="utf-8"))
    if start.get("format") != _FORMAT:
        raise ValueError(f"{path} has format {start.get('format')!r}; this version reads format {_FORMAT}.")
    started_in = Path(start["started_in"])
    if not started_in.is_dir():
        raise FileNotFoundError(f"the run was started in {started_in}, which is no longer there; make it again.")
    return start["command"], started_in


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Keep other processes from working in the folder of a run, which has been given its ``run.json``, at once.

    Raises:
        ValueError: if one is.
    """
    with (folder / _START).open("rb") as file:
        if fcntl is not None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ValueError(f"another process is at work in {folder}: wait for it, or stop it first.") from None
        yield


def is_at_work(folder: Path) -> bool:
    """Whether a process is at work in the folder of a run (see ``claimed``); False where that cannot be found out."""
    path = folder / _START
    if fcntl is None or not path.is_file():
        return False
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def has_results(folder: Path) -> bool:
    """Whether any method of the run has finished."""
    return (folder / _RESULTS).is_file()


def write_results(folder: Path, rows: Iterable[ResultRow]) -> None:
    """Write ``results.csv``, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=RESULT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in asdict(row).items()})
    write_text_atomically(folder / _RESULTS, text.getvalue())


def read_results(folder: Path) -> list[ResultRow]:
    """The rows of a run's ``results.csv``.

    Raises:
        FileNotFoundError: if the folder has none; says what a run folder is.
        ValueError: if its columns are not those of this version.
    """
    path = folder / _RESULTS
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no results.csv: it is not the folder of a run, or no method of it has finished yet. Give "
            "folders that `reducr run` or `reducr train` wrote."
        )
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        if tuple(reader.fieldnames or ()) != RESULT_COLUMNS:
            raise ValueError(f"{path} has columns {reader.fieldnames}; expected {list(RESULT_COLUMNS)}.")
        return [ResultRow(**{name: _value(name, cell) for name, cell in line.items()}) for line in reader]  # type: ignore[arg-type]


def _cell(value: float | str | None) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def _value(name: str, cell: str) -> float | str | None:
    if name in _TEXT_COLUMNS:
        return cell
    if name in _WHOLE_COLUMNS:
        return int(cell)
    return float(cell) if cell else None
