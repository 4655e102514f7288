"""Duplicate inputs across parts: rejected or dropped in published parts, kept in one part when parts are drawn."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from reducr._internal.names import unknown_name

OVERLAPS = ("error", "drop", "allow")
_NAMES = {"train": "training", "holdout": "holdout", "test": "test"}
_PRECEDENCE = {"train": ("holdout", "test"), "holdout": ("test",)}
"""By part, the parts that keep an input that both contain."""


def check_policy(policy: str) -> None:
    """Raise ValueError unless ``policy`` is one of ``OVERLAPS``."""
    if policy not in OVERLAPS:
        raise unknown_name("datamodule.overlap", policy, OVERLAPS)


def without_overlap(
    content: Tensor, parts: Mapping[str, Tensor], *, policy: str, unit: str, name: Callable[[int], str]
) -> tuple[Tensor, tuple[str, ...]]:
    """Which of N examples to keep if published parts share inputs.

    Training examples must not have the same input as a holdout or test example, and holdout examples must not have the
    same input as a test example.

    Args:
        content: (N,) integers, equal for the same input.
        parts: positions by part, without the parts that are still to be drawn.
        policy: ``error``; ``drop``, which leaves out the duplicates; or ``allow``, which keeps them.
        unit: what to call an example in messages, such as "row".
        name: gives the name of the example at a position, for messages.

    Returns:
        (N,) bool, whether each example is kept, and a note for each part that lost examples.

    Raises:
        ValueError: if there are duplicates and the policy is ``error``, or ``drop`` would empty a part; says how many
            and names the first one.
    """
    is_kept, notes = torch.ones(len(content), dtype=torch.bool), []
    for part, preceding in _PRECEDENCE.items():
        others = [other for other in preceding if other in parts]
        if policy == "allow" or part not in parts or not others:
            continue
        positions = parts[part]
        is_duplicate = torch.isin(content[positions], torch.cat([content[parts[other]] for other in others]))
        if not bool(is_duplicate.any()):
            continue
        count, part_name = int(is_duplicate.sum()), f"{_NAMES[part]} part"
        duplicates = f"have the same input as a {' or '.join(others)} {unit}"
        first = f"the first is {name(int(positions[is_duplicate][0]))}."
        if policy == "error":
            raise ValueError(
                f"{count} of {len(positions)} {unit}s of the {part_name} {duplicates}; {first} Set "
                "`datamodule.overlap=drop` to leave them out, or `datamodule.overlap=allow` to keep them if different "
                "examples may have the same input."
            )
        if count == len(positions):
            raise ValueError(
                f"`datamodule.overlap=drop` would empty the {part_name}: all {count} {unit}s {duplicates}. Use other "
                "files, or set `datamodule.overlap=allow` if different examples may have the same input."
            )
        notes.append(f"Dropped {count} of {len(positions)} {unit}s of the {part_name}, which {duplicates}; {first}")
        is_kept[positions[is_duplicate]] = False
    return is_kept, tuple(notes)


def keep_duplicates_together(
    drawn: Tensor, rest: Tensor, *, content: Tensor, strata: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Change a draw so that its inputs do not also occur in the rest, as far as there are others to draw.

    Drawn examples whose input also occurs in the rest are returned to it. They are replaced by randomly drawn inputs,
    each with all its examples. Such an input must lie within one stratum and must not exceed what the stratum lacks.

    Args:
        drawn: (K,) int64 positions.
        rest: (M,) int64 positions.
        content: integers by position, equal for the same input.
        strata: integers by position. The number of examples drawn from each stratum does not change.
        generator: source of randomness; not used if no input occurs in both.

    Returns:
        The drawn and the remaining positions, (K,) and (M,) int64, ascending.
    """
    is_shared = torch.isin(content[drawn], content[rest])
    if not bool(is_shared.any()):
        return drawn, rest
    positions = torch.cat([drawn, rest])
    _, input_ids, sizes = torch.unique(content[positions], return_inverse=True, return_counts=True)
    stratum = torch.unique(strata[positions], return_inverse=True)[1]
    is_drawn = torch.zeros(len(positions), dtype=torch.bool)
    is_drawn[: len(drawn)] = ~is_shared
    returned = torch.nonzero(is_shared).flatten()
    lacking = torch.bincount(stratum[returned], minlength=int(stratum.max()) + 1).tolist()
    # an input can be drawn if all its examples are in one stratum and none of them is drawn yet
    lowest, highest = (
        torch.zeros_like(sizes).scatter_reduce(0, input_ids, stratum, reduce, include_self=False)
        for reduce in ("amin", "amax")
    )
    is_free = (lowest == highest) & (torch.bincount(input_ids[is_drawn], minlength=len(sizes)) == 0)
    order = torch.randperm(len(sizes), generator=generator)
    order = order[is_free[order]]
    replacements = []
    for input_id, input_stratum, size in zip(
        order.tolist(), lowest[order].tolist(), sizes[order].tolist(), strict=True
    ):
        if size <= lacking[input_stratum]:
            replacements.append(input_id)
            lacking[input_stratum] -= size
    is_drawn |= torch.isin(input_ids, torch.tensor(replacements, dtype=input_ids.dtype))
    # where no replacement fits, examples that were returned are drawn again
    for number, count in enumerate(lacking):
        is_drawn[returned[(stratum[returned] == number) & ~is_drawn[returned]][:count]] = True
    return positions[is_drawn].sort().values, positions[~is_drawn].sort().values


def num_shared(content: Tensor, positions: Tensor, others: Tensor) -> int:
    """How many examples at ``positions`` have the same input as an example at the positions ``others``."""
    return int(torch.isin(content[positions], content[others]).sum())
