"""Programs that several processes run together, and what starts them: ``run_ranks``.

What a program returns on each rank goes back to the test. Where a test compares with one process, it calls the same
function itself.
"""

from __future__ import annotations

import os
import signal
import sys
import warnings
from dataclasses import replace
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import forked
import reducr
from reducr._internal.distributed import all_gather, all_gather_stacked, all_reduce_sum, num_ranks, rank, shard
from reducr.batch import Batch, Candidates
from reducr.downsampler import Downsampler
from reducr.functional import per_example_cross_entropy
from reducr.irreducible import IrreducibleTable, build_table
from reducr.irreducible.build import merge_columns
from reducr.scoring import GroupHoldoutLoss
from reducr.selectors import SAMPLERS
from reducr.selectors.distributed import select_distributed

TIMEOUT_SECONDS = 60
NUM_GROUPS, NUM_SELECTED, NUM_ROUNDS = 3, 5, 3
SIZES = {1: [20], 2: [13, 7], 4: [9, 4, 1, 6]}
VARIANTS = ("ties", "one_rank_only", "a_broken_point", "a_broken_rank", "few_finite")
CASES = [
    *((name, {"sampler": sampler}, "plain") for name in reducr.SELECTORS for sampler in SAMPLERS),
    *((name, {}, variant) for name in reducr.SELECTORS for variant in VARIANTS),
    ("reducr", {"holdout_weighting": "per_step"}, "plain"),
    ("reducr", {"payoff_decay": 0.9}, "plain"),
    ("reducr", {"use_irreducible": False}, "plain"),
    ("reducr", {}, "float64"),
    ("reducr", {"use_model_loss": False, "use_holdout": False, "clip": False}, "plain"),
    ("fixed_weights", {"group_weights": [0.0, 1.0, 2.0]}, "unused_column"),
    ("train_loss", {"uniform_first_epochs": 1}, "plain"),
]
# Two ranks run every case. Four add no code, only other sizes of parts, so that they run a dozen.
CASES_OF_FOUR = [
    *(("rho_loss", {}, variant) for variant in VARIANTS),
    *(("reducr", {"sampler": sampler}, "plain") for sampler in ("top_k", "softmax")),
    *((name, {}, "ties") for name in ("bald", "class_balanced", "divbs", "group_dro", "rs2")),
]
NUM_STEPS, NUM_TRAINING_CANDIDATES, NUM_FEATURES, NUM_CLASSES = 50, 40, 12, 4
NUM_TABLE_POINTS, NUM_TABLE_COLUMNS = 60_000, 100


def run_ranks(program, count, folder, *, may_fail=False, script=__file__):
    """Run ``program`` in ``count`` processes; gives its results, or exit statuses and errors if it may fail."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "WORLD_SIZE": str(count)}
    processes = [
        forked.start([script, program, folder], env=environment | {"RANK": str(number), "LOCAL_RANK": str(number)})
        for number in range(count)
    ]
    try:
        errors = [process.communicate(timeout=2 * TIMEOUT_SECONDS)[1] for process in processes]
    finally:
        for process in processes:
            process.kill()
            process.wait()
    statuses = [process.returncode for process in processes]
    if may_fail:
        return statuses, errors
    assert statuses == [0] * count, "\n".join(errors)
    return [torch.load(folder / f"{number}.pt", weights_only=False) for number in range(count)]


def make_selector(name, options):
    if name == "reducr":
        options = {"step_size": 0.1} | options
    selector = reducr.make_selector(name, num_groups=NUM_GROUPS, **options)
    selector.set_group_holdout_loss(torch.tensor([0.2, 0.7, 1.3]))
    return selector


def make_candidates(selector, variant="plain", seed=0):
    """All ranks' candidates; ``variant`` is what is special about them."""
    size = sum(SIZES[1])
    generator = torch.Generator().manual_seed(seed)
    samples = (selector.num_dropout_samples,) if selector.num_dropout_samples else ()
    losses = torch.rand(2 + NUM_GROUPS, size, generator=generator) * 4
    logits = torch.randn(*samples, size, NUM_GROUPS, generator=generator)
    targets = torch.randint(0, NUM_GROUPS, (size,), generator=generator)
    if variant == "ties":
        losses, logits = losses.round(), logits.round()
        losses[0, 4:] = 0.0
    elif variant == "one_rank_only":
        losses[0, :8] += 50
        losses[1:, :8] = 0.0
        logits[..., 8:, :] = torch.tensor([100.0, 0.0, 0.0])
        targets[8:] = 0
    elif variant == "a_broken_point":
        losses[0, 3] = torch.nan
        logits[..., 15, 0] = torch.inf
    elif variant == "a_broken_rank":
        losses[0, 13:] = torch.nan
    elif variant == "few_finite":
        losses[0, 2:] = torch.inf
    elif variant == "unused_column":
        losses[2] = torch.nan
    elif variant == "float64":
        losses = losses.double() / 3
    return Candidates(
        model_loss=losses[0],
        irreducible_loss=losses[1],
        group_irreducible_loss=losses[2:].T.contiguous(),
        logits=logits,
        features=torch.randn(size, 4, generator=generator).round(decimals=1),
        targets=targets,
        groups=targets,
        index=torch.randperm(2 * size, generator=generator)[:size],
    )


def part_of(candidates, number, sizes):
    return candidates.take(torch.arange(sum(sizes[:number]), sum(sizes[: number + 1])))


def cases_of(count):
    return CASES_OF_FOUR if count == 4 else CASES


def own_part(candidates):
    return part_of(candidates, rank(), SIZES[num_ranks()])


def rounds(case, *, mode, num_selected):
    """What some rounds of select and update give; in one process, on the candidates of all ranks."""
    name, options, variant = case
    selector, generator = make_selector(name, options), torch.Generator().manual_seed(7)
    results = []
    for seed in range(NUM_ROUNDS if name in ("reducr", "rs2", "group_dro") else 1):
        candidates = own_part(make_candidates(selector, variant, seed))
        selection = select_distributed(selector, candidates, num_selected=num_selected, generator=generator, mode=mode)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", RuntimeWarning)
            selector.update(selection)
        results.append(
            {
                "selection": selection,
                "state": {key: value.clone() for key, value in selector.state_dict().items()},
                "group_weights": selector.group_weights,
                "generator": generator.get_state(),
            }
        )
    return results


def tensors():
    """Tensors of many kinds, through every exchange."""
    number = rank() + 1
    odd = torch.tensor([-0.0, float("nan"), float("inf"), 1e-45, 2.0**-1074, 1 / 3], dtype=torch.float64) * number
    kinds = {dtype: odd.to(dtype) for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
    kinds |= {torch.int64: torch.tensor([2**62 + number]), torch.bool: torch.tensor([number == 1, True])}
    return {
        "sent": kinds,
        "stacked": {dtype: all_gather_stacked(tensor) for dtype, tensor in kinds.items()},
        "uneven": all_gather(torch.full((rank(), 2), rank())),
        "nothing": all_gather(torch.zeros(0, 3)),
        "scalar": all_gather_stacked(torch.tensor(number)),
        "summed": all_reduce_sum(torch.tensor([0.1, 0.2]) * number),
        "share": list(shard(7)),
    }


def error_of(function, *arguments, **options):
    """The kind and text of what ``function`` raises."""
    try:
        function(*arguments, **options)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return None


def faults():
    """What every rank says to one fault after another, some of them the fault of rank 1 alone."""
    selector = make_selector("reducr", {})
    whole = make_candidates(selector)
    own = own_part(whole)
    is_at_fault = rank() == 1

    def said(candidates, *, rule=selector, num_selected=NUM_SELECTED, mode="global", seed=0):
        generator = torch.Generator().manual_seed(seed)
        return error_of(select_distributed, rule, candidates, num_selected=num_selected, generator=generator, mode=mode)

    broken = replace(own, model_loss=own.model_loss * torch.nan)
    without_loss = replace(own, model_loss=None)
    drifted = make_selector("reducr", {})
    if is_at_fault:
        drifted.set_group_holdout_loss(torch.tensor([0.2, 0.7, 1.4]))
    later, fresh = make_selector("reducr", {}), make_selector("reducr", {})
    later.set_epoch(int(is_at_fault))
    fresh.cumulative_payoff[0] = float(not is_at_fault)
    drawing = make_selector("rho_loss", {"sampler": "softmax"})
    return {
        "no_mode": said(own, mode=None),
        "unknown_mode": said(own, mode="globl"),
        "all_broken": said(broken),
        "too_many": said(own, num_selected=21),
        "no_number": said(own, num_selected=2.5),
        "different_numbers": said(own, num_selected=NUM_SELECTED + is_at_fault),
        "a_field_missing_on_one": said(without_loss if is_at_fault else own),
        "a_field_missing_on_one_local": said(without_loss if is_at_fault else own, mode="local", num_selected=1),
        "one_broken_local": said(broken if is_at_fault else own, mode="local", num_selected=1),
        "none_on_one": said(own.take(torch.arange(0)) if is_at_fault else own),
        "dtypes": said(replace(own, model_loss=own.model_loss.double()) if is_at_fault else own),
        "states": said(own, rule=drifted),
        "epochs": said(own, rule=later),
        "payoffs": said(own, rule=fresh),
        "states_local": said(own, rule=drifted, mode="local", num_selected=1),
        "generators": said(own, rule=drawing, seed=rank()),
        "generators_that_none_draws_from": said(own, seed=rank()),
        "a_function_of_the_number": said(own, num_selected=lambda size: size + 1),
        "nothing": said(own),
    }


def warnings_of_update():
    """How often each rank warns of broken points, and the text."""
    selector = make_selector("rho_loss", {})
    candidates = own_part(make_candidates(selector, "a_broken_rank"))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            selector.update(select_distributed(selector, candidates, num_selected=2, mode="global"))
    return [str(warning.message) for warning in caught]


def holdout(num_shards):
    """Means of shares of the holdout points, of all of them, and of a moving average."""
    generator = torch.Generator().manual_seed(3)
    loss = torch.rand(40, generator=generator)
    groups = torch.randint(0, 2, (40,), generator=generator)
    groups[::4] = 2  # in the share of rank 0 alone
    mine = torch.tensor(list(range(40)[rank() :: num_shards]))
    shards, whole, moving = (GroupHoldoutLoss(3, decay=decay) for decay in (1.0, 1.0, 0.9))
    shards.update(loss[mine], groups[mine])
    whole.update(loss, groups)
    moving.update(loss[mine], groups[mine])
    moving.rescale(8 / num_shards, sync=True)
    for _ in range(3):
        moving.update(loss[mine] + 1, groups[mine])
    missing, broken = GroupHoldoutLoss(2), GroupHoldoutLoss(2)
    missing.update(loss[:1], torch.tensor([0]))
    broken.update(torch.tensor([1.0, torch.nan if rank() else 1.0]), torch.tensor([0, 1]))
    return {
        "shards": shards.compute(sync=True),
        "whole": whole.compute(sync=True),
        "moving": moving.compute(sync=True),
        "missing": error_of(missing.compute, sync=True),
        "broken": error_of(broken.compute, sync=True),
    }


def table_values(num_examples, *shape):
    """Values with many bits, and some odd ones."""
    generator = torch.Generator().manual_seed(5)
    values = torch.randn(num_examples, *shape, generator=generator)
    values[0], values[1], values[2] = -0.0, torch.nan, 1e-45
    return values


def batches_of(index, *, size=4096):
    return (Batch(part, part, part, part) for part in torch.tensor(list(index)).split(size) if len(part))


def tables():
    """Tables built by all ranks, rows or columns shared out, and what they say to faults."""
    large = table_values(NUM_TABLE_POINTS, NUM_TABLE_COLUMNS)
    built = build_table(
        lambda batch: large[batch.index],
        batches_of(shard(NUM_TABLE_POINTS)),
        num_examples=NUM_TABLE_POINTS,
        kind="logits",
        sync=True,
    )
    joint, losses = table_values(3, 2, 2), table_values(7)

    def build(index, values=losses, kind="loss"):
        num_examples = len(values)
        return build_table(
            lambda batch: values[batch.index % num_examples],
            batches_of(index),
            num_examples=num_examples,
            kind=kind,
            sync=True,
        )

    def fails(batch):
        if rank() == 1:
            raise RuntimeError("out of memory")
        return losses[batch.index]

    own = list(shard(7))
    columns = table_values(10, NUM_GROUPS + 1)
    part = torch.full_like(columns, torch.nan)
    part[:, list(shard(NUM_GROUPS))] = columns[:, list(shard(NUM_GROUPS))]
    group_losses = IrreducibleTable(part.numpy(), kind="group_loss")
    twice = IrreducibleTable(columns.numpy().copy(), kind="group_loss")
    return {
        "large_is_exact": np.array_equal(built.values.view(np.int32), large.numpy().view(np.int32)),
        "joint": build(shard(3), joint, "joint_logits").values,
        "losses": build(range(7) if rank() == 0 else ()).values,
        "twice": error_of(build, [*own, 0]),
        "missing": error_of(build, own[:-1]),
        "outside": error_of(build, [7] if rank() == 1 else own),
        "shapes": error_of(build, own, table_values(7, rank() + 1), "logits"),
        "failing": error_of(build_table, fails, batches_of(own), num_examples=7, kind="loss", sync=True),
        "columns": merge_columns(group_losses if len(shard(NUM_GROUPS)) else None).values,
        "columns_twice": error_of(merge_columns, twice),
        "columns_of_a_kind": error_of(merge_columns, built if rank() == 1 else twice),
        "no_columns": error_of(merge_columns, None),
    }


def training():
    """Fifty steps on the selected points of all ranks; in one process, without DistributedDataParallel."""
    generator = torch.Generator().manual_seed(0)
    sizes = {1: [40], 2: [23, 17], 4: [13, 9, 10, 8]}[num_ranks()]
    points = torch.randn(NUM_STEPS, NUM_TRAINING_CANDIDATES, NUM_FEATURES, generator=generator)
    teacher = torch.randn(NUM_FEATURES, NUM_CLASSES, generator=generator)
    noise = torch.randn(NUM_STEPS, NUM_TRAINING_CANDIDATES, NUM_CLASSES, generator=generator)
    targets = (points @ teacher + noise).argmax(dim=-1)
    tables = torch.rand(NUM_STEPS, NUM_TRAINING_CANDIDATES, NUM_CLASSES, generator=generator)
    holdout_points = torch.randn(60, NUM_FEATURES, generator=generator)
    holdout_targets = (holdout_points @ teacher).argmax(-1)

    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(NUM_FEATURES, 16), nn.ReLU(), nn.Linear(16, NUM_CLASSES))
    trained = DistributedDataParallel(model) if num_ranks() > 1 else model
    selector = reducr.make_selector("reducr", num_groups=NUM_CLASSES, step_size=0.05)
    holdout_loss, mine = GroupHoldoutLoss(NUM_CLASSES), torch.tensor(list(shard(60)))
    first = sum(sizes[: rank()])
    own = slice(first, first + sizes[rank()])
    index, group_weights, num_stand_ins = [], [], 0
    for step in range(NUM_STEPS):
        if step % 10 == 0:
            holdout_loss.reset()
            with torch.no_grad():
                holdout_loss.update(
                    per_example_cross_entropy(model(holdout_points[mine]), holdout_targets[mine]), holdout_targets[mine]
                )
            selector.set_group_holdout_loss(holdout_loss.compute(sync=True))
        with torch.no_grad():
            model_loss = per_example_cross_entropy(model(points[step, own]), targets[step, own])
        candidates = Candidates(model_loss=model_loss, group_irreducible_loss=tables[step, own])
        selection = select_distributed(selector, candidates, num_selected=4, mode="global")
        selected = own.start + selection.positions
        loss = nn.functional.cross_entropy(trained(points[step, selected]), targets[step, selected])
        model.zero_grad()
        (loss * selection.loss_weight).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(parameter.grad, alpha=0.2)
        selector.update(selection)
        num_stand_ins += selection.is_dummy
        index.append([] if selection.is_dummy else selected.tolist())
        group_weights.append(selector.group_weights)
    return {
        "index": index,
        "group_weights": torch.stack(group_weights),
        "parameters": torch.cat([parameter.detach().flatten() for parameter in model.parameters()]),
        "num_stand_ins": num_stand_ins,
    }


def nan_inputs():
    """One step in which rank 1 has candidates with NaN inputs only."""
    torch.manual_seed(rank())
    model = nn.Linear(NUM_FEATURES, NUM_CLASSES)
    selector = reducr.make_selector("train_loss", num_groups=NUM_CLASSES, sampler="top_k")
    downsampler = Downsampler(selector, fraction=0.5, distributed="global")
    downsampler.prepare(model)
    inputs = torch.randn(6, NUM_FEATURES)
    if rank() == 1:
        inputs.fill_(torch.nan)
    inputs, targets = downsampler.select((inputs, torch.arange(6) % NUM_CLASSES), model)
    loss = nn.functional.cross_entropy(model(inputs), targets) * downsampler.loss_weight
    loss.backward()
    return {
        "loss": loss.item(),
        "gradient": model.weight.grad,
        "is_dummy": downsampler.selection.is_dummy,
        "report": downsampler.report(),
    }


def everything():
    """All that can be found out with one start of the processes."""
    return {
        "tensors": tensors(),
        "global": [rounds(case, mode="global", num_selected=NUM_SELECTED) for case in cases_of(num_ranks())],
        "local": {name: rounds((name, {}, "plain"), mode="local", num_selected=1) for name in ("rs2", "group_dro")}
        | {
            weighting: rounds(("reducr", {"holdout_weighting": weighting}, "plain"), mode="local", num_selected=1)
            for weighting in ("per_point", "per_step")
        },
        "faults": faults(),
        "warnings": warnings_of_update(),
        "holdout": holdout(num_ranks()),
        "tables": tables(),
        "training": training(),
        "nan_inputs": nan_inputs(),
    }


def dying():
    """Selects without end, but rank 1 is killed at its tenth step."""
    selector = make_selector("reducr", {})
    candidates = make_candidates(selector)
    for step in range(sys.maxsize):
        if (step, rank()) == (10, 1):
            os.kill(os.getpid(), signal.SIGKILL)
        selector.update(select_distributed(selector, candidates, num_selected=NUM_SELECTED, mode="global"))


PROGRAMS = {"everything": everything, "dying": dying}


def run_program(programs):
    """What each process does: meets the others, runs the program that it was started for, keeps what that gives."""
    warnings.simplefilter("error")
    program, folder = sys.argv[1:]
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/meeting",
        rank=int(os.environ["RANK"]),
        world_size=int(os.environ["WORLD_SIZE"]),
        timeout=timedelta(seconds=TIMEOUT_SECONDS),
    )
    torch.save(programs[program](), f"{folder}/{rank()}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    run_program(PROGRAMS)
