"""RobustClassifier: what it keeps, how it decides, what it takes, and that scikit-learn takes it."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from sklearn.datasets import load_digits
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC
from sklearn.utils.estimator_checks import parametrize_with_checks

from reducr.sklearn import RobustClassifier
from reducr.sklearn.rows import Rows, disagreement, most_believed


def scaled(**options):
    return make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500, **options))


class Digits:
    """Scans whose sevens and nines people confuse, and clean ones."""

    def __init__(self):
        x, true = load_digits(return_X_y=True)
        draw = np.random.RandomState(0)
        order = draw.permutation(len(x))
        x, true = x[order], true[order]
        noisy = true.copy()
        for shown, of in ((7, 9), (9, 4), (3, 8)):
            rows = np.flatnonzero(true == of)
            noisy[rows[: len(rows) // 2]] = shown
        self.x, self.y, self.true = x[300:1100], noisy[300:1100], true[300:1100]
        self.holdout = x[:300], true[:300]
        self.test = x[1100:], true[1100:]

    def worst(self, classifier):
        x, y = self.test
        predicted = classifier.predict(x)
        return min(float((predicted[y == k] == k).mean()) for k in range(10))


@pytest.fixture(scope="module")
def digits():
    return Digits()


@pytest.fixture(scope="module")
def fitted(digits):
    return RobustClassifier(scaled(), random_state=0).fit(digits.x, digits.y, holdout=digits.holdout)


def test_the_worst_class_does_better_than_with_all_rows_or_the_clean_ones(digits, fitted):
    rows, labels = np.concatenate([digits.x, digits.holdout[0]]), np.concatenate([digits.y, digits.holdout[1]])
    everything = digits.worst(scaled(class_weight="balanced").fit(rows, labels))
    clean_rows = digits.worst(scaled(class_weight="balanced").fit(*digits.holdout))
    assert digits.worst(fitted) > max(everything, clean_rows) + 0.02
    assert fitted.factor_ > 0


def test_most_rows_that_are_left_out_are_mislabelled(digits, fitted):
    is_wrong = digits.y != digits.true
    assert is_wrong[fitted.suspects_].mean() > 0.6 > 2.5 * is_wrong.mean()
    assert is_wrong[fitted.suspects_].sum() > 0.9 * is_wrong.sum()
    assert is_wrong[fitted.suspects_[:40]].mean() > 0.95
    assert sorted(fitted.suspects_) == np.flatnonzero(~fitted.selected_).tolist()
    assert (np.diff(fitted.belief_[fitted.suspects_]) >= 0).all()


def test_the_summary_says_what_was_left_out_and_gained(digits, fitted):
    assert fitted.summary_.startswith(f"Left out {len(fitted.suspects_)} of 800 rows as mislabelled (0: ")
    before, after = fitted.scores_[0.0], fitted.scores_[fitted.factor_]
    assert f"On 300 clean rows, cross-fitted: worst {before.min():.3f} ({before.argmin()})" in fitted.summary_
    assert f"worst {after.min():.3f} ({after.argmin()}) / mean {after.mean():.3f} as selected" in fitted.summary_


def test_the_formula_of_the_rows_that_are_kept():
    rows = Rows(None, np.array([0, 0, 0, 0, 0, 1, 1]), np.array([0, 0, 0, 0, 0, 1, 1]))
    of_zero = np.array([0.9, 0.4, 0.3, 0.8, 0.7, 0.6, 0.1])
    judged = np.stack([of_zero, 1 - of_zero], axis=1)
    assert disagreement(judged, rows).tolist() == [0.4, 0.5]
    kept = most_believed(judged, rows, disagreement(judged, rows), 0.1)
    assert kept.tolist() == [True, False, False, True, True, False, True]
    assert most_believed(judged, rows, np.array([1.0, 1.0]), 0.3).tolist() == [True, False, False, True] + [
        False
    ] * 2 + [True]
    assert most_believed(judged, rows, np.zeros(2), 0.1).all()


def test_clean_labels_are_left_alone(digits):
    classifier = RobustClassifier(scaled(), random_state=0).fit(digits.x, digits.true, holdout=digits.holdout)
    everything = scaled(class_weight="balanced")
    everything.fit(np.concatenate([digits.x, digits.holdout[0]]), np.concatenate([digits.true, digits.holdout[1]]))
    assert digits.worst(classifier) >= digits.worst(everything) - 0.02
    assert classifier.selected_.all()
    only = RobustClassifier(scaled(), factors=(0.0,), random_state=0).fit(digits.x, digits.true, holdout=digits.holdout)
    assert only.selected_.all()
    assert only.summary_.startswith("Nothing is gained by leaving rows out: all 800 rows are used. On 300 clean rows")


def test_without_clean_rows_it_says_what_it_cannot_know(digits):
    with pytest.warns(UserWarning, match=r"no clean rows \(`holdout`\): which labels are wrong is judged by the class"):
        classifier = RobustClassifier(scaled(), random_state=0).fit(digits.x, digits.y)
    assert classifier.reference_ is None
    assert classifier.factor_ == 0.5
    is_wrong = digits.y != digits.true
    assert is_wrong[classifier.suspects_].mean() > 2 * is_wrong.mean()
    assert classifier.summary_.endswith("What that gains cannot be known without clean rows.")


def test_groups_are_weighted_alike_and_judged_by_the_worst(digits):
    groups = np.where(np.arange(800) % 20 == 0, "rare", "usual")
    clean_groups = np.where(np.arange(300) % 20 == 0, "rare", "usual")
    classifier = RobustClassifier(scaled(), random_state=0)
    classifier.fit(digits.x, digits.y, holdout=(*digits.holdout, clean_groups), groups=groups)
    assert {len(accuracy) for accuracy in classifier.scores_.values()} == {2}
    assert "(rare)" in classifier.summary_ or "(usual)" in classifier.summary_
    with pytest.raises(ValueError, match=r"must be a tuple \(X_clean, y_clean, groups_clean\) with `groups`; got 2"):
        classifier.fit(digits.x, digits.y, holdout=digits.holdout, groups=groups)
    with pytest.raises(ValueError, match="Every group needs a clean row in `holdout`; there is none of rare"):
        classifier.fit(digits.x, digits.y, holdout=(*digits.holdout, ["usual"] * 300), groups=groups)


def test_the_same_seed_gives_the_same_classifier(digits, fitted):
    again = RobustClassifier(scaled(), random_state=0).fit(digits.x, digits.y, holdout=digits.holdout)
    assert np.array_equal(again.suspects_, fitted.suspects_)
    assert np.array_equal(again.predict_proba(digits.test[0]), fitted.predict_proba(digits.test[0]))


def test_offsets_change_the_probabilities(digits):
    """A rare class in the training rows and a plain judge of few: the offsets even the errors out."""
    draw = np.random.RandomState(0)
    x = draw.randn(6000, 2)
    y = (x[:, 0] + draw.randn(6000) > 1.2).astype(int)
    base = LogisticRegression(C=1e-4)  # underfitted, so that one class is favoured
    classifier = RobustClassifier(base, random_state=0).fit(x[:4000], y[:4000], holdout=(x[4000:], y[4000:]))
    plain = classifier.estimator_.predict_proba(x)
    if classifier.adjustment_ is None:
        assert np.allclose(classifier.predict_proba(x), plain)
    else:
        offsets = classifier.adjustment_.offsets.numpy()
        expected = plain * np.exp(offsets)
        assert np.allclose(classifier.predict_proba(x), expected / expected.sum(1, keepdims=True), atol=1e-6)
    never = RobustClassifier(base, adjusts=False, random_state=0).fit(x[:4000], y[:4000], holdout=(x[4000:], y[4000:]))
    assert never.adjustment_ is None
    assert np.allclose(never.predict_proba(x), never.estimator_.predict_proba(x))


# what rows may be


def test_sparse_matrices_and_data_frames_give_what_arrays_give(digits, fitted):
    expected = fitted.predict_proba(digits.test[0])
    frame = RobustClassifier(scaled(), random_state=0)
    frame.fit(pd.DataFrame(digits.x), digits.y, holdout=(pd.DataFrame(digits.holdout[0]), digits.holdout[1]))
    assert np.allclose(frame.predict_proba(pd.DataFrame(digits.test[0])), expected)
    base = LogisticRegression(C=0.0001, max_iter=2000)
    dense, sparse = RobustClassifier(base, random_state=0), RobustClassifier(base, random_state=0)
    dense.fit(digits.x, digits.y, holdout=digits.holdout)
    csr = scipy.sparse.csr_matrix
    sparse.fit(csr(digits.x), digits.y, holdout=(csr(digits.holdout[0]), digits.holdout[1]))
    assert np.allclose(sparse.predict_proba(csr(digits.test[0])), dense.predict_proba(digits.test[0]), atol=1e-3)


def test_texts_go_through_a_pipeline():
    words = {"cat": "purr fur claw milk", "dog": "bark bone leash park", "cow": "moo grass barn milk"}
    draw = np.random.RandomState(0)
    labels = draw.choice(list(words), 300)
    texts = [" ".join(draw.choice(words[label].split(), 3)) for label in labels]
    noisy = np.where(draw.rand(300) < 0.2, draw.choice(list(words), 300), labels)
    base = make_pipeline(TfidfVectorizer(), LogisticRegression())
    classifier = RobustClassifier(base, random_state=0)
    classifier.fit(texts[60:], noisy[60:], holdout=(texts[:60], labels[:60]))
    assert classifier.classes_.tolist() == ["cat", "cow", "dog"]
    assert classifier.score(texts, labels) > 0.95


def test_it_stands_in_a_pipeline_and_in_cross_validation(digits):
    scores = cross_val_score(
        RobustClassifier(scaled(), random_state=0), digits.x, digits.y, cv=2, params={"holdout": digits.holdout}
    )
    assert scores.shape == (2,)
    pipeline = make_pipeline(StandardScaler(), RobustClassifier(LogisticRegression(C=0.01), random_state=0))
    clean = StandardScaler().fit(digits.x).transform(digits.holdout[0])
    pipeline.fit(digits.x, digits.y, robustclassifier__holdout=(clean, digits.holdout[1]))
    assert pipeline.score(*digits.test) > 0.85


def test_faults_are_told(digits):
    x, y = digits.x, digits.y
    lacking = digits.holdout[0][digits.holdout[1] != 3], digits.holdout[1][digits.holdout[1] != 3]
    with pytest.raises(
        ValueError, match=r"Every class needs two clean rows or more in `holdout`; too few have 3 \(0\)"
    ):
        RobustClassifier(scaled()).fit(x, y, holdout=lacking)
    with pytest.raises(ValueError, match=r"`holdout` must be a tuple \(X_clean, y_clean\); got 3 parts"):
        RobustClassifier(scaled()).fit(x, y, holdout=(*digits.holdout, None))
    with pytest.raises(TypeError, match="must have predict_proba, and a fit that takes sample_weight; got LinearSVC"):
        RobustClassifier(LinearSVC()).fit(x, y, holdout=digits.holdout)
    for options, message in (
        ({"factors": (0.5, 1.0)}, "`factors` must ascend from 0"),
        ({"least_kept": 0}, r"`least_kept` must be in \(0, 1\]"),
        ({"num_rounds": -1}, "`num_rounds` must be a whole number of at least 0; got -1"),
        ({"num_folds": 1}, "`num_folds` must be a whole number of at least 2; got 1"),
    ):
        with pytest.raises(ValueError, match=message):
            RobustClassifier(scaled(), **options).fit(x, y, holdout=digits.holdout)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore")
@parametrize_with_checks([RobustClassifier(LogisticRegression(max_iter=500))])
def test_scikit_learn_takes_it(estimator, check):
    check(estimator)
