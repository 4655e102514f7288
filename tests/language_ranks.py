"""A training of the very small language model, by sequence and by token, on as many processes as there are."""

from __future__ import annotations

import torch

import reducr
from language import LOSSES, Sequences, make_parts, places_of
from ranks import run_program
from reducr._internal.distributed import all_reduce_sum, num_ranks, rank

SIZES = {1: [12], 2: [7, 5]}
NUM_STEPS, FRACTION = 4, 0.1


def training(unit):
    """What each step selects, as (example id, place) or ids, and what is left at the end."""
    model, selector, reference = make_parts("reducr")
    holdout = Sequences(12, seed=2, columns=("group",), has_empty=False)
    core = reducr.Downsampler(
        selector,
        reference,
        fraction=FRACTION,
        holdout=list(torch.utils.data.DataLoader(holdout, batch_size=6)),
        loss=LOSSES[unit],
        distributed="global",
    )
    core.prepare(model)
    data, sizes = Sequences(12 * NUM_STEPS), SIZES[num_ranks()]
    start, picked = sum(sizes[: rank()]), []
    for step in range(NUM_STEPS):
        rows = range(12 * step + start, 12 * step + start + sizes[rank()])
        batch = core.select(torch.utils.data.default_collate([data[row] for row in rows]), model)
        ids = batch["idx"].tolist()
        own = [(ids[row], place) for row, place in places_of(batch)] if unit == "token" else ids
        picked.append([] if core.loss_weight == 0 else sorted(own))
        losses = LOSSES[unit](model(batch["input_ids"], batch["attention_mask"]).logits, batch["labels"])
        model.zero_grad()
        (losses.mean() * core.loss_weight).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.5 * all_reduce_sum(parameter.grad) / num_ranks())
        core.step(model)
    report = core.report()
    return {
        "picked": picked,
        "weights": selector.group_weights,
        "parameters": torch.cat([parameter.detach().flatten() for parameter in model.parameters()]),
        "counts": (report.num_candidates, report.num_selected, report.group_counts),
    }


def everything():
    """Both units."""
    return {unit: training(unit) for unit in LOSSES}


if __name__ == "__main__":
    run_program({"everything": everything})
