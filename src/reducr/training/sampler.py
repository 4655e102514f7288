"""A batch sampler that selects examples before anything is loaded."""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Sampler

from reducr._internal.checks import check_count, check_range, check_state_keys
from reducr._internal.distributed import all_gather_stacked, alone, check_mode, num_ranks, rank
from reducr._internal.rng import random_state, set_random_state
from reducr._internal.seeds import epoch_order
from reducr.batch import Batch, SelectionReport
from reducr.downsampler import Downsampler
from reducr.scoring import Holdout, IrreducibleLookup, holdout_of, num_selected_of, score_candidates
from reducr.selectors import Selector, make_selector
from reducr.training.columns import columns_of, length_of, missing_column
from reducr.training.drawn import DrawnBatches
from reducr.training.holdout_share import HoldoutShare
from reducr.training.reader import Reader, is_told_by_accelerate
from reducr.training.sampler_options import check_layout, check_rule, split_options

_NO_MODEL = nn.Identity()
"""In the place of a model that no rule here reads; it has no parameters, so selection stays on the CPU."""

_NUM_CHECKED = 256


class SelectiveBatchSampler(Sampler[list[int]]):
    """Select the examples of every batch by their indices, so that only those are loaded.

    For ``DataLoader(sampler.dataset, batch_sampler=sampler)``, and rules that read no loss or output of the model, such
    as ``priority_sampling``, ``class_balanced``, ``drop``, ``rs2``, ``irreducible_loss`` and ``uniform``. A pass is a
    random order of the data set, cut into batches of ``batch_size / fraction`` candidates, from each of which the rule
    selects ``batch_size``. These are the examples that ``SelectiveLoader`` would select from the same candidates.

    With ``holdout_fraction=0.25`` a quarter of ``batch_size`` is drawn from the holdout set, as ``SelectiveLoader``
    draws it, and the rule selects the rest; ``sampler.dataset`` is then the training data followed by the holdout data
    set. It is the data set itself otherwise.

    The model is read only to refresh the holdout loss. A loader with worker processes draws batches ahead; their group
    weights are those of the moment they were drawn. ``state_dict`` counts the batches that were trained on and holds
    those drawn ahead, so a resumed training goes on with exactly the batches that would have come.

    Args:
        dataset: map-style. At most one of its examples is read here, to compare it with a holdout example. The
            index of an example is its position, unless the data set has its indices (``index``, ``idx``) or is a part
            of ``reducr.indexed(dataset)``.
        model: evaluated on ``holdout``.
        selector: the rule, whose state is part of the sampler's; or its name. Its groups are then those of the data
            set, and its options are given beside the others, such as ``step_size=1e-3``.
        irreducible: source of irreducible losses that does without inputs, such as a table; for rules that need it.
        batch_size: examples per batch on each rank, those of ``holdout_fraction`` included.
        fraction: fraction of the candidates to select, in (0, 1]; None to draw every batch from the whole data set, as
            a class-balanced sampler does. A pass then has as many examples as the data set.
        holdout: batches of the clean holdout set, or a ``Holdout``.
        targets: of all examples, one row each; None to find them in the data set (``targets``, ``labels``, a column,
            the second tensor of a TensorDataset, also in a Subset).
        groups: (N,) integers; None to find them as ``groups``, else the targets.
        options: ``refresh_steps`` of the holdout set (see ``Holdout``); ``holdout_fraction``, the share of every batch
            that is drawn from it, in [0, 1), for which ``holdout`` must be a DataLoader over a map-style data set, the
            same on all ranks; ``accumulate_steps``, batches per gradient step; ``drop_last``, leave out a last batch
            that is smaller (one that is too small for two examples always is); ``loss`` and ``spec`` for the holdout
            batches, as in ``Downsampler``; ``distributed="global"`` on several ranks, each of which then gets its share
            of one selection, in as many batches of the same size; ``seed``.

    Raises:
        ValueError: for a rule that reads the model or weights examples, targets that cannot be found, irreducible
            losses that need inputs, holdout examples that have no numbers or another structure than the training
            examples, or an option out of range; before the first batch for a DataLoader over another data set.
        TypeError: for a data set without a length, or arguments of another kind.

    Example:
        >>> import torch, reducr
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> dataset = TensorDataset(torch.randn(100, 4), torch.arange(100) % 5 // 4)
        >>> sampler = reducr.SelectiveBatchSampler(dataset, nn.Linear(4, 2), "class_balanced", batch_size=5)
        >>> [tuple(x.shape) for x, y in DataLoader(sampler.dataset, batch_sampler=sampler)]
        [(5, 4), (5, 4)]
    """

    def __init__(
        self,
        dataset: Any,
        model: nn.Module,
        selector: str | Selector,
        irreducible: IrreducibleLookup | None = None,
        *,
        batch_size: int,
        fraction: float | None = 0.1,
        holdout: Holdout | Iterable[Any] | None = None,
        targets: Any = None,
        groups: Any = None,
        **options: Any,
    ) -> None:
        self.options, rule_options = split_options(options, selector)
        check_count("batch_size", batch_size)
        self.num_examples = length_of(dataset)
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module; got {type(model).__name__}.")
        self.index, self.targets, self.groups = columns_of(dataset, targets, groups, size=self.num_examples)
        if isinstance(selector, str):
            num_groups = 1 if self.groups is None else int(self.groups.max()) + 1
            selector = make_selector(selector, **{"num_groups": num_groups} | rule_options)
        self.model, self.batch_size, self.drop_last = model, batch_size, self.options.drop_last
        check_mode(self.options.distributed)
        self._num_ranks = num_ranks()
        self.draws_from_all = fraction is None
        self.num_candidates = self._num_candidates(fraction)
        self.fraction = batch_size * self._num_ranks / self.num_candidates if fraction is None else fraction
        holdout = holdout_of(holdout, self.options.refresh_steps, self.options.holdout_fraction)
        self._share = HoldoutShare(holdout, dataset, fraction=self.fraction, seed=self.options.seed)
        self._share.check(self.num_candidates)
        self.downsampler = Downsampler(
            selector,
            irreducible,
            fraction=self.fraction,
            holdout=holdout,
            loss=self.options.loss,
            spec=self.options.spec,
            seed=self.options.seed,
        )
        self.downsampler.extra.leave_draws()
        self.downsampler.holdout.keeps_random_state = True
        self.downsampler.holdout.sync = self.options.distributed is not None
        self._check_rule()
        self._drawn = DrawnBatches(self._num_batches())
        self._draws: _Draws | None = None
        self._random_state: dict[str, Any] | None = None
        self._order = torch.arange(self.num_examples)

    # ---- the passes

    def __len__(self) -> int:
        """Batches per pass."""
        return self._drawn.num_batches

    def __iter__(self) -> Iterator[list[int]]:
        self._draws = _Draws(self)
        drawn = self._drawn
        goes_on = bool(drawn.position) and not drawn.is_over
        # a DataLoader begins with workers in `_reset` for a second time
        is_first = self._random_state is None or sys._getframe(1).f_code.co_name != "_reset"
        if drawn.is_open and (goes_on or drawn.had_workers) and is_first:
            # it draws a seed now, which it did not at this place of the training that was saved
            self._random_state = random_state()
        return self._draws

    @property
    def selector(self) -> Selector:
        """The rule."""
        return self.downsampler.selector

    @property
    def dataset(self) -> Any:
        """The data set for the DataLoader: training data, with ``holdout_fraction`` followed by holdout data."""
        return self._share.dataset

    @property
    def epoch(self) -> int:
        """Epoch of the current pass, or of the next one once the training loop has got every batch of it."""
        return self._drawn.epoch

    @property
    def position(self) -> int | None:
        """Batches of the current pass that the training loop has got, also before a resume.

        None if what reads this sampler does not show it.
        """
        return self._drawn.position

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass as this epoch; keeps the place in it if that is the current epoch."""
        check_count("epoch", epoch, least=0)
        if epoch != self.epoch and not is_told_by_accelerate(sys._getframe(1)):
            self._end_pass()
            self._drawn.reset(epoch)

    def report(self) -> SelectionReport:
        """Return what has been selected so far, batches drawn ahead included, and what it cost; prints well."""
        return self.downsampler.report()

    def metrics(self) -> dict[str, float]:
        """Return the values to log for the last step, by the keys of docs/metrics.md."""
        return self.downsampler.metrics()

    # ---- state

    def state_dict(self, *, num_batches: int | None = None) -> dict[str, Any]:
        """Return everything that a killed run needs to continue after the batches that were trained on.

        Args:
            num_batches: batches of the current pass that were trained on; None for those that the loader has yielded.

        Raises:
            ValueError: if ``num_batches`` is out of range, or None with a loader that does not show what it has
                yielded.
        """
        place = self._drawn.state_dict(num_batches=num_batches)
        own = {"num_drawn": self._share.num_drawn, "layout": self._layout()}
        return place | own | {"downsampler": self.downsampler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned: the next pass is the rest of the one that it was taken in.

        Raises:
            ValueError: for the state of something else, or of a sampler with other batches; says what differs.
        """
        place = ("epoch", "position", "ahead", "has_ended", "has_workers")
        check_state_keys(
            "a SelectiveBatchSampler", state, (*place, "downsampler", "layout", "num_drawn"), {"num_drawn"}
        )
        check_layout(state["layout"], self._layout())
        self.downsampler.load_state_dict(state["downsampler"])
        self._drawn.load_state_dict(state)
        self._share.num_drawn = state.get("num_drawn", 0)
        self._draws = self._random_state = None

    def _layout(self) -> dict[str, Any]:
        return {
            "rule": self.selector.name,
            "num_examples": self.num_examples,
            "batch_size": self.batch_size,
            "num_candidates": self.num_candidates,
            "num_batches": self._num_batches(),
            "num_ranks": self._num_ranks,
            "seed": self.options.seed,
            **self._share.layout(),
        }

    # ---- one batch

    def begin(self, reader: Reader) -> None:
        """Begin a pass, or go on with one that was resumed."""
        if self._num_ranks > 1 and reader.num_ahead is None:
            raise ValueError(
                "This batch sampler gives every rank its share, and accelerate would divide its batches again. Leave "
                "the DataLoader out of accelerator.prepare(), and move its batches to accelerator.device."
            )
        if self._random_state is not None:
            set_random_state(self._random_state)
            self._random_state = None
        self._share.check_reader(reader.dataset)
        drawn = self._drawn
        if drawn.is_over or not drawn.is_open:
            self._end_pass()
            drawn.reset(drawn.pass_epoch + 1)
        drawn.begin(reader)
        self.selector.set_epoch(drawn.pass_epoch)
        self.downsampler.holdout.begin(self.model, num_steps=int(self.selector.step))
        with alone():
            self.downsampler.prepare(_NO_MODEL)
        self._check_ranks()
        if not self.draws_from_all:
            self._order = epoch_order(self.num_examples, seed=self.options.seed, epoch=drawn.pass_epoch)

    def next_batch(self) -> list[int]:
        """Return the indices of the next batch, for this rank."""
        drawn = self._drawn
        if not drawn.request():
            self._end_pass()
            raise StopIteration
        if drawn.needs_draw:
            drawn.add(self._draw(drawn.num_drawn))
        index = drawn.give()
        indices: list[int] = index.tolist()[rank() :: self._num_ranks]
        return indices

    def _end_pass(self) -> None:
        """Update the rule with what is left of the pass, and refresh the holdout loss, once every batch is drawn."""
        drawn = self._drawn
        if drawn.num_drawn == len(self) and not drawn.has_ended:
            drawn.has_ended = True
            self.downsampler.step(self.model, is_last=True)

    def _draw(self, number: int) -> Tensor:
        """Select the batch of that number, of all ranks."""
        if self.downsampler.num_waiting >= self.options.accumulate_steps:
            self.downsampler.step(self.model)
        start = 0 if self.draws_from_all else number * self.num_candidates
        positions = self._order[start : start + self.num_candidates]
        with alone():
            self.downsampler.select(self._candidates(positions), _NO_MODEL)
        selection = self.downsampler.selection
        chosen = positions[:0] if selection is None else positions[selection.positions]
        drawn = self._share.draw(len(positions))
        size = len(chosen) - (len(chosen) + len(drawn)) % self._num_ranks
        if size < 1:
            raise ValueError(
                f"Only {len(chosen)} of the candidates of batch {number} have finite irreducible losses, fewer than "
                f"the {self._num_ranks} ranks. Check the table of irreducible losses."
            )
        return torch.cat([chosen[:size], drawn]) if len(drawn) else chosen[:size]

    def _candidates(self, positions: Tensor) -> Batch:
        group = torch.zeros_like(positions) if self.groups is None else self.groups.index_select(0, positions)
        is_group = self.targets is None or self.targets is self.groups
        target = group if is_group else self.targets.index_select(0, positions)  # type: ignore[union-attr]
        return Batch(self.index.index_select(0, positions), None, target, group)

    # ---- checks

    def _num_candidates(self, fraction: float | None) -> int:
        if fraction is None:
            return self.num_examples
        num_selected_of(fraction, 1)
        return math.ceil(self.batch_size * self._num_ranks / fraction - 1e-9)

    def _num_batches(self) -> int:
        if self.draws_from_all:
            num_batches, rest = self.num_examples // (self.batch_size * self._num_ranks), 0
        else:
            num_batches, rest = divmod(self.num_examples, self.num_candidates)
        if rest and not self.drop_last and self._num_ranks == 1:
            num_batches += num_selected_of(self.fraction, rest) >= min(2, self.batch_size)
        if not num_batches:
            raise ValueError(
                f"A batch of {self.batch_size} on {self._num_ranks} ranks needs {self.num_candidates} candidates, and "
                f"the data set has {self.num_examples} examples. Use a smaller `batch_size` or a larger `fraction`."
            )
        return num_batches

    def _check_rule(self) -> None:
        selector = self.selector
        check_rule(selector, draws_from_all=self.draws_from_all, batch_size=self.batch_size)
        needs_losses = any("irreducible_loss" in need for need in selector.needs)
        if self.groups is None and "groups" in selector.needs:
            raise missing_column("groups", selector.name)
        needs_targets = needs_losses and getattr(self.downsampler.irreducible, "needs_targets", True)
        if self.targets is None and (needs_targets or "targets" in selector.needs):
            raise missing_column("targets", selector.name)
        if self.groups is not None:
            check_range("groups", self.groups, selector.num_groups, place="index")
        if needs_losses:
            self._check_irreducible()

    def _check_irreducible(self) -> None:
        number = min(self.num_examples, _NUM_CHECKED)
        positions = torch.arange(number) * (self.num_examples - 1) // max(1, number - 1)  # the first to the last
        irreducible = self.downsampler.irreducible
        try:
            score_candidates(_NO_MODEL, self._candidates(positions), self.selector, irreducible)
        except Exception as error:
            source = type(getattr(irreducible, "reference", irreducible)).__name__
            raise ValueError(
                f"{source} gives no irreducible losses for indices and targets alone, before inputs are loaded "
                f"({type(error).__name__}: {error}). Pass a table, such as "
                "reducr.Reference(model).tabulate(dataset)."
            ) from error

    def _check_ranks(self) -> None:
        """See that all ranks will select the same."""
        if self._num_ranks == 1:
            return
        state = [buffer.reshape(-1).view(torch.uint8) for buffer in self.selector.buffers()]
        drawn = self._drawn
        facts = repr((self._layout(), drawn.pass_epoch, drawn.num_given, drawn.num_drawn))
        random_numbers = self.downsampler.generator.get_state()
        checksum = zlib.crc32(torch.cat([*state, random_numbers]).numpy().tobytes() + facts.encode())
        if len(set(all_gather_stacked(torch.tensor([checksum])).flatten().tolist())) > 1:
            raise ValueError(
                "The batch samplers of the ranks differ, so each rank would select other examples. Use the same data, "
                "options, seed and irreducible losses on all ranks, and load the same state."
            )


class _Draws(Iterator[list[int]]):
    """One pass over a ``SelectiveBatchSampler``, begun at the first request."""

    def __init__(self, sampler: SelectiveBatchSampler) -> None:
        self._sampler = sampler
        self._has_begun = False

    def __next__(self) -> list[int]:
        sampler = self._sampler
        if sampler._draws is not self:
            raise RuntimeError("Only one active iterator is supported. Finish or discard the first one.")
        if not self._has_begun:
            self._has_begun = True
            sampler.begin(Reader.of(sys._getframe(1)))
        return sampler.next_batch()

    def state_dict(self) -> dict[str, Any]:
        """Return the state after the batch given last, for torchdata, which keeps it until that batch is yielded."""
        return self._sampler.state_dict(num_batches=self._sampler._drawn.num_given)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        self._sampler.load_state_dict(state)
        self._sampler._draws, self._has_begun = self, False
