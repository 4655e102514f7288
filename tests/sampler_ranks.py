"""A training with ``SelectiveBatchSampler`` on several processes; see ``tests/ranks.py``."""

import copy

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

import reducr
from ranks import run_program
from reducr._internal.distributed import num_ranks, rank
from reducr.irreducible import IrreducibleTable, TableLoss

NUM_EXAMPLES, NUM_GROUPS, BATCH_OF_ALL = 450, 3, 8


def clean_loader(inputs, target):
    """Holdout examples with numbers from 1000 on, divided between the ranks."""
    data = TensorDataset(1000 + torch.arange(40), inputs[:40], target[:40])
    sampler = DistributedSampler(data, shuffle=False) if num_ranks() > 1 else None
    return DataLoader(data, batch_size=10, sampler=sampler)


def make_sampler(rule="priority_sampling", *, seed=0, **options):
    generator = torch.Generator().manual_seed(0)
    target = torch.randint(0, NUM_GROUPS, (NUM_EXAMPLES,), generator=generator)
    inputs = torch.randn(NUM_EXAMPLES, 6, dtype=torch.float64, generator=generator) + target.unsqueeze(1)
    losses = torch.rand(NUM_EXAMPLES, generator=generator)
    torch.manual_seed(0)
    model = nn.Linear(6, NUM_GROUPS, dtype=torch.float64)
    model = DistributedDataParallel(model) if num_ranks() > 1 else model
    clean = [(inputs[start::4][:20], target[start::4][:20]) for start in range(4)]
    dataset = TensorDataset(torch.arange(NUM_EXAMPLES), inputs, target)
    sampler = reducr.SelectiveBatchSampler(
        dataset,
        model,
        reducr.make_selector(
            rule, num_groups=NUM_GROUPS, **({"step_size": 0.05} if rule == "priority_sampling" else {})
        ),
        TableLoss(IrreducibleTable(losses.numpy(), kind="loss")),
        batch_size=BATCH_OF_ALL // num_ranks(),
        # every rank has a part of it
        holdout=clean_loader(inputs, target) if "holdout_fraction" in options else clean[rank() :: num_ranks()],
        refresh_steps=2,
        distributed="global" if num_ranks() > 1 else None,
        seed=seed,
        **options,
    )
    return sampler, DataLoader(sampler.dataset, batch_sampler=sampler)


def train(rule, *, state=None, save_at=None, **options):
    """The examples of this rank in every batch, and the group weights and parameters at the end."""
    sampler, loader = make_sampler(rule, **options)
    optimizer = torch.optim.SGD(sampler.model.parameters(), lr=0.1)
    if state is not None:
        sampler.model.load_state_dict(state["model"])
        sampler.load_state_dict(state["sampler"])
    picked, saved = [], None
    while sampler.epoch < 2:
        for index, inputs, targets in loader:
            picked.append(index.tolist())
            optimizer.zero_grad()
            nn.functional.cross_entropy(sampler.model(inputs), targets).backward()
            optimizer.step()
            if len(picked) == save_at:
                saved = copy.deepcopy({"model": sampler.model.state_dict(), "sampler": sampler.state_dict()})
    parameters = torch.cat([parameter.detach().flatten() for parameter in sampler.model.parameters()])
    return {
        "picked": picked,
        "length": len(sampler),
        "weights": sampler.selector.group_weights,
        "parameters": parameters,
        "saved": saved,
        "counts": sampler.report().group_counts,
    }


def error_of(call):
    try:
        call()
    except ValueError as error:
        return str(error)
    return None


def everything():
    whole = train("priority_sampling", save_at=7)
    mixed = train("priority_sampling", holdout_fraction=0.25, save_at=7)
    return {
        "priority_sampling": whole,
        "with holdout examples": mixed,
        "resumed with holdout examples": train("priority_sampling", holdout_fraction=0.25, state=mixed["saved"]),
        "rs2": train("rs2"),
        "resumed": train("priority_sampling", state=whole["saved"]),
        "other_seeds": error_of(lambda: next(iter(make_sampler(seed=rank())[0]))),
    }


if __name__ == "__main__":
    run_program({"everything": everything})
