"""``reducr export``: choose the best training examples of a run and write them as a data set."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from reducr._internal.files import new_folder_atomically, write_text_atomically
from reducr._internal.names import unknown_name
from reducr.data import DataModule
from reducr.exports.choice import Counts, best_first, chosen_examples, suspected_label_errors
from reducr.exports.files import Losses, write_examples, write_reduced_data
from reducr.exports.record import SelectionRecord
from reducr.pipeline.stored_run import StoredRun
from reducr.scoring import num_selected_of


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """Which examples to keep.

    Args:
        fraction: share of the training part, in (0, 1].
        method: a method of the run; None for ``reducr``, or for the only method that selects.
        seeds: seeds of the run with the same training part; None for all that share the training part of the first.
        order: see ``best_first``.
        quotas: see ``chosen_examples``.
        quota_of_class: number of examples by class name, for some classes.
        at_least: minimum for every other class, or all it has.
        drops_label_errors: whether to leave out suspected label errors; see ``suspected_label_errors``.
        is_linked: whether an image folder gets links to the images instead of copies.
        data_dir: the folder of the data, if it has moved since the run.
        is_trusted: build whatever the configuration in the run folder names; see ``reducr.pipeline.trust``.
    """

    fraction: float
    method: str | None = None
    seeds: Sequence[int] | None = None
    order: str = "both"
    quotas: str = "selected"
    quota_of_class: Mapping[str, int] = field(default_factory=dict)
    at_least: int = 1
    drops_label_errors: bool = False
    is_linked: bool = False
    data_dir: Path | None = None
    is_trusted: bool = False


@dataclass(frozen=True)
class Export:
    """A finished export.

    Args:
        folder: where it is.
        num_examples: N, size of the training part.
        num_chosen: number of examples kept.
        num_suspected: number of suspected label errors; None if they were not dropped.
        counts: examples of each class, in the training part and kept.
        method: method of the run.
        seeds: seeds of the run.
        data_options: options of the data module that read the reduced data set; empty if none was written.
        notes: messages for the user.
    """

    folder: Path
    num_examples: int
    num_chosen: int
    num_suspected: int | None
    counts: Mapping[str, tuple[int, int]]
    method: str
    seeds: tuple[int, ...]
    data_options: Mapping[str, Any]
    notes: tuple[str, ...]


def export_run(run: Path, out: Path, options: ExportOptions) -> Export:
    """Write the best training examples of a run into a new folder.

    The folder holds ``points.parquet``, ``export.json`` and, for your own data, the reduced data set in ``data``.

    Args:
        run: folder of a finished or interrupted run.
        out: the new folder; nothing is left of it if the export fails.
        options: which examples to keep.

    Raises:
        FileExistsError: if ``out`` exists and is not empty.
        FileNotFoundError: if ``run`` is not a run folder, or data that must be read is missing.
        ValueError: if the run has no such method, seed or class, the numbers do not add up, or the data has changed.
        ModuleNotFoundError: without pyarrow.
    """
    import pyarrow  # noqa: F401  # report a missing package before any work

    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; an export is never overwritten. Choose another `--out`.")
    num_selected_of(options.fraction, 1)
    if options.at_least < 0:
        raise ValueError(f"`--at-least` must be 0 or more; got {options.at_least}.")
    out = out.resolve()
    stored = StoredRun.read(run.resolve(), is_trusted=options.is_trusted, data_dir=options.data_dir)
    record = SelectionRecord.read(stored, method=options.method, seeds=options.seeds)
    with contextlib.chdir(stored.started_in):
        datamodule = stored.make_datamodule()
        choice = _choice(stored, record, datamodule, options)
        settings = asdict(options) | {
            "data_dir": None if options.data_dir is None else str(options.data_dir),
            "run": str(stored.folder),
            "method": record.method,
            "seeds": list(record.seeds),
        }
        with new_folder_atomically(out) as folder:
            write_examples(folder / "points.parquet", record, choice.positions, choice.losses, settings)
            data_options, notes = write_reduced_data(
                folder / "data", stored, record, datamodule, choice.positions, is_linked=options.is_linked
            )
            export = Export(
                folder=out,
                num_examples=len(record.num_times_selected),
                num_chosen=len(choice.positions),
                num_suspected=choice.num_suspected,
                counts=_class_counts(record, choice.positions),
                method=record.method,
                seeds=record.seeds,
                # "." stands for the folder of the data set
                data_options={name: str(out / "data") if v == "." else v for name, v in data_options.items()},
                notes=(*record.notes, *notes),
            )
            # the file's key for num_examples is num_points
            facts = {"num_points" if name == "num_examples" else name: value for name, value in asdict(export).items()}
            facts |= {"folder": str(out), "settings": settings}
            write_text_atomically(folder / "export.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return export


@dataclass(frozen=True)
class _Choice:
    """The (n,) positions to keep, best first; the losses behind suspected label errors, and the number of these."""

    positions: Counts
    losses: Losses | None
    num_suspected: int | None


def _choice(stored: StoredRun, record: SelectionRecord, datamodule: DataModule, options: ExportOptions) -> _Choice:
    target, class_names = record.data["train_target"], record.class_names
    losses, num_suspected = None, None
    ranked = best_first(record.num_times_selected, record.mean_score, order=options.order)
    if options.drops_label_errors:
        losses = _mean_losses(stored, record, datamodule)
        is_suspected = suspected_label_errors(*losses, num_classes=len(class_names)).numpy()
        ranked, num_suspected = ranked[~is_suspected[ranked]], int(is_suspected.sum())
    num_chosen = num_selected_of(options.fraction, len(target))
    if num_chosen > len(ranked):
        raise ValueError(
            f"`--fraction {options.fraction:g}` keeps {num_chosen} of {len(target)} examples, but {len(ranked)} are "
            f"left without {num_suspected} suspected label errors. Lower the fraction, or omit `--drop-label-errors`."
        )
    positions = chosen_examples(
        ranked,
        target,
        num_chosen=num_chosen,
        num_classes=len(class_names),
        quotas=options.quotas,
        num_times_selected=record.num_times_selected,
        at_least=options.at_least,
        fixed=_quota_of_label(options.quota_of_class, class_names),
    )
    return _Choice(positions, losses, num_suspected)


def _mean_losses(stored: StoredRun, record: SelectionRecord, datamodule: DataModule) -> Losses:
    """Losses of the training examples, mean over seeds."""
    losses = [stored.training_losses(stored.seed_data(datamodule, seed), record.method) for seed in record.seeds]
    model_losses, irreducible_losses = zip(*losses, strict=True)
    return torch.stack(model_losses).mean(dim=0), torch.stack(irreducible_losses).mean(dim=0)


def _class_counts(record: SelectionRecord, positions: Counts) -> dict[str, tuple[int, int]]:
    """Examples of each class, in the training part and among the kept ``positions``."""
    names, target = record.class_names, record.data["train_target"]
    before, after = (np.bincount(t, minlength=len(names)).tolist() for t in (target, target[positions]))
    return dict(zip(names, zip(before, after, strict=True), strict=True))


def _quota_of_label(quota_of_class: Mapping[str, int], class_names: Sequence[str]) -> dict[int, int]:
    for name in quota_of_class:
        if name not in class_names:
            raise unknown_name("class", name, class_names, of="`--quota`")
    return {class_names.index(name): count for name, count in quota_of_class.items()}
