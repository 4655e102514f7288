"""The selection core: score a batch of candidates, choose from it, count, refresh the holdout loss, keep the state."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reducr._internal.buffers import FixedDtypeBuffers
from reducr._internal.checks import check_state_keys
from reducr._internal.distributed import all_reduce_sum, check_mode, check_mode_name
from reducr.auxiliary import Auxiliary
from reducr.batch import Batch, BatchReader, BatchSpec, PerExampleLoss, Selection, without_index
from reducr.batch.nested import send_to_device
from reducr.batch.report import SelectionReport, by_group
from reducr.functional.sequences import row_groups
from reducr.scoring import (
    Holdout,
    HoldoutTracker,
    IrreducibleLookup,
    Scoring,
    ScoringForward,
    bind_irreducible,
    check_apart,
    check_candidates,
    check_data_parallel,
    check_options,
    check_parts,
    check_rows,
    device_of,
    holdout_of,
    num_selected_of,
    score_candidates,
    select_within_budget,
    selected_part,
    without_wrappers,
)
from reducr.selectors import Selector
from reducr.selectors.distributed import select_distributed


class Downsampler:
    """Select from batches of any structure, and keep everything that the next selection depends on.

    A loop calls ``prepare`` once, ``select`` for each batch of candidates, and ``step`` after each gradient step.
    ``SelectiveLoader``, ``training.train`` and the integrations for Lightning and Hugging Face do nothing else.

    Args:
        selector: the rule; its state is part of this one's.
        irreducible: source of irreducible losses, for the rules that need them: anything with ``lookup(batch)``.
        fraction: fraction of every batch to select, in (0, 1]; rounded down, but at least one example.
        holdout: the clean holdout set, a ``Holdout`` or its batches. It gives the group-holdout loss before the first
            batch and at every refresh. None for rules without one, or if you call ``selector.set_group_holdout_loss``.
        loss: of (output, target), one value per example (B,); None for the cross-entropy.
        spec: where the parts of a batch are; None for the usual places (see ``BatchSpec.of``).
        scoring: how the scoring pass runs the model; None for the way that was published.
        auxiliary: models that are trained on the selected examples too, and extra batches; None for neither.
        distributed: on several ranks, ``global`` for the best of all ranks' candidates together or ``local`` for the
            best of each rank's; a loop must then multiply its loss with ``loss_weight``. See docs/loops.md.
        seed: of the random numbers of rules and samplers; the same on all ranks.

    Raises:
        ValueError: for an option out of range, or one that does not fit the rule; at the first batch if it cannot be
            read, scored or selected from.
        TypeError: for a selector or irreducible of another kind.
    """

    def __init__(
        self,
        selector: Selector,
        irreducible: IrreducibleLookup | None = None,
        *,
        fraction: float = 0.1,
        holdout: Holdout | Iterable[Any] | None = None,
        loss: PerExampleLoss | None = None,
        spec: BatchSpec | None = None,
        scoring: Scoring | None = None,
        auxiliary: Auxiliary | None = None,
        distributed: str | None = None,
        seed: int = 0,
    ) -> None:
        num_selected_of(fraction, 1)
        check_mode_name(distributed)
        check_parts(selector, irreducible)
        check_options({"spec": (spec, BatchSpec), "scoring": (scoring, Scoring), "auxiliary": (auxiliary, Auxiliary)})
        self.scoring = Scoring() if scoring is None else scoring
        self.scoring.check_fit(selector, fraction=fraction, distributed=distributed)
        check_rows(loss, selector, self.scoring, spec)
        self.auxiliary = Auxiliary() if auxiliary is None else auxiliary
        if self.auxiliary.extra_batches is not None and distributed is not None:
            raise ValueError(
                f"Extra batches work in one process only in this version. Leave distributed={distributed!r} or "
                "`extra_batches` (`holdout_fraction` of the program) out."
            )
        self.selector = selector
        self.irreducible = bind_irreducible(irreducible, selector, loss)
        self.fraction = fraction
        self.loss = loss
        self.distributed = distributed
        self.generator = torch.Generator().manual_seed(seed)
        self.budget = self.scoring.new_budget()
        """Memory of the scoring budget; None if every candidate is scored."""
        self.holdout = HoldoutTracker(
            holdout_of(holdout, None), selector, loss=loss, spec=spec, sync=distributed is not None
        )
        self.selection: Selection | None = None
        """The last selection."""
        self.counts = {"num_steps": 0, "num_batches": 0, "num_candidates": 0, "num_selected": 0}
        """Totals so far; candidates and selected examples are those of all ranks."""
        self.seconds = {"selection_seconds": 0.0, "holdout_seconds": 0.0}
        """Wall-clock totals of this rank."""
        self._group_counts = torch.zeros(selector.num_groups, dtype=torch.int64)
        self._num_selected = partial(num_selected_of, fraction)
        self._extra_batches = self.auxiliary.new_extra_batches()
        self._forward: ScoringForward | None = None
        self._read = BatchReader(spec)
        self._waiting: list[Selection] = []
        self.selected: Batch | None = None
        """The parts of the selected examples of the last batch, without extra ones."""
        self.returned: Batch | None = None
        """The parts of what ``select`` returned last, extra examples included."""
        self._is_learned = True
        self._has_read_weights = True
        self._step_counts = torch.zeros_like(self._group_counts)
        self._logged: tuple[list[Selection], Tensor] = ([], self._step_counts)

    # ---- what a loop calls

    def prepare(self, model: nn.Module) -> None:
        """Move the state to the model's device, and evaluate ``model`` on the holdout set unless that has been done.

        Raises:
            ValueError: if the selector needs the holdout loss and there is none, or ``distributed`` does not fit the
                number of processes.
        """
        check_mode(self.distributed)
        check_apart(self.irreducible, model)
        check_data_parallel(model)
        device = device_of(model)
        for module in self.stateful_modules().values():
            module.to(device)
        self.auxiliary.prepare(device)
        self._group_counts, self._step_counts = self._group_counts.to(device), self._step_counts.to(device)
        self._waiting = [send_to_device(selection, device) for selection in self._waiting]
        if self._extra_batches is not None and self._extra_batches.stream.position != self.counts["num_batches"]:
            self._extra_batches.stream.seek(self.counts["num_batches"])
        if self.holdout.is_missing:
            raise ValueError(
                f"{self.selector.name!r} needs the holdout loss before its first selection. Pass `holdout=`, batches "
                "of the clean holdout set, or call selector.set_group_holdout_loss(h)."
            )
        started = time.perf_counter()
        self.holdout.begin(model, num_steps=self.counts["num_steps"])
        self.seconds["holdout_seconds"] += time.perf_counter() - started

    def check_model(self, model: nn.Module) -> None:
        """Raise ValueError if ``model`` cannot score as ``scoring`` says."""
        self._forward_of(without_wrappers(self.auxiliary.scorer(model)))

    def select(self, batch: Any, model: nn.Module) -> Any:
        """Return the selected examples of ``batch``, in its own structure, on the model's device; extra ones follow.

        Args:
            batch: the candidates; not changed.
            model: the target model. A proxy among the auxiliary models scores in its place.
        """
        started = time.perf_counter()
        if self._waiting:
            self._check_weights_read()
        self._teach_auxiliary()
        scorer = without_wrappers(self.auxiliary.scorer(model))
        batch, candidates = self._on_device(batch, device_of(model))
        self.selection = selection = self._choose(candidates, scorer)
        returned = selected_part(batch, candidates, selection, loss=self.loss, reader=self._read)
        self.selected = self.returned = self._read(returned)
        self._count(selection, row_groups(self.selected.group, self.selected.target, self.loss))
        if self._extra_batches is not None:
            num_examples, device = len(self.selected.target), candidates.target.device
            returned = self._extra_batches.append_to(without_index(returned), num_examples=num_examples, device=device)
            self.returned = self._read(returned)
        self._is_learned, self._has_read_weights = False, not self.selector.weights_examples
        self.seconds["selection_seconds"] += time.perf_counter() - started
        return without_index(returned)

    def step(self, model: nn.Module, *, is_last: bool = False) -> None:
        """Call after a gradient step: update the selector, and refresh the holdout loss when it is due.

        Args:
            model: the target model, which is evaluated on the holdout set.
            is_last: whether the epoch ends here.

        Raises:
            RuntimeError: if the rule weights examples, and the loop has not read ``example_weights``.
        """
        has_stepped = bool(self._waiting)
        if has_stepped:
            self._check_weights_read()
            self._teach_auxiliary()
            self.auxiliary.step(num_batches=len(self._waiting))
            self.selector.update(self.selector.merged(self._waiting))
            self._logged, self._waiting = (self._waiting, self._step_counts), []
            self.counts["num_steps"] += 1
        started = time.perf_counter()
        self.holdout.step(model, num_steps=self.counts["num_steps"] if has_stepped else None, is_last=is_last)
        self.seconds["holdout_seconds"] += time.perf_counter() - started

    def discard(self) -> None:
        """Forget the last selection, which was not trained on after all: it does not update the selector."""
        if not self._waiting:
            raise RuntimeError("There is no selection to discard: every one has been stepped with.")
        self._waiting.pop()
        self._is_learned = self._has_read_weights = True

    # ---- what a loop reads

    @property
    def loss_weight(self) -> float:
        """Factor of the mean loss of the last selected examples; 1 in one process."""
        return 1.0 if self.selection is None else self.selection.loss_weight

    @property
    def example_weights(self) -> Tensor | None:
        """(b,) factor of the loss of each example that ``select`` returned last; None where all are 1."""
        self._has_read_weights = True
        weights, returned = None if self.selection is None else self.selection.example_weights, self.returned
        if weights is None or returned is None or self._extra_batches is None:
            return weights
        return torch.cat([weights, weights.new_ones(len(returned.target) - len(weights))])

    @property
    def num_waiting(self) -> int:
        """Batches selected from since the last gradient step."""
        return len(self._waiting)

    def metrics(self) -> dict[str, float]:
        """Return the values to log for the last gradient step, by the keys of docs/metrics.md."""
        selections, counts = self._logged
        if not selections:
            return {}
        num_candidates = sum(selection.num_candidates or 0 for selection in selections)
        scores = torch.cat([selection.scores[selection.positions] for selection in selections])
        return {
            "select/fraction": sum(selection.num_selected or 0 for selection in selections) / num_candidates,
            "select/num_non_finite": self.selector.num_non_finite.item(),
            "select/mean_score": scores.mean().item(),
            "time/selection_seconds": self.seconds["selection_seconds"],
            **by_group("select/group_count", counts),
            **by_group("group_weight", self.selector.group_weights),
            **by_group("cumulative_payoff", self.selector.cumulative_payoff),
        }

    def report(self) -> SelectionReport:
        """Return what has been selected so far, and what it cost; prints well."""
        seen = self.counts["num_candidates"]
        return SelectionReport(
            **self.counts,
            **self.seconds,  # type: ignore[arg-type]  # the names of seconds
            fraction=self.counts["num_selected"] / seen if seen else float("nan"),
            group_counts=self._group_counts.tolist(),
            group_weights=self.selector.group_weights.tolist(),
            num_non_finite=int(self.selector.num_non_finite),
        )

    def refresh(self, model: nn.Module) -> None:
        """Evaluate ``model`` on the holdout set and put the mean loss of every group in force.

        Raises:
            ValueError: if there is no holdout set, a group has no example in it (named), or a loss is not finite.
        """
        started = time.perf_counter()
        self.holdout.refresh(model)
        self.seconds["holdout_seconds"] += time.perf_counter() - started

    # ---- one selection

    def _on_device(self, batch: Any, device: torch.device) -> tuple[Any, Batch]:
        """The batch on the device, and its parts, which are checked on the host if they come from there."""
        candidates = self._read(batch)
        check_candidates(candidates, self.selector.num_groups)
        if self.budget is not None:
            self.budget.reserve(candidates.index)
        if device.type == "cpu" and candidates.target.device.type == "cpu":
            return batch, candidates
        batch = send_to_device(batch, device)
        return batch, self._read(batch)

    def _choose(self, batch: Batch, scorer: nn.Module) -> Selection:
        scoring: dict[str, Any] = {"loss": self.loss, "scoring": self.scoring, "forward": self._forward_of(scorer)}
        sizes = self.holdout.lockstep.batch(batch)
        if self.budget is None:
            candidates = score_candidates(scorer, batch, self.selector, self.irreducible, sizes=sizes, **scoring)
            return select_distributed(
                self.selector,
                candidates,
                num_selected=self._num_selected,
                generator=self.generator,
                mode=self.distributed,
            )
        return select_within_budget(
            self.budget,
            scorer,
            batch,
            self.selector,
            self.irreducible,
            num_selected=self._num_selected(batch.target.shape[0]),
            generator=self.generator,
            **scoring,
        )

    def _count(self, selection: Selection, groups: Tensor) -> None:
        self._waiting.append(selection)
        self.counts["num_batches"] += 1
        self.counts["num_candidates"] += selection.num_candidates or 0
        self.counts["num_selected"] += selection.num_selected or 0
        counts = torch.bincount(groups[:0] if selection.is_dummy else groups, minlength=self.selector.num_groups)
        counts = counts if self.distributed is None else all_reduce_sum(counts)
        self._group_counts += counts
        self._step_counts = counts if len(self._waiting) == 1 else self._step_counts + counts

    def _check_weights_read(self) -> None:
        if not self._has_read_weights:
            raise RuntimeError(
                f"{self.selector.name!r} weights the loss of each example, and this loop did not read "
                "`example_weights`. Multiply the losses with them before the mean."
            )

    def _teach_auxiliary(self) -> None:
        """Add the gradients of the auxiliary models for the examples that ``select`` returned last, once."""
        if self.auxiliary.models and not self._is_learned and self.returned is not None:
            self.auxiliary.backward(self.returned, loss_weight=self.loss_weight)
        self._is_learned = True

    def _forward_of(self, scorer: nn.Module) -> ScoringForward:
        """The scoring pass of ``scorer``, compiled once."""
        if self._forward is None or self._forward.model is not scorer:
            self._forward = ScoringForward(scorer, self.scoring)
        return self._forward

    # ---- state

    def stateful_modules(self) -> dict[str, FixedDtypeBuffers]:
        """The modules whose buffers are part of the state, by name."""
        modules = {
            "selector": self.selector,
            "holdout_loss": self.holdout.loss,
            "moving_holdout_loss": self.holdout.moving_loss,
            "scoring_budget": self.budget,
        }
        return {name: module for name, module in modules.items() if module is not None}

    def progress(self) -> dict[str, Any]:
        """Return the state beside that of ``stateful_modules``: counters, random numbers, auxiliary models."""
        if self._waiting:
            self._teach_auxiliary()  # the gradients are part of the state
        return self.auxiliary.state_dict() | {
            "generator": self.generator.get_state(),
            "waiting": [asdict(selection) for selection in self._waiting],
            "counts": dict(self.counts),
            "seconds": dict(self.seconds),
            "group_counts": self._group_counts.clone(),
            "step_counts": self._step_counts.clone(),
        }

    def load_progress(self, state: dict[str, Any]) -> None:
        """Restore what ``progress`` returned."""
        self.generator.set_state(state["generator"].cpu())
        self._waiting = [Selection(**selection) for selection in state["waiting"]]
        self.counts, self.seconds = dict(state["counts"]), dict(state["seconds"])
        counts = (state[name].to(self._group_counts.device, copy=True) for name in ("group_counts", "step_counts"))
        self._group_counts, self._step_counts = counts
        self._logged = ([], self._step_counts)
        self.selection = self.selected = self.returned = None
        self._is_learned = self._has_read_weights = True
        self.auxiliary.load_state_dict(state)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that later selections depend on, and the report so far."""
        modules = {name: copy.deepcopy(module.state_dict()) for name, module in self.stateful_modules().items()}
        return modules | self.progress()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned.

        Raises:
            ValueError: for the state of something else, or of a selector that does not fit.
        """
        check_state_keys("a Downsampler", state, self.state_dict())
        for name, module in self.stateful_modules().items():
            module.load_state_dict(state[name])
        self.load_progress(state)

    def __getstate__(self) -> dict[str, Any]:
        # torch.multiprocessing cannot send a generator to another process, as Lightning's ddp_spawn does
        return vars(self) | {"generator": self.generator.get_state().tolist(), "_forward": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        drawn = torch.tensor(state["generator"], dtype=torch.uint8)
        vars(self).update(state | {"generator": torch.Generator().set_state(drawn)})
