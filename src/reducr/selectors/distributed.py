"""Selection on several processes (ranks), each of which scores its own candidates.

Two modes decide which candidates are selected:

``global``
    The best ``num_selected`` of all ranks' candidates, exactly as one process would choose from the candidates of rank
    0, rank 1, ... one after another. Each rank trains on the selected examples that are its own. Scores and the losses
    of selected examples cross the network. Inputs never do; logits only for rules that compare candidates by them.
``local``
    Every rank selects ``num_selected`` of its own candidates. Only the payoffs cross the network; they are summed.

In both modes all ranks have the same group weights, bit for bit.

Ranks average their gradients, as DistributedDataParallel does, but rarely have the same number of selected examples.
A rank r that has b_r of the b selected examples multiplies its mean loss by ``loss_weight = b_r R / b``. Then the
average over the R ranks is the gradient of the mean loss of all selected examples::

    1/R sum_r (b_r R / b) (1/b_r) sum_{i on rank r} g_i  =  1/b sum_i g_i

A rank without a selected example trains on a dummy, one of its own candidates at ``loss_weight`` 0, so that it takes
part in the step. Up to rounding the step is that of one process, except in layers with batch statistics (BatchNorm).
"""

from __future__ import annotations

import inspect
import zlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from reducr._internal.distributed import (
    all_gather,
    all_gather_objects,
    all_gather_stacked,
    check_mode,
    num_ranks,
    raising_on_all_ranks,
    rank,
)
from reducr.batch import Candidates, Selection
from reducr.functional import top_k
from reducr.selectors.base import Selector
from reducr.selectors.checks import check_num_selected, num_nonfinite


def select_distributed(
    selector: Selector,
    candidates: Candidates,
    *,
    num_selected: int | Callable[[int], int],
    generator: torch.Generator | None = None,
    mode: str | None,
) -> Selection:
    """Select from the candidates of all ranks. Every rank calls this with its own; one process just calls ``select``.

    With ``global``, selection and payoff are those of one process with all candidates, ties and random draws included.
    A rank without a selected example gets a dummy (``selection.is_dummy``): its best candidate, at ``loss_weight`` 0.
    The dummy's loss is finite, because 0 times NaN is NaN. If no candidate of the rank has a finite loss, the dummy is
    the first one and its score is minus infinity.

    With ``local``, every rank selects from its own candidates, and the payoffs are summed.

    Args:
        selector: in the same state on all ranks.
        candidates: B_r >= 1 of this rank; the same fields on all ranks.
        num_selected: for ``global`` b in [1, sum of B_r], the same on all ranks; for ``local`` b_r in [1, B_r]. Or a
            function that returns it for the number of candidates, of all ranks or of this one.
        generator: for ``global`` and a rule or sampler that draws, in the same state on all ranks; it stays so.
        mode: one of ``MODES`` of ``reducr._internal.distributed``; None only in one process.

    Returns:
        Positions in this rank's candidates, in the order of the selection; the scores of this rank's candidates;
        payoff, num_non_finite and index of all ranks; ``loss_weight`` (see the module) and ``example_weights`` of this
        rank.

    Raises:
        ValueError: on all ranks, if ``selector.select`` would raise it on one; for candidates, selectors, generators or
            numbers that do not agree; for a mode that does not fit the process group.
    """
    check_mode(mode)
    if num_ranks() == 1:
        count = _num_selected(num_selected, candidates.num_candidates)
        return selector.select(candidates, num_selected=count, generator=generator)
    if mode == "global":
        return _global_selection(selector, candidates, num_selected, generator)
    with raising_on_all_ranks():
        count = _num_selected(num_selected, candidates.num_candidates)
        selection = selector.select(candidates, num_selected=count, generator=generator)
    return _with_total_payoff(selector, selection)


@torch.no_grad()
def _with_total_payoff(selector: Selector, selection: Selection) -> Selection:
    """The local ``selection`` with the payoff, the counts and the index of all ranks."""
    facts_of_rank = [len(selection.positions), selection.num_non_finite, len(selection.scores)]
    counts = torch.tensor([_state_checksum(selector), *facts_of_rank])
    # the payoff as integers of the same bits, so that one exchange is enough
    facts = all_gather_stacked(torch.cat([counts, selection.payoff.double().cpu().view(torch.int64)]))
    checksums, num_selected, num_non_finite, num_candidates = facts[:, :4].T.tolist()
    _check_equal_states(selector, checksums)
    payoffs = facts[:, 4:].contiguous().view(torch.float64).to(selection.payoff.device)
    return Selection(
        positions=selection.positions,
        scores=selection.scores,
        payoff=selector.merged_payoff(payoffs),
        num_non_finite=sum(num_non_finite),
        loss_weight=len(selection.positions) * num_ranks() / sum(num_selected),
        example_weights=selection.example_weights,
        index=None if selection.index is None else torch.cat(all_gather(selection.index, sizes=num_selected)),
        num_selected=sum(num_selected),
        num_candidates=sum(num_candidates),
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
    requested = -1 if callable(num_selected) else num_selected
    facts = [candidates.num_candidates, requested, _state_checksum(selector), _layout(selector, candidates, shared)]
    facts_of_ranks = all_gather_stacked(torch.tensor([*facts, zlib.crc32(random_state)]))
    sizes, requests, states, layouts, random_states = facts_of_ranks.T.tolist()
    _check_equal_states(selector, states)
    _check_agreement(sizes, requests, layouts)
    count = _num_selected(num_selected, sum(sizes))
    check_num_selected(count, sum(sizes), where=f" of all {num_ranks()} ranks")

    union = _gathered_fields(shared, sizes)
    all_candidates = None if selector.is_pointwise else Candidates(**union)
    if all_candidates is None:
        scores = union["scores"]
    else:
        scores = selector.valid_scores(all_candidates, num_selected=count, generator=generator)
    num_non_finite = num_nonfinite(scores)
    positions = selector.sample(scores, num_selected=count, num_non_finite=num_non_finite, generator=generator)
    if len(set(random_states)) > 1 and _random_state(generator, candidates.device) != random_state:
        raise ValueError(
            f"{selector.name!r} draws random numbers, and the random generators of the ranks are in different states: "
            "the ranks would select differently. Pass generator=torch.Generator().manual_seed(s) with the same s on "
            "all ranks."
        )

    owners = torch.bucketize(positions, torch.tensor(sizes, device=positions.device).cumsum(0), right=True)
    first = sum(sizes[: rank()])
    own_scores = scores[first : first + candidates.num_candidates]
    own_positions = positions[owners == rank()] - first
    payoff = _global_payoff(selector, candidates.take(own_positions), owners)
    weights = None if all_candidates is None else selector.example_weights(all_candidates, scores, positions, payoff)
    has_selected = len(own_positions) > 0
    return Selection(
        positions=own_positions if has_selected else top_k(own_scores, 1),
        scores=own_scores,
        payoff=payoff,
        num_non_finite=num_non_finite,
        loss_weight=len(own_positions) * num_ranks() / len(positions),
        example_weights=weights[owners == rank()] if weights is not None and has_selected else None,
        index=None if all_candidates is None else selector.selected_index(all_candidates, positions),
        num_selected=len(positions),
        num_candidates=sum(sizes),
    )


def _global_payoff(selector: Selector, selected: Candidates, owners: Tensor) -> Tensor:
    """Payoff (G,) of the selected examples of all ranks.

    Every rank adds in the order of the selection, as one process does, so all get the same bits.

    Args:
        selector: the rule.
        selected: the selected candidates of this rank, in the order of the selection.
        owners: (b,) the rank of each selected example.
    """
    if type(selector).payoff is Selector.payoff:
        return selector.payoff(selected)
    sizes = torch.bincount(owners, minlength=num_ranks()).tolist()
    by_rank = Candidates(**_gathered_fields(_needed_fields(selector, selected), sizes))
    return selector.total_payoff(by_rank, owners.argsort(stable=True).argsort())


def _needed_fields(selector: Selector, candidates: Candidates) -> dict[str, Any]:
    return {name: field for name, field in candidates.given().items() if name in selector.needs}


def _fields_for_scores(selector: Selector, candidates: Candidates) -> dict[str, Tensor]:
    """Fields that a rule that is not pointwise needs from all ranks, the losses that must be finite included."""
    fields = _needed_fields(selector, candidates)
    if "group_irreducible_loss" in fields:
        fields["group_irreducible_loss"] = candidates.group_losses
    if candidates.model_loss is not None:
        fields["model_loss"] = candidates.model_loss
    # Candidates need at least one field to have a size
    return fields or {"targets": torch.zeros(candidates.num_candidates, dtype=torch.int64, device=candidates.device)}


def _gathered_fields(fields: Mapping[str, Tensor], sizes: list[int]) -> dict[str, Tensor]:
    """The fields of all ranks, concatenated in the order of the ranks."""
    # examples are on the first axis, but on the last but one of (S, B, C) logits
    axes = {name: -2 if name == "logits" else 0 for name in fields}
    return {
        name: torch.cat(all_gather(tensor.movedim(axes[name], 0), sizes=sizes)).movedim(0, axes[name])
        for name, tensor in fields.items()
    }


def _num_selected(num_selected: int | Callable[[int], int], num_candidates: int) -> int:
    return num_selected(num_candidates) if callable(num_selected) else num_selected


def _state_checksum(selector: Selector) -> int:
    state = torch.cat([buffer.reshape(-1).view(torch.uint8) for _, buffer in _shared_buffers(selector)])
    return zlib.crc32(state.cpu().numpy().tobytes())


def _shared_buffers(selector: Selector) -> Iterator[tuple[str, Tensor]]:
    # without the buffers that grow with the data, which would take long
    return ((name, buffer) for name, buffer in selector.named_buffers() if name not in selector.growing)


def _layout(selector: Selector, candidates: Candidates, shared: Mapping[str, Tensor]) -> int:
    """Checksum of the dtypes and shapes, without the number of examples, of all exchanged tensors."""
    exchanged = [*shared.items(), *sorted(_needed_fields(selector, candidates).items())]
    layout = [(name, tensor.dtype, [*tensor.shape[:-2], *tensor.shape[1:][-1:]]) for name, tensor in exchanged]
    return zlib.crc32(repr(layout).encode())


def _random_state(generator: torch.Generator | None, device: torch.device) -> bytes:
    """State of the generator that rules and samplers draw from."""
    if generator is not None:
        state = generator.get_state()
    elif device.type == "cpu":
        state = torch.get_rng_state()
    else:
        state = getattr(torch, device.type).get_rng_state(device)
    return state.numpy().tobytes()


def check_equal_ranks(selector: Selector, options: dict[str, Any]) -> None:
    """See that the selectors of all ranks, which call this together, have the same rule, options and state.

    Args:
        selector: of this rank.
        options: further options that must be the same on all ranks, by name.

    Raises:
        ValueError: on all ranks, for the first difference.
    """
    if num_ranks() == 1:
        return
    own = {"rule": selector.name, "num_groups": selector.num_groups}
    of_ranks = all_gather_objects(own | options | _options(selector))
    for name in dict.fromkeys(name for of_rank in of_ranks for name in of_rank):
        values = [of_rank.get(name) for of_rank in of_ranks]
        listed = ", ".join(map(repr, values))
        if len(set(values)) > 1 and name == "num_groups":
            raise ValueError(
                f"The ranks have counted {listed} groups in their holdout sets. Pass `num_groups={max(values)}` on all "
                "of them."
            )
        if len(set(values)) > 1:
            raise ValueError(f"`{name}` differs between the ranks: {listed}. Pass the same on all of them.")
    _check_equal_states(selector, all_gather_stacked(torch.tensor(_state_checksum(selector))).tolist())


def _options(selector: Selector) -> dict[str, Any]:
    """The options of a rule and its sampler that are numbers or texts, by name."""
    names, own = inspect.signature(type(selector)).parameters, vars(selector.weighting) | vars(selector)
    found = {name: own[name] for name in names if name in own} | {"sampler": type(selector.sampler).__name__}
    found |= getattr(selector.sampler, "__dict__", {})
    return {name: value for name, value in found.items() if isinstance(value, int | float | str)}


def _check_equal_states(selector: Selector, checksums: list[int]) -> None:
    if len(set(checksums)) == 1:
        return
    of_ranks = all_gather_objects({name: str(buffer.tolist()) for name, buffer in _shared_buffers(selector)})
    values = {name: [of_rank[name] for of_rank in of_ranks] for name in of_ranks[0]}
    differing = [name for name in values if len(set(values[name])) > 1]
    if "step" in differing:
        cause = (
            f"they have made {', '.join(values['step'])} updates. Load the same checkpoint on all ranks, and update "
            "all of them after each selection."
        )
    elif "epoch" in differing:
        cause = (
            f"they are in epochs {', '.join(values['epoch'])}. If the loader of a rank has fewer batches, this rank is "
            "in its next epoch: use `drop_last=True` or a DistributedSampler. Else pass the same number to set_epoch()."
        )
    elif differing == ["group_holdout_loss"]:
        cause = "they have different holdout losses. Pass the mean over all ranks to set_group_holdout_loss()."
    else:
        cause = (
            f"they differ in {', '.join(differing)}. Load the same checkpoint on all ranks, and update with the result "
            "of select_distributed()."
        )
    raise ValueError(f"the selectors of the ranks are in different states: {cause}")


def _check_agreement(sizes: list[int], requests: list[int], layouts: list[int]) -> None:
    if min(sizes) < 1:
        raise ValueError(
            f"rank {sizes.index(min(sizes))} got an empty batch (sizes: {', '.join(map(str, sizes))}). Use "
            "`drop_last=True` or a DistributedSampler, so that the loaders of all ranks end together."
        )
    if len(set(requests)) > 1:
        raise ValueError(f"num_selected must be the same on all ranks; got {', '.join(map(str, requests))}.")
    if len(set(layouts)) > 1:
        raise ValueError(
            "the candidates of the ranks differ in their fields, dtypes, or numbers of groups or classes. Use the same "
            "model, irreducible losses and precision on every rank."
        )
