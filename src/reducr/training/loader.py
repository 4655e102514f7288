"""A loader of the best part of every large batch, for any training loop."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable, Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from reducr._internal.checks import check_count, check_flag, check_state_keys
from reducr.batch.report import SelectionReport
from reducr.downsampler import Downsampler
from reducr.scoring import Holdout, IrreducibleLookup, holdout_of, known_sizes, split_options
from reducr.selectors import Selector
from reducr.training.delegate import Delegate
from reducr.training.resumable import Resumable
from reducr.training.trace import ModelTrace

_UNTRAINED_BATCHES = 10


class SelectiveLoader(Delegate):
    """Yield the selected examples of every batch of ``loader``, in the batch's own structure.

    ``loader`` yields the candidates. They are moved to the model's device and scored without gradients, and the
    training loop gets the best of them; everything else in the loop stays as it is. A batch counts as trained on when
    the next one is asked for, or when the state is read: the selector is then updated, and the holdout loss refreshed
    if it is due. When a loop leaves a pass early, what it has trained on counts as at the end of a pass; a batch that
    it has only looked at does not.

    Attributes that this class does not define are those of ``loader``: ``dataset``, ``sampler``, ``batch_sampler``,
    ``batch_size``, ``num_workers``, ``drop_last``, ... They can be set, too. Functions of other libraries that would
    build a new loader from them, and so drop the selection, raise an error that says what to do.

    Args:
        loader: of large batches: a DataLoader, map-style or iterable, or another iterable of batches.
        model: returns logits (B, C) for the input of a batch, or whatever ``loss`` takes.
        selector: the rule, whose state is part of this loader's; or its name. Groups are then counted from the holdout
            set, and the rule's options are given beside the others, such as ``step_size=1e-3``.
        irreducible: source of irreducible losses, for the rules that need them: anything with ``lookup(batch)``.
        fraction: fraction of every batch to yield, in (0, 1]; rounded down, but at least one example.
        holdout: batches of the clean holdout set, or a ``Holdout``.
        refresh_steps: gradient steps between two evaluations of ``holdout``; ``"epoch"`` for the end of every epoch;
            None for a default that keeps the loss fresh at a bounded cost, see ``Holdout``.
        holdout_fraction: share of the examples of each step that are drawn from ``holdout`` instead of being selected,
            in [0, 1); they follow the selected ones.
        accumulate_steps: batches per gradient step; the selector is updated once for all of them.
        weights_examples: promise that the loop multiplies the loss of each example with ``example_weights`` before the
            mean. The rules that weight examples, ``group_dro`` and ``infobatch``, are refused without it.
        options: ``loss``, ``spec``, ``scoring``, ``auxiliary``, ``distributed``, ``seed`` and ``short_batches``: see
            ``Downsampler``. With the name of a rule, its options too.

    Raises:
        ValueError: for an option out of range, or a loader without a length whose holdout loss would never be
            refreshed; at the first batch if it cannot be read, scored or selected from.
        TypeError: for a model, loader, selector or irreducible of another kind.
        RuntimeError: when iterated without gradients, or by two loops at once.

    Example:
        >>> import torch, reducr
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = DataLoader(TensorDataset(torch.randn(40, 4), torch.arange(40) % 2), batch_size=20)
        >>> loader = reducr.SelectiveLoader(data, nn.Linear(4, 2), "train_loss", fraction=0.1)
        >>> [tuple(x.shape) for x, y in loader]
        [(2, 4), (2, 4)]
    """

    def __init__(
        self,
        loader: Iterable[Any],
        model: nn.Module,
        selector: Selector | str,
        irreducible: IrreducibleLookup | None = None,
        fraction: float = 0.1,
        *,
        holdout: Holdout | Iterable[Any] | None = None,
        refresh_steps: int | str | None = None,
        holdout_fraction: float | None = None,
        accumulate_steps: int = 1,
        weights_examples: bool = False,
        **options: Any,
    ) -> None:
        if not isinstance(loader, Iterable):
            raise TypeError(
                f"`loader` must be an iterable of batches, such as a DataLoader; got {type(loader).__name__}."
            )
        if not isinstance(model, nn.Module):
            raise TypeError(f"`model` must be a torch.nn.Module; got {type(model).__name__}.")
        check_count("accumulate_steps", accumulate_steps)
        split_options("SelectiveLoader", Downsampler, selector, options)
        holdout = holdout_of(holdout, refresh_steps, holdout_fraction)
        self.downsampler = Downsampler(selector, irreducible, fraction=fraction, holdout=holdout, **options)
        self.downsampler.check_model(model)
        check_example_weights(self.downsampler.selector, weights_examples)
        if self.downsampler.holdout.refreshes_at_epoch_ends:
            check_has_end(loader)
        self.model = model
        self.accumulate_steps = accumulate_steps
        self._pass = 0
        self._is_left = False
        self._num_skipped = self._num_skipped_before = self._num_batches = 0
        self._trace: ModelTrace | None = None
        rule = self.downsampler.selector
        reads_model = rule.needs_group_holdout_loss or not rule.needs.isdisjoint(("model_loss", "logits", "features"))
        self._num_untrained = 0 if reads_model else None  # batches that left the model as it was; None if it does not
        self.loader = Resumable(loader)

    def __len__(self) -> int:
        """Batches per epoch, as many as there are batches of candidates, less those known to be too short."""
        return len(self.loader) - self.downsampler.short_batches.num_skipped(self._sizes or [])

    @property
    def _wrapped(self) -> Any:
        return self.loader.loader

    @property
    def epoch(self) -> int:
        """Epoch of the current pass, or of the next one."""
        return self.loader.epoch

    @property
    def position(self) -> int:
        """Batches yielded in this epoch, also before a resume."""
        return self.loader.position - self._num_skipped

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass as this epoch."""
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        _check_gradients()
        self._pass += 1
        number = self._pass
        self._end_left_pass()
        self.downsampler.prepare(self.model)
        self._num_batches, self._generator_state = (
            self.downsampler.counts["num_batches"],
            self.downsampler.generator.get_state(),
        )
        epoch = None
        for batch in self.loader:
            _check_gradients()
            if self.epoch != epoch:
                epoch, self._num_skipped = self.epoch, self._num_skipped_before
                self._num_skipped_before = 0
                self.downsampler.selector.set_epoch(epoch)
            if self.loader.position == 1:
                self.downsampler.counts["largest_batch"] = 0
            if self.downsampler.skips(batch, full_size=max(self._sizes or [0])):
                self._num_skipped += 1
                continue
            selected = self.downsampler.select(batch, self.model)
            self._trace = ModelTrace(self.model)
            try:
                yield selected
            except GeneratorExit:
                self._leave(number)
                raise
            self._warn_if_untrained()
            if number != self._pass:
                raise RuntimeError("Only one active iterator is supported. Finish or discard the first one.")
            self._step()
        self.downsampler.step(self.model, is_last=True)

    @property
    def loss_weight(self) -> float:
        """Factor of the mean loss of a batch on several ranks; 1 in one process."""
        return self.downsampler.loss_weight

    @property
    def example_weights(self) -> Tensor:
        """(b,) factor of the loss of each example of a batch before their mean; ones for most rules.

        Raises:
            RuntimeError: before the first batch.
        """
        return weights_or_ones(self.downsampler)

    def report(self) -> SelectionReport:
        """Return what has been selected so far, and what it cost; prints well."""
        return self.downsampler.report()

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a killed run needs to continue: selector, random numbers, holdout loss, place, report.

        The batch yielded last counts as trained on.
        """
        self._forget_untrained()
        self._step()
        place = self.loader.state_dict() | {"num_skipped": self._num_skipped}
        return {"downsampler": self.downsampler.state_dict(), "loader": place}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned: the next pass is the rest of the one that it was taken in.

        Raises:
            ValueError: for the state of something else, of another rule, or in the middle of an epoch with another
                number or size of batches.
        """
        check_state_keys("a SelectiveLoader", state, ("downsampler", "loader"))
        self.loader.check_sizes(state["loader"])
        self.downsampler.load_state_dict(state["downsampler"])
        self.loader.load_state_dict(copy.deepcopy(state["loader"]))
        self._is_left = False
        self._num_skipped = self._num_skipped_before = state["loader"].get("num_skipped", 0)

    @cached_property
    def _sizes(self) -> list[int] | None:
        """Candidates in each batch of a pass, if they are known without one."""
        try:
            return known_sizes(self._wrapped, self.downsampler.size_of)
        except ValueError:
            return None  # a batch in a list that cannot be read is refused when it comes

    def _warn_if_untrained(self) -> None:
        """Warn, once, if the loop trains another model than the one that scores."""
        if self._num_untrained is None:
            return
        if self._trace is None or not self._trace.is_known or not self._trace.is_of(self.model):
            self._num_untrained = None
            return
        self._num_untrained += 1
        if self._num_untrained == _UNTRAINED_BATCHES:
            self._num_untrained = None
            warnings.warn(
                f"The model that scores the candidates has neither changed nor got a gradient in {_UNTRAINED_BATCHES} "
                "batches. Give SelectiveLoader the model that the loop trains, not a copy of it.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _leave(self, number: int) -> None:
        """Note that the loop has left a pass before its end."""
        if number == self._pass:
            self._is_left = True
            self.downsampler.warn_of_stale_loss("was left")

    def _end_left_pass(self) -> None:
        """End the last pass, if the loop has left it: what has accumulated makes a step, as at the end of an epoch."""
        if self._is_left and not self._forget_untrained():
            self.downsampler.step(self.model, is_last=True)
        self._is_left = False
        self._step()

    def _forget_untrained(self) -> bool:
        """Forget the last batch of a pass that was left, if the model has not been trained on it.

        Returns:
            Whether that was the only batch of the pass, which is forgotten too: the loop only had a look at it.
        """
        if not self._is_left or not self.downsampler.num_waiting:
            return False
        if self._trace is None or not self._trace.is_of(self.model):
            return False
        self.downsampler.discard()
        is_first = self.downsampler.counts["num_batches"] == self._num_batches
        if is_first:
            self.downsampler.generator.set_state(self._generator_state)
            self.loader.forget_pass()
            self._is_left = False
        return is_first

    def _step(self) -> None:
        if self.downsampler.num_waiting >= self.accumulate_steps:
            self.downsampler.step(self.model)


def _check_gradients() -> None:
    """Raise RuntimeError if no gradients are computed, so that this cannot be training."""
    if not torch.is_grad_enabled():
        raise RuntimeError(
            "A SelectiveLoader was iterated without gradients (torch.no_grad or inference_mode). It selects examples "
            "to train on, and every batch moves the state of its rule. To evaluate on training examples, iterate the "
            "loader that it wraps."
        )


def weights_or_ones(downsampler: Downsampler) -> Tensor:
    """Return the weight (b,) of each example that ``downsampler`` selected last.

    Raises:
        RuntimeError: before the first selection.
    """
    weights, returned = downsampler.example_weights, downsampler.returned
    if returned is None:
        raise RuntimeError("No batch has been selected from yet, so there are no examples to weight.")
    return torch.ones(len(returned.target), device=returned.target.device) if weights is None else weights


def check_has_end(loader: Iterable[Any]) -> None:
    """Raise ValueError for a loader without a length, whose epoch may have no end."""
    try:
        len(loader)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(
            "The loader has no `__len__`, so its epoch may have no end to refresh the holdout loss at. Leave "
            "`refresh_steps='epoch'` out, or pass `refresh_steps=N`, the gradient steps between two refreshes."
        ) from None


def check_example_weights(selector: Selector, weights_examples: bool) -> None:
    """See that a loop that does not weight examples by itself says that it does, for the rules that need it.

    Raises:
        ValueError: if ``selector`` weights examples and ``weights_examples`` is not set.
    """
    check_flag("weights_examples", weights_examples)
    if selector.weights_examples and not weights_examples:
        raise ValueError(
            f"{selector.name!r} weights the losses of the examples it selects. Multiply each loss with "
            "`example_weights` before the mean, and pass `weights_examples=True`."
        )
