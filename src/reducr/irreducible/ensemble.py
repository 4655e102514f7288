"""Several models in one pass: stacked models of one architecture, or one trunk with several heads."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state
from torch.overrides import TorchFunctionMode


class Ensemble(nn.Module):
    """G models of one architecture, trained and evaluated in one vectorised pass that returns (B, G, C) logits.

    Every parameter and buffer is one stacked tensor (G, ...) under its name in a single model. Gradients, running
    statistics of batch normalisation, and element-wise optimisers (SGD, Adam, AdamW) match separate training.
    Operations across a tensor, such as clipping by norm, mix the members. Dropout differs between members.

    Args:
        models: G models that differ only in the values of parameters and buffers; copied.

    Raises:
        ValueError: if there is no model, or the models differ in their layers.

    Example:
        >>> ensemble = Ensemble([nn.Linear(4, 2) for _ in range(3)])
        >>> ensemble(torch.zeros(5, 4)).shape, ensemble.model.weight.shape
        (torch.Size([5, 3, 2]), torch.Size([3, 2, 4]))
    """

    def __init__(self, models: Sequence[nn.Module]) -> None:
        super().__init__()
        _check_alike(models)
        self.num_members = len(models)
        parameters, buffers = stack_module_state(list(models))
        self.model = _with_state(models[0], lambda name, _: (parameters | buffers)[name])

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        """Logits of shape (B, G, C); column c comes from model c."""

        def logits(state: dict[str, Tensor]) -> Tensor:
            output: Tensor = functional_call(self.model, state, (input,))
            return output

        state = dict(chain(self.model.named_parameters(), self.model.named_buffers()))
        if input.device.type == "cpu" and not torch.is_grad_enabled():
            # One member at a time also keeps all cores busy, and its activations fit into their caches.
            members = ({name: tensor[c] for name, tensor in state.items()} for c in range(self.num_members))
            return torch.stack([logits(member) for member in members], dim=1)
        if input.ndim == 4:
            input = input.contiguous(memory_format=torch.channels_last)  # noqa: A001  (faster for grouped convolutions)
        with _WeightsFirst():
            stacked: Tensor = torch.vmap(logits, out_dims=1, randomness="different")(state)
        return stacked

    def member(self, c: int) -> nn.Module:
        """A copy of model c as it is now.

        Raises:
            ValueError: if ``c`` is outside 0..G-1.
        """
        _check_position("member", c, self.num_members)
        return _with_state(self.model, lambda _, tensor: tensor.detach()[c].clone())


class MultiHead(nn.Module):
    """One trunk with G heads: reshapes the (B, G * C) outputs of a model to (B, G, C).

    Args:
        model: returns (B, G * C) logits; head g is outputs g * C to (g + 1) * C.
        num_heads: G.
    """

    def __init__(self, model: nn.Module, *, num_heads: int) -> None:
        super().__init__()
        self.model = model
        self.num_heads = num_heads

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        """Logits of shape (B, G, C).

        Raises:
            ValueError: if the number of outputs is not a multiple of G.
        """
        outputs: Tensor = self.model(input)
        if outputs.ndim != 2 or outputs.shape[1] % self.num_heads:
            raise ValueError(
                f"a model with {self.num_heads} heads must return (B, {self.num_heads} * C) outputs; got "
                f"{tuple(outputs.shape)}. Build it with num_classes = {self.num_heads} times the number of classes."
            )
        return outputs.reshape(len(outputs), self.num_heads, outputs.shape[1] // self.num_heads)

    def head(self, g: int) -> nn.Module:
        """A model that returns the (B, C) logits of head g and shares the parameters of this model.

        Raises:
            ValueError: if ``g`` is outside 0..G-1.
        """
        _check_position("head", g, self.num_heads)
        return _Head(self, g)


class _Head(nn.Module):
    def __init__(self, heads: MultiHead, g: int) -> None:
        super().__init__()
        self.heads = heads
        self.g = g

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  (the field's name in Batch)
        logits: Tensor = self.heads(input)[:, self.g]
        return logits


class _WeightsFirst(TorchFunctionMode):
    """Compute linear layers as ``(W x^T + b)^T``, so that gradients of stacked W have its memory layout."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is F.linear and args[0].ndim == 2:
            return _linear(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # noqa: A002  (as in F.linear)
    product = weight @ input.t()
    return (product if bias is None else product + bias.unsqueeze(1)).t()


def _check_alike(models: Sequence[nn.Module]) -> None:
    if not models:
        raise ValueError("Ensemble needs at least one model; got none.")
    first, *others = [_layout(model) for model in models]
    for position, other in enumerate(others, start=1):
        if other != first:
            raise ValueError(
                "the models of an Ensemble must have the same layers in the same mode; model "
                f"{position} differs from model 0 in {', '.join(sorted({name for name, _ in first ^ other}))}."
            )


def _layout(model: nn.Module) -> set[tuple[str, object]]:
    """Everything that members must agree on: layers, their modes, and the shapes of their tensors."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    return {(name or "the model", (type(module), module.training)) for name, module in model.named_modules()} | {
        (name, (tensor.shape, tensor.dtype, tensor.requires_grad)) for name, tensor in tensors
    }


def _with_state(model: nn.Module, value: Callable[[str, Tensor], Tensor]) -> nn.Module:
    """A copy of ``model`` with ``value(name, tensor)`` as its parameters and buffers; shared tensors stay shared."""
    clone = copy.deepcopy(model)
    new: dict[Tensor, Tensor] = {}
    for name, parameter in clone.named_parameters():
        new[parameter] = nn.Parameter(value(name, parameter), requires_grad=parameter.requires_grad)
    for name, buffer in clone.named_buffers():
        new[buffer] = value(name, buffer)
    for module in clone.modules():
        for tensors in (module._parameters, module._buffers):
            tensors.update({name: new[tensor] for name, tensor in tensors.items() if tensor is not None})  # type: ignore[misc]
    return clone


def _check_position(kind: str, position: int, size: int) -> None:
    if not 0 <= position < size:
        raise ValueError(f"{kind} must be in 0..{size - 1}; got {position}.")
