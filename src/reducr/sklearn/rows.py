"""Rows with labels and groups, in whatever a scikit-learn classifier takes, and which of them to keep."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.sparse
from sklearn.utils import _safe_indexing
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import _num_samples, column_or_1d, indexable


@dataclass(frozen=True)
class Rows:
    """Rows of features with their labels and groups.

    Args:
        inputs: n rows.
        labels: (n,), as given, or encoded as integers.
        groups: (n,), likewise; the same array as ``labels`` if the groups are the classes.
    """

    inputs: Any
    labels: np.ndarray
    groups: np.ndarray

    @classmethod
    def of(cls, inputs: Any, labels: Any, groups: Any = None) -> Rows:
        """Check lengths and labels.

        Raises:
            ValueError: for lengths that differ, no rows, or labels that are not classes.
        """
        if labels is None:
            raise ValueError("RobustClassifier requires y to be passed, but the target y is None.")
        inputs, labels, groups = indexable(inputs, labels, groups)
        if not _num_samples(inputs):
            raise ValueError("There are no rows to fit: X has 0 samples, and a minimum of 1 is required.")
        labels = column_or_1d(labels, warn=True)
        check_classification_targets(labels)
        return cls(inputs, labels, labels if groups is None else column_or_1d(groups))

    @classmethod
    def of_holdout(cls, holdout: Any, *, has_groups: bool) -> Rows:
        """Check the tuple of clean rows.

        Raises:
            ValueError: for anything but (X_clean, y_clean), or (X_clean, y_clean, groups_clean) with groups.
        """
        wanted = "(X_clean, y_clean, groups_clean)" if has_groups else "(X_clean, y_clean)"
        size = 3 if has_groups else 2
        if not isinstance(holdout, tuple | list) or len(holdout) != size:
            given = f"{len(holdout)} parts" if isinstance(holdout, tuple | list) else type(holdout).__name__
            reason = " with `groups`" if has_groups else ""
            raise ValueError(f"`holdout` must be a tuple {wanted}{reason}; got {given}.")
        return cls.of(*holdout)

    def encoded(self, classes: np.ndarray, names: np.ndarray) -> Rows:
        """Return the rows with labels and groups as positions in ``classes`` and ``names``."""
        labels = np.searchsorted(classes, self.labels)
        groups = labels if self.groups is self.labels else np.searchsorted(names, self.groups)
        return Rows(self.inputs, labels, groups)

    def take(self, positions: np.ndarray) -> Rows:
        """Return the rows at ``positions``."""
        labels = self.labels[positions]
        groups = labels if self.groups is self.labels else self.groups[positions]
        return Rows(_safe_indexing(self.inputs, positions), labels, groups)


def stacked(parts: Sequence[Any]) -> Any:
    """Join rows of several sources: arrays, sparse matrices, data frames or lists."""
    first = parts[0]
    if len(parts) == 1:
        return first
    if any(scipy.sparse.issparse(part) for part in parts):
        return scipy.sparse.vstack(parts, format="csr")
    if hasattr(first, "iloc"):
        import pandas as pd

        return pd.concat(parts, ignore_index=True)
    if isinstance(first, list):
        return [row for part in parts for row in part]
    return np.concatenate([np.asarray(part) for part in parts])


def disagreement(judged: np.ndarray, rows: Rows) -> np.ndarray:
    """Fraction (C,) of the rows of every class that the judge's ``judged`` (n, C) probabilities give another class."""
    is_other = judged.argmax(axis=1) != rows.labels
    counts = np.bincount(rows.labels, minlength=judged.shape[1])
    others: np.ndarray = np.bincount(rows.labels, weights=is_other, minlength=judged.shape[1])
    return others / np.maximum(counts, 1)


def most_believed(judged: np.ndarray, rows: Rows, share: np.ndarray, least_kept: float) -> np.ndarray:
    """Rows (n,) bool that are kept: of every class all but the ``share`` (C,) that is believed least."""
    belief = judged[np.arange(len(rows.labels)), rows.labels]
    is_kept = np.zeros(len(rows.labels), dtype=bool)
    for label in np.unique(rows.labels):
        members = np.flatnonzero(rows.labels == label)
        kept = max(1 - share[label], least_kept) * len(members)
        most = members[np.argsort(-belief[members], kind="stable")]
        is_kept[most[: int(np.ceil(kept - 1e-9))]] = True
    return is_kept


def check_clean_rows(clean: Rows, rows: Rows, classes: np.ndarray, names: np.ndarray) -> None:
    """See that every class and group has clean rows to be judged by.

    Raises:
        ValueError: for a class of the noisy rows with fewer than two clean rows, or a group without any; names them.
    """
    counts = np.bincount(clean.labels, minlength=len(classes))
    present = np.union1d(rows.labels, clean.labels)
    few = [f"{classes[label]} ({counts[label]})" for label in present if counts[label] < 2]
    if few:
        raise ValueError(
            f"Every class needs two clean rows or more in `holdout`; too few have {', '.join(few)}. The worst class "
            "would be that of the others. Label some rows of each, or leave these classes out."
        )
    absent = [str(name) for number, name in enumerate(names) if not (clean.groups == number).any()]
    if absent:
        raise ValueError(f"Every group needs a clean row in `holdout`; there is none of {', '.join(absent)}.")


def told(accuracy: np.ndarray, names: np.ndarray) -> str:
    """Return the worst and mean accuracy (G,) in words."""
    return f"worst {accuracy.min():.3f} ({names[int(accuracy.argmin())]}) / mean {accuracy.mean():.3f}"
