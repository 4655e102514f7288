"""A loader of the best part of every large batch, for any training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from reducr._internal.checks import check_count, check_flag, check_state_keys
from reducr._internal.names import check_options
from reducr.batch.report import SelectionReport
from reducr.downsampler import Downsampler
from reducr.scoring import Holdout, IrreducibleLookup, holdout_of
from reducr.selectors import Selector
from reducr.training.delegate import Delegate
from reducr.training.resumable import Resumable

_END = object()


class SelectiveLoader(Delegate):
    """Yield the selected examples of every batch of ``loader``, in the batch's own structure.

    ``loader`` yields the candidates. They are moved to the model's device and scored without gradients, and the
    training loop gets the best of them; everything else in the loop stays as it is. A batch counts as trained on when
    the next one is asked for, or when the state is read: the selector is then updated, and the holdout loss refreshed
    if it is due.

    Attributes that this class does not define are those of ``loader``: ``dataset``, ``sampler``, ``batch_sampler``,
    ``batch_size``, ``num_workers``, ``drop_last``, ... They can be set, too. Functions of other libraries that would
    build a new loader from them, and so drop the selection, raise an error that says what to do.

    Args:
        loader: of large batches: a DataLoader, map-style or iterable, or another iterable of batches.
        model: returns logits (B, C) for the input of a batch, or whatever ``loss`` takes.
        selector: the rule; its state is part of this loader's.
        irreducible: source of irreducible losses, for the rules that need them: anything with ``lookup(batch)``.
        fraction: fraction of every batch to yield, in (0, 1]; rounded down, but at least one example.
        holdout: batches of the clean holdout set, or a ``Holdout``.
        refresh_steps: gradient steps between two passes over ``holdout``; None for the end of every epoch.
        accumulate_steps: batches per gradient step; the selector is updated once for all of them.
        weights_examples: promise that the loop multiplies the loss of each example with ``example_weights`` before the
            mean. The rules that weight examples, ``group_dro`` and ``infobatch``, are refused without it.
        options: ``loss``, ``spec``, ``scoring``, ``auxiliary``, ``distributed`` and ``seed``: see ``Downsampler``.

    Raises:
        ValueError: for an option out of range, or a loader without a length whose holdout loss would never be
            refreshed; at the first batch if it cannot be read, scored or selected from.
        TypeError: for a model, loader, selector or irreducible of another kind.

    Example:
        >>> import torch, reducr
        >>> from torch.utils.data import DataLoader, TensorDataset
        >>> data = DataLoader(TensorDataset(torch.randn(40, 4), torch.arange(40) % 2), batch_size=20)
        >>> model, selector = nn.Linear(4, 2), reducr.make_selector("train_loss", num_groups=2)
        >>> loader = reducr.SelectiveLoader(data, model, selector, fraction=0.1)
        >>> [tuple(x.shape) for x, y in loader]
        [(2, 4), (2, 4)]
    """

    def __init__(
        self,
        loader: Iterable[Any],
        model: nn.Module,
        selector: Selector,
        irreducible: IrreducibleLookup | None = None,
        fraction: float = 0.1,
        *,
        holdout: Holdout | Iterable[Any] | None = None,
        refresh_steps: int | None = None,
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
        check_options("SelectiveLoader", Downsampler, options)
        self.downsampler = Downsampler(
            selector, irreducible, fraction=fraction, holdout=holdout_of(holdout, refresh_steps), **options
        )
        self.downsampler.check_model(model)
        check_example_weights(selector, weights_examples)
        if self.downsampler.holdout.refreshes_at_epoch_ends:
            check_has_end(loader)
        self.model = model
        self.accumulate_steps = accumulate_steps
        self._pass = 0
        self.loader = Resumable(loader)

    def __len__(self) -> int:
        """Batches per epoch, as many as there are batches of candidates."""
        return len(self.loader)

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
        return self.loader.position

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass as this epoch."""
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        self._pass += 1
        number = self._pass
        self._step()
        self.downsampler.prepare(self.model)
        candidates, epoch = iter(self.loader), None
        while (batch := next(candidates, _END)) is not _END:
            if self.epoch != epoch:
                epoch = self.epoch
                self.downsampler.selector.set_epoch(epoch)
            yield self.downsampler.select(batch, self.model)
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
        self._step()
        return {"downsampler": self.downsampler.state_dict(), "loader": self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned: the next pass is the rest of the one that it was taken in.

        Raises:
            ValueError: for the state of something else, or of another selector or loader.
        """
        check_state_keys("a SelectiveLoader", state, ("downsampler", "loader"))
        self.downsampler.load_state_dict(state["downsampler"])
        self.loader.load_state_dict(state["loader"])

    def _step(self) -> None:
        if self.downsampler.num_waiting >= self.accumulate_steps:
            self.downsampler.step(self.model)


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
            "The loader has no `__len__`, so its epoch may have no end to refresh the holdout loss at. Pass "
            "`refresh_steps=N`, the gradient steps between two passes over `holdout`."
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
