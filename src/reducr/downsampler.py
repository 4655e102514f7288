"""The selection core: score a batch of candidates, choose from it, count, refresh the holdout loss, keep the state."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from reducr._internal.buffers import FixedDtypeBuffers
from reducr._internal.checks import check_state_keys
from reducr._internal.distributed import check_mode, check_mode_name, num_ranks
from reducr.auxiliary import Auxiliary, ExtraExamples
from reducr.batch import Batch, BatchReader, BatchSpec, PerExampleLoss, Selection, without_index
from reducr.batch.nested import ListKinds, send_to_device
from reducr.batch.report import SelectionLog, SelectionReport, by_group
from reducr.functional.sequences import row_groups
from reducr.scoring import (
    Holdout,
    HoldoutGroups,
    HoldoutTracker,
    IrreducibleLookup,
    Scoring,
    ScoringForward,
    ShortBatches,
    bind_irreducible,
    check_apart,
    check_candidates,
    check_data_parallel,
    check_options,
    check_parts,
    check_rows,
    choose,
    device_of,
    holdout_of,
    num_selected_beside,
    num_selected_of,
    selected_part,
    selector_of,
    split_options,
    unread_example_weights,
    unread_loss_weight,
    usable_parts,
    without_wrappers,
)
from reducr.selectors import Selector
from reducr.selectors.distributed import check_equal_ranks


class Downsampler:
    """Select from batches of any structure, and keep everything that the next selection depends on.

    A loop calls ``prepare`` once, ``select`` for each batch of candidates, and ``step`` after each gradient step.
    ``SelectiveLoader``, ``training.train`` and the integrations for Lightning and Hugging Face do nothing else.

    Args:
        selector: the rule, whose state is part of this one's; or its name. Groups are then counted from the holdout
            set, and the rule's options are given beside the others, such as ``step_size=1e-3``.
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
        options: ``refresh_steps`` and ``holdout_fraction`` of the holdout set (see ``Holdout``); ``short_batches``,
            what loops do with a batch that gives a single example where full ones give more: ``skip`` it (the
            default), ``keep`` it, or raise an ``error``; and the options of a rule that is given by its name.

    Raises:
        ValueError: for an option out of range, or one that does not fit the rule; at the first batch if it cannot be
            read, scored or selected from.
        TypeError: for a selector or irreducible of another kind.
    """

    def __init__(
        self,
        selector: Selector | str,
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
        **options: Any,
    ) -> None:
        own, rule_options = split_options("Downsampler", Downsampler, selector, options)
        num_selected_of(fraction, 1)
        check_mode_name(distributed)
        check_options({"spec": (spec, BatchSpec), "scoring": (scoring, Scoring), "auxiliary": (auxiliary, Auxiliary)})
        self.distributed, sync = distributed, distributed is not None
        holdout = holdout_of(holdout, own.get("refresh_steps"), own.get("holdout_fraction"))
        groups = None if holdout is None else HoldoutGroups(holdout.batches, spec)
        rule = selector_of(selector, rule_options, groups, sync=sync)
        check_parts(rule, irreducible)
        self.selector: Selector = rule
        self.scoring = Scoring() if scoring is None else scoring
        self.scoring.check_fit(rule, fraction=fraction, distributed=distributed)
        check_rows(loss, rule, self.scoring, spec)
        self.auxiliary = Auxiliary() if auxiliary is None else auxiliary
        self.irreducible = bind_irreducible(irreducible, rule, loss)
        self.fraction = fraction
        self.loss = loss
        self.generator = torch.Generator().manual_seed(seed)
        self.budget = self.scoring.new_budget()
        """Memory of the scoring budget; None if every candidate is scored."""
        self.holdout = HoldoutTracker(holdout, rule, loss=loss, spec=spec, sync=sync, groups=groups)
        self.selection: Selection | None = None
        """The last selection."""
        self.log = SelectionLog(rule.num_groups)
        """What has been selected so far."""
        self.counts, self.seconds = self.log.counts, self.log.seconds
        self.extra = ExtraExamples(self.auxiliary, holdout, fraction=fraction, spec=spec, seed=seed)
        self.extra.check_mode(distributed)
        self._num_selected = partial(num_selected_beside, fraction, self.extra.holdout_fraction)
        self.short_batches = ShortBatches(own.get("short_batches", "skip"), fraction, loss, distributed)
        self._forward: ScoringForward | None = None
        self._read = BatchReader(spec)
        self._kinds = ListKinds(None if spec is None else spec.lists)
        self.selected: Batch | None = None
        """The parts of the selected examples of the last batch, without extra ones."""
        self.returned: Batch | None = None
        """The parts of what ``select`` returned last, extra examples included."""
        self._is_learned = True
        self._has_read_weights = self._has_read_loss_weight = True

    # ---- what a loop calls

    def prepare(self, model: nn.Module) -> None:
        """Move the state to the model's device, and evaluate ``model`` on the holdout set unless that has been done.

        Raises:
            ValueError: if the selector needs the holdout loss and there is none, or ``distributed``, an option or the
                state does not fit the other processes.
        """
        check_mode(self.distributed)
        check_apart(self.irreducible, model)
        check_data_parallel(model)
        device = device_of(model)
        for module in self.stateful_modules().values():
            module.to(device)
        self.auxiliary.prepare(device)
        self.log.to(device)
        self.extra.seek(self.counts["num_batches"])
        own = {"fraction": self.fraction, "distributed": self.distributed, "short_batches": self.short_batches.mode}
        check_equal_ranks(self.selector, own | {"refresh_steps": self.holdout.refresh_steps})
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

    def skips(self, batch: Any, *, full_size: int = 0) -> bool:
        """Whether a loop should leave ``batch`` out, because it gives one example only; see ``short_batches``.

        Counts it then, and tells once. On several ranks all call this together, and skip together.

        Args:
            batch: the candidates.
            full_size: candidates of a full batch of this rank, if that is known; 0 for the largest of this epoch.
        """
        lockstep, candidates = self.holdout.lockstep, self._read(batch)
        if is_skipped := self.short_batches.skips(lockstep.announce(candidates, full_size), self.counts):
            lockstep.sizes(candidates)  # no selection follows that reads them
        return is_skipped

    def size_of(self, batch: Any) -> int:
        """Number of examples in ``batch``."""
        return int(self._read(batch).target.shape[0])

    def select(self, batch: Any, model: nn.Module) -> Any:
        """Return the selected examples of ``batch``, in its own structure, on the model's device; extra ones follow.

        Args:
            batch: the candidates; not changed.
            model: the target model. A proxy among the auxiliary models scores in its place.
        """
        started = time.perf_counter()
        if self.log.waiting:
            self._check_weights_read()
        self._teach_auxiliary()
        scorer = without_wrappers(self.auxiliary.scorer(model))
        batch, candidates = self._on_device(batch, device_of(model))
        self.selection = selection = self._choose(candidates, scorer)
        returned = selected_part(batch, candidates, selection, loss=self.loss, reader=self._read, kinds=self._kinds)
        self.selected = self.returned = self._parts_of(returned)
        groups = row_groups(self.selected.group, self.selected.target, self.loss)
        self.log.add(selection, groups, sync=self.distributed is not None)
        if self.extra:
            size, plain = candidates.target.shape[0], without_index(returned)
            returned = self.extra.append_to(plain, self.selected, num_candidates=size, kinds=self._kinds)
            self.returned = self._parts_of(returned)
        self._is_learned, self._has_read_weights = False, not self.selector.weights_examples
        self._has_read_loss_weight = num_ranks() == 1 or (self.distributed == "local" and selection.loss_weight == 1)
        self.seconds["selection_seconds"] += time.perf_counter() - started
        return without_index(returned)

    def step(self, model: nn.Module, *, is_last: bool = False) -> None:
        """Call after a gradient step: update the selector, and refresh the holdout loss when it is due.

        Args:
            model: the target model, which is evaluated on the holdout set.
            is_last: whether the epoch ends here.

        Raises:
            RuntimeError: if the loop has not read ``example_weights`` of a rule that weights examples, or, on several
                ranks, ``loss_weight``.
        """
        if is_last:
            self.holdout.lockstep.end()
        if has_stepped := bool(self.log.waiting):
            self._check_weights_read()
            self._teach_auxiliary()
            self.auxiliary.step(num_batches=len(self.log.waiting))
            self.selector.update(self.selector.merged(self.log.waiting))
            self.log.end_step()
        started, num_steps = time.perf_counter(), self.counts["num_steps"] if has_stepped else None
        self.counts["num_refreshes"] += self.holdout.step(model, num_steps=num_steps, is_last=is_last)
        self.seconds["holdout_seconds"] += time.perf_counter() - started
        if is_last:
            self.warn_of_stale_loss("ended")

    def warn_of_stale_loss(self, event: str) -> None:
        """Warn, once, if a pass ``ended`` or ``was left`` with the holdout loss of the untrained model in force."""
        if not self.counts["num_refreshes"]:
            self.holdout.warn_of_stale_loss(event, num_steps=self.counts["num_steps"])

    def discard(self) -> None:
        """Forget the last selection, which was not trained on after all: it does not update the selector, nor count."""
        if not self.log.waiting:
            raise RuntimeError("There is no selection to discard: every one has been stepped with.")
        self.log.take_back()
        self.extra.take_back()
        self._is_learned = self._has_read_weights = self._has_read_loss_weight = True

    # ---- what a loop reads

    @property
    def loss_weight(self) -> float:
        """Factor of the mean loss of the last selected examples; 1 in one process."""
        self._has_read_loss_weight = True
        return 1.0 if self.selection is None else self.selection.loss_weight

    @property
    def example_weights(self) -> Tensor | None:
        """(b,) factor of the loss of each example that ``select`` returned last; None where all are 1."""
        self._has_read_weights = True
        weights, returned = None if self.selection is None else self.selection.example_weights, self.returned
        if weights is None or returned is None or len(returned.target) == len(weights):
            return weights
        return torch.cat([weights, weights.new_ones(len(returned.target) - len(weights))])

    @property
    def num_waiting(self) -> int:
        """Batches selected from since the last gradient step."""
        return len(self.log.waiting)

    def metrics(self) -> dict[str, float]:
        """Return the values to log for the last gradient step, by the keys of docs/metrics.md."""
        if not (metrics := self.log.metrics(num_non_finite=self.selector.num_non_finite.item())):
            return {}
        payoff = by_group("cumulative_payoff", self.selector.cumulative_payoff)
        return metrics | by_group("group_weight", self.selector.group_weights) | payoff

    def report(self) -> SelectionReport:
        """Return what has been selected so far, and what it cost; prints well."""
        return self.log.report(self.selector.group_weights, num_non_finite=int(self.selector.num_non_finite))

    def refresh(self, model: nn.Module) -> None:
        """Evaluate ``model`` on the holdout set, or its ``examples_per_group``; put each group's mean loss in force.

        Raises:
            ValueError: if there is no holdout set, a group has no example in it (named), or a loss is not finite.
        """
        started = time.perf_counter()
        self.holdout.refresh(model)
        self.counts["num_refreshes"] += 1
        self.seconds["holdout_seconds"] += time.perf_counter() - started

    # ---- one selection

    def _on_device(self, batch: Any, device: torch.device) -> tuple[Any, Batch]:
        """The batch on the device, and its parts, which are checked on the host if they come from there."""
        candidates = self._parts_of(batch)
        check_candidates(candidates, self.selector.num_groups)
        if self.budget is not None:
            self.budget.reserve(candidates.index)
        if device.type == "cpu" and candidates.target.device.type == "cpu":
            return batch, candidates
        batch = send_to_device(batch, device)
        return batch, self._parts_of(batch)

    def _parts_of(self, batch: Any) -> Batch:
        return usable_parts(self._read(batch), num_groups=self.selector.num_groups, loss=self.loss)

    def _choose(self, batch: Batch, scorer: nn.Module) -> Selection:
        return choose(
            scorer,
            batch,
            self.selector,
            self.irreducible,
            num_selected=self._num_selected,
            generator=self.generator,
            budget=self.budget,
            mode=self.distributed,
            loss=self.loss,
            scoring=self.scoring,
            forward=self._forward_of(scorer),
            sizes=self.holdout.lockstep.sizes(batch),
        )

    def _check_weights_read(self) -> None:
        if not self._has_read_weights:
            raise unread_example_weights(self.selector.name)
        if not self._has_read_loss_weight:
            raise unread_loss_weight(self.distributed)

    def _teach_auxiliary(self) -> None:
        """Add the gradients of the auxiliary models for the examples that ``select`` returned last, once."""
        if self.auxiliary.models and not self._is_learned and self.returned is not None:
            weight = 1.0 if self.selection is None else self.selection.loss_weight
            self.auxiliary.backward(self.returned, loss_weight=weight)
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
        if self.log.waiting:
            self._teach_auxiliary()  # the gradients are part of the state
        own = {"generator": self.generator.get_state()}
        return self.auxiliary.state_dict() | own | self.log.state_dict() | self.extra.state_dict()

    def load_progress(self, state: dict[str, Any]) -> None:
        """Restore what ``progress`` returned."""
        self.generator.set_state(state["generator"].cpu())
        self.log.load_state_dict(state)
        self.extra.load_state_dict(state)
        self.selection = self.selected = self.returned = None
        self._is_learned = self._has_read_weights = self._has_read_loss_weight = True
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
