"""Selection on several processes: the best of all ranks' candidates together, or of each rank's."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from reducr._internal.distributed import (
    all_gather,
    all_gather_stacked,
    check_mode,
    num_ranks,
    raising_on_all_ranks,
    rank,
)
from reducr.batch import Candidates, Selection
from reducr.functional import top_k
from reducr.selectors.base import Selector, check_num_selected, num_nonfinite


def select_distributed(
    selector: Selector,
    candidates: Candidates,
    *,
    num_selected: int | Callable[[int], int],
    generator: torch.Generator | None = None,
    mode: str | None,
) -> Selection:
    """Choose from the candidates of all ranks, each of which calls this with its own; ``select`` in one process.

    With ``global`` choice and payoff are those of one process whose candidates are those of rank 0, of rank 1, ... one
    after another; ties are broken, and generators drawn from, as there. A rank that has none of the selected points
    gets a stand-in at loss_weight 0, which counts for nothing (``selection.is_dummy``): its best candidate. That one
    has a finite loss, for 0 times NaN is NaN; if no candidate of the rank has, the stand-in is the first, and its score
    minus infinity.

    With ``local`` every rank chooses from its own candidates, and only the payoffs are summed.

    Args:
        selector: in the same state on all ranks.
        candidates: of this rank, B_r >= 1; the same fields on all ranks.
        num_selected: b in [1, sum of B_r], the same on all ranks, for ``global``; b_r in [1, B_r] for ``local``. Or a
            function of the number of candidates, of all ranks or of this one.
        generator: for ``global`` in the same state on all ranks, if the rule or its sampler draws; left so.
        mode: one of ``distributed.MODES``; in one process also None.

    Returns:
        Positions in this rank's candidates, in the order of the selection; the scores of this rank's candidates;
        payoff, num_non_finite and index of all ranks; ``loss_weight = b_r R / b`` (see docs/loops.md). With
        ``local`` every rank has ``example_weights`` of its own selection.

    Raises:
        ValueError: on all ranks together, for whatever ``selector.select`` refuses on one; for candidates, selectors,
            generators or numbers that do not fit together; for a mode that ``distributed.check_mode`` refuses.
    """
    check_mode(mode)
    if num_ranks() == 1:
        number = _number(num_selected, candidates.num_candidates)
        return selector.select(candidates, num_selected=number, generator=generator)
    if mode == "global":
        return _global_selection(selector, candidates, num_selected, generator)
    with raising_on_all_ranks():
        number = _number(num_selected, candidates.num_candidates)
        own = selector.select(candidates, num_selected=number, generator=generator)
    return _with_payoff_of_all(selector, own)


@torch.no_grad()
def _with_payoff_of_all(selector: Selector, own: Selection) -> Selection:
    counts = torch.tensor([_state_checksum(selector), len(own.positions), own.num_non_finite])
    # the bits of the payoff, so that one exchange is enough
    facts = all_gather_stacked(torch.cat([counts, own.payoff.double().cpu().view(torch.int64)]))
    checksums, num_selected, num_non_finite = facts[:, :3].T.tolist()
    _check_equal_states(checksums)
    payoffs = facts[:, 3:].contiguous().view(torch.float64).to(own.payoff.device)
    return Selection(
        positions=own.positions,
        scores=own.scores,
        payoff=selector.merged_payoff(payoffs),
        num_non_finite=sum(num_non_finite),
        loss_weight=len(own.positions) * num_ranks() / sum(num_selected),
        example_weights=own.example_weights,
        index=None if own.index is None else torch.cat(all_gather(own.index, sizes=num_selected)),
    )


@torch.no_grad()
def _global_selection(
    selector: Selector,
    candidates: Candidates,
    num_selected: int | Callable[[int], int],
    generator: torch.Generator | None,
) -> Selection:
    random_state = _random_state(generator, candidates.device)
    with raising_on_all_ranks():
        selector.check_candidates(candidates)
        if selector.is_pointwise:
            shared = {"scores": selector.valid_scores(candidates, generator=generator)}
        else:
            shared = _fields_for_scores(selector, candidates)
    asked = -1 if callable(num_selected) else num_selected
    facts = [candidates.num_candidates, asked, _state_checksum(selector), _layout(selector, candidates, shared)]
    of_ranks = all_gather_stacked(torch.tensor([*facts, zlib.crc32(random_state)]))
    sizes, numbers, states, layouts, random_states = of_ranks.T.tolist()
    _check_equal_states(states)
    _check_fit(sizes, numbers, layouts)
    number = _number(num_selected, sum(sizes))
    check_num_selected(number, sum(sizes), where=f" of all {num_ranks()} ranks")

    union = _of_all_ranks(shared, sizes)
    everyone = None if selector.is_pointwise else Candidates(**union)
    scores = union["scores"] if everyone is None else selector.valid_scores(everyone, generator=generator)
    num_non_finite = num_nonfinite(scores)
    positions = selector.best(scores, num_selected=number, num_non_finite=num_non_finite, generator=generator)
    if len(set(random_states)) > 1 and _random_state(generator, candidates.device) != random_state:
        raise ValueError(
            f"{selector.name!r} draws, and the random generators of the ranks are in different states: they would "
            "choose differently. Give generator=torch.Generator().manual_seed(s), with one s on all ranks."
        )

    owners = torch.bucketize(positions, torch.tensor(sizes, device=positions.device).cumsum(0), right=True)
    first = sum(sizes[: rank()])
    own_scores = scores[first : first + candidates.num_candidates]
    own_positions = positions[owners == rank()] - first
    payoff = _payoff_of_all(selector, candidates.take(own_positions), owners)
    weights = None if everyone is None else selector.example_weights(everyone, scores, positions, payoff)
    has_selected = len(own_positions) > 0  # if not, there is a stand-in
    return Selection(
        positions=own_positions if has_selected else top_k(own_scores, 1),
        scores=own_scores,
        payoff=payoff,
        num_non_finite=num_non_finite,
        loss_weight=len(own_positions) * num_ranks() / len(positions),
        example_weights=weights[owners == rank()] if weights is not None and has_selected else None,
        index=None if everyone is None else selector.selected_index(everyone, positions),
    )


def _payoff_of_all(selector: Selector, selected: Candidates, owners: Tensor) -> Tensor:
    """(G,) payoff of the selected points of all ranks, in the order of the selection, whose ``owners`` (b,) are ranks.

    Every rank does the same sum, which is that of one process, so all have the same bits.
    """
    if type(selector).payoff is Selector.payoff:
        return selector.payoff(selected)
    sizes = torch.bincount(owners, minlength=num_ranks()).tolist()
    by_rank = Candidates(**_of_all_ranks(_needed_fields(selector, selected), sizes))
    return selector.total_payoff(by_rank, owners.argsort(stable=True).argsort())


def _needed_fields(selector: Selector, candidates: Candidates) -> dict[str, Any]:
    return {name: field for name, field in candidates.given().items() if name in selector.needs}


def _fields_for_scores(selector: Selector, candidates: Candidates) -> dict[str, Tensor]:
    """What a rule that is not pointwise, and its check for broken points, read of the candidates."""
    fields = _needed_fields(selector, candidates)
    if "group_irreducible_loss" in fields:
        fields["group_irreducible_loss"] = candidates.group_losses
    if candidates.model_loss is not None:
        fields["model_loss"] = candidates.model_loss
    # Candidates of no field would not know how many they are
    return fields or {"targets": torch.zeros(candidates.num_candidates, dtype=torch.int64, device=candidates.device)}


def _of_all_ranks(fields: Mapping[str, Tensor], sizes: list[int]) -> dict[str, Tensor]:
    """The fields of all ranks' points, one rank's after another's."""
    # points lie along the first axis, but in (S, B, C) logits along the last but one
    axes = {name: -2 if name == "logits" else 0 for name in fields}
    return {
        name: torch.cat(all_gather(tensor.movedim(axes[name], 0), sizes=sizes)).movedim(0, axes[name])
        for name, tensor in fields.items()
    }


def _number(num_selected: int | Callable[[int], int], num_candidates: int) -> int:
    return num_selected(num_candidates) if callable(num_selected) else num_selected


def _state_checksum(selector: Selector) -> int:
    # not of what grows with the data, which would take long
    buffers = [buffer for name, buffer in selector.named_buffers() if name not in selector.growing]
    state = torch.cat([buffer.reshape(-1).view(torch.uint8) for buffer in buffers])
    return zlib.crc32(state.cpu().numpy().tobytes())


def _layout(selector: Selector, candidates: Candidates, shared: Mapping[str, Tensor]) -> int:
    """A checksum of dtypes and shapes, but for the number of points, of all that crosses between ranks."""
    crossing = [*shared.items(), *sorted(_needed_fields(selector, candidates).items())]
    layout = [(name, tensor.dtype, [*tensor.shape[:-2], *tensor.shape[1:][-1:]]) for name, tensor in crossing]
    return zlib.crc32(repr(layout).encode())


def _random_state(generator: torch.Generator | None, device: torch.device) -> bytes:
    """The state of what rules and samplers draw from."""
    if generator is not None:
        state = generator.get_state()
    elif device.type == "cpu":
        state = torch.get_rng_state()
    else:
        state = getattr(torch, device.type).get_rng_state(device)
    return state.numpy().tobytes()


def _check_equal_states(checksums: list[int]) -> None:
    if len(set(checksums)) > 1:
        raise ValueError(
            "the selectors of the ranks are in different states, so that their group weights would drift apart. Load "
            "the same checkpoint on all, set the same epoch, give set_group_holdout_loss() the mean over all ranks, "
            "GroupHoldoutLoss.mean(over_ranks=True), and update with what select_distributed() returned."
        )


def _check_fit(sizes: list[int], numbers: list[int], layouts: list[int]) -> None:
    if min(sizes) < 1:
        raise ValueError(
            f"every rank needs at least one candidate at every step; the ranks have {', '.join(map(str, sizes))}. Let "
            "their loaders end together."
        )
    if len(set(numbers)) > 1:
        raise ValueError(f"num_selected must be the same on all ranks; got {', '.join(map(str, numbers))}.")
    if len(set(layouts)) > 1:
        raise ValueError(
            "the candidates of the ranks must have the same fields, of the same dtypes, numbers of groups and classes; "
            "they differ. Give every rank the same model, irreducible losses and precision."
        )
