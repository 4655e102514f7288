"""The run folder: made once, never overwritten, usable at any moment."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from datetime import datetime
from pathlib import Path

from reducr.files import write_text_atomically

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


def write_results(folder: Path, rows: Iterable[ResultRow]) -> None:
    """Write ``results.csv``, whole or not at all."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=RESULT_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({name: _cell(value) for name, value in asdict(row).items()})
    write_text_atomically(folder / "results.csv", text.getvalue())


def read_results(folder: Path) -> list[ResultRow]:
    """The rows of a run's ``results.csv``.

    Raises:
        FileNotFoundError: if the folder has none; says what a run folder is.
        ValueError: if its columns are not those of this version.
    """
    path = folder / "results.csv"
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
