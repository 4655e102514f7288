"""The points themselves: the most and least selected ones, and those most likely mislabelled."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, Protocol

import matplotlib.image
import numpy as np
import torch
from numpy.typing import NDArray

from reducr.data.core.inputs import inputs_at
from reducr.data.core.module import RawData
from reducr.data.io.text import Texts
from reducr.reports.run_reader import Comparison, Floats, Series, Training

NUM_SHOWN = 12
_LONGEST_TEXT = 280
_IMAGE_AXES = 4


class OpenData(Protocol):
    """How the data of a run is read again."""

    def __call__(self, run: Path) -> RawData:
        """The data as published, of the run's configuration; raises ValueError or OSError where it is not there."""


@dataclass(frozen=True)
class Shown:
    """A point of a gallery.

    Args:
        index: of the training point.
        label: that it shows.
        times: it was selected.
        model_loss: of the last model, nats; None where not recorded.
        irreducible_loss: nats; None where there is no table.
        predicted: by the irreducible model; None where not known.
        is_corrupted: None where not known.
        image: as data URI; None for texts.
        text: of the point; None for images.
    """

    index: int
    label: str
    times: int
    model_loss: float | None
    irreducible_loss: float | None
    predicted: str | None
    is_corrupted: bool | None
    image: str | None
    text: str | None


@dataclass(frozen=True)
class Gallery:
    """Some points for a reason.

    Args:
        title: the reason.
        note: how they were chosen.
        points: in order.
    """

    title: str
    note: str
    points: Sequence[Shown]


def galleries(comparison: Comparison, open_data: OpenData | None) -> tuple[str, list[Gallery]]:
    """What REDUCR (else the first rule with selected points) selected most and least, and likely label errors.

    Of the first seed. The points are read anew by the run's own configuration.

    Returns:
        A sentence on where they come from, or on why there are none; and the galleries.
    """
    series, training = _shown_training(comparison)
    if series is None or training is None:
        return "No method of these runs has recorded which points it selected.", []
    if open_data is None:
        return "The data was not opened for this report.", []
    try:
        raw = open_data(training.run)
        look = _looks(raw, training)
    except (OSError, ValueError, TypeError, ImportError) as error:
        return f"The data could not be read again, so no points are shown: {error}", []
    if look is None:
        return "The points of this data are neither images nor texts, so none are shown.", []
    facts = _Facts.of(training)
    told = (
        f"Training points of seed {training.seed} as {series.label} chose them. The index is that of selected.npz; the "
        "label is the one that the training part shows."
    )
    return told, [
        Gallery(title, note, [facts.shown(index, look) for index in chosen]) for title, note, chosen in _chosen(facts)
    ]


def _shown_training(comparison: Comparison) -> tuple[Series | None, Training | None]:
    ordered = sorted(comparison.series, key=lambda series: not series.is_reducr)
    for series in ordered:
        for training in series.trainings.values():
            if training.times_selected is not None and training.train_on != "holdout":
                return series, training
    return None, None


@dataclass(frozen=True)
class _Facts:
    """What is known of the N training points."""

    names: Sequence[str]
    target: NDArray[np.int64]
    times: NDArray[np.int64]
    model_loss: Floats | None
    irreducible_loss: Floats | None
    predicted: NDArray[np.int64] | None
    is_corrupted: NDArray[np.bool_] | None

    @classmethod
    def of(cls, training: Training) -> _Facts:
        data = training.data
        target = data["train_target"]
        size, times, losses = len(target), training.times_selected, training.point_loss
        irreducible_loss, predicted = irreducible_of(training)
        return cls(
            [str(name) for name in data["class_names"]],
            target,
            np.zeros(size, dtype=np.int64) if times is None else times[:size],
            None if losses is None else losses[:size],
            irreducible_loss,
            predicted,
            data.get("train_is_corrupted"),
        )

    def shown(self, index: int, look: Callable[[int], tuple[str | None, str | None]]) -> Shown:
        image, text = look(index)
        return Shown(
            index,
            self.names[self.target[index]],
            int(self.times[index]),
            None if self.model_loss is None else float(self.model_loss[index]),
            None if self.irreducible_loss is None else float(self.irreducible_loss[index]),
            None if self.predicted is None else self.names[self.predicted[index]],
            None if self.is_corrupted is None else bool(self.is_corrupted[index]),
            image,
            text,
        )


def _chosen(facts: _Facts) -> list[tuple[str, str, list[int]]]:
    most = np.argsort(-facts.times, kind="stable")[:NUM_SHOWN].tolist()
    fewest = np.flatnonzero(facts.times == facts.times.min())
    spread = fewest[np.linspace(0, len(fewest) - 1, min(NUM_SHOWN, len(fewest))).round().astype(int)].tolist()
    found = [
        ("Most selected", "The points that were selected most often.", most),
        (
            "Least selected",
            f"Of the {len(fewest):,} points that were selected {facts.times.min()} times, some at even spacing.",
            spread,
        ),
    ]
    if facts.model_loss is not None and facts.irreducible_loss is not None:
        suspects = likely_mislabelled(facts.model_loss, facts.irreducible_loss)
        note = (
            "High loss under the last model and high irreducible loss: neither the model, which has seen the label, "
            "nor one trained on clean data believes it. Points are ordered by the lower of their two ranks."
        )
        if facts.is_corrupted is not None:
            number = int(facts.is_corrupted.sum())
            if number:
                precision = float(facts.is_corrupted[suspects[:number]].mean())
                note += (
                    f" Of the first {number:,}, as many as there are corrupted points, {precision:.0%} are corrupted."
                )
        found.append(("Most likely mislabelled", note, suspects[:NUM_SHOWN].tolist()))
    return found


def likely_mislabelled(model_loss: Floats, irreducible_loss: Floats) -> NDArray[np.int64]:
    """(N,) all points, the most likely mislabelled first: by the lower of the ranks of their two losses.

    Example:
        >>> likely_mislabelled(np.array([0.1, 5.0, 4.0, 6.0]), np.array([3.0, 4.0, 0.2, 5.0])).tolist()
        [3, 1, 0, 2]
    """
    ranks = [np.argsort(np.argsort(losses, kind="stable"), kind="stable") for losses in (model_loss, irreducible_loss)]
    return np.argsort(-np.minimum(*ranks), kind="stable")


def irreducible_of(training: Training) -> tuple[Floats | None, NDArray[np.int64] | None]:
    """(N,) irreducible loss of every training point, and the class that the irreducible model predicts for it.

    From the plain model's table; else, without predictions, the mean over the groups of the table of their losses.
    None where the run holds no table.
    """
    folder = training.run / f"seed_{training.seed}" / "irreducible"
    target = training.data["train_target"]
    for name in ("plain", "all"):
        manifest = folder / f"table_{name}" / "manifest.json"
        if not manifest.is_file():
            continue
        kind = json.loads(manifest.read_text(encoding="utf-8"))["kind"]
        values = torch.from_numpy(np.load(manifest.with_name("values.npy")))
        if kind == "group_loss":
            return values.double().nanmean(dim=1).numpy(), None
        logits = values.double() if kind == "logits" else values.double().logsumexp(dim=2)
        losses = torch.nn.functional.cross_entropy(logits, torch.from_numpy(target), reduction="none")
        return losses.numpy(), logits.argmax(dim=1).numpy()
    return None, None


def _looks(raw: RawData, training: Training) -> Callable[[int], tuple[str | None, str | None]] | None:
    """How a training point looks, as (image, text); None where it is neither.

    Raises:
        ValueError: if the data is no longer that of the run.
    """
    data = training.data
    source = data["train_source"]
    _check_same(raw, data)
    if isinstance(raw.input, Texts):
        texts = raw.input

        def text_of(index: int) -> tuple[str | None, str | None]:
            parts = [texts.first[source[index]], *([] if texts.second is None else [texts.second[source[index]]])]
            return None, " ⏵ ".join(
                part if len(part) <= _LONGEST_TEXT else f"{part[:_LONGEST_TEXT]}…" for part in parts
            )

        return text_of
    is_pool = isinstance(raw.input, torch.Tensor) or hasattr(raw.input, "__getitem__")
    first = inputs_at(raw.input, torch.from_numpy(source[:1])) if is_pool else None
    if not isinstance(first, torch.Tensor) or not (first.ndim == _IMAGE_AXES or raw.image_shape is not None):
        return None

    def image_of(index: int) -> tuple[str | None, str | None]:
        image = inputs_at(raw.input, torch.from_numpy(source[index : index + 1]))[0]
        if raw.image_shape is not None:
            image = image.reshape(1, *raw.image_shape)
        return _data_uri(image.numpy()), None

    return image_of


def _check_same(raw: RawData, data: Any) -> None:
    source, target = data["train_source"], data["train_target"]
    fault = None
    if tuple(raw.class_names) != tuple(map(str, data["class_names"])):
        fault = "its classes have other names"
    elif source.max() >= len(raw.target):
        fault = f"it has {len(raw.target)} points, and the run used one at {source.max()}"
    elif raw.noisy_target is None and "train_is_corrupted" in data:
        is_clean = ~data["train_is_corrupted"]
        num_other = int((raw.target.numpy()[source[is_clean]] != target[is_clean]).sum())
        fault = f"{num_other} points have other labels" if num_other else None
    if fault is not None:
        raise ValueError(f"the data that the configuration names is no longer that of the run: {fault}.")


def _data_uri(image: NDArray[Any]) -> str:
    """A (channels, height, width) image, uint8 or of floats that are stretched to their range, as PNG in a data URI."""
    if image.dtype != np.uint8:
        low, high = float(image.min()), float(image.max())
        image = ((image - low) / (high - low or 1.0) * 255).astype(np.uint8)
    image = image.transpose(1, 2, 0)
    if image.shape[2] not in (3, 4):
        image = np.repeat(image[:, :, :1], 3, axis=2)
    content = BytesIO()
    matplotlib.image.imsave(content, np.ascontiguousarray(image), format="png")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode()}"
