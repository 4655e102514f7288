"""Auxiliary models trained jointly with the target model, and extra batches mixed into each step."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr._internal.distributed import all_reduce_sum, num_ranks
from reducr._internal.endless import EndlessBatches
from reducr.batch import Batch, BatchSpec, PerExampleLoss, model_output
from reducr.batch.nested import ListKinds, concatenate, send_to_device
from reducr.scoring import Holdout, HoldoutDraws, check_holdout_fraction, num_examples_of

MakeOptimizer = Callable[[Iterable[Any]], Optimizer]


def selected_loss(
    model: nn.Module, batch: Batch, example_weights: Tensor | None = None, *, loss: PerExampleLoss | None = None
) -> Tensor:
    """Return the mean loss () of ``model`` on a batch; target models and proxies minimise it.

    Args:
        model: returns logits (b, C).
        batch: the selected examples.
        example_weights: (b,) factor of each example's loss; None for 1.
        loss: of (output, target), one value per example; None for the cross-entropy.
    """
    output = model_output(model, batch.input)
    if loss is None and example_weights is None:
        return F.cross_entropy(output, batch.target)
    losses = F.cross_entropy(output, batch.target, reduction="none") if loss is None else loss(output, batch.target)
    return (losses if example_weights is None else losses * example_weights).mean()


@dataclass(frozen=True)
class AuxiliaryModel:
    """A model that learns from the selected examples: a proxy that scores, or a reference model that keeps learning.

    Selected examples have no weights for it, also where the rule weights them for the target model.

    Args:
        model: trained in place.
        optimizer: of its parameters.
        loss: of (model, selected examples), a scalar.
        is_proxy: score the candidates with this model in place of the target model.
    """

    model: nn.Module
    optimizer: Optimizer
    loss: Callable[[nn.Module, Batch], Tensor] = selected_loss
    is_proxy: bool = False

    def backward(self, selected: Batch, *, loss_weight: float) -> None:
        """Add the gradient of ``loss_weight`` times the loss to the parameters."""
        with torch.enable_grad():
            (self.loss(self.model, selected) * loss_weight).backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped

    def step(self, *, num_batches: int) -> None:
        """Step with the mean gradient over ``num_batches`` batches and all ranks."""
        share = 1 / (num_batches * num_ranks())
        for parameter in self.model.parameters():
            if share != 1 and parameter.grad is not None:
                parameter.grad = all_reduce_sum(parameter.grad * share)
        self.optimizer.step()
        self.optimizer.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the model and of its optimizer, and the gradients accumulated since its last step."""
        gradients = [parameter.grad for parameter in self.model.parameters()]
        state = {"model": self.model.state_dict(), "optimizer": self.optimizer.state_dict(), "gradients": gradients}
        return copy.deepcopy(state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned. Nothing of ``state`` is kept."""
        state = copy.deepcopy(dict(state))  # an optimizer keeps the tensors that it loads
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        for parameter, gradient in zip(self.model.parameters(), state["gradients"], strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.device)


@dataclass(frozen=True)
class Auxiliary:
    """What is trained beside the target model, or beside the selected examples.

    Args:
        models: trained on the examples of every step; at most one of them is a proxy.
        extra_batches: batches of further examples, such as holdout examples, in the structure of the candidates. One is
            appended to the selected examples of every batch; at their end they are iterated again. In one process only.

    Raises:
        TypeError: for models of another kind.
        ValueError: for more than one proxy.
    """

    models: Sequence[AuxiliaryModel] = ()
    extra_batches: Iterable[Any] | ExtraBatches | None = None

    def __post_init__(self) -> None:
        if isinstance(self.models, AuxiliaryModel) or not all(isinstance(m, AuxiliaryModel) for m in self.models):
            raise TypeError("`models` must be a sequence of AuxiliaryModel. Pass `models=[AuxiliaryModel(...)]`.")
        num_proxies = sum(model.is_proxy for model in self.models)
        if num_proxies > 1:
            raise ValueError(
                f"Only one auxiliary model can score the candidates; got {num_proxies} with is_proxy=True."
            )

    def scorer(self, model: nn.Module) -> nn.Module:
        """Return what scores the candidates: the proxy, if there is one, or the target ``model``."""
        return next((auxiliary.model for auxiliary in self.models if auxiliary.is_proxy), model)

    def prepare(self, device: torch.device) -> None:
        """Move the models to ``device``, and put a proxy into train mode, in which the target model scores too.

        Raises:
            ValueError: for a sharded model, whose gradients are averaged already.
        """
        for auxiliary in self.models:
            if any(hasattr(parameter, "device_mesh") for parameter in auxiliary.model.parameters()):
                raise ValueError(
                    "An auxiliary model cannot be sharded (FSDP). Pass the model itself: its gradients are averaged "
                    "over all processes."
                )
            auxiliary.model.to(device)
            if auxiliary.is_proxy:
                auxiliary.model.train()

    def backward(self, selected: Batch, *, loss_weight: float) -> None:
        """Add the gradients of all models for the ``selected`` examples."""
        for auxiliary in self.models:
            auxiliary.backward(selected, loss_weight=loss_weight)

    def step(self, *, num_batches: int) -> None:
        """Let every model step with its mean gradient over ``num_batches`` batches and all ranks."""
        for auxiliary in self.models:
            auxiliary.step(num_batches=num_batches)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the models and their optimizers; empty if there are none."""
        states = [auxiliary.state_dict() for auxiliary in self.models]
        return {"auxiliary_models": states} if states else {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        states = state.get("auxiliary_models", ())
        if len(states) != len(self.models):
            raise ValueError(
                f"The state is of {len(states)} auxiliary models, and this training has {len(self.models)}."
            )
        for auxiliary, auxiliary_state in zip(self.models, states, strict=True):
            auxiliary.load_state_dict(auxiliary_state)

    def new_extra_batches(self) -> ExtraBatches | None:
        """Return the extra batches, from the first one on, for one training."""
        if isinstance(self.extra_batches, ExtraBatches):
            return ExtraBatches(self.extra_batches.stream.batches, transform=self.extra_batches.transform)
        return None if self.extra_batches is None else ExtraBatches(self.extra_batches)


class ExtraBatches:
    """Batches of further examples, one of which is appended to the selected examples of every step.

    Args:
        batches: iterated again at their end. A resume is exact for lists, and for loaders that read in a fixed order or
            draw it from a generator of their own.
        transform: a function from batch to batch, such as random changes of the inputs, applied on the device.

    Raises:
        ValueError: for batches that can be iterated once only; when one is appended, if there is none, or if it has
            another structure than the candidates.
    """

    def __init__(self, batches: Iterable[Any], *, transform: Callable[[Any], Any] | None = None) -> None:
        self.stream = EndlessBatches(batches, name="Extra batches")
        self.transform = transform

    def append_to(
        self, selected: Any, *, num_examples: int, device: torch.device, kinds: ListKinds | None = None
    ) -> Any:
        """Return the ``num_examples`` selected examples followed by the next batch, on ``device``."""
        return _joined(selected, send_to_device(next(self.stream), device), num_examples, kinds, self.transform)


def _joined(
    selected: Any,
    extra: Any,
    num_examples: int,
    kinds: ListKinds | None,
    transform: Callable[[Any], Any] | None = None,
) -> Any:
    if isinstance(selected, Batch) and isinstance(extra, list | tuple) and len(extra) == len(selected):
        extra = Batch(*extra)
    extra = extra if transform is None else transform(extra)
    return concatenate(selected, extra, num_examples=num_examples, kinds=kinds)


class ExtraExamples:
    """Appends examples of the extra batches, or of the holdout set, to the selected ones of every step.

    Args:
        auxiliary: with the extra batches, if there are any.
        holdout: with the share of the holdout set in each step, if there is one.
        fraction: of the candidates; what is drawn from the holdout set is a part of it.
        spec: where the parts of a batch are; None for the usual places.
        seed: of the order of the holdout examples.

    Raises:
        ValueError: for both kinds at once.
    """

    def __init__(
        self, auxiliary: Auxiliary, holdout: Holdout | None, *, fraction: float, spec: BatchSpec | None, seed: int
    ) -> None:
        self.fraction = fraction
        self.holdout_fraction = 0.0 if holdout is None else holdout.fraction
        self.batches = auxiliary.new_extra_batches()
        self.draws: HoldoutDraws | None = None
        self._last_drawn = 0
        if holdout is not None and holdout.fraction:
            self.draws = HoldoutDraws(holdout.batches, spec, seed=seed)
        if self.batches is not None and self.draws is not None:
            raise ValueError(
                "`holdout_fraction` and the `extra_batches` of `auxiliary` both add examples to each step. Use one."
            )

    def __bool__(self) -> bool:
        return self.batches is not None or self.draws is not None

    def check_mode(self, distributed: str | None) -> None:
        """Raise ValueError if there are extra examples on several ranks."""
        if self and distributed is not None:
            raise ValueError(
                f"Extra batches work in one process only in this version. Leave distributed={distributed!r} or "
                "`extra_batches` (`holdout_fraction`) out."
            )

    def leave_draws(self) -> None:
        """Append nothing of the holdout set: the loop adds its examples by itself."""
        self.draws = None

    def append_to(self, returned: Any, selected: Batch, *, num_candidates: int, kinds: ListKinds) -> Any:
        """Return the selected examples and the next extra ones.

        Args:
            returned: the selected examples in the structure of the candidates.
            selected: their parts.
            num_candidates: of the batch that they were selected from.
            kinds: of the lists in the candidates.
        """
        num_examples, device = selected.target.shape[0], selected.target.device
        if self.batches is not None:
            return self.batches.append_to(returned, num_examples=num_examples, device=device, kinds=kinds)
        if self.draws is None:
            return returned
        if not self.draws.num_drawn:
            check_holdout_fraction(self.fraction, self.holdout_fraction, num_candidates)
        _, num_drawn = num_examples_of(self.fraction, self.holdout_fraction, num_candidates)
        self._last_drawn = num_drawn
        if not num_drawn:
            return returned
        return _joined(returned, self.draws.drawn_on(device, num_drawn), num_examples, kinds)

    def take_back(self) -> None:
        """Append the examples of the last step again in the next one."""
        if self.batches is not None:
            self.batches.stream.take_back()
        if self.draws is not None:
            self.draws.seek(self.draws.num_drawn - self._last_drawn)

    def seek(self, num_batches: int) -> None:
        """Continue the extra batches after ``num_batches``."""
        if self.batches is not None and self.batches.stream.position != num_batches:
            self.batches.stream.seek(num_batches)

    def state_dict(self) -> dict[str, Any]:
        """Return the place in the holdout set; empty if nothing is drawn from it."""
        return {} if self.draws is None else {"num_drawn": self.draws.num_drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if self.draws is not None:
            self.draws.seek(state["num_drawn"])
