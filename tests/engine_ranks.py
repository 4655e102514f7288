"""One training under many engines: DistributedDataParallel, FSDP2, torch.compile, gradient checkpointing."""

from __future__ import annotations

import contextlib
import sys
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

import reducr
from ranks import error_of, run_program
from reducr._internal.distributed import num_ranks, rank
from reducr.scoring import scoring_pass
from reducr.scoring.modes import check_data_parallel, has_collective_forward

NUM_FEATURES, NUM_CLASSES, NUM_BATCHES, SIZES = 6, 3, 8, {1: [24], 2: [15, 9]}
HOLDOUT_SIZES = {1: [5] * 12, 2: ([5] * 8, [10] * 2)}  # of batches; unequal numbers of them


class Table:
    """Irreducible losses (B, G) by index."""

    def __init__(self):
        generator = torch.Generator().manual_seed(3)
        self.values = torch.rand(NUM_BATCHES * sum(SIZES[1]), NUM_CLASSES, generator=generator)

    def lookup(self, batch):
        return self.values[batch.index]


class Live(nn.Module):
    """The same from a model."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    @torch.no_grad()
    def lookup(self, batch):
        return self.model(batch.input).square()


class Net(nn.Module):
    """Three blocks and a head; an unused head, batch norm, dropout and gradient checkpointing on demand."""

    def __init__(self, *, unused=False, norm=False, dropout=0.0, checkpointing=None):
        super().__init__()
        torch.manual_seed(7)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Linear(NUM_FEATURES, NUM_FEATURES), nn.Tanh(), nn.Dropout(dropout)) for _ in range(3)
        )
        self.norm = nn.BatchNorm1d(NUM_FEATURES) if norm else nn.Identity()
        self.head = nn.Linear(NUM_FEATURES, NUM_CLASSES)
        self.unused = nn.Linear(2, 2) if unused else None
        self.checkpointing = checkpointing

    def forward(self, inputs):
        for block in self.blocks:
            if self.checkpointing is None:
                inputs = block(inputs)
            else:
                inputs = checkpoint(block, inputs, use_reentrant=self.checkpointing)
        return self.head(self.norm(inputs))


def sharded(model, **options):
    mesh = init_device_mesh("cpu", (num_ranks(),))
    for block in model.blocks:
        fully_shard(block, mesh=mesh, **options)
    return fully_shard(model, mesh=mesh, **options)


def wrapped(model, engine):
    """``model`` under an engine, such as ``ddp`` or ``compile fsdp``, or as it is in one process."""
    for word in reversed(engine.split() if num_ranks() > 1 else ()):
        model = {
            "ddp": DistributedDataParallel,
            "unused": lambda model: DistributedDataParallel(model, find_unused_parameters=True),
            "static": lambda model: DistributedDataParallel(model, static_graph=True),
            "fsdp": sharded,
            "kept": lambda model: sharded(model, reshard_after_forward=False),
            "bf16": lambda model: sharded(
                model, mp_policy=MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
            ),
            "compile": torch.compile,
        }[word](model)
    return model


def whole(tensor):
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def candidates_of(number, sizes):
    """The batches of one rank."""
    generator = torch.Generator().manual_seed(1)
    total = sum(sizes)
    inputs = torch.randn(NUM_BATCHES, total, NUM_FEATURES, generator=generator)
    targets = (inputs[..., :NUM_CLASSES] + torch.randn(NUM_BATCHES, total, NUM_CLASSES, generator=generator)).argmax(-1)
    index = torch.arange(NUM_BATCHES * total).view(NUM_BATCHES, total)
    own = slice(sum(sizes[:number]), sum(sizes[: number + 1]))
    return [(index[batch, own], inputs[batch, own], targets[batch, own]) for batch in range(NUM_BATCHES)]


def holdout_of():
    generator = torch.Generator().manual_seed(2)
    inputs = torch.randn(60, NUM_FEATURES, generator=generator)
    targets = torch.arange(60) % NUM_CLASSES
    sizes, first = (HOLDOUT_SIZES[1], 0) if num_ranks() == 1 else (HOLDOUT_SIZES[2][rank()], 40 * rank())
    parts = torch.arange(first, first + sum(sizes)).split(sizes)
    return [(part, inputs[part], targets[part]) for part in parts]


def loader_of(model, *, irreducible=None, scoring=None, accumulate=1, mode="global", batches=None, rule="reducr"):
    batches = candidates_of(rank(), SIZES[num_ranks()]) if batches is None else batches
    options = {"step_size": 0.05} if rule == "reducr" else {}
    return reducr.SelectiveLoader(
        batches,
        model,
        reducr.make_selector(rule, num_groups=NUM_CLASSES, **options),
        irreducible or Table(),
        fraction=0.25,
        holdout=holdout_of() if rule == "reducr" else None,
        refresh_steps=3 if rule == "reducr" else None,
        accumulate_steps=accumulate,
        distributed=mode if num_ranks() > 1 else None,
        scoring=reducr.Scoring(**scoring or {}),
    )


def train(engine="", *, net=None, optimizer="sgd", num_epochs=1, accumulate=1, folder=None, kill=None, **options):
    """Train, and return what was selected, the parameters, the buffers and the group weights."""
    torch.manual_seed(100 + rank())  # dropout of its own on each rank
    model = Net(**net or {})
    torch.manual_seed(100 + rank())
    model = wrapped(model, engine)
    num_forwards = []
    model.register_forward_pre_hook(lambda *_: num_forwards.append(torch.is_grad_enabled()))
    make = {"sgd": lambda p: torch.optim.SGD(p, lr=0.2, momentum=0.9), "adamw": lambda p: torch.optim.AdamW(p, lr=0.05)}
    optimizer = make[optimizer](model.parameters())
    loader = loader_of(model, accumulate=accumulate, **options)
    parts = {"model": model, "optimizer": optimizer, "loader": loader}
    step, picked = 0, []
    if folder is not None:
        step = reducr.Checkpoints(folder, sync=True).resume(**parts)
    while loader.epoch < num_epochs:
        for index, inputs, targets in loader:
            picked.append([] if loader.loss_weight == 0 else index.tolist())
            is_last = loader.position % accumulate == 0
            with accumulating(model, is_last=is_last):
                loss = nn.functional.cross_entropy(model(inputs), targets)
                (loss * loader.loss_weight / accumulate).backward()
            if is_last:
                optimizer.step()
                optimizer.zero_grad()
                step += 1
            if kill is not None and step == kill:
                reducr.Checkpoints(folder, sync=True).save(step, **parts)
                return {"picked": picked}
    return {
        "picked": picked,
        "parameters": torch.cat([whole(parameter).flatten() for parameter in model.parameters()]),
        "buffers": {name: buffer.clone() for name, buffer in model.named_buffers()},
        "weights": loader.downsampler.selector.group_weights,
        "random": torch.get_rng_state(),
        "num_forwards": num_forwards.count(False),
    }


@contextlib.contextmanager
def accumulating(model, *, is_last):
    """Average gradients over the ranks after the last batch of a step only."""
    if isinstance(model, DistributedDataParallel) and not is_last:
        with model.no_sync():
            yield
        return
    if hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(is_last)
    yield


# a configuration by name; the same in one process is what it is compared with
EQUAL_TO_ONE_PROCESS = {
    "ddp": {},
    "fsdp": {},
    "fsdp chunks": {"scoring": {"batch_size": 4}},
    "ddp no_sync": {"accumulate": 2},
    "fsdp no_sync": {"accumulate": 2},
}
LONG_EQUAL_TO_ONE_PROCESS = {
    "unused": {"net": {"unused": True}},
    "static": {},
    "kept": {},
    "kept chunks": {"scoring": {"batch_size": 2}},
    "fsdp eval": {"scoring": {"mode": "eval", "batch_size": 5}},
    "fsdp frozen": {"scoring": {"mode": "train_frozen_statistics"}},
    "ddp checkpointing": {"net": {"checkpointing": False}},
    "fsdp checkpointing": {"net": {"checkpointing": False}},
    "compile ddp": {},
    "ddp compile": {},
    "compile fsdp": {},
    "fsdp scoring": {"scoring": {"compile": True}},
    "fsdp divbs": {"rule": "divbs", "scoring": {"batch_size": 4}},
}


def engine_of(name):
    return " ".join(word for word in name.split() if word in {"ddp", "unused", "static", "fsdp", "kept", "compile"})


def compare(cases):
    return {name: train(engine_of(name), **options) for name, options in cases.items()}


def resumed(engine, folder, **options):
    """A run, and one that is killed at its fifth step and resumed, of a net with dropout."""
    options |= {"optimizer": "adamw", "num_epochs": 2}
    return {
        "whole": train(engine, **options),
        "before": train(engine, folder=folder, kill=11, **options),
        "after": train(engine, folder=folder, **options),
    }


def uneven_loaders():
    """Rank 1 has two batches fewer; with the rules that exchange the holdout loss, and those that do not."""
    batches = candidates_of(rank(), SIZES[2])[: NUM_BATCHES - 2 * rank()]
    cases = [("ddp", "reducr"), ("fsdp", "reducr"), ("ddp", "train_loss")]
    loaders = [loader_of(wrapped(Net(), engine), batches=batches, rule=rule) for engine, rule in cases]
    return [error_of(_read_through, loader) for loader in loaders]


def _read_through(loader):
    for _ in loader:
        _ = loader.loss_weight  # as a training would


def same_data():
    """Both ranks read the same batches."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        loader = loader_of(wrapped(Net(), "ddp"), batches=candidates_of(0, SIZES[2]))
        next(iter(loader))
    return [str(warning.message) for warning in caught]


def no_holdout_on_one():
    model = wrapped(Net(), "fsdp")
    loader = loader_of(model)
    batches = holdout_of() if rank() == 0 else []
    loader.downsampler.holdout.holdout = reducr.Holdout(batches, refresh_steps="epoch")
    return error_of(next, iter(loader))


def faults(folder):
    model, plain = wrapped(Net(), "fsdp"), Net()
    optimizer = torch.optim.AdamW(model.parameters())
    nested = nn.Sequential(DistributedDataParallel(Net(norm=True)))
    halves = Net()
    parallelize_module(halves, init_device_mesh("cpu", (2,)), {"head": ColwiseParallel()})
    lonely = reducr.Checkpoints(folder / f"alone_{rank()}")
    lonely.save(3, model=plain)
    if rank() == 0:
        reducr.Checkpoints(folder / "first").save(3, model=plain)
    torch.distributed.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        reducr.Checkpoints(folder / "first").resume(model=plain)
    return {
        "model": error_of(lonely.save, 4, model=model),
        "optimizer": error_of(lonely.save, 4, optimizer=optimizer),
        "resume": error_of(lonely.resume, model=model),
        "hidden": error_of(reducr.Checkpoints(folder, sync=True).save, 4, state=Holder(model)),
        "not_synced": error_of(reducr.Checkpoints(folder / "first", sync=True).resume, model=plain),
        "other_rank": [str(warning.message) for warning in caught],
        "nested_forward": nested_forward(nested),
        "tensor_parallel": error_of(next, iter(loader_of(halves))),
        "collective": [
            has_collective_forward(nn.SyncBatchNorm(2), mode="train"),
            has_collective_forward(nn.SyncBatchNorm(2), mode="eval"),
            has_collective_forward(model, mode="eval"),
            has_collective_forward(nested, mode="train"),
        ],
        "data_parallel": error_of(check_data_parallel, model),
        "auxiliary": error_of(reducr.Auxiliary([reducr.AuxiliaryModel(model, optimizer)]).prepare, torch.device("cpu")),
    }


class Holder:
    """A part that is neither a model nor an optimizer, with a model's state."""

    def __init__(self, model):
        self.model = model

    def state_dict(self):
        return {"inner": self.model.state_dict()}

    def load_state_dict(self, state):
        raise NotImplementedError


def nested_forward(model):
    """How often this rank's own batch norm has seen a batch, if it scores once and the other rank twice."""
    for _ in range(1 + rank()):
        with torch.no_grad(), scoring_pass(model, "train"):
            model(torch.zeros(4, NUM_FEATURES))
    synced = model[0].require_forward_param_sync
    return int(model[0].module.norm.num_batches_tracked), synced


def quick():
    """The cases of the default lane, with one start of the processes."""
    folder = Path(sys.argv[2])
    return {
        "equal": compare(EQUAL_TO_ONE_PROCESS),
        "resumed": resumed("fsdp", folder / "fsdp", net={"dropout": 0.2}),
        "uneven": uneven_loaders(),
        "same_data": same_data(),
        "no_holdout": no_holdout_on_one(),
        "faults": faults(folder / "faults"),
    }


def long():
    warnings.filterwarnings("ignore", "`torch.jit", DeprecationWarning)  # torch.compile's own
    folder = Path(sys.argv[2])
    plain, dropout, norm = {"dropout": 0.2}, {"dropout": 0.2, "checkpointing": False}, {"dropout": 0.2, "norm": True}
    live = {"irreducible": Live(wrapped(Net(), "fsdp")), "scoring": {"batch_size": 4}}
    return {
        "equal": compare(LONG_EQUAL_TO_ONE_PROCESS),
        "bf16": train("bf16", scoring={"batch_size": 4}),
        "bald": train("fsdp", rule="bald", net=plain, scoring={"batch_size": 4}),
        "live": train("fsdp", **live),
        "live alone": train("fsdp", irreducible=Live(Net())),
        "dropout": {engine: train(engine, net=plain) for engine in ("ddp", "fsdp")},
        "checkpointing": {engine: train(engine, net=dropout) for engine in ("ddp", "fsdp")},
        "repeats": train("fsdp", net=norm, scoring={"batch_size": 4}, mode="local"),
        "resumed": {
            engine: resumed(engine, folder / engine.replace(" ", "_"), net=norm, mode="local")
            for engine in ("ddp", "static", "kept", "compile ddp")
        },
    }


if __name__ == "__main__":
    run_program({"quick": quick, "long": long})
