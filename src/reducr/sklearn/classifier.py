"""A classifier that leaves mislabelled rows out, around any scikit-learn classifier that takes sample weights."""

from __future__ import annotations

import warnings
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, MetaEstimatorMixin, clone
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import StratifiedKFold
from sklearn.pipeline import Pipeline
from sklearn.utils import _safe_indexing, check_random_state
from sklearn.utils.validation import check_is_fitted, has_fit_parameter

from reducr.functional.offsets import group_accuracy
from reducr.sklearn.rows import Rows, check_clean_rows, disagreement, most_believed, stacked, told
from reducr.training.calibration import LogitAdjustment, adjustment_of

_SMALLEST = 1e-12
_ROUNDING = 1e-9


class RobustClassifier(MetaEstimatorMixin, ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn is untyped
    """Train a classifier on noisy labels so that the worst class does well, with a few clean rows as the judge.

    A reference is fitted on the clean rows. The *belief* in a row is the probability that the reference gives to its
    label. Of every class as many rows are left out as the reference disagrees with, those believed least; then the
    classifier is fitted on the rest and the clean rows, every class (or group) with the same total weight, judges the
    rows again, and is fitted again. Of the n_k rows of class k, with the disagreement d_k::

        d_k = mean_i [ argmax p_ref(x_i) != k ],    kept_k = ceil( n_k max(1 - f d_k, least_kept) )

    The factor f is 0, 0.5, 1 or 1.5: the one with the best sum of worst and mean accuracy on clean rows that neither
    reference nor classifier saw (cross-fitting), among those that do not lower the mean. With f = 0, every row is kept:
    where nothing is gained by leaving rows out, none is left out. At last one offset per class is fitted to the
    cross-fitted predictions for the clean rows, if that gains more than their standard error (see
    ``reducr.fit_logit_adjustment``).

    Without clean rows, the beliefs are out-of-fold probabilities of the classifier itself and f is ``factors[1]``. What
    labels mean, how many are wrong and what is gained cannot be known then, and a warning says so.

    Args:
        estimator: a classifier with ``predict_proba`` whose ``fit`` takes ``sample_weight``, or a Pipeline that ends in
            one; None for ``LogisticRegression(max_iter=1000)``. It is cloned.
        factors: the factors that are tried, ascending from 0.
        num_rounds: times that the fitted classifier judges the rows again.
        least_kept: fraction of each class that is always kept, in (0, 1].
        adjusts: whether to fit offsets of the classes.
        num_folds: of the cross-fitting; fewer if a class has fewer clean rows.
        random_state: of the folds.

    Attributes:
        classes_: labels, sorted.
        estimator_: the classifier in the end.
        reference_: the classifier of the clean rows; None without them.
        belief_: (n,) probability of each row's own label, by the last judge.
        selected_: (n,) bool, the rows that ``estimator_`` was fitted on.
        suspects_: indices of the rows that were left out, the least believed first.
        factor_: f.
        scores_: for each factor, the cross-fitted accuracy (G,) of the groups on the clean rows; empty without them.
        adjustment_: ``LogitAdjustment`` of the classes; None if there is none.
        summary_: what was done and what it gained, in words.

    Example:
        >>> from sklearn.datasets import make_blobs
        >>> X, y = make_blobs(600, centers=3, cluster_std=1.0, random_state=0)
        >>> noisy = np.where(np.arange(600) % 4 == 0, (y + 1) % 3, y)
        >>> classifier = RobustClassifier().fit(X[150:], noisy[150:], holdout=(X[:150], y[:150]))
        >>> bool(classifier.score(X, y) > 0.9), len(classifier.suspects_) == 450 - int(classifier.selected_.sum())
        (True, True)

    Source: selection by the belief of a model of clean rows, as CLIPCleaner (arXiv 2408.10012) and confident learning
    (arXiv 1911.00068); quotas by class and the clean judge of REDUCR (arXiv 2312.00486).
    """

    def __init__(
        self,
        estimator: Any = None,
        *,
        factors: tuple[float, ...] = (0.0, 0.5, 1.0, 1.5),
        num_rounds: int = 1,
        least_kept: float = 0.1,
        adjusts: bool = True,
        num_folds: int = 3,
        random_state: Any = None,
    ) -> None:
        self.estimator = estimator
        self.factors = factors
        self.num_rounds = num_rounds
        self.least_kept = least_kept
        self.adjusts = adjusts
        self.num_folds = num_folds
        self.random_state = random_state

    def fit(self, X: Any, y: Any, *, holdout: tuple[Any, ...] | None = None, groups: Any = None) -> RobustClassifier:  # noqa: N803
        """Fit on rows with noisy labels, and on the clean ones.

        Args:
            X: n rows: an array, a sparse matrix, a data frame, or whatever ``estimator`` takes.
            y: (n,) labels, some of which may be wrong.
            holdout: ``(X_clean, y_clean)``, rows whose labels are right, with every class of ``y``; with ``groups``
                ``(X_clean, y_clean, groups_clean)``. None for no clean rows.
            groups: (n,) group of each row, whose worst member matters; None for the classes.

        Raises:
            ValueError: for options out of range, lengths that differ, or a class or group without a clean row.
            TypeError: for an estimator without ``predict_proba``, or whose ``fit`` takes no ``sample_weight``.
        """
        self._check_options()
        rows = Rows.of(X, y, groups)
        clean = None if holdout is None else Rows.of_holdout(holdout, has_groups=groups is not None)
        labels = [rows.labels] if clean is None else [rows.labels, clean.labels]
        self.classes_ = np.unique(np.concatenate(labels))
        if len(self.classes_) < 2:
            raise ValueError(f"Classification needs two classes or more; y has 1 class, {self.classes_[0]!r}.")
        groups_ = [part.groups for part in (rows, clean) if part is not None]
        names = self.classes_ if groups is None else np.unique(np.concatenate(groups_))
        rows, clean = rows.encoded(self.classes_, names), None if clean is None else clean.encoded(self.classes_, names)
        if clean is not None:
            check_clean_rows(clean, rows, self.classes_, names)
        self._seed = check_random_state(self.random_state).randint(2**31)
        self._num_classes, self._num_groups = len(self.classes_), len(names)
        self._fit(rows, clean)
        self._describe(rows, clean, names)
        if hasattr(self.estimator_, "n_features_in_"):
            self.n_features_in_ = self.estimator_.n_features_in_
        if hasattr(self.estimator_, "feature_names_in_"):
            self.feature_names_in_ = self.estimator_.feature_names_in_
        return self

    def predict_proba(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the probability (n, C) of each class, adjusted if ``adjustment_`` is."""
        check_is_fitted(self, "estimator_")
        probabilities = self._probabilities(self.estimator_, X)
        if self.adjustment_ is None:
            return probabilities
        adjusted = probabilities * np.exp(self.adjustment_.offsets.double().numpy())
        return np.asarray(adjusted / adjusted.sum(axis=1, keepdims=True))

    def predict(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return the most probable label (n,) of each row."""
        check_is_fitted(self, "estimator_")
        return np.asarray(self.classes_[self.predict_proba(X).argmax(axis=1)])

    def decision_function(self, X: Any) -> np.ndarray:  # noqa: N803
        """Return log-probabilities (n, C); for two classes, (n,) the logarithm of the odds of the second."""
        logs = np.log(self.predict_proba(X) + _SMALLEST)
        return logs[:, 1] - logs[:, 0] if self._num_classes == 2 else logs

    # ---- the recipe

    def _fit(self, rows: Rows, clean: Rows | None) -> None:
        self.scores_: dict[float, np.ndarray] = {}
        self.reference_, self.adjustment_ = None, None
        if clean is None:
            warnings.warn(
                "RobustClassifier has no clean rows (`holdout`): which labels are wrong is judged by the classifier "
                "itself, and what that gains cannot be known. Label some rows of every class with care, and pass them.",
                UserWarning,
                stacklevel=3,
            )
            self.factor_ = self.factors[min(1, len(self.factors) - 1)]
            judged = self._out_of_fold(rows)
            self.estimator_, judged, self.selected_ = self._select_and_fit(rows, None, judged, self.factor_)
        else:
            predictions = self._cross_fitted(rows, clean)
            accuracy = {factor: self._accuracy(p, clean) for factor, p in predictions.items()}
            self.scores_ = accuracy
            self.factor_ = _best_factor(accuracy)
            self.reference_ = self._fitted(None, clean)
            judged = self._probabilities(self.reference_, rows.inputs)
            self.estimator_, judged, self.selected_ = self._select_and_fit(rows, clean, judged, self.factor_)
            self.adjustment_ = self._adjustment(predictions[self.factor_], clean)
        self.belief_ = judged[np.arange(len(rows.labels)), rows.labels]
        left_out = np.flatnonzero(~self.selected_)
        self.suspects_ = left_out[np.argsort(self.belief_[left_out], kind="stable")]

    def _cross_fitted(self, rows: Rows, clean: Rows) -> dict[float, np.ndarray]:
        """For each factor, the probabilities (m, C) of clean rows by classifiers that did not see them."""
        shape = (len(clean.labels), self._num_classes)
        predictions = {factor: np.zeros(shape) for factor in self.factors}
        for seen, held_out in self._folds(clean):
            part = clean.take(seen)
            judged = self._probabilities(self._fitted(None, part), rows.inputs)
            inputs = _safe_indexing(clean.inputs, held_out)
            for factor in self.factors:
                fitted, _, _ = self._select_and_fit(rows, part, judged, factor, num_rounds=0)
                predictions[factor][held_out] = self._probabilities(fitted, inputs)
        return predictions

    def _select_and_fit(
        self, rows: Rows, clean: Rows | None, judged: np.ndarray, factor: float, num_rounds: int | None = None
    ) -> tuple[Any, np.ndarray, np.ndarray]:
        """Return the classifier of the rows that ``judged`` (n, C) believes, its own judgement, and the rows (n,)."""
        rounds = self.num_rounds if num_rounds is None else num_rounds
        share = factor * disagreement(judged, rows)
        for number in range(rounds + 1):
            selected = most_believed(judged, rows, share, self.least_kept)
            fitted = self._fitted(rows.take(np.flatnonzero(selected)), clean)
            if number < rounds or num_rounds is None:
                judged = self._probabilities(fitted, rows.inputs)
        return fitted, judged, selected

    def _out_of_fold(self, rows: Rows) -> np.ndarray:
        judged = np.zeros((len(rows.labels), self._num_classes))
        judged[np.arange(len(rows.labels)), rows.labels] = 1.0
        for seen, held_out in self._folds(rows):
            fitted = self._fitted(None, rows.take(seen))
            judged[held_out] = self._probabilities(fitted, _safe_indexing(rows.inputs, held_out))
        return judged

    def _folds(self, rows: Rows) -> list[tuple[np.ndarray, np.ndarray]]:
        fewest = int(np.bincount(rows.labels)[np.unique(rows.labels)].min())
        num_folds = min(self.num_folds, fewest)
        if num_folds < 2:
            everything = np.arange(len(rows.labels))
            return [(everything, everything)]
        folds = StratifiedKFold(num_folds, shuffle=True, random_state=self._seed)
        return list(folds.split(np.zeros(len(rows.labels)), rows.labels))

    def _adjustment(self, predictions: np.ndarray, clean: Rows) -> LogitAdjustment | None:
        if not self.adjusts:
            return None
        logits = torch.from_numpy(np.log(predictions + _SMALLEST))
        groups = None if clean.groups is clean.labels else torch.from_numpy(clean.groups)
        adjustment = adjustment_of(logits, torch.from_numpy(clean.labels), groups, seed=self._seed, few_examples=0)
        return adjustment if adjustment.share else None

    def _accuracy(self, probabilities: np.ndarray, clean: Rows) -> np.ndarray:
        predicted, labels, groups = map(torch.from_numpy, (probabilities.argmax(axis=1), clean.labels, clean.groups))
        return np.asarray(group_accuracy(predicted, labels, groups, self._num_groups))

    # ---- the classifier

    def _base(self) -> Any:
        return LogisticRegression(max_iter=1000) if self.estimator is None else self.estimator

    def _fitted(self, rows: Rows | None, clean: Rows | None) -> Any:
        """A new classifier, fitted on the rows and the clean rows, every group with the same total weight."""
        parts = [part for part in (rows, clean) if part is not None and len(part.labels)]
        inputs = stacked([part.inputs for part in parts])
        labels, groups = (np.concatenate([getattr(part, name) for part in parts]) for name in ("labels", "groups"))
        counts = np.bincount(groups)
        weights = len(groups) / (np.count_nonzero(counts) * counts[groups])
        fitted = clone(self._base())
        if isinstance(fitted, Pipeline):
            return fitted.fit(inputs, self.classes_[labels], **{f"{fitted.steps[-1][0]}__sample_weight": weights})
        return fitted.fit(inputs, self.classes_[labels], sample_weight=weights)

    def _probabilities(self, fitted: Any, inputs: Any) -> np.ndarray:
        """(n, C) probabilities in the order of ``classes_``; 0 for a class that ``fitted`` never saw."""
        given = fitted.predict_proba(inputs)
        probabilities = np.zeros((len(given), self._num_classes))
        probabilities[:, np.searchsorted(self.classes_, fitted.classes_)] = given
        return probabilities

    # ---- checks and words

    def _check_options(self) -> None:
        base = self._base()
        last = base.steps[-1][1] if isinstance(base, Pipeline) else base
        if not hasattr(last, "predict_proba") or not has_fit_parameter(last, "sample_weight"):
            raise TypeError(
                f"`estimator` must have predict_proba, and a fit that takes sample_weight; got {type(last).__name__}. "
                "Use for instance LogisticRegression, HistGradientBoostingClassifier, or a Pipeline that ends in one."
            )
        factors = tuple(self.factors)
        if not factors or factors[0] != 0 or any(b <= a for a, b in pairwise(factors)):
            raise ValueError(f"`factors` must ascend from 0, which keeps every row; got {self.factors!r}.")
        if not 0 < self.least_kept <= 1:
            raise ValueError(f"`least_kept` must be in (0, 1], a fraction of each class; got {self.least_kept!r}.")
        for name, least in (("num_rounds", 0), ("num_folds", 2)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
                raise ValueError(f"`{name}` must be a whole number of at least {least}; got {value!r}.")

    def _describe(self, rows: Rows, clean: Rows | None, names: np.ndarray) -> None:
        size, num_left_out = len(rows.labels), len(self.suspects_)
        if clean is None:
            gain = "What that gains cannot be known without clean rows."
        else:
            before, after = self.scores_[0.0], self.scores_[self.factor_]
            lines = f"{told(before, names)} with all rows, {told(after, names)} as selected"
            if self.adjustment_ is not None:
                lines += f", {told(self.adjustment_.after.numpy(), names)} with offsets of the classes"
            gain = f"On {len(clean.labels)} clean rows, cross-fitted: {lines}."
        if not num_left_out:
            self.summary_ = f"Nothing is gained by leaving rows out: all {size} rows are used. {gain}"
            return
        kept = np.bincount(rows.labels[self.selected_], minlength=self._num_classes)
        shares = np.bincount(rows.labels, minlength=self._num_classes) - kept
        by_class = ", ".join(f"{name}: {number}" for name, number in zip(self.classes_, shares, strict=True))
        self.summary_ = f"Left out {num_left_out} of {size} rows as mislabelled ({by_class}). {gain}"

    def __sklearn_tags__(self) -> Any:
        tags, base = super().__sklearn_tags__(), self._base()
        if hasattr(base, "__sklearn_tags__"):
            tags.input_tags = base.__sklearn_tags__().input_tags
        return tags


def _best_factor(accuracy: dict[float, np.ndarray]) -> float:
    """The factor of the best worst and mean accuracy (G,) together, among those that do not lower the mean."""
    mean = {factor: float(values.mean()) for factor, values in accuracy.items()}
    harmless = [factor for factor in accuracy if mean[factor] >= mean[0.0] - _ROUNDING]
    return max(harmless, key=lambda factor: round(float(accuracy[factor].min()) + mean[factor], 9))
