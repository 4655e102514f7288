"""What every integration shares: from a batch of candidates in anyone's structure to the selected points, and state."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from reducr._internal.checks import check_count, check_flag, check_range, check_state_keys
from reducr._internal.distributed import check_mode, check_mode_name
from reducr._internal.names import unknown_name
from reducr.batch import Batch, BatchSpec, Selection
from reducr.batch.model_output import PerExampleLoss
from reducr.batch.nested import index_batch, send_to_device, zero_inputs
from reducr.scoring.budget import ScoringBudget, ScoringForward, check_budget, check_compiled
from reducr.scoring.holdout import GroupHoldoutLoss
from reducr.scoring.scorer import SCORING_MODES, IrreducibleLookup, choose, num_selected_of, update_holdout_loss
from reducr.selectors import Selector


@dataclass(frozen=True)
class SelectionReport:
    """What has been selected so far, on this rank, and what it cost.

    Args:
        num_steps: gradient steps, each of which updated the selector.
        num_batches: of candidates.
        num_candidates: seen.
        num_selected: taken.
        fraction: num_selected / num_candidates; NaN before the first batch.
        selection_seconds: wall-clock spent scoring and choosing; on a GPU, where work is queued, the time it took to
            queue it.
        holdout_seconds: wall-clock spent on the holdout loss.
        group_counts: selected points of each group, (G,).
        group_weights: in force for the next selection, (G,).
        num_non_finite: candidates left out because of a NaN or infinite loss.
    """

    num_steps: int
    num_batches: int
    num_candidates: int
    num_selected: int
    fraction: float
    selection_seconds: float
    holdout_seconds: float
    group_counts: list[int]
    group_weights: list[float]
    num_non_finite: int

    def __str__(self) -> str:
        seen = f"{self.num_batches} batches and {self.num_steps} steps"
        lines = [
            f"{self.num_selected} of {self.num_candidates} candidates selected ({self.fraction:.3f}) in {seen}",
            f"{self.selection_seconds:.1f} s selecting, {self.holdout_seconds:.1f} s on the holdout loss",
            f"{self.num_non_finite} candidates left out, whose loss was NaN or infinite",
        ]
        groups = enumerate(zip(self.group_counts, self.group_weights, strict=True))
        lines += [f"group {group}: {count} selected, weight {weight:.4f}" for group, (count, weight) in groups]
        return "\n".join(lines)


class Downsampler:
    """Selects from batches of any structure, and keeps everything that the next selection depends on.

    For each batch of candidates ``select`` gives the best part of it; after the gradient step, ``step`` updates the
    selector and refreshes the holdout loss when it is due. Loops call these two; ``SelectiveLoader`` and the
    integrations for Lightning and Hugging Face do it for theirs.

    Args:
        model: gives (B, C) logits for the input of a batch (see ``forward.model_output``), or whatever ``loss`` takes.
        selector: the rule; its state is part of this one's.
        irreducible: losses for the rules that need them: anything with ``lookup(batch)``.
        fraction: share of every batch to select, in (0, 1]; rounded down, but at least one point.
        holdout: batches of the clean holdout set, structured as the candidates or in another usual way; gives the
            group-holdout loss before the first batch and every ``refresh_steps`` after. None for rules without one, and
            where ``selector.set_group_holdout_loss`` is called by hand.
        refresh_steps: gradient steps between two passes over the holdout set; None for the end of every epoch.
        loss: of (output, target), one value for each point (B,); None for the cross-entropy.
        spec: where the parts of a batch are; None for the usual places (see ``BatchSpec.of``).
        scoring_mode: ``train``, ``eval`` or ``train_frozen_statistics``; see ``step.pick``.
        autocast: bfloat16 or float16, in which the model scores; None for the autocast mode at hand.
        scoring_compile: the model scores through ``torch.compile``.
        scoring_resolution: share of an image's height and width that is left for scoring, in (0, 1); None for whole
            images. For models that take images of any size.
        scoring_budget: scores only the part of the candidates that could be selected by what it remembers of their
            losses; its memory is part of this state. For points with an index, in one process.
        accumulate_steps: batches to one gradient step; the selector is updated once for all of them.
        distributed: on several ranks, ``global`` for the best of all ranks' candidates together or ``local`` for the
            best of each rank's; a loop must then multiply its loss with ``loss_weight``. See docs/loops.md.
        weights_examples: the loop multiplies each selected loss with ``example_weights`` before it takes their
            mean. Rules that weight points, ``group_dro`` and ``infobatch``, are refused without it.
        seed: of the draws of rules and samplers that draw; the same on all ranks.

    Raises:
        ValueError: for an option out of range; at the first batch for one that cannot be read, scored or selected from.
        TypeError: for a selector that is none, or an irreducible without ``lookup``.
    """

    def __init__(
        self,
        model: nn.Module,
        selector: Selector,
        irreducible: IrreducibleLookup | None = None,
        *,
        fraction: float = 0.1,
        holdout: Iterable[Any] | None = None,
        refresh_steps: int | None = None,
        loss: PerExampleLoss | None = None,
        spec: BatchSpec | None = None,
        scoring_mode: str = "train",
        autocast: torch.dtype | None = None,
        scoring_compile: bool = False,
        scoring_resolution: float | None = None,
        scoring_budget: ScoringBudget | None = None,
        accumulate_steps: int = 1,
        distributed: str | None = None,
        weights_examples: bool = False,
        seed: int = 0,
    ) -> None:
        _check_parts(model, selector, irreducible)
        num_selected_of(fraction, 1)
        if scoring_mode not in SCORING_MODES:
            raise unknown_name("scoring_mode", scoring_mode, SCORING_MODES)
        if autocast not in (None, torch.bfloat16, torch.float16):
            raise ValueError(f"autocast must be torch.bfloat16, torch.float16 or None; got {autocast}.")
        check_count("accumulate_steps", accumulate_steps)
        check_mode_name(distributed)
        check_compiled(selector, scoring_compile)
        _check_weights(selector, weights_examples)
        check_budget(scoring_budget, selector, fraction=fraction, distributed=distributed)
        if refresh_steps is not None:
            check_count("refresh_steps", refresh_steps)
            if holdout is None:
                raise ValueError(
                    f"refresh_steps={refresh_steps} changes nothing without holdout: give its batches too."
                )
        if isinstance(holdout, Iterator):
            raise ValueError(  # noqa: TRY004  (it is iterable, but once)
                f"holdout is read again and again, and a {type(holdout).__name__} gives its batches once: give a "
                "loader, or a list of batches."
            )
        self.model = model
        self.selector = selector
        self.irreducible = irreducible
        self.fraction = fraction
        self.holdout = holdout
        self.refresh_steps = refresh_steps
        self.loss = loss
        self.spec = spec
        self.scoring_mode = scoring_mode
        self.autocast = autocast
        self.scoring_compile = scoring_compile
        self.scoring_resolution = scoring_resolution
        self.scoring_budget = scoring_budget
        self.accumulate_steps = accumulate_steps
        self.distributed = distributed
        self.generator = torch.Generator().manual_seed(seed)
        self.holdout_loss = GroupHoldoutLoss(selector.num_groups)
        self.selection: Selection | None = None
        """The last selection."""
        self._forward: ScoringForward | None = None
        self._forward_of(model)
        self._device: torch.device | None = None
        self._num_selected = partial(num_selected_of, fraction)
        self._selected: Any = None
        self._specs: dict[str, BatchSpec] = {}
        self._waiting: list[Selection] = []
        self._counts: dict[str, int] = {"num_steps": 0, "num_batches": 0, "num_candidates": 0, "num_selected": 0}
        self._seconds = {"selection_seconds": 0.0, "holdout_seconds": 0.0}
        self._group_counts = torch.zeros(selector.num_groups, dtype=torch.int64)

    def __getstate__(self) -> dict[str, Any]:
        # torch.multiprocessing cannot send a generator to another process, as Lightning's ddp_spawn does
        return vars(self) | {"generator": self.generator.get_state().tolist(), "_forward": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        drawn = torch.tensor(state["generator"], dtype=torch.uint8)
        vars(self).update(state | {"generator": torch.Generator().set_state(drawn)})

    def prepare(self) -> None:
        """Move state to the model's device, and evaluate the holdout set if it has not been yet.

        Raises:
            ValueError: if the selector needs the holdout loss and there is none, or ``distributed`` does not fit the
                processes there are.
        """
        check_mode(self.distributed)
        self._device = device = _device_of(self.model)
        self.selector.to(device)
        self.holdout_loss.to(device)
        if self.scoring_budget is not None:
            self.scoring_budget.to(device)
        self._group_counts = self._group_counts.to(device)
        self._waiting = [send_to_device(selection, device) for selection in self._waiting]
        if not bool(torch.isnan(self.selector.group_holdout_loss).any()):
            return
        if self.holdout is not None:
            self.refresh_holdout()
        elif self.selector.needs_group_holdout_loss:
            raise ValueError(
                f"{self.selector.name!r} needs the holdout loss before its first selection: give holdout=, batches of "
                "the clean holdout set, or call selector.set_group_holdout_loss(h)."
            )

    def select(self, batch: Any) -> Any:
        """The selected points of a batch, in its own structure, on the model's device."""
        started = time.perf_counter()
        device = _device_of(self.model) if self._device is None else self._device
        waits = device.type != "cpu"
        if waits:  # to look at what is there; not before it goes there
            self._check_examples(self._read("candidates", batch))
        batch = send_to_device(batch, device)
        candidates = self._read("candidates", batch)
        if not waits:
            self._check_examples(candidates)
        with self._scoring_precision():
            scorer = self._scorer
            selection = choose(
                scorer,
                candidates,
                self.selector,
                self.irreducible,
                num_selected=self._num_selected,
                loss=self.loss,
                scoring_mode=self.scoring_mode,
                forward=self._forward_of(scorer),
                budget=self.scoring_budget,
                generator=self.generator,
                distributed=self.distributed,
            )
        size, positions = candidates.target.shape[0], selection.positions
        self.selection = selection
        self._waiting.append(selection)
        counts = self._counts
        counts["num_batches"] += 1
        counts["num_candidates"] += size
        if not selection.is_dummy:
            counts["num_selected"] += positions.shape[0]
            groups = candidates.group.index_select(0, positions)
            self._group_counts += torch.bincount(groups, minlength=self.selector.num_groups)
        self._selected = index_batch(batch, positions, num_examples=size)
        if selection.has_nonfinite_loss:
            self._selected = zero_inputs(self._selected)
        self._seconds["selection_seconds"] += time.perf_counter() - started
        return self._selected

    @property
    def selected(self) -> Batch | None:
        """The parts of the selected points of the last batch."""
        return None if self._selected is None else self._read("candidates", self._selected)

    def step(self, *, is_last: bool = False) -> None:
        """Update the selector if the batches selected from make up a gradient step; refresh the holdout loss if due.

        Args:
            is_last: the epoch ends here: what is there makes up a step, be it fewer batches than others.
        """
        is_step = len(self._waiting) >= self.accumulate_steps or (is_last and bool(self._waiting))
        if is_step:
            self.selector.update(self.selector.merged(self._waiting))
            self._waiting = []
            self._counts["num_steps"] += 1
        if self.holdout is None:
            return
        every = self.refresh_steps
        if is_last if every is None else is_step and self._counts["num_steps"] % every == 0:
            self.refresh_holdout()

    def discard(self) -> None:
        """Forget the last selection: its points are not trained on after all, so it does not move the selector."""
        self._waiting.pop()

    @property
    def loss_weight(self) -> float:
        """What the mean loss of the last selected points is to be multiplied with; 1 in one process."""
        return 1.0 if self.selection is None else self.selection.loss_weight

    @property
    def example_weights(self) -> Tensor:
        """(b,) what the loss of each of the last selected points is to be multiplied with; ones for most rules.

        Raises:
            RuntimeError: before the first selection.
        """
        if self.selection is None:
            raise RuntimeError("no batch has been selected from yet, so there are no points to weight.")
        weights = self.selection.example_weights
        positions = self.selection.positions
        return torch.ones(len(positions), device=positions.device) if weights is None else weights

    def refresh_holdout(self) -> None:
        """Evaluate the model on the holdout set and put the mean loss of every group in force.

        Raises:
            ValueError: if there is no ``holdout``, a group has no point in it (named), or a loss is not finite.
        """
        if self.holdout is None:
            raise ValueError("there is nothing to refresh the holdout loss by: give holdout, the batches of that set.")
        started = time.perf_counter()
        device = _device_of(self.model)
        batches = (self._read("holdout", send_to_device(batch, device)) for batch in self.holdout)
        with self._scoring_precision():
            update_holdout_loss(
                self._scorer,
                batches,
                self.selector,
                self.holdout_loss,
                loss=self.loss,
                sync=self.distributed is not None,
            )
        self._seconds["holdout_seconds"] += time.perf_counter() - started

    def report(self) -> SelectionReport:
        """What has been selected so far, and what it cost; prints well."""
        seen = self._counts["num_candidates"]
        return SelectionReport(
            **self._counts,
            **self._seconds,  # type: ignore[arg-type]  # names of seconds alone
            fraction=self._counts["num_selected"] / seen if seen else float("nan"),
            group_counts=self._group_counts.tolist(),
            group_weights=self.selector.group_weights.tolist(),
            num_non_finite=int(self.selector.num_non_finite),
        )

    def state_dict(self) -> dict[str, Any]:
        """Everything that later selections depend on, and the report so far."""
        budget = {} if self.scoring_budget is None else {"scoring_budget": self.scoring_budget.state_dict()}
        return budget | {
            "selector": self.selector.state_dict(),
            "generator": self.generator.get_state(),
            "holdout_loss": self.holdout_loss.state_dict(),
            "waiting": [asdict(selection) for selection in self._waiting],
            "counts": dict(self._counts),
            "seconds": dict(self._seconds),
            "group_counts": self._group_counts.clone(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave.

        Raises:
            ValueError: for the state of something else, or of a selector that does not fit.
        """
        check_state_keys("a Downsampler", state, self.state_dict())
        self.selector.load_state_dict(state["selector"])
        self.generator.set_state(state["generator"].cpu())
        self.holdout_loss.load_state_dict(state["holdout_loss"])
        if self.scoring_budget is not None:
            self.scoring_budget.load_state_dict(state["scoring_budget"])
        self._waiting = [Selection(**selection) for selection in state["waiting"]]
        self._counts = dict(state["counts"])
        self._seconds = dict(state["seconds"])
        self._group_counts = state["group_counts"].to(self._group_counts.device)

    @property
    def _scorer(self) -> nn.Module:
        """The model without DistributedDataParallel, whose forward pass waits for all ranks."""
        model = self.model._modules.get("_orig_mod", self.model)  # under torch.compile
        if isinstance(model, DistributedDataParallel):
            module: nn.Module = model.module
            return module
        return self.model

    def _forward_of(self, scorer: nn.Module) -> ScoringForward:
        """How it is called; made anew where an integration has put another model in the place of the first."""
        if self._forward is None or self._forward.model is not scorer:
            self._forward = ScoringForward(
                scorer,
                scoring_mode=self.scoring_mode,
                is_compiled=self.scoring_compile,
                resolution=self.scoring_resolution,
            )
        return self._forward

    def _check_examples(self, candidates: Batch) -> None:
        _check_examples(candidates, self.selector)
        if self.scoring_budget is not None:
            self.scoring_budget.reserve(candidates.index)

    def _scoring_precision(self) -> AbstractContextManager[Any]:
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(_device_of(self.model).type, dtype=self.autocast)

    def _read(self, source: str, batch: Any) -> Batch:
        """The parts of a batch; all batches of one source have the structure of its first."""
        if source not in self._specs:
            self._specs[source] = self.spec or BatchSpec.of(batch)
        return self._specs[source].read(batch)


def _device_of(model: nn.Module) -> torch.device:
    tensor = next(model.parameters(), next(model.buffers(), None))
    return torch.device("cpu") if tensor is None else tensor.device


def _check_parts(model: Any, selector: Any, irreducible: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module; got {type(model).__name__}.")
    if not isinstance(selector, Selector):
        mended = f" Use reducr.make_selector({selector!r}, num_groups=...)." if isinstance(selector, str) else ""
        raise TypeError(f"selector must be what reducr.make_selector makes; got {type(selector).__name__}.{mended}")
    needs = [need for need in selector.needs if "irreducible_loss" in need]
    if irreducible is None and needs:
        raise ValueError(
            f"selector {selector.name!r} needs irreducible losses; got irreducible=None. Give anything with "
            "lookup(batch), such as reducr.irreducible.AdjustedIrreducibleLoss."
        )
    if irreducible is not None and not hasattr(irreducible, "lookup"):
        raise TypeError(
            f"irreducible must have lookup(batch) -> Tensor; got {type(irreducible).__name__}. For a model give "
            "AdjustedIrreducibleLoss(LiveLogits(model)) or PlainIrreducibleLoss(LiveLogits(model)), from "
            "reducr.irreducible."
        )


def _check_weights(selector: Selector, weights_examples: bool) -> None:
    check_flag("weights_examples", weights_examples)
    if selector.weights_examples and not weights_examples:
        raise ValueError(
            f"{selector.name!r} weights the losses of the points it selects, and a loop that does not know of it would "
            "leave that out. Multiply the loss of each point with example_weights before the mean, and say so with "
            "weights_examples=True."
        )


def _check_examples(candidates: Batch, selector: Selector) -> None:
    if candidates.target.shape[0] == 0:
        raise ValueError("a batch without points: there is nothing to select from.")
    group: Tensor = candidates.group
    if group.is_floating_point() or group.is_complex() or group.ndim != 1:
        raise ValueError(
            f"a batch's group (its target, if there is none) must hold one integer for each point; got {group.dtype} "
            f"{tuple(group.shape)}. Give integers, or say where the group is with spec=BatchSpec(group=...)."
        )
    check_range("a batch's group", group, selector.num_groups)
