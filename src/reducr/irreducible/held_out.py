"""How well a reference model does on examples that it was not trained on, and for how many epochs to train it."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from reducr._internal.seeds import mixed_seed
from reducr.batch import PerExampleLoss
from reducr.irreducible.cross_fit import stratified_folds
from reducr.irreducible.epochs import (
    Losses,
    MakeOptimizer,
    held_out_losses,
    new_optimizer,
    seeded,
    train_epoch,
)
from reducr.irreducible.examples import HoldoutExamples

_PATIENCE = 5


@dataclass(frozen=True)
class HeldOutReport:
    """What a reference model does on held-out folds, each by a copy that was trained on the other folds.

    Args:
        num_examples: N, each of which was held out once.
        num_folds: K.
        num_epochs: with the lowest mean loss on the held-out examples.
        most_epochs: that were allowed.
        loss_by_epoch: mean held-out loss after 1, 2, ... epochs; a fold that stopped counts with its last loss.
        chance_loss: mean loss of a constant prediction, the entropy of the targets; for another loss than the
            cross-entropy, the mean loss if each example has the target of another.
        accuracy: share of the held-out examples predicted correctly; None for targets without classes.
        chance_accuracy: share of the most frequent class; None likewise.
        class_accuracy: by class, NaN for a class without examples; None likewise.
        faults: why the model is near chance, as sentences; none if it is not.
    """

    num_examples: int
    num_folds: int
    num_epochs: int
    most_epochs: int
    loss_by_epoch: list[float]
    chance_loss: float
    accuracy: float | None
    chance_accuracy: float | None
    class_accuracy: list[float] | None
    faults: tuple[str, ...]

    @property
    def loss(self) -> float:
        """Mean held-out loss after ``num_epochs``."""
        return self.loss_by_epoch[self.num_epochs - 1]

    @property
    def is_near_chance(self) -> bool:
        """Whether the model is not significantly better than chance."""
        return bool(self.faults)

    @property
    def worst_class(self) -> int | None:
        """The class with the lowest accuracy; None for targets without classes."""
        rates = self.class_accuracy
        if rates is None:
            return None
        return min(range(len(rates)), key=lambda c: (math.isnan(rates[c]), rates[c]))

    def __str__(self) -> str:
        text = (
            f"Reference model on {self.num_examples} held-out examples ({self.num_folds} folds), after "
            f"{self.num_epochs} epochs: loss {self.loss:.3f} (chance {self.chance_loss:.3f})"
        )
        worst = self.worst_class
        if self.accuracy is not None and self.class_accuracy is not None and worst is not None:
            text += (
                f", accuracy {self.accuracy:.3f} (most frequent class {self.chance_accuracy:.3f}), worst class {worst} "
                f"with {self.class_accuracy[worst]:.3f}"
            )
        if self.num_epochs == self.most_epochs:
            text += f". The loss was still falling: allow more than num_epochs={self.most_epochs}"
        return text + "."


def cross_validated(
    model: nn.Module,
    examples: HoldoutExamples,
    *,
    num_epochs: int,
    optimizer: MakeOptimizer,
    loss: PerExampleLoss | None,
    group_weights: Tensor | None,
    num_folds: int,
    seed: int,
    show: Callable[[str], None],
) -> HeldOutReport:
    """Train a copy of ``model`` on all but one fold, for each fold, until its held-out loss has stopped falling.

    Args:
        model: not changed.
        examples: of the holdout set.
        num_epochs: at most; a fold stops five epochs after its lowest held-out loss.
        optimizer: a function of parameters.
        loss: of (output, target); None for the cross-entropy.
        group_weights: (G,) weights of the examples of each group in the training loss; None for 1.
        num_folds: K >= 2.
        seed: of the folds, the order and what the model draws.
        show: is told about the progress.
    """
    generator = torch.Generator().manual_seed(mixed_seed(seed, 0))
    labels = examples.targets if examples.targets is not None else examples.groups
    fold_of = stratified_folds(examples.num_examples, num_folds, labels=labels, generator=generator)
    folds: list[list[Losses]] = []
    for fold in range(num_folds):
        inside, outside = (torch.nonzero(mask).flatten() for mask in (fold_of != fold, fold_of == fold))
        outside = outside[torch.randperm(len(outside), generator=generator)]
        part = copy.deepcopy(model)
        curve: list[Losses] = []
        order = torch.Generator().manual_seed(mixed_seed(seed, fold + 1))
        with seeded(mixed_seed(seed, fold + 1), examples.device):
            step = new_optimizer(part, optimizer)
            best = math.inf, 0
            while len(curve) < min(num_epochs, best[1] + _PATIENCE):
                batches = examples.shuffled(inside, order)
                train_epoch(part, batches, step, loss=loss, group_weights=group_weights)
                curve.append(held_out_losses(part, examples.in_order(outside), loss=loss))
                mean = curve[-1].loss.mean().item()
                best = min(best, (mean, len(curve)))
                show(f"fold {fold + 1} of {num_folds}, epoch {len(curve)}: held-out loss {mean:.3f}")
        folds.append(curve)
    return _report(folds, examples, most_epochs=num_epochs, is_cross_entropy=loss is None)


def _report(
    folds: list[list[Losses]], examples: HoldoutExamples, *, most_epochs: int, is_cross_entropy: bool
) -> HeldOutReport:
    length = max(map(len, folds))
    by_epoch = [_joined([curve[min(epoch, len(curve) - 1)] for curve in folds]) for epoch in range(length)]
    means = [losses.loss.mean().item() for losses in by_epoch]
    chosen = min(range(length), key=means.__getitem__)
    losses = by_epoch[chosen]
    chance = losses.other_loss
    if is_cross_entropy and examples.targets is not None:
        counts = torch.bincount(examples.targets).double()
        chance = -(counts / counts.sum()).log()[losses.target.long()]
    faults = _loss_faults(losses.loss, chance)
    accuracy = chance_accuracy = by_class = None
    if losses.is_correct is not None and examples.targets is not None:
        counts = torch.bincount(examples.targets).double()
        accuracy, chance_accuracy = losses.is_correct.double().mean().item(), (counts.max() / counts.sum()).item()
        rates = torch.bincount(losses.target.long(), losses.is_correct.double(), len(counts)) / counts
        by_class = rates.tolist()
        faults += _accuracy_faults(accuracy, chance_accuracy, rates, counts)
    return HeldOutReport(
        num_examples=examples.num_examples,
        num_folds=len(folds),
        num_epochs=chosen + 1,
        most_epochs=most_epochs,
        loss_by_epoch=means,
        chance_loss=chance.mean().item(),
        accuracy=accuracy,
        chance_accuracy=chance_accuracy,
        class_accuracy=by_class,
        faults=faults,
    )


def _joined(parts: list[Losses]) -> Losses:
    has_classes = all(part.is_correct is not None for part in parts)
    return Losses(
        torch.cat([part.loss for part in parts]),
        torch.cat([part.other_loss for part in parts]),
        torch.cat([part.is_correct for part in parts if part.is_correct is not None]) if has_classes else None,
        torch.cat([part.target for part in parts]),
    )


def _loss_faults(loss: Tensor, chance: Tensor) -> tuple[str, ...]:
    """Compare losses with those of chance, example by example: two standard errors are significant."""
    gain = chance - loss
    error = gain.std().item() / math.sqrt(len(gain)) if len(gain) > 1 else math.inf
    if gain.mean().item() > 2 * error:
        return ()
    return (f"its held-out loss of {loss.mean().item():.3f} is not below that of chance, {chance.mean().item():.3f}",)


def _accuracy_faults(accuracy: float, chance: float, rates: Tensor, counts: Tensor) -> tuple[str, ...]:
    """See whether the accuracy, or its mean over the classes, is significantly above that of a constant prediction."""
    num_examples, seen = counts.sum().item(), counts > 0
    error = math.sqrt(chance * (1 - chance) / num_examples)
    num_classes = int(seen.sum())
    uniform = 1 / num_classes
    balanced_error = ((uniform * (1 - uniform) / counts[seen]).sum().sqrt() / num_classes).item()
    if accuracy > chance + 2 * error or rates[seen].mean().item() > uniform + 2 * balanced_error:
        return ()
    return (f"its held-out accuracy of {accuracy:.3f} is not above the share of the most frequent class, {chance:.3f}",)
