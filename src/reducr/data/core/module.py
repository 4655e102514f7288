"""From raw data to the disjoint parts of an experiment."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from reducr._internal.checks import check_every_group_has_examples, check_range
from reducr._internal.names import unknown_name
from reducr._internal.seeds import mixed_seed
from reducr.data.core.dataset import ExampleDataset
from reducr.data.core.imbalance import make_imbalance, stratified_split
from reducr.data.core.input_noise import make_input_noise
from reducr.data.core.noise import make_label_noise
from reducr.data.core.overlap import num_shared, with_the_same_together

PARTS = ("train", "holdout", "test")
_PUBLISHED_PARTS = (*PARTS, "irreducible")


@dataclass(frozen=True)
class Splits:
    """The disjoint parts of an experiment, views of one set of inputs.

    ``ExampleDataset.source`` is the place of each point in the data as read.

    Args:
        train: the noisy, imbalanced stream's points; ``is_corrupted`` says which were changed, where that is known.
        holdout: small and clean; gives the group-holdout losses and chooses checkpoints.
        test: what the tables are about.
        class_names: (C,) for tables and plots.
        irreducible: what irreducible models are trained on; the holdout part unless the data set has its own.
        group_names: (G,); None where groups have none of their own.
        facts: what a model must know of the inputs beside their shape, such as ``num_tokens``.
        notes: what a user should be told of the data, such as how many images were skipped.
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
        """The parts; ``irreducible`` only where it is not the holdout part."""
        parts = {"train": self.train, "holdout": self.holdout, "test": self.test}
        return parts if self.irreducible is self.holdout else parts | {"irreducible": self.irreducible}


@dataclass(frozen=True)
class RawData:
    """A data set as its publisher ships it: one pool of N points, and which part each is in.

    Args:
        input: the inputs of all points, read by position: a tensor (N, ...), or anything that ``DataModule.encoded``
            turns into one.
        target: (N,) integers in [0, C); the clean ones where there are clean ones.
        class_names: (C,).
        parts: int64 positions of the published parts, by name: ``train`` (default: all points in no other part),
            ``holdout`` and ``test`` (default: drawn), ``irreducible`` (default: the holdout part).
        noisy_target: (N,) the targets that the training part shows, where these are not the clean ones.
        has_clean_targets: whether ``target`` is known to be right, so that a changed one is known to be wrong.
        group: (N,) integers in [0, G); None where groups are the targets or follow from them.
        num_groups: G; None where groups are the targets.
        group_of_target: (C,) the group of each target, where groups follow from targets.
        group_names: (G,); None where groups have none of their own.
        content: (N,) integers, the same for points with the same input, which are then drawn into one part; None where
            that is not known, or where different points may well have the same input.
        place: (N,) int64, of each point among all rows or files as they were read; None where none was left out.
        facts: what a model must know of the inputs beside their shape, such as ``num_tokens``.
        image_shape: height and width of the pictures that flat inputs are, for people who look at them; else None.
        notes: what a user should be told of the data, such as how many images were skipped.
    """

    input: Any
    target: Tensor
    class_names: tuple[str, ...]
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    noisy_target: Tensor | None = None
    has_clean_targets: bool = True
    group: Tensor | None = None
    num_groups: int | None = None
    group_of_target: Tensor | None = None
    group_names: tuple[str, ...] | None = None
    content: Tensor | None = None
    place: Tensor | None = None
    facts: Mapping[str, int] = field(default_factory=dict)
    image_shape: tuple[int, int] | None = None
    notes: tuple[str, ...] = ()

    def points(self, positions: Tensor, *, target: Tensor | None = None, **options: Any) -> ExampleDataset:
        """The points at ``positions`` (M,), with these targets (M,) in place of the published ones if given."""
        target = self.target[positions] if target is None else target
        group = None if self.group is None else self.group[positions]
        if self.group_of_target is not None:
            group = self.group_of_target[target]
        return ExampleDataset(
            self.input,
            target,
            num_classes=len(self.class_names),
            source=positions,
            group=group,
            num_groups=self.num_groups,
            **options,
        )


class DataModule(ABC):
    """Reads a data set and makes its parts: test, clean holdout, and an imbalanced, noisy training part.

    The order is: draw the test part where none is published (from the published holdout part, where there is one),
    draw the holdout part likewise from the training points, then for each part: thin it out to its imbalance by its
    clean targets, put in label noise, put in input noise. The parts are disjoint. Draws are stratified over the
    classes, and over groups within them where these do not follow from the class; points with the same input come into
    one part as far as others can take their places.

    Args:
        holdout_size: points of the clean holdout part: a number, or a share in (0, 1) of what it is drawn from; null
            for the whole published holdout part.
        test_size: points of the test part, likewise; only for data without a published one.
        imbalance: by part (``train``, ``holdout``, ``test``): see ``imbalance.make_imbalance``.
        label_noise: by part: see ``corruption.make_label_noise``.
        input_noise: by part: see ``input_noise.make_input_noise``.
        preprocess: what every model does to a batch of inputs first, on its device, such as normalisation.
        augment: random changes of the inputs a model is trained on, on the device; scored candidates are changed
            too, the points of tables, holdout and test are not.

    A subclass for anyone's data gives ``drawn_sizes``, the shares of parts that are drawn where none is given; they are
    larger if a point of each class and group needs it.

    Raises:
        ValueError: for a part, kind or option that does not exist, or a value out of range.
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
        # the configuration of no module, such as augment@datamodule.augment=none, is an empty one
        self.preprocess = preprocess or None
        self.augment = augment or None

    @cached_property
    def raw(self) -> RawData:
        """What ``read`` gives, read once for all seeds."""
        raw = self.read()
        _check_parts(raw)
        return raw

    @abstractmethod
    def read(self) -> RawData:
        """The data as published."""

    def encoded(self, raw: RawData, train_source: Tensor) -> RawData:
        """``raw`` with inputs that a model takes.

        Overridden where encoding must learn something, such as a vocabulary or a scale, which it may do from the
        training points ``train_source`` alone.
        """
        return raw

    def splits(self, *, seed: int) -> Splits:
        """The parts for one seed, which decides every draw: split, imbalance and noise.

        Raises:
            ValueError: for sizes or options out of range, a label outside 0..C-1, parts that overlap, or a class or
                group without a holdout point, or a class without a training point before noise (named).
        """
        raw, generators = self.raw, _generators(seed)
        shown = self._all_shown(raw, generators)
        raw = self.encoded(raw, shown["train"].source)
        for part, noise in self.input_noise.items():
            if noise is not None:
                noisy, is_changed = noise.noisy(raw.input, shown[part].source, generator=generators[part])
                raw = replace(raw, input=noisy)
                shown[part] = shown[part].with_corrupted(is_changed)
        parts = {
            part: raw.points(points.source, target=points.target, is_corrupted=points.is_corrupted)
            for part, points in shown.items()
        }
        own = raw.parts.get("irreducible")
        irreducible = parts["holdout"] if own is None else raw.points(own)
        return Splits(
            **parts,
            class_names=raw.class_names,
            irreducible=irreducible,
            group_names=raw.group_names,
            facts=raw.facts,
            notes=(*raw.notes, *_notes(raw, shown)),
        )

    def sizes(self, *, seed: int) -> dict[str, int]:
        """The number of points of each part for one seed, found without encoding an input.

        Raises:
            ValueError: as ``splits``.
        """
        return {part: len(points.source) for part, points in self._all_shown(self.raw, _generators(seed)).items()}

    def places(self, source: Tensor) -> Tensor:
        """(N,) int64, of points with these ``source`` (N,) among all rows or files as they were read."""
        return source if self.raw.place is None else self.raw.place[source]

    def _all_shown(self, raw: RawData, generators: Mapping[str, torch.Generator]) -> dict[str, _Shown]:
        """What every part shows; each class and group has the points it needs."""
        drawn = self._drawn(raw, generators["train"])
        shown = {part: self._shown(raw, drawn[part], part, generators[part]) for part in PARTS}
        _check_examples(raw, shown)
        return shown

    def _drawn(self, raw: RawData, generator: torch.Generator) -> dict[str, Tensor]:
        """Positions of every part: the published ones, or drawn where there is none."""
        train, holdout, test = (raw.parts.get(part) for part in PARTS)
        if train is None:
            is_left = torch.ones(len(raw.target), dtype=torch.bool)
            is_left[torch.cat([torch.empty(0, dtype=torch.int64), *raw.parts.values()])] = False
            train = torch.nonzero(is_left).flatten()
        if test is not None and self.test_size is not None:
            raise ValueError(
                f"datamodule.test_size={self.test_size} changes nothing: this data set has a published test part of "
                f"{len(test)} points. Leave it out."
            )
        if test is None:
            test, left = self._draw("test", raw, train if holdout is None else holdout, generator)
            train, holdout = (left, None) if holdout is None else (train, left)
        if holdout is None:
            holdout, train = self._draw("holdout", raw, train, generator)
        elif self.holdout_size is not None:
            holdout, _ = self._draw("holdout", raw, holdout, generator)
        return {"train": train, "holdout": holdout, "test": test}

    def _draw(self, part: str, raw: RawData, source: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Positions of a stratified draw from the points ``source``, and what is left."""
        given: float | None = getattr(self, f"{part}_size")
        size = self.drawn_sizes.get(part) if given is None else given
        if size is None:
            raise ValueError(
                f"this data set has no published {part} part: give datamodule.{part}_size, the points to draw for it."
            )
        size = round(size * len(source)) if isinstance(size, float) else size
        target, group = raw.target[source], None if raw.group is None else raw.group[source]
        if given is None:
            size = max(size, *(len(torch.unique(values)) for values in (target, group) if values is not None))
        try:
            # the holdout part, which is drawn later, needs a point of every group
            taken, left = stratified_split(
                target, size=size, generator=generator, groups=group, spares_single_points=part == "test"
            )
        except ValueError as error:
            raise ValueError(f"datamodule.{part}_size={'null' if given is None else given}: {error}") from error
        taken, left = source[taken], source[left]
        if raw.content is None:
            return taken, left
        strata = raw.target if raw.group is None else raw.target * (int(raw.group.max()) + 1) + raw.group
        return with_the_same_together(taken, left, content=raw.content, strata=strata, generator=generator)

    def _shown(self, raw: RawData, source: Tensor, part: str, generator: torch.Generator) -> _Shown:
        """The points of a part that are left, and the targets they show."""
        num_classes = len(raw.class_names)
        check_range("target", raw.target, num_classes, place="index")
        imbalance, noise = self.imbalance[part], self.label_noise[part]
        if imbalance is not None:
            kept = imbalance.positions(raw.target[source], num_classes=num_classes, generator=generator)
            source = source[kept]
        clean = raw.target[source]
        target = clean if raw.noisy_target is None or part != "train" else raw.noisy_target[source]
        is_corrupted = target != clean if raw.has_clean_targets else None
        if noise is not None:
            target, is_changed = noise.noisy(target, num_classes=num_classes, generator=generator)
            is_corrupted = target != clean if raw.has_clean_targets else is_changed
        return _Shown(source, target, is_corrupted)


@runtime_checkable
class WritesParts(Protocol):
    """A data module that can write some of its points as a data set of the same kind."""

    def write_parts(self, places: Mapping[str, Tensor], folder: Path, *, is_linked: bool) -> dict[str, Any]:
        """Write the points at these ``places`` of each part into ``folder``, which is new.

        Args:
            places: by part, int64 ascending, among all rows or files as they were read; see ``DataModule.places``.
            folder: is made.
            is_linked: whether files of inputs are linked to, not copied.

        Returns:
            The options of the data module that read what was written; names of files begin in ``folder``.
        """


@dataclass(frozen=True)
class _Shown:
    """Which points a part has, (N,) positions in the pool, and what they show."""

    source: Tensor
    target: Tensor
    is_corrupted: Tensor | None

    def with_corrupted(self, is_changed: Tensor) -> _Shown:
        return replace(self, is_corrupted=is_changed if self.is_corrupted is None else self.is_corrupted | is_changed)


def _generators(seed: int) -> dict[str, torch.Generator]:
    """A source of randomness for each part."""
    generators = {part: torch.Generator().manual_seed(mixed_seed(seed, place)) for place, part in enumerate(PARTS)}
    # the split and the training part share a stream of their own: changing another part does not change them
    return generators | {"train": torch.Generator().manual_seed(seed)}


def _by_part(option: str, values: Mapping[str, Any] | None, make: Callable[..., Any]) -> dict[str, Any]:
    """What ``make`` makes of the value of each part; None for a part that is not named."""
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
            f"datamodule.{option} must be a whole number of points, or a share in (0, 1) of what the part is drawn "
            f"from; got {size!r}."
        )


def _check_parts(raw: RawData) -> None:
    """Published parts name points that exist, each once, and share none."""
    part_of: dict[str, Tensor] = {}
    for part, positions in raw.parts.items():
        if part not in _PUBLISHED_PARTS:
            raise unknown_name("published part", part, _PUBLISHED_PARTS)
        check_range(f"position in the {part} part", positions, len(raw.target), place="place")
        is_in = torch.bincount(positions, minlength=len(raw.target))
        if int(is_in.max()) > 1:
            raise ValueError(
                f"the {part} part names {int((is_in > 1).sum())} points more than once; the first is index "
                f"{int(torch.nonzero(is_in > 1)[0])}. Every index must come once."
            )
        for other, is_in_other in part_of.items():
            # the irreducible models may be trained on the holdout part, which is what they are trained on by default
            if {part, other} != {"holdout", "irreducible"} and bool((is_in * is_in_other).any()):
                raise ValueError(
                    f"the {other} and {part} parts share {int((is_in * is_in_other).sum())} points; they must be "
                    "disjoint."
                )
        part_of[part] = is_in


def _check_examples(raw: RawData, shown: Mapping[str, _Shown]) -> None:
    """Raise ValueError for a class or group without a point that it needs, which it names."""
    holdout = raw.points(shown["holdout"].source, target=shown["holdout"].target)
    _check_every_class(raw, holdout.target, points="holdout point")
    if raw.num_groups is not None:
        counts = torch.bincount(holdout.group, minlength=raw.num_groups)
        check_every_group_has_examples(counts, names=raw.group_names)
    # noise may take the last point of a class away
    _check_every_class(raw, raw.target[shown["train"].source], points="training point")
    if "irreducible" in raw.parts:
        _check_every_class(raw, raw.target[raw.parts["irreducible"]], points="point for the irreducible models")


def _check_every_class(raw: RawData, target: Tensor, *, points: str) -> None:
    counts = torch.bincount(target, minlength=len(raw.class_names))
    check_every_group_has_examples(counts, kind="class", names=raw.class_names, points=points)


def _notes(raw: RawData, shown: Mapping[str, _Shown]) -> Iterator[str]:
    """What a user should be told of the parts."""
    counts = torch.bincount(shown["train"].target, minlength=len(raw.class_names))
    lost = [repr(name) for name, count in zip(raw.class_names, counts.tolist(), strict=True) if not count]
    if lost:
        yield f"with its noise, no training point shows the class {', '.join(lost)}."
    for part, others in (("holdout", "train"), ("test", "train"), ("test", "holdout")):
        positions = shown[part].source
        count = 0 if raw.content is None else num_shared(raw.content, positions, shown[others].source)
        if count:
            yield f"{count} of {len(positions)} points of the {part} part have an input that the {others} part has too."
