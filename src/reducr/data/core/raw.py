"""A data set as published, before it is split, thinned out or corrupted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from reducr._internal.checks import check_range
from reducr._internal.names import unknown_name
from reducr.data.core.dataset import ExampleDataset

PARTS = ("train", "holdout", "test")
_PUBLISHED_PARTS = (*PARTS, "irreducible")


@dataclass(frozen=True)
class RawData:
    """A data set as published: one pool of N examples, and the part that each belongs to.

    Args:
        input: the inputs of all examples, read by position: a tensor (N, ...), or anything that
            ``DataModule.encoded`` turns into one.
        target: (N,) integers in [0, C); the clean ones if both clean and noisy targets exist.
        class_names: (C,).
        parts: int64 positions of the published parts, by name: ``train`` (default: all examples in no other part),
            ``holdout`` and ``test`` (default: drawn), ``irreducible`` (default: the holdout part).
        noisy_target: (N,) targets of the training part; None if they are the clean ones.
        has_clean_targets: whether ``target`` is known to be correct, so that any other target is a corrupted one.
        group: (N,) integers in [0, G); None if groups are the targets or follow from them.
        num_groups: G; None if groups are the targets.
        group_of_target: (C,) the group of each target, if groups follow from targets.
        group_names: (G,); None if groups have no names.
        content: (N,) integers, equal for examples with the same input, which are then drawn into the same part; None if
            unknown, or if different examples may well have the same input.
        place: (N,) int64, the number of each example among all rows or files that were read; None if none was skipped.
        facts: what a model needs to know about the inputs beside their shape, such as ``num_tokens``.
        image_shape: height and width of images that are stored as flat inputs, for display; else None.
        notes: messages for the user about the data, such as how many images were skipped.
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

    def examples(
        self, positions: Tensor, *, target: Tensor | None = None, is_corrupted: Tensor | None = None
    ) -> ExampleDataset:
        """The examples at ``positions`` (M,), with ``target`` (M,) in place of the published targets if given."""
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
            is_corrupted=is_corrupted,
        )


def check_parts(raw: RawData) -> None:
    """Raise ValueError unless the published parts contain existing examples, each once, and are disjoint."""
    num_examples = len(raw.target)
    counts_by_part: dict[str, Tensor] = {}
    for part, positions in raw.parts.items():
        if part not in _PUBLISHED_PARTS:
            raise unknown_name("published part", part, _PUBLISHED_PARTS)
        check_range(f"position in the {part} part", positions, num_examples, place="entry")
        counts = torch.bincount(positions, minlength=num_examples)
        repeated = torch.nonzero(counts > 1).flatten()
        if len(repeated):
            raise ValueError(
                f"The {part} part contains {len(repeated)} examples more than once; the first is index "
                f"{int(repeated[0])}. Every index must occur once."
            )
        for other, other_counts in counts_by_part.items():
            num_shared = int((counts * other_counts).sum())
            # reference models are trained on the holdout part by default, so these two may overlap
            if num_shared and {part, other} != {"holdout", "irreducible"}:
                raise ValueError(f"The {other} and {part} parts share {num_shared} examples. They must be disjoint.")
        counts_by_part[part] = counts
