"""How often a run selected each training example and how it scored them, summed over seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from reducr._internal.names import unknown_name
from reducr._internal.reading import read_arrays
from reducr.exports.choice import Counts
from reducr.pipeline.stored_run import StoredRun

_DEFAULT_METHOD = "reducr"
_SUMMED_ARRAYS = ("num_times_selected", "num_times_scored", "score_sum")


@dataclass(frozen=True)
class SelectionRecord:
    """What one method of a run recorded about the N training examples, summed over seeds with the same training part.

    Args:
        method: the method's name in the run.
        seeds: the seeds summed over.
        data: arrays of ``data.npz`` of the first seed.
        num_times_selected: (N,) counts.
        num_times_scored: (N,) steps at which the example was a candidate with a finite score.
        score_sum: (N,) sum of these scores.
        notes: messages for the user.
    """

    method: str
    seeds: tuple[int, ...]
    data: Mapping[str, NDArray[Any]]
    num_times_selected: Counts
    num_times_scored: Counts
    score_sum: NDArray[np.float64]
    notes: tuple[str, ...]

    @classmethod
    def read(cls, run: StoredRun, *, method: str | None, seeds: Sequence[int] | None) -> SelectionRecord:
        """Read ``selected.npz`` and ``data.npz`` of the seeds.

        Args:
            run: the run folder.
            method: a method of the run; None for ``reducr``, or for the only method that selects.
            seeds: seeds with the same training part; None for all that share the training part of the first.

        Raises:
            ValueError: if the run has no such method or seed, if the seeds have different training parts, or if an
                earlier version wrote the files.
        """
        method = _method_name(run, method)
        seeds, data, notes = _seeds_with_one_training_part(run, method, seeds)
        files = [_selected_file(run.folder, seed, method) for seed in seeds]
        arrays = [_arrays(file, "num_times_selected") for file in files]
        if "score_sum" not in arrays[0]:
            raise ValueError(f"{files[0]} has no scores: an earlier version wrote it. Make the run again.")
        sums = {name: np.sum([one_seed[name] for one_seed in arrays], axis=0) for name in _SUMMED_ARRAYS}
        return cls(method=method, seeds=tuple(seeds), data=data, notes=notes, **sums)

    @property
    def class_names(self) -> list[str]:
        """Names of the C classes."""
        return [str(name) for name in self.data["class_names"]]

    @property
    def mean_score(self) -> NDArray[np.float64]:
        """(N,) mean score; NaN for an example that was never scored."""
        is_scored = self.num_times_scored > 0
        return np.where(is_scored, self.score_sum / np.maximum(self.num_times_scored, 1), np.nan)


def _method_name(run: StoredRun, name: str | None) -> str:
    """The method to export.

    Raises:
        ValueError: if no method, or not this one, has selected examples, or if it selects from the holdout set.
    """
    selecting = sorted({path.parent.name for path in run.folder.glob("seed_*/*/selected.npz")})
    if not selecting:
        raise ValueError(f"No method in {run.folder} has selected any examples. Give a run with a selection method.")
    if name is None:
        if _DEFAULT_METHOD not in selecting and len(selecting) > 1:
            raise ValueError(f"The run has several methods. Set `--method` to {' or '.join(selecting)}.")
        name = _DEFAULT_METHOD if _DEFAULT_METHOD in selecting else selecting[0]
    method = run.method_name(name)
    if method not in selecting:
        raise unknown_name("method", name, selecting, of=str(run.folder))
    if run.train_on(method) != "train":
        raise ValueError(
            f"{method!r} selects from the holdout part too, which an export leaves whole. Choose another `--method`."
        )
    return method


def _seeds_with_one_training_part(
    run: StoredRun, method: str, seeds: Sequence[int] | None
) -> tuple[list[int], dict[str, NDArray[Any]], tuple[str, ...]]:
    """The seeds to sum over, the arrays of ``data.npz`` of the first, and notes on seeds that are left out."""
    known = sorted(
        int(path.parents[1].name.removeprefix("seed_")) for path in run.folder.glob(f"seed_*/{method}/selected.npz")
    )
    for seed in seeds or ():
        if seed not in known:
            raise unknown_name("seed", str(seed), map(str, known), of=method)
    wanted = list(dict.fromkeys(known if seeds is None else seeds))
    if not wanted:
        raise ValueError("`--seeds` must name at least one seed.")
    names = ("class_names", "train_source", "train_target", "train_group")
    data = {seed: _arrays(run.folder / f"seed_{seed}" / "data.npz", *names) for seed in wanted}
    first = data[wanted[0]]
    others = [seed for seed in wanted if not _has_same_training_part(first, data[seed])]
    if not others:
        return wanted, first, ()
    if seeds is not None:
        raise ValueError(
            f"Seeds {wanted[0]} and {others[0]} have different training parts, because splits, imbalance or noise are "
            f"drawn by seed. Export one of them, for instance with `--seeds {wanted[0]}`."
        )
    kept = [seed for seed in wanted if seed not in others]
    note = f"Counted seed {_listed(kept)} only: seed {_listed(others)} drew a different training part."
    return kept, first, (note,)


def _listed(seeds: Sequence[int]) -> str:
    return ", ".join(map(str, seeds))


def _selected_file(run: Path, seed: int, method: str) -> Path:
    return run / f"seed_{seed}" / method / "selected.npz"


def _arrays(path: Path, *names: str) -> dict[str, NDArray[Any]]:
    return read_arrays(path, names=names)


def _has_same_training_part(first: Mapping[str, NDArray[Any]], second: Mapping[str, NDArray[Any]]) -> bool:
    return all(np.array_equal(first[name], second[name]) for name in ("train_source", "train_target", "train_group"))
