"""Choose the examples of each part, and the targets that they show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from reducr._internal.checks import check_every_group_has_examples, check_range
from reducr._internal.seeds import mixed_seed
from reducr.data.core.imbalance import Imbalance
from reducr.data.core.noise import LabelNoise
from reducr.data.core.overlap import keep_duplicates_together, num_shared
from reducr.data.core.raw import PARTS, RawData
from reducr.data.core.stratified import stratified_split


@dataclass(frozen=True)
class PartExamples:
    """The examples of one part.

    Args:
        source: (N,) int64, position of each example in the pool.
        target: (N,) int64, the possibly noisy targets.
        is_corrupted: (N,) bool, whether a target or input is known to be wrong; None if unknown.
    """

    source: Tensor
    target: Tensor
    is_corrupted: Tensor | None

    def with_corrupted(self, is_changed: Tensor) -> PartExamples:
        """The same examples, with those in ``is_changed`` (N,) bool marked as corrupted too."""
        return replace(self, is_corrupted=is_changed if self.is_corrupted is None else self.is_corrupted | is_changed)


def part_generators(seed: int) -> dict[str, torch.Generator]:
    """A source of randomness for each part. The split is drawn with that of the training part."""
    seeds = {part: mixed_seed(seed, number) for number, part in enumerate(PARTS)} | {"train": seed}
    return {part: torch.Generator().manual_seed(part_seed) for part, part_seed in seeds.items()}


def part_positions(
    raw: RawData,
    *,
    sizes: Mapping[str, float | None],
    default_sizes: Mapping[str, float],
    generator: torch.Generator,
) -> dict[str, Tensor]:
    """Positions of the examples of every part. Parts that are not published are drawn.

    Args:
        raw: the data.
        sizes: sizes of the holdout and test part: a number, or a share in (0, 1) of what the part is drawn from; None
            if the user did not set one.
        default_sizes: shares that are used if ``sizes`` has none.
        generator: source of randomness.

    Raises:
        ValueError: if a size is missing, out of range or has no effect.
    """
    train, holdout, test = (raw.parts.get(part) for part in PARTS)
    if train is None:
        is_free = torch.ones(len(raw.target), dtype=torch.bool)
        is_free[torch.cat([torch.empty(0, dtype=torch.int64), *raw.parts.values()])] = False
        train = torch.nonzero(is_free).flatten()
    if test is not None and sizes["test"] is not None:
        raise ValueError(
            f"`datamodule.test_size={sizes['test']}` has no effect: this data set has a published test part of "
            f"{len(test)} examples. Remove the option."
        )

    def draw(part: str, source: Tensor) -> tuple[Tensor, Tensor]:
        return _drawn(raw, part, source, size=sizes[part], default_size=default_sizes.get(part), generator=generator)

    if test is None:
        if holdout is None:
            test, train = draw("test", train)
        else:
            test, holdout = draw("test", holdout)
    if holdout is None:
        holdout, train = draw("holdout", train)
    elif sizes["holdout"] is not None:
        holdout, _ = draw("holdout", holdout)
    return {"train": train, "holdout": holdout, "test": test}


def part_examples(
    raw: RawData,
    source: Tensor,
    *,
    is_train: bool,
    imbalance: Imbalance | None,
    label_noise: LabelNoise | None,
    generator: torch.Generator,
) -> PartExamples:
    """The examples at the positions ``source`` (N,) after class imbalance and label noise."""
    num_classes = len(raw.class_names)
    check_range("target", raw.target, num_classes, place="index")
    if imbalance is not None:
        source = source[imbalance.positions(raw.target[source], num_classes=num_classes, generator=generator)]
    clean = raw.target[source]
    target = raw.noisy_target[source] if is_train and raw.noisy_target is not None else clean
    is_corrupted = target != clean if raw.has_clean_targets else None
    if label_noise is not None:
        target, is_changed = label_noise.noisy(target, num_classes=num_classes, generator=generator)
        is_corrupted = target != clean if raw.has_clean_targets else is_changed
    return PartExamples(source, target, is_corrupted)


def check_every_class_and_group(raw: RawData, parts: Mapping[str, PartExamples]) -> None:
    """Raise ValueError naming the classes or groups that lack an example they need."""
    holdout = raw.examples(parts["holdout"].source, target=parts["holdout"].target)
    _check_every_class(raw, holdout.target, examples="holdout example")
    if raw.num_groups is not None:
        counts = torch.bincount(holdout.group, minlength=raw.num_groups)
        check_every_group_has_examples(counts, names=raw.group_names)
    # the clean targets, because label noise may empty a class
    _check_every_class(raw, raw.target[parts["train"].source], examples="training example")
    if "irreducible" in raw.parts:
        _check_every_class(raw, raw.target[raw.parts["irreducible"]], examples="example for the reference models")


def part_notes(raw: RawData, parts: Mapping[str, PartExamples]) -> Iterator[str]:
    """Messages for the user about emptied classes and inputs that parts share."""
    counts = torch.bincount(parts["train"].target, minlength=len(raw.class_names))
    emptied = [repr(name) for name, count in zip(raw.class_names, counts.tolist(), strict=True) if not count]
    if emptied:
        yield f"Label noise left no training example of the class {', '.join(emptied)}."
    if raw.content is None:
        return
    for part, other in (("holdout", "train"), ("test", "train"), ("test", "holdout")):
        positions = parts[part].source
        count = num_shared(raw.content, positions, parts[other].source)
        if count:
            yield f"{count} of {len(positions)} examples of the {part} part have the same input as a {other} example."


def _drawn(
    raw: RawData,
    part: str,
    source: Tensor,
    *,
    size: float | None,
    default_size: float | None,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor]:
    """Positions of a stratified draw from the positions ``source``, and the remaining positions."""
    option = f"datamodule.{part}_size"
    effective_size = default_size if size is None else size
    if effective_size is None:
        raise ValueError(
            f"This data set has no published {part} part. Set `{option}` to the number of examples to draw for it."
        )
    count = round(effective_size * len(source)) if isinstance(effective_size, float) else effective_size
    target, group = raw.target[source], None if raw.group is None else raw.group[source]
    if size is None:
        count = max(count, *(len(torch.unique(values)) for values in (target, group) if values is not None))
    try:
        drawn, rest = stratified_split(
            target,
            size=count,
            generator=generator,
            groups=group,
            # the holdout part is drawn after the test part and needs an example of every group
            spares_single_examples=part == "test",
        )
    except ValueError as error:
        raise ValueError(f"{option}={'null' if size is None else size}: {error}") from error
    drawn, rest = source[drawn], source[rest]
    if raw.content is None:
        return drawn, rest
    strata = raw.target if raw.group is None else raw.target * (int(raw.group.max()) + 1) + raw.group
    return keep_duplicates_together(drawn, rest, content=raw.content, strata=strata, generator=generator)


def _check_every_class(raw: RawData, target: Tensor, *, examples: str) -> None:
    counts = torch.bincount(target, minlength=len(raw.class_names))
    check_every_group_has_examples(counts, kind="class", names=raw.class_names, examples=examples)
