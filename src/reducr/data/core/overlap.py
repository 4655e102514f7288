"""The same input twice: kept in one part where parts are drawn, and refused or left out where they are given."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from reducr._internal.names import unknown_name

OVERLAPS = ("error", "drop", "allow")
# by part, the parts that matter more: what is in one of these as well is left out of it
_MATTER_MORE = {"train": ("holdout", "test"), "holdout": ("test",)}


def check_policy(policy: str) -> None:
    """Raise ValueError unless ``policy`` is one of ``OVERLAPS``."""
    if policy not in OVERLAPS:
        raise unknown_name("datamodule.overlap", policy, OVERLAPS)


def without_overlap(
    content: Tensor, parts: Mapping[str, Tensor], *, policy: str, unit: str, name: Callable[[int], str]
) -> tuple[Tensor, tuple[str, ...]]:
    """Which of N points stay where given parts share inputs.

    Training points whose input is in the holdout or test part too are in the way, and so are holdout points whose input
    is in the test part.

    Args:
        content: (N,) integers, the same for the same input.
        parts: positions by name; a part that is to be drawn is not among them.
        policy: ``error``; ``drop``, which leaves the points in the way out; or ``allow``.
        unit: what a point is called, such as "row".
        name: of the point at a position.

    Returns:
        (N,) bool, which points stay, and a note for each part that lost some.

    Raises:
        ValueError: with the policy ``error`` if there is such a point, and with ``drop`` if a part would lose all its
            points; says how many, and names the first.
    """
    stays, notes = torch.ones(len(content), dtype=torch.bool), []
    for part, others in _MATTER_MORE.items():
        given = [other for other in others if other in parts]
        if policy == "allow" or part not in parts or not given:
            continue
        positions = parts[part]
        is_double = torch.isin(content[positions], torch.cat([content[parts[other]] for other in given]))
        if not bool(is_double.any()):
            continue
        count = int(is_double.sum())
        where = f"{' or '.join(given)} part too, with the same input"
        first = f"the first is {name(int(positions[is_double][0]))}."
        if policy == "error":
            raise ValueError(
                f"{_counted(count, unit)} of the {_NAMES[part]} part found in the {where}; {first} Leave them out of "
                f"the {_NAMES[part]} part with datamodule.overlap=drop, or keep them with datamodule.overlap=allow, "
                "as where different points may well have the same input."
            )
        if count == len(positions):
            raise ValueError(
                f"datamodule.overlap=drop leaves nothing of the {_NAMES[part]} part: every {unit} of it is in the "
                f"{where}. Give other files, or datamodule.overlap=allow where different points may well have the "
                "same input."
            )
        notes.append(
            f"{_counted(count, unit)} of {len(positions)} left out of the {_NAMES[part]} part, found in the {where}; "
            f"{first}"
        )
        stays[positions[is_double]] = False
    return stays, tuple(notes)


def with_the_same_together(
    drawn: Tensor, left: Tensor, *, content: Tensor, strata: Tensor, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """A draw whose inputs do not come again among what is left, as far as there are others to draw.

    The drawn points whose input is left too are given back. In their place inputs are drawn at random, each with all
    the points that have it, as long as these are of one stratum and no more than it lacks.

    Args:
        drawn: (K,) int64 positions.
        left: (M,) int64 positions.
        content: integers by position, the same for the same input.
        strata: integers by position; how many points of each are drawn stays as it is.
        generator: source of randomness; not used if no input comes twice.

    Returns:
        (K,) and (M,) int64, ascending.
    """
    is_shared = torch.isin(content[drawn], content[left])
    if not bool(is_shared.any()):
        return drawn, left
    positions = torch.cat([drawn, left])
    _, number, sizes = torch.unique(content[positions], return_inverse=True, return_counts=True)
    stratum = torch.unique(strata[positions], return_inverse=True)[1]
    is_drawn = torch.zeros(len(positions), dtype=torch.bool)
    is_drawn[: len(drawn)] = ~is_shared
    given_back = torch.nonzero(is_shared).flatten()
    lacking = torch.bincount(stratum[given_back], minlength=int(stratum.max()) + 1).tolist()
    # inputs that may be drawn: of one stratum, and not drawn yet
    lowest, highest = (
        torch.zeros_like(sizes).scatter_reduce(0, number, stratum, reduce, include_self=False)
        for reduce in ("amin", "amax")
    )
    is_free = (lowest == highest) & (torch.bincount(number[is_drawn], minlength=len(sizes)) == 0)
    chosen = []
    order = torch.randperm(len(sizes), generator=generator)
    order = order[is_free[order]]
    for one, place, size in zip(order.tolist(), lowest[order].tolist(), sizes[order].tolist(), strict=True):
        if size <= lacking[place]:
            chosen.append(one)
            lacking[place] -= size
    is_drawn |= torch.isin(number, torch.tensor(chosen, dtype=number.dtype))
    for place, count in enumerate(lacking):
        is_drawn[given_back[(stratum[given_back] == place) & ~is_drawn[given_back]][:count]] = True
    return positions[is_drawn].sort().values, positions[~is_drawn].sort().values


def num_shared(content: Tensor, positions: Tensor, others: Tensor) -> int:
    """How many points at ``positions`` have an input that one at the positions ``others`` has."""
    return int(torch.isin(content[positions], content[others]).sum())


_NAMES = {"train": "training", "holdout": "holdout", "test": "test"}


def _counted(count: int, unit: str) -> str:
    return f"1 {unit}" if count == 1 else f"{count} {unit}s"
