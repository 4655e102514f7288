"""Turn a published data set into the parts of an experiment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from reducr._internal.names import unknown_name
from reducr.data.core.dataset import ExampleDataset
from reducr.data.core.imbalance import make_imbalance
from reducr.data.core.input_noise import make_input_noise
from reducr.data.core.noise import make_label_noise
from reducr.data.core.parts import (
    PartExamples,
    check_every_class_and_group,
    part_examples,
    part_generators,
    part_notes,
    part_positions,
)
from reducr.data.core.raw import PARTS, RawData, check_parts


@dataclass(frozen=True)
class Splits:
    """The disjoint parts of an experiment, views of one pool of inputs.

    ``ExampleDataset.source`` is the position of each example in the pool.

    Args:
        train: the noisy, imbalanced training part. ``is_corrupted`` marks the corrupted examples, if they are known.
        holdout: small and clean; for the group-holdout losses and the choice of checkpoints.
        test: for the reported accuracies.
        class_names: (C,).
        irreducible: the examples that the reference models (the paper's irreducible models) are trained on; the holdout
            part unless the data set has a separate one.
        group_names: (G,); None if groups have no names.
        facts: what a model needs to know about the inputs beside their shape, such as ``num_tokens``.
        notes: messages for the user about the data, such as how many images were skipped.
    """

    train: ExampleDataset
    holdout: ExampleDataset
    test: ExampleDataset
    class_names: tuple[str, ...]
    irreducible: ExampleDataset
    group_names: tuple[str, ...] | None = None
    facts: Mapping[str, int] = field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def by_name(self) -> dict[str, ExampleDataset]:
        """The parts by name. ``irreducible`` is included unless it is the holdout part."""
        parts = {"train": self.train, "holdout": self.holdout, "test": self.test}
        return parts if self.irreducible is self.holdout else parts | {"irreducible": self.irreducible}


class DataModule(ABC):
    """Reads a data set and makes its parts: a test part, a clean holdout part and an imbalanced, noisy training part.

    The steps, in this order:

    1. Draw the test part unless one is published, from the published holdout part if there is one.
    2. Draw the holdout part from the training examples unless one is published.
    3. In each part, drop examples to make the classes imbalanced, then add label noise, then add input noise.

    Parts are disjoint. Draws are stratified by class, and by group within the class if groups do not follow from
    classes. Examples with the same input are drawn into the same part as far as others can replace them.

    A subclass implements ``read``. It may set ``drawn_sizes``, the default shares of drawn parts. These are raised if a
    part would lack an example of a class or group.

    Args:
        holdout_size: size of the clean holdout part: a number of examples, or a share in (0, 1) of what it is drawn
            from; null for the whole published holdout part.
        test_size: size of the test part, likewise; only for data without a published one.
        imbalance: by part (``train``, ``holdout``, ``test``); see ``make_imbalance``.
        label_noise: by part; see ``make_label_noise``.
        input_noise: by part; see ``make_input_noise``.
        preprocess: applied by every model to its batch of inputs, on its device, such as normalisation.
        augment: random changes to training inputs, on the device. They apply to scored candidates too, but never to
            holdout and test inputs or to loss tables.

    Raises:
        ValueError: if a part, kind or option does not exist, or a value is out of range.
    """

    drawn_sizes: ClassVar[Mapping[str, float]] = {}

    def __init__(
        self,
        *,
        holdout_size: float | None = None,
        test_size: float | None = None,
        imbalance: Mapping[str, Any] | None = None,
        label_noise: Mapping[str, Any] | None = None,
        input_noise: Mapping[str, Any] | None = None,
        preprocess: nn.Module | None = None,
        augment: nn.Module | None = None,
    ) -> None:
        _check_size("holdout_size", holdout_size)
        _check_size("test_size", test_size)
        self.holdout_size = holdout_size
        self.test_size = test_size
        self.imbalance = _by_part("imbalance", imbalance, make_imbalance)
        self.label_noise = _by_part("label_noise", label_noise, make_label_noise)
        self.input_noise = _by_part("input_noise", input_noise, make_input_noise)
        # Hydra gives an empty mapping for augment@datamodule.augment=none
        self.preprocess = preprocess or None
        self.augment = augment or None

    @cached_property
    def raw(self) -> RawData:
        """The result of ``read``, read once for all seeds."""
        raw = self.read()
        check_parts(raw)
        return raw

    @abstractmethod
    def read(self) -> RawData:
        """The data as published."""

    def encoded(self, raw: RawData, train_source: Tensor) -> RawData:
        """``raw`` with inputs that a model takes.

        Override it if the encoding is learned, such as a vocabulary or a scale. It may learn from the training examples
        at ``train_source`` only.
        """
        return raw

    def splits(self, *, seed: int) -> Splits:
        """The parts for one seed, which determines every draw: split, imbalance and noise.

        Raises:
            ValueError: if a size or option is out of range, a target is outside 0..C-1, published parts overlap, or a
                class or group lacks a holdout example or a class lacks a training example before noise (names it).
        """
        raw, generators = self.raw, part_generators(seed)
        parts = self._parts(raw, generators)
        raw = self.encoded(raw, parts["train"].source)
        for part, noise in self.input_noise.items():
            if noise is not None:
                noisy, is_changed = noise.noisy(raw.input, parts[part].source, generator=generators[part])
                raw = replace(raw, input=noisy)
                parts[part] = parts[part].with_corrupted(is_changed)
        datasets = {
            part: raw.examples(examples.source, target=examples.target, is_corrupted=examples.is_corrupted)
            for part, examples in parts.items()
        }
        irreducible = raw.parts.get("irreducible")
        return Splits(
            **datasets,
            class_names=raw.class_names,
            irreducible=datasets["holdout"] if irreducible is None else raw.examples(irreducible),
            group_names=raw.group_names,
            facts=raw.facts,
            notes=(*raw.notes, *part_notes(raw, parts)),
        )

    def sizes(self, *, seed: int) -> dict[str, int]:
        """The number of examples of each part for one seed. No input is encoded.

        Raises:
            ValueError: as ``splits``.
        """
        return {part: len(examples.source) for part, examples in self._parts(self.raw, part_generators(seed)).items()}

    def places(self, source: Tensor) -> Tensor:
        """(N,) int64, the numbers of the examples at ``source`` (N,) among all rows or files that were read."""
        return source if self.raw.place is None else self.raw.place[source]

    def _parts(self, raw: RawData, generators: Mapping[str, torch.Generator]) -> dict[str, PartExamples]:
        """The examples of each part before input noise."""
        positions = part_positions(
            raw,
            sizes={"holdout": self.holdout_size, "test": self.test_size},
            default_sizes=self.drawn_sizes,
            generator=generators["train"],
        )
        parts = {
            part: part_examples(
                raw,
                positions[part],
                is_train=part == "train",
                imbalance=self.imbalance[part],
                label_noise=self.label_noise[part],
                generator=generators[part],
            )
            for part in PARTS
        }
        check_every_class_and_group(raw, parts)
        return parts


@runtime_checkable
class WritesParts(Protocol):
    """A data module that can write a subset of its examples as a data set of the same kind."""

    def write_parts(self, places: Mapping[str, Tensor], folder: Path, *, is_linked: bool) -> dict[str, Any]:
        """Write the examples at ``places`` of each part into a new ``folder``.

        Args:
            places: int64, ascending, by part; see ``DataModule.places``.
            folder: is created.
            is_linked: whether input files are linked rather than copied.

        Returns:
            The options with which the data module reads the written files. File names are relative to ``folder``.
        """


def _by_part(option: str, values: Mapping[str, Any] | None, make: Callable[..., Any]) -> dict[str, Any]:
    """``make`` applied to the value of each part, with None for a part without one."""
    values = values or {}
    for part in values:
        if part not in PARTS:
            raise unknown_name("part", part, PARTS, of=f"datamodule.{option}")
    return {part: make(values.get(part), name=f"datamodule.{option}.{part}") for part in PARTS}


def _check_size(option: str, size: float | None) -> None:
    if size is None or (isinstance(size, float) and 0 < size < 1):
        return
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise ValueError(
            f"datamodule.{option} must be a whole number of examples, or a share in (0, 1) of what the part is drawn "
            f"from; got {size!r}."
        )
