"""The states of all ranks in one checkpoint: whole tensors in place of shards, and each tensor stored once."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from reducr._internal.distributed import all_gather_objects, num_ranks, rank

_PLACE = "__tensor__"


def is_sharded(part: Any) -> bool:
    """Whether this process holds only a part of the tensors of a model or optimizer, as under FSDP."""
    if isinstance(part, nn.Module):
        tensors: list[Any] = [*part.parameters(), *part.buffers()]
        return any(_is_dtensor(tensor) for tensor in tensors) or _is_first_fsdp(part)
    return isinstance(part, Optimizer) and any(_is_dtensor(parameter) for parameter in _parameters(part))


def check_not_sharded(name: str, part: Any) -> None:
    """Raise ValueError for a model or optimizer of which this process holds only a part."""
    if is_sharded(part):
        raise ValueError(
            f"`{name}` is sharded (FSDP), so this process holds only a part of it. Use `Checkpoints(folder, "
            "sync=True)` and call save() and resume() on every rank, or save it with torch.distributed.checkpoint."
        )


def whole_state(name: str, part: Any) -> Any:
    """Return the state of a part with whole tensors in place of shards; all ranks must call this together.

    Raises:
        ValueError: for shards that ``sharded_state`` could not divide again.
    """
    if isinstance(part, nn.Module) and _is_first_fsdp(part):
        raise ValueError(
            f"`{name}` is wrapped in FullyShardedDataParallel, whose optimizer state cannot be saved here. Use "
            "torch.distributed.fsdp.fully_shard, or save it with torch.distributed.checkpoint."
        )
    state = part.state_dict()
    if isinstance(part, Optimizer):
        parameters = _parameters(part)
        for number, values in state["state"].items():
            for key, value in values.items():
                if _is_dtensor(value) and not _is_divided_alike(value, parameters[number]):
                    raise ValueError(
                        f"`{name}` divides {key!r} of its parameter {number} in another way than the parameter. Save "
                        "it with torch.distributed.checkpoint."
                    )
    elif not isinstance(part, nn.Module) and any(map(_is_dtensor, _leaves(state))):
        raise ValueError(
            f"The state of `{name}` holds DTensors, of which this process has only a part. Pass the model and the "
            "optimizer themselves, or save it with torch.distributed.checkpoint."
        )
    return _mapped(state, lambda leaf: leaf.full_tensor() if _is_dtensor(leaf) else leaf)


def sharded_state(part: Any, state: Any) -> Any:
    """Return ``state`` with whole tensors divided as the part's own are; undoes ``whole_state``."""
    if not is_sharded(part):
        return state
    if isinstance(part, nn.Module):
        own = part.state_dict()
        divided = _mapped(state, lambda leaf: leaf)
        for key, value in state.items():
            divided[key] = _divided(value, own[key]) if _is_dtensor(own.get(key)) else value
        return divided
    parameters = _parameters(part)
    values = {
        number: {
            key: _divided(value, parameters[number]) if _has_shape_of(value, parameters[number]) else value
            for key, value in of_parameter.items()
        }
        for number, of_parameter in state["state"].items()
    }
    return state | {"state": values}


def merged(content: Any) -> dict[str, Any]:
    """Return the contents of all ranks as one; all ranks must call this together.

    Equal tensors are stored once, and cross the network only where rank 0 has none like it.

    Returns:
        On rank 0 ``ranks``, the content of each with a digest in the place of every tensor, and ``tensors`` by digest;
        on the others nothing that is of use.
    """
    own: dict[str, Tensor] = {}

    def place(leaf: Any) -> Any:
        if type(leaf) not in (Tensor, nn.Parameter) or leaf.layout != torch.strided:
            return leaf
        tensor = leaf.detach().cpu().contiguous()
        digest = _digest(tensor)
        own[digest] = tensor
        return {_PLACE: digest}

    ranks = all_gather_objects(_mapped(content, place))
    of_first = set(all_gather_objects(list(own) if rank() == 0 else None)[0])
    missing = {digest: tensor for digest, tensor in own.items() if digest not in of_first}
    tensors = dict(own)
    for others in all_gather_objects(missing):
        tensors |= others
    return {"ranks": ranks, "tensors": tensors}


def content_of_rank(content: dict[str, Any]) -> Any:
    """Return what this rank gave to ``merged``.

    Raises:
        ValueError: for the content of another number of ranks.
    """
    ranks, tensors = content["ranks"], content["tensors"]
    if len(ranks) != num_ranks():
        raise ValueError(
            f"The checkpoint was saved by {len(ranks)} processes, and {num_ranks()} resume: the states of loaders and "
            f"random generators belong to one process each. Start {len(ranks)} processes."
        )
    return _restored(ranks[rank()], tensors)


def _restored(tree: Any, tensors: dict[str, Tensor]) -> Any:
    if isinstance(tree, dict) and tree.keys() == {_PLACE}:
        return tensors[tree[_PLACE]].clone()  # equal tensors were stored once, and must not share memory
    return _mapped_children(tree, lambda child: _restored(child, tensors))


def _mapped(tree: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict | list | tuple):
        return _mapped_children(tree, lambda child: _mapped(child, function))
    return function(tree)


def _mapped_children(tree: Any, function: Callable[[Any], Any]) -> Any:
    if isinstance(tree, dict):
        mapped: Any = OrderedDict() if isinstance(tree, OrderedDict) else {}
        mapped.update((key, function(value)) for key, value in tree.items())
        if hasattr(tree, "_metadata"):  # versions of the modules in a model's state
            mapped._metadata = tree._metadata
        return mapped
    if isinstance(tree, list | tuple):
        children = [function(child) for child in tree]
        return children if isinstance(tree, list) else tuple(children)
    return tree


def _leaves(tree: Any) -> list[Any]:
    leaves: list[Any] = []
    _mapped(tree, leaves.append)
    return leaves


def _digest(tensor: Tensor) -> str:
    digest = hashlib.blake2b(f"{tensor.dtype}{tuple(tensor.shape)}".encode(), digest_size=20)
    digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _is_dtensor(value: Any) -> bool:
    return hasattr(value, "device_mesh") and hasattr(value, "placements")


def _is_first_fsdp(model: nn.Module) -> bool:
    """Whether a model is wrapped in the first FSDP, whose states are not DTensors."""
    return any(type(module).__name__ == "FullyShardedDataParallel" for module in model.modules())


def _parameters(optimizer: Optimizer) -> list[Any]:
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]


def _has_shape_of(value: Any, parameter: Any) -> bool:
    return isinstance(value, Tensor) and _is_dtensor(parameter) and value.shape == parameter.shape


def _is_divided_alike(value: Any, parameter: Any) -> bool:
    return _has_shape_of(value, parameter) and value.placements == parameter.placements


def _divided(value: Tensor, like: Any) -> Any:
    """Divide a whole tensor, which every rank has, as ``like`` is divided."""
    from torch.distributed.tensor import DTensor, Replicate

    mesh = like.device_mesh
    whole = DTensor.from_local(
        value.to(like.dtype).to(mesh.device_type), mesh, [Replicate()] * mesh.ndim, run_check=False
    )
    return whole.redistribute(placements=like.placements)
