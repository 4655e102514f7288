"""Galleries of training examples: the most and least selected ones, and those most likely mislabelled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from reducr._internal.reading import read_array, read_json
from reducr.data import RawData
from reducr.reports.comparison import Comparison, Series
from reducr.reports.metrics_log import Floats
from reducr.reports.pictures import Picture, picture_reader
from reducr.reports.run_reader import Training

NUM_SHOWN = 12


class OpenData(Protocol):
    """A function that reads the data of a run again."""

    def __call__(self, run: Path) -> RawData:
        """The data as published, by the run's configuration.

        Raises:
            OSError: if a file is missing.
            ValueError: if the data or the configuration is invalid.
        """


@dataclass(frozen=True)
class Exhibit:
    """A training example in a gallery.

    Args:
        index: its index in the training part.
        label: its label in the training part.
        times_selected: how often it was selected.
        model_loss: loss of the last model, nats; None if not recorded.
        irreducible_loss: nats; None if the run has no table.
        prediction: class that the reference model predicts; None if unknown.
        is_corrupted: None if unknown.
        image: as data URI; None for a text.
        text: None for an image.
    """

    index: int
    label: str
    times_selected: int
    model_loss: float | None
    irreducible_loss: float | None
    prediction: str | None
    is_corrupted: bool | None
    image: str | None
    text: str | None


@dataclass(frozen=True)
class Gallery:
    """A titled list of training examples.

    Args:
        title: what they have in common.
        note: how they were chosen.
        examples: in order.
    """

    title: str
    note: str
    examples: Sequence[Exhibit]


def galleries(comparison: Comparison, open_data: OpenData | None) -> tuple[str, list[Gallery]]:
    """Galleries for the first seed of REDUCR, or else of the first method that selects.

    The data is read again by the run's own configuration.

    Returns:
        A sentence that says where the examples come from, or why there are none; and the galleries.
    """
    series, training = _shown_training(comparison)
    if series is None or training is None:
        return "No method in these runs recorded which examples it selected.", []
    if open_data is None:
        return "The report was written without reading the data, so no examples are shown.", []
    try:
        raw = open_data(training.run)
        picture_of = picture_reader(raw, training)
    except (OSError, ValueError, TypeError, ImportError) as error:
        return f"No examples are shown, because the data could not be read again: {error}", []
    if picture_of is None:
        return "No examples are shown, because the inputs are neither images nor texts.", []
    facts = _Facts.of(training)
    note = (
        f"Training examples of seed {training.seed}, as {series.label} selected them. The number is the index in "
        "selected.npz; the label is the one in the training part, which may be wrong."
    )
    return note, [
        Gallery(title, reason, [facts.exhibit(index, picture_of) for index in indices])
        for title, reason, indices in _chosen_indices(facts)
    ]


def _shown_training(comparison: Comparison) -> tuple[Series | None, Training | None]:
    reducr_first = sorted(comparison.series, key=lambda series: not series.is_reducr)
    for series in reducr_first:
        for training in series.trainings.values():
            if training.times_selected is not None and training.train_on != "holdout":
                return series, training
    return None, None


@dataclass(frozen=True)
class _Facts:
    """What the run recorded about the N training examples; None for what it did not record."""

    class_names: Sequence[str]
    target: NDArray[np.int64]
    times_selected: NDArray[np.int64]
    model_loss: Floats | None
    irreducible_loss: Floats | None
    prediction: NDArray[np.int64] | None
    is_corrupted: NDArray[np.bool_] | None

    @classmethod
    def of(cls, training: Training) -> _Facts:
        data = training.data
        target = data["train_target"]
        size, times, losses = len(target), training.times_selected, training.example_loss
        irreducible_loss, prediction = reference_outputs(training)
        return cls(
            [str(name) for name in data["class_names"]],
            target,
            np.zeros(size, dtype=np.int64) if times is None else times[:size],
            None if losses is None else losses[:size],
            irreducible_loss,
            prediction,
            data.get("train_is_corrupted"),
        )

    def exhibit(self, index: int, picture_of: Callable[[int], Picture]) -> Exhibit:
        image, text = picture_of(index)
        return Exhibit(
            index,
            self.class_names[self.target[index]],
            int(self.times_selected[index]),
            None if self.model_loss is None else float(self.model_loss[index]),
            None if self.irreducible_loss is None else float(self.irreducible_loss[index]),
            None if self.prediction is None else self.class_names[self.prediction[index]],
            None if self.is_corrupted is None else bool(self.is_corrupted[index]),
            image,
            text,
        )


def _chosen_indices(facts: _Facts) -> list[tuple[str, str, list[int]]]:
    """Title, note and indices of each gallery."""
    most = np.argsort(-facts.times_selected, kind="stable")[:NUM_SHOWN].tolist()
    fewest_times = facts.times_selected.min()
    fewest = np.flatnonzero(facts.times_selected == fewest_times)
    spread = fewest[np.linspace(0, len(fewest) - 1, min(NUM_SHOWN, len(fewest))).round().astype(int)].tolist()
    chosen = [
        ("Most selected", "The examples that were selected most often.", most),
        (
            "Least selected",
            f"An evenly spaced sample of the {len(fewest):,} examples that were {selected_text(int(fewest_times))}.",
            spread,
        ),
    ]
    if facts.model_loss is None or facts.irreducible_loss is None:
        return chosen
    suspects = likely_mislabelled(facts.model_loss, facts.irreducible_loss)
    note = (
        "High loss under the last model and high irreducible loss: the label is unlikely both to the model that was "
        "trained on it and to the reference model (the paper's irreducible model), which was trained on clean data. "
        "Examples are ordered by the lower of their two ranks."
    )
    num_corrupted = 0 if facts.is_corrupted is None else int(facts.is_corrupted.sum())
    if facts.is_corrupted is not None and num_corrupted:
        precision = float(facts.is_corrupted[suspects[:num_corrupted]].mean())
        note += (
            f" Among the first {num_corrupted:,} in this order, as many as there are corrupted examples, "
            f"{precision:.0%} are corrupted."
        )
    return [*chosen, ("Most likely mislabelled", note, suspects[:NUM_SHOWN].tolist())]


def selected_text(count: int) -> str:
    """How often an example was selected, in words."""
    return {0: "never selected", 1: "selected once"}.get(count, f"selected {count} times")


def likely_mislabelled(model_loss: Floats, irreducible_loss: Floats) -> NDArray[np.int64]:
    """(N,) indices, the most likely mislabelled first: by the lower of the ranks of the two losses.

    Example:
        >>> likely_mislabelled(np.array([0.1, 5.0, 4.0, 6.0]), np.array([3.0, 4.0, 0.2, 5.0])).tolist()
        [3, 1, 0, 2]
    """
    ranks = [np.argsort(np.argsort(losses, kind="stable"), kind="stable") for losses in (model_loss, irreducible_loss)]
    return np.argsort(-np.minimum(*ranks), kind="stable")


def reference_outputs(training: Training) -> tuple[Floats | None, NDArray[np.int64] | None]:
    """(N,) irreducible loss of each training example, nats, and (N,) class that the reference model predicts.

    From the table of the plain model. If the run has only the table of all groups, the loss is the mean over groups
    and there are no predictions. Both are None without a table.
    """
    folder = training.run / f"seed_{training.seed}" / "irreducible"
    target = training.data["train_target"]
    for name in ("plain", "all"):
        manifest = folder / f"table_{name}" / "manifest.json"
        if not manifest.is_file():
            continue
        kind = read_json(manifest, "the manifest of a table", names=["kind"])["kind"]
        values = torch.from_numpy(read_array(manifest.with_name("values.npy")))
        if kind == "group_loss":
            return values.double().nanmean(dim=1).numpy(), None
        logits = values.double() if kind == "logits" else values.double().logsumexp(dim=2)
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(target), reduction="none")
        return losses.numpy(), logits.argmax(dim=1).numpy()
    return None, None
