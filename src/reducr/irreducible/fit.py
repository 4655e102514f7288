"""Train a reference model (the paper's irreducible model) on the clean holdout set, in one line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from reducr._internal.checks import check_count, check_flag
from reducr._internal.distributed import is_main_rank
from reducr._internal.names import check_options
from reducr._internal.seeds import mixed_seed
from reducr.batch import BatchSpec, PerExampleLoss
from reducr.irreducible.epochs import MakeOptimizer, new_optimizer, seeded, train_epoch
from reducr.irreducible.examples import HoldoutExamples
from reducr.irreducible.held_out import HeldOutReport, cross_validated
from reducr.irreducible.sources import device_of_modules

Model = TypeVar("Model", bound=nn.Module)
_ADAMW = partial(torch.optim.AdamW, lr=3e-3)


def fit_reference(
    model: Model,
    loader: Iterable[Any],
    *,
    num_epochs: int = 50,
    optimizer: MakeOptimizer | None = None,
    loss: PerExampleLoss | None = None,
    spec: BatchSpec | None = None,
    group_weights: Sequence[float] | Tensor | None = None,
    num_folds: int = 3,
    seed: int = 0,
    progress: bool | None = None,
) -> Model:
    """Train a reference model (the paper's irreducible model) on the clean holdout set, for as long as it helps.

    For each of ``num_folds`` folds a copy is trained on the other folds until its loss on this one stops falling. The
    model itself is then trained on all examples for the number of epochs with the lowest mean held-out loss. Held-out
    loss and accuracy, over all and of the worst class, are written to stderr (``reducr.irreducible.held_out_report``
    returns them), and a warning says if they are not significantly better than chance.

    Global random states are restored at the end. On several ranks each trains alone, and rank 0 writes; give all the
    same model and examples.

    Args:
        model: trained in place, on its device, and left in eval mode. Pass a copy of the target model, or another one.
        loader: batches of the clean holdout set, or a map-style data set. Examples of a data set are read anew in every
            epoch, about 20 batches of at most the loader's size. Other batches are read once and kept in memory.
        num_epochs: at most; exactly with ``num_folds=0``.
        optimizer: a function from parameters to an optimizer, such as ``functools.partial(torch.optim.SGD, lr=0.1)``;
            None for AdamW with a learning rate of 3e-3, too large for pretrained models.
        loss: of (output, target), one value per example, or a ``TokenLoss``; None for the cross-entropy.
        spec: where the parts of a batch are; None for the usual places.
        group_weights: (G,) weights >= 0 of the examples of each group, such as ``[10, 1, 1]``; None for 1.
        num_folds: K >= 2; 0 for no held-out folds and no check. Each is up to one training more.
        seed: of folds, order of examples, and what the model draws.
        progress: write progress and results to stderr; None for the results, and progress if it is a terminal.

    Returns:
        ``model``.

    Raises:
        TypeError: for an argument of another kind.
        ValueError: for an option out of range, a model without trainable parameters, batches that cannot be read, fewer
            examples than two per fold, or a loss that is not finite.

    Example:
        >>> inputs = torch.randn(120, 4, generator=torch.Generator().manual_seed(0))
        >>> clean = torch.utils.data.TensorDataset(inputs, inputs.argmax(dim=1))
        >>> reference = fit_reference(nn.Linear(4, 4), clean, num_epochs=30, progress=False)

    Source: docs/method.md, section 4. The paper instead keeps the checkpoint with the lowest loss on the training set.
    """
    _Fit(model, loader, num_epochs, optimizer, loss, spec, group_weights, num_folds, seed, progress).run()
    return model


def held_out_report(model: nn.Module, loader: Iterable[Any], **options: Any) -> HeldOutReport:
    """Return what ``fit_reference`` finds on held-out folds, without training ``model`` itself.

    Args:
        model: not changed.
        loader: of the clean holdout set.
        options: as for ``fit_reference``.
    """
    check_options("held_out_report", fit_reference, options)
    fit = _Fit(model, loader, **((fit_reference.__kwdefaults__ or {}) | options))
    if not fit.num_folds:
        raise ValueError("A report needs held-out folds: num_folds must be at least 2; got 0.")
    return fit.report()


@dataclass
class _Fit:
    """The arguments of ``fit_reference``, checked."""

    model: nn.Module
    loader: Iterable[Any]
    num_epochs: int
    optimizer: MakeOptimizer | None
    loss: PerExampleLoss | None
    spec: BatchSpec | None
    group_weights: Any
    num_folds: int
    seed: int
    progress: bool | None

    def __post_init__(self) -> None:
        _check_kinds(self.model, self.loader, self.optimizer)
        check_count("num_epochs", self.num_epochs)
        check_count("num_folds", self.num_folds, least=0)
        check_count("seed", self.seed, least=0)
        if self.progress is not None:
            check_flag("progress", self.progress)
        if self.num_folds == 1:
            raise ValueError("num_folds must be 0, for no held-out folds, or at least 2; got 1.")
        self.make_optimizer = _ADAMW if self.optimizer is None else self.optimizer
        new_optimizer(self.model, self.make_optimizer)
        device = device_of_modules([self.model])
        with seeded(mixed_seed(self.seed), device):
            self.examples = HoldoutExamples(self.loader, spec=self.spec, device=device)
        self.weights = _checked_weights(self.group_weights, self.examples)
        if self.num_folds and self.examples.num_examples < 2 * self.num_folds:
            raise ValueError(
                f"{self.num_folds} folds need at least {2 * self.num_folds} examples; the holdout set has "
                f"{self.examples.num_examples}. Pass a smaller `num_folds`, or more clean examples."
            )
        self.display = _Display(self.progress)

    def run(self) -> None:
        """Choose the number of epochs, unless there are no folds, and train the model for as many."""
        num_epochs = self.num_epochs
        if self.num_folds:
            report = self.report()
            num_epochs = report.num_epochs
            if self.progress is not False and is_main_rank():
                self.display.line(str(report))
            if report.is_near_chance and is_main_rank():
                warnings.warn(
                    f"The reference model is near chance: {'; '.join(report.faults)}. Selection by it is hardly better "
                    "than at random. Train it longer or with another learning rate (`num_epochs`, `optimizer`), on "
                    "more clean examples, or choose another model.",
                    RuntimeWarning,
                    stacklevel=3,
                )
        self.train(num_epochs)

    def report(self) -> HeldOutReport:
        report = cross_validated(
            self.model,
            self.examples,
            num_epochs=self.num_epochs,
            optimizer=self.make_optimizer,
            loss=self.loss,
            group_weights=self.weights,
            num_folds=self.num_folds,
            seed=self.seed,
            show=self.display.show,
        )
        self.display.clear()
        return report

    def train(self, num_epochs: int) -> None:
        """Train the model itself on all examples."""
        order = torch.Generator().manual_seed(mixed_seed(self.seed, self.num_folds + 1))
        everything = torch.arange(self.examples.num_examples)
        with seeded(mixed_seed(self.seed, self.num_folds + 1), self.examples.device):
            optimizer = new_optimizer(self.model, self.make_optimizer)
            for epoch in range(num_epochs):
                batches = self.examples.shuffled(everything, order)
                train_epoch(self.model, batches, optimizer, loss=self.loss, group_weights=self.weights)
                self.display.show(f"all examples, epoch {epoch + 1} of {num_epochs}")
        self.display.clear()
        self.model.zero_grad()
        self.model.eval()


class _Display:
    """One line of progress on stderr, overwritten as it changes."""

    def __init__(self, progress: bool | None) -> None:
        is_terminal = bool(getattr(sys.stderr, "isatty", lambda: False)())
        self.is_live = (is_terminal if progress is None else progress) and is_main_rank()
        self._width = 0

    def show(self, text: str) -> None:
        if self.is_live:
            text = f"reference model: {text}"
            sys.stderr.write("\r" + text.ljust(self._width))
            sys.stderr.flush()
            self._width = len(text)

    def clear(self) -> None:
        if self.is_live and self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
            self._width = 0

    def line(self, text: str) -> None:
        self.clear()
        sys.stderr.write(text + "\n")


def _check_kinds(model: Any, loader: Any, optimizer: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"`model` must be a torch.nn.Module; got {type(model).__name__}.")
    if not isinstance(loader, Iterable) and not hasattr(loader, "__getitem__"):
        raise TypeError(
            f"`loader` must give batches of the clean holdout set, such as a DataLoader; got {type(loader).__name__}."
        )
    if optimizer is not None and (isinstance(optimizer, torch.optim.Optimizer) or not callable(optimizer)):
        raise TypeError(
            "`optimizer` must be a function from parameters to an optimizer, as every fold needs its own, such as "
            f"functools.partial(torch.optim.AdamW, lr=1e-3); got {type(optimizer).__name__}."
        )


def _checked_weights(group_weights: Sequence[float] | Tensor | None, examples: HoldoutExamples) -> Tensor | None:
    if group_weights is None:
        return None
    weights = torch.as_tensor(group_weights, dtype=torch.float64)
    if weights.ndim != 1 or not bool(torch.isfinite(weights).all()) or bool((weights < 0).any()):
        raise ValueError(
            f"group_weights must hold one finite number of at least 0 for each group, (G,); got {weights.tolist()}."
        )
    if examples.groups is None:
        raise ValueError(
            "group_weights need the group of every example, one integer each. Say where it is with "
            "spec=BatchSpec(group=...)."
        )
    least, largest = int(examples.groups.min()), int(examples.groups.max())
    if least < 0 or largest >= len(weights):
        raise ValueError(
            f"group_weights holds weights of {len(weights)} groups, and the holdout set has groups {least}..{largest}. "
            "Give one weight for each group."
        )
    return weights
