"""A loader of the best part of every large batch, for anyone's training loop."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from torch import Tensor, nn

from reducr._internal.checks import check_state_keys
from reducr.downsampler import Downsampler, SelectionReport
from reducr.scoring.scorer import IrreducibleLookup
from reducr.selectors import Selector
from reducr.training.resumable import Resumable


class SelectiveLoader:
    """Yields the selected points of every batch of ``loader``, in the batch's own structure.

    ``loader`` yields the candidates. They are moved to the model's device, scored without gradients, and the best of
    them are what a training loop gets; everything else in the loop stays as it is. A batch counts as trained on when
    the next one is asked for, or the state is: then the selector is updated, and the holdout loss refreshed when due.

    Args:
        loader: of large batches: any DataLoader, map-style or iterable, or another iterable of batches.
        model: gives (B, C) logits for the input of a batch, or whatever ``loss`` takes.
        selector: the rule; its state is part of this loader's.
        irreducible: losses for the rules that need them: anything with ``lookup(batch)``.
        fraction: share of every batch to yield, in (0, 1]; rounded down, but at least one point.
        options: ``holdout``, ``refresh_steps``, ``loss``, ``spec``, ``scoring_mode``, ``autocast``,
            ``scoring_compile``, ``scoring_resolution``, ``scoring_budget``, ``accumulate_steps``, ``distributed``,
            ``weights_examples``, ``seed``: see ``Downsampler``.

    Raises:
        ValueError: for an option out of range, or a stream without a length whose holdout loss would never be
            refreshed; at the first batch for one that cannot be read, scored or selected from.
        TypeError: for a loader or selector that is none, or an irreducible without ``lookup``.

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
        **options: Any,
    ) -> None:
        if not isinstance(loader, Iterable):
            raise TypeError(
                f"loader must be an iterable of batches, such as a DataLoader; got {type(loader).__name__}."
            )
        self.downsampler = Downsampler(model, selector, irreducible, fraction=fraction, **options)
        if self.downsampler.holdout is not None and self.downsampler.refresh_steps is None:
            check_has_end(loader)
        self.loader = Resumable(loader)
        self._pass = 0

    def __len__(self) -> int:
        """Batches of an epoch, as many as of candidates."""
        return len(self.loader)

    @property
    def epoch(self) -> int:
        """Of the pass that is under way, or of the next one."""
        return self.loader.epoch

    def set_epoch(self, epoch: int) -> None:
        """Begin the next pass as this epoch."""
        self.loader.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        self._pass += 1
        number = self._pass
        self.downsampler.step()
        self.downsampler.prepare()
        candidates, epoch = iter(self.loader), None
        while (batch := next(candidates, _END)) is not _END:
            if self.epoch != epoch:
                epoch = self.epoch
                self.downsampler.selector.set_epoch(epoch)
            yield self.downsampler.select(batch)
            if number != self._pass:
                raise RuntimeError("this loader was iterated again before this pass had ended: use one at a time.")
            self.downsampler.step()
        self.downsampler.step(is_last=True)

    @property
    def loss_weight(self) -> float:
        """What the mean loss of a batch must be multiplied with on several ranks; 1 in one process."""
        return self.downsampler.loss_weight

    @property
    def example_weights(self) -> Tensor:
        """(b,) what the loss of each point of a batch must be multiplied with before their mean; ones for most rules.

        Raises:
            RuntimeError: before the first batch.
        """
        return self.downsampler.example_weights

    def report(self) -> SelectionReport:
        """What has been selected so far, and what it cost; prints well."""
        return self.downsampler.report()

    def state_dict(self) -> dict[str, Any]:
        """Everything that a killed run needs to go on: selector, draws, holdout loss, place in the epoch, report.

        The batch yielded last counts as trained on.
        """
        self.downsampler.step()
        return {"downsampler": self.downsampler.state_dict(), "loader": self.loader.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what ``state_dict`` gave: the next pass is the rest of the one that it was taken in.

        Raises:
            ValueError: for the state of something else, or of another selector or loader.
        """
        check_state_keys("a SelectiveLoader", state, ("downsampler", "loader"))
        self.downsampler.load_state_dict(state["downsampler"])
        self.loader.load_state_dict(state["loader"])


_END = object()


def check_has_end(loader: Iterable[Any]) -> None:
    """Raise ValueError for a stream without a length, which may have no end of an epoch."""
    try:
        len(loader)  # type: ignore[arg-type]
    except TypeError:
        raise ValueError(
            "a stream without a length may have no end of an epoch to refresh the holdout loss at: give refresh_steps, "
            "the gradient steps between two passes over holdout."
        ) from None
