"""``reducr export``: from a run folder to the points that are worth keeping, and the data set of them."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from reducr._internal.files import new_folder_atomically, write_text_atomically
from reducr._internal.names import unknown_name
from reducr._internal.run_folder import read_start
from reducr.data import DataModule
from reducr.data.core.module import PARTS, WritesParts
from reducr.exports.choice import Counts, best_first, chosen_points
from reducr.exports.losses import losses_at_the_end, suspected_label_errors
from reducr.pipeline.run import check_same_data, make_datamodule, recorded_arrays
from reducr.pipeline.setup import METHOD_ALIASES, SeedData
from reducr.scoring.scorer import num_selected_of

_DEFAULT_METHOD = "reducr"
_OF_POINTS = ("num_times_selected", "num_times_scored", "score_sum")


@dataclass(frozen=True, kw_only=True)
class ExportOptions:
    """What is kept.

    Args:
        fraction: of the training part, in (0, 1].
        method: of the run; None for ``reducr``, or the only one.
        seeds: of the run; None for all that have the training part of the first. Several must have the same one.
        order: see ``best_first``.
        quotas: see ``chosen_points``.
        quota_of_class: points of some classes, by name.
        at_least: points of every class, or all it has.
        drops_label_errors: whether suspected label errors are left out; see ``suspected_label_errors``.
        is_linked: whether an image folder has links to the images, not copies.
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


@dataclass(frozen=True)
class Export:
    """What was exported.

    Args:
        folder: that holds it.
        num_examples: N of the training part.
        num_chosen: of these.
        num_suspected: label errors among the N; None where none were looked for.
        counts: points of each class: in the training part, and chosen.
        method: of the run.
        seeds: of the run.
        data_options: options of the data module that read the reduced data set; empty where there is none.
        notes: what a user should be told.
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
    """Write the best points of a run into a new folder.

    It holds ``points.parquet``, ``export.json`` and, for data of one's own, the reduced data set in ``data``.

    Args:
        run: folder of a finished or interrupted run.
        out: the new folder, there whole or not at all.
        options: what is kept.

    Raises:
        FileExistsError: if ``out`` is there and not empty.
        FileNotFoundError: if ``run`` is the folder of no run, or data that must be read is gone.
        ValueError: for methods, seeds, classes and numbers that the run does not have, or data that has changed.
        ModuleNotFoundError: without pyarrow.
    """
    import pyarrow  # noqa: F401  (missing, it is to be named before any work)

    _check_out(out)
    num_selected_of(options.fraction, 1)
    if options.at_least < 0:
        raise ValueError(f"--at-least must be 0 or more; got {options.at_least}.")
    out, run = out.resolve(), run.resolve()
    _, started_in = read_start(run)
    config = OmegaConf.load(run / "config.yaml")
    assert isinstance(config, DictConfig)
    recorded = _Recorded.of(run, config, options)
    with contextlib.chdir(started_in):
        return _exported(recorded, config, out, options)


@dataclass(frozen=True)
class _Recorded:
    """What the chosen seeds of a run, which share a training part, have recorded of its points."""

    run: Path
    method: str
    seeds: tuple[int, ...]
    data: Mapping[str, NDArray[Any]]
    num_times_selected: Counts
    num_times_scored: Counts
    score_sum: NDArray[np.float64]
    notes: tuple[str, ...]

    @classmethod
    def of(cls, run: Path, config: DictConfig, options: ExportOptions) -> _Recorded:
        method = _method_of(run, config, options.method)
        known = _seeds_with(run, method)
        if options.seeds is not None:
            for seed in options.seeds:
                if seed not in known:
                    raise unknown_name("seed", str(seed), map(str, known), of=method)
        seeds = tuple(dict.fromkeys(known if options.seeds is None else options.seeds))
        if not seeds:
            raise ValueError("--seeds must name at least one seed.")
        data = {seed: _arrays(run / f"seed_{seed}" / "data.npz") for seed in seeds}
        first = data[seeds[0]]
        others = [seed for seed in seeds if not _has_same_training_part(first, data[seed])]
        notes = []
        if others and options.seeds is not None:
            raise ValueError(
                f"seed {others[0]} has another training part than seed {seeds[0]}: their splits, imbalance or noise "
                "were drawn by seed, so that their points cannot be counted together. Give one of them: --seeds "
                f"{seeds[0]}."
            )
        if others:
            seeds = tuple(seed for seed in seeds if seed not in others)
            notes.append(
                f"Of seed {', '.join(map(str, seeds))} alone: seed {', '.join(map(str, others))} drew training parts "
                "of their own."
            )
        selected = [_arrays(_selected_file(run, seed, method)) for seed in seeds]
        if "score_sum" not in selected[0]:
            raise ValueError(
                f"{_selected_file(run, seeds[0], method)} has no scores: an earlier version wrote it. Run it again."
            )
        sums = {name: np.sum([one[name] for one in selected], axis=0) for name in _OF_POINTS}
        return cls(run=run, method=method, seeds=seeds, data=first, notes=tuple(notes), **sums)

    @property
    def mean_score(self) -> NDArray[np.float64]:
        """(N,), NaN where a point was never scored."""
        is_scored = self.num_times_scored > 0
        return np.where(is_scored, self.score_sum / np.maximum(self.num_times_scored, 1), np.nan)


def _exported(recorded: _Recorded, config: DictConfig, out: Path, options: ExportOptions) -> Export:
    target = recorded.data["train_target"]
    class_names = [str(name) for name in recorded.data["class_names"]]
    datamodule = make_datamodule(config)
    losses, is_suspected = None, np.zeros(len(target), dtype=bool)
    if options.drops_label_errors:
        losses = _mean_losses(recorded, config, datamodule)
        is_suspected = suspected_label_errors(*losses, num_classes=len(class_names)).numpy()
    ranked = best_first(recorded.num_times_selected, recorded.mean_score, order=options.order)
    ranked = ranked[~is_suspected[ranked]]
    num_chosen = num_selected_of(options.fraction, len(target))
    if num_chosen > len(ranked):
        raise ValueError(
            f"--fraction {options.fraction:g} is {num_chosen} of {len(target)} points, and {int(is_suspected.sum())} "
            f"are suspected label errors: {len(ranked)} are left. Give a smaller fraction, or keep the suspected ones."
        )
    chosen = chosen_points(
        ranked,
        target,
        num_chosen=num_chosen,
        num_classes=len(class_names),
        quotas=options.quotas,
        num_times_selected=recorded.num_times_selected,
        at_least=options.at_least,
        given=_by_number(options.quota_of_class, class_names),
    )
    counts = [np.bincount(of, minlength=len(class_names)).tolist() for of in (target, target[chosen])]
    settings = asdict(options) | {"run": str(recorded.run), "method": recorded.method, "seeds": list(recorded.seeds)}
    with new_folder_atomically(out) as folder:
        _write_points(folder / "points.parquet", recorded, chosen, losses, settings)
        data_options, notes = _write_data(folder / "data", recorded, datamodule, chosen, options)
        export = Export(
            folder=out,
            num_examples=len(target),
            num_chosen=len(chosen),
            num_suspected=int(is_suspected.sum()) if options.drops_label_errors else None,
            counts=dict(zip(class_names, zip(*counts, strict=True), strict=True)),
            method=recorded.method,
            seeds=recorded.seeds,
            data_options=_from(out / "data", data_options),
            notes=(*recorded.notes, *notes),
        )
        facts = asdict(export) | {"folder": str(out), "settings": settings}
        write_text_atomically(folder / "export.json", json.dumps(facts, indent=2, ensure_ascii=False) + "\n")
    return export


def _write_points(
    path: Path,
    recorded: _Recorded,
    chosen: Counts,
    losses: tuple[Tensor, Tensor] | None,
    settings: Mapping[str, Any],
) -> None:
    """One row for each chosen point, best first; see docs/export.md."""
    import pyarrow as pa
    from pyarrow import parquet

    data = recorded.data
    columns = {
        "index": np.arange(len(data["train_target"])),
        "source": data["train_source"],
        "target": data["train_target"],
        "class": data["class_names"][data["train_target"]],
        "group": data["train_group"],
        "num_times_selected": recorded.num_times_selected,
        "num_times_scored": recorded.num_times_scored,
        "mean_score": recorded.mean_score,
    }
    if "group_names" in data:
        columns["group_name"] = data["group_names"][data["train_group"]]
    if "train_is_corrupted" in data:
        columns["is_corrupted"] = data["train_is_corrupted"]
    if losses is not None:
        columns |= {"model_loss": losses[0].numpy(), "irreducible_loss": losses[1].numpy()}
    arrays = {name: column[chosen] for name, column in columns.items()}
    table = pa.table(
        {name: pa.array(array.tolist() if array.dtype.kind == "U" else array) for name, array in arrays.items()}
    )
    parquet.write_table(table.replace_schema_metadata({"reducr": json.dumps(settings)}), path)


def _write_data(
    folder: Path, recorded: _Recorded, datamodule: DataModule, chosen: Counts, options: ExportOptions
) -> tuple[dict[str, Any], list[str]]:
    """Write the reduced data set, if the data module can; the options that read it, and notes."""
    if not isinstance(datamodule, WritesParts):
        if options.is_linked:
            raise ValueError("--link changes nothing: no images are written for this data set. Leave it out.")
        return {}, ["This data set has no files to write again: index and source say which points to keep."]
    _checked_data(recorded, datamodule, recorded.seeds[0])
    data = recorded.data
    sources = {part: data[f"{part}_source"] for part in PARTS} | {"train": data["train_source"][chosen]}
    places = {part: datamodule.places(torch.from_numpy(source)).sort().values for part, source in sources.items()}
    written = datamodule.write_parts(places, folder, is_linked=options.is_linked)
    changes = [
        f"datamodule.{name}.{part}"
        for name in ("label_noise", "input_noise")
        for part in PARTS
        if getattr(datamodule, name)[part] is not None
    ]
    notes = []
    if changes:
        notes.append(
            f"The data set has labels and inputs as they were read, without {' and '.join(changes)} of the run."
        )
    return written, notes


def _checked_data(recorded: _Recorded, datamodule: DataModule, seed: int) -> SeedData:
    """The data of a seed, which is still that of the run."""
    data = SeedData.of(datamodule, seed)
    check_same_data(recorded.run / f"seed_{seed}" / "data.npz", recorded_arrays(data.splits))
    return data


def _mean_losses(recorded: _Recorded, config: DictConfig, datamodule: DataModule) -> tuple[Tensor, Tensor]:
    """Over the seeds."""
    of_seeds = [
        losses_at_the_end(
            config,
            _checked_data(recorded, datamodule, seed),
            seed_folder=recorded.run / f"seed_{seed}",
            method=recorded.method,
        )
        for seed in recorded.seeds
    ]
    model_losses, irreducible_losses = zip(*of_seeds, strict=True)
    return torch.stack(model_losses).mean(dim=0), torch.stack(irreducible_losses).mean(dim=0)


def _method_of(run: Path, config: DictConfig, given: str | None) -> str:
    """The method whose selection is exported."""
    selecting = sorted({path.parent.name for path in run.glob("seed_*/*/selected.npz")})
    if not selecting:
        raise ValueError(f"no method of {run} has selected points yet, or none selects any. Give a run that has.")
    if given is None:
        given = _DEFAULT_METHOD if _DEFAULT_METHOD in selecting else selecting[0]
        if given != _DEFAULT_METHOD and len(selecting) > 1:
            raise ValueError(f"say which method's points: --method {' or '.join(selecting)}.")
    method = METHOD_ALIASES.get(given, given)
    if method not in selecting:
        raise unknown_name(f"method with selected points in {run}:", given, selecting)
    if config.methods[method].train_on != "train":
        raise ValueError(
            f"{method!r} selects from the holdout part too, which is not to be downsampled. Choose another --method."
        )
    return method


def _seeds_with(run: Path, method: str) -> list[int]:
    return sorted(int(path.parents[1].name.removeprefix("seed_")) for path in run.glob(f"seed_*/{method}/selected.npz"))


def _selected_file(run: Path, seed: int, method: str) -> Path:
    return run / f"seed_{seed}" / method / "selected.npz"


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    with np.load(path) as file:
        return dict(file)


def _has_same_training_part(one: Mapping[str, NDArray[Any]], other: Mapping[str, NDArray[Any]]) -> bool:
    return all(np.array_equal(one[name], other[name]) for name in ("train_source", "train_target", "train_group"))


def _by_number(quota_of_class: Mapping[str, int], class_names: Sequence[str]) -> dict[int, int]:
    for name in quota_of_class:
        if name not in class_names:
            raise unknown_name("class", name, class_names, of="--quota")
    return {class_names.index(name): count for name, count in quota_of_class.items()}


def _from(folder: Path, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options with the folder in the place of the ``.`` that it is written as."""
    return {name: str(folder) if value == "." else value for name, value in options.items()}


def _check_out(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not empty; an export is never overwritten. Choose another --out.")
