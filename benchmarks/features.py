"""Frozen features and a linear head: ``RobustClassifier`` beside what else one would do with noisy labels.

    python -m benchmarks.features --data-dir DIR                    run everything and print the table
    python -m benchmarks.features --data-dir DIR --clean-rows 50 --draws 1        run a part of it

DIR contains noisy_ag_news: 10,000 news texts whose labels people gave, a fifth of them wrong, with the true labels and
384 features of a sentence encoder. A draw takes some rows of every class, with their true labels, as the clean ones.
All methods use the same standardised features and logistic regression. The test rows are clean. ``cleanlab`` is needed
for its row: ``pip install cleanlab``.
"""

from __future__ import annotations

import argparse
import gzip
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import pandas as pd
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from reducr.sklearn import RobustClassifier

SETTINGS = {
    "labels by people": {},
    "... class 3 thinned to a tenth": {"thinned": True},
    "30 % of the labels drawn uniformly": {"labels": "uniform"},
    "true labels": {"labels": "true"},
}
NUM_CLASSES, RARE = 4, 3


class Rows:
    """The rows of one draw: noisy ones, clean ones, and the test rows."""

    def __init__(
        self, folder: Path, *, draw: int, clean_rows: int, labels: str = "people", thinned: bool = False
    ) -> None:
        features = np.load(folder / "e5_features.npz")
        tables = []
        for name in ("train_medium", "test"):
            with gzip.open(folder / f"{name}.csv.gz", "rt", encoding="utf-8") as file:
                tables.append(pd.read_csv(file))
        random = np.random.RandomState(draw)
        x, true, shown = features["train"].astype(np.float32), tables[0]["gt"].to_numpy(), tables[0]["label"].to_numpy()
        clean = np.concatenate([random.permutation(np.flatnonzero(true == k))[:clean_rows] for k in range(NUM_CLASSES)])
        if labels == "uniform":
            shown = np.where(random.rand(len(true)) < 0.3, random.randint(0, NUM_CLASSES, len(true)), true)
        elif labels == "true":
            shown = true
        noisy = np.setdiff1d(np.arange(len(true)), clean)
        if thinned:
            rare = noisy[shown[noisy] == RARE]
            noisy = np.union1d(noisy[shown[noisy] != RARE], random.permutation(rare)[: len(rare) // 10])
        self.x, self.y, self.true = x[noisy], shown[noisy], true[noisy]
        self.x_clean, self.y_clean = x[clean], true[clean]
        self.x_test, self.y_test = features["test_even_rows"].astype(np.float32), tables[1]["gt"].to_numpy()[::2]

    def with_clean(self, labels: np.ndarray, kept: np.ndarray | slice = slice(None)) -> tuple[np.ndarray, np.ndarray]:
        """The kept noisy rows and the clean ones."""
        return np.concatenate([self.x[kept], self.x_clean]), np.concatenate([labels[kept], self.y_clean])

    def accuracy(self, classifier: Any) -> tuple[float, float]:
        """Worst and mean accuracy of the classes on the test rows."""
        predicted = classifier.predict(self.x_test)
        by_class = [float((predicted[self.y_test == k] == k).mean()) for k in range(NUM_CLASSES)]
        return min(by_class), fmean(by_class)


def linear() -> Any:
    """The classifier that all methods use."""
    head = LogisticRegression(C=0.01, max_iter=200, tol=1e-3, class_weight="balanced")
    return make_pipeline(StandardScaler(), head)


def cleanlab(rows: Rows) -> Any:
    """Drop what confident learning finds mislabelled, by five-fold probabilities; the clean rows are added."""
    from cleanlab.filter import find_label_issues

    x, y = rows.with_clean(rows.y)
    probabilities = cross_val_predict(linear(), x, y, cv=5, method="predict_proba")
    is_issue = find_label_issues(y, probabilities, n_jobs=1)
    is_issue[len(rows.y) :] = False
    return linear().fit(x[~is_issue], y[~is_issue])


def robust(rows: Rows) -> Any:
    """The recipe of this package."""
    base = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=200, tol=1e-3))
    return RobustClassifier(base, random_state=0).fit(rows.x, rows.y, holdout=(rows.x_clean, rows.y_clean))


METHODS: dict[str, Callable[[Rows], Any]] = {
    "the clean rows alone": lambda rows: linear().fit(rows.x_clean, rows.y_clean),
    "all rows, class weights": lambda rows: linear().fit(*rows.with_clean(rows.y)),
    "cleanlab, class weights": cleanlab,
    "RobustClassifier": robust,
    "*all rows with their true labels*": lambda rows: linear().fit(*rows.with_clean(rows.true)),
}


def table(folder: Path, clean_rows: list[int], draws: int) -> Iterator[str]:
    """The lines of the Markdown table."""
    names = [name for name in METHODS if find_spec("cleanlab") or not name.startswith("cleanlab")]
    yield "| labels | clean rows a class | " + " | ".join(names) + " |"
    yield "|---|---|" + "---|" * len(names)
    seconds = defaultdict(list)
    for setting, options in SETTINGS.items():
        for number in clean_rows:
            figures = defaultdict(list)
            for draw in range(draws):
                rows = Rows(folder, draw=draw, clean_rows=number, **options)
                for name in names:
                    started = time.process_time()
                    classifier = METHODS[name](rows)
                    seconds[name].append(time.process_time() - started)
                    figures[name].append(rows.accuracy(classifier))
            yield f"| {setting} | {number} | " + " | ".join(_told(figures[name]) for name in names) + " |"
    yield "| *processor seconds* | | " + " | ".join(f"{fmean(seconds[name]):.1f}" for name in names) + " |"


def _told(figures: list[tuple[float, float]]) -> str:
    worst, mean = zip(*figures, strict=True)
    spread = f" ± {stdev(worst):.3f}" if len(worst) > 1 else ""
    return f"{fmean(worst):.3f}{spread} / {fmean(mean):.3f}"


def main(arguments: list[str] | None = None) -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--clean-rows", type=int, nargs="+", default=[10, 50, 200])
    parser.add_argument("--draws", type=int, default=3)
    parsed = parser.parse_args(arguments)
    for line in table(parsed.data_dir / "noisy_ag_news", parsed.clean_rows, parsed.draws):
        print(line, flush=True)


if __name__ == "__main__":
    main()
