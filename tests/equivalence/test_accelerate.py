"""``SelectiveLoader`` around a loader that accelerate has prepared is the plain loop, also after a resume."""

import random
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn
from torch.utils.data import DataLoader, default_collate

import reducr
from hugging_face import FRACTION, NUM_CANDIDATES, REFRESH_STEPS, SEED, Texts, make_model, make_parts
from selecting import under_autocast

NUM_EPOCHS = 2


class Noisy(Texts):
    """Texts in which words are replaced at random, by draws from all global generators."""

    def __getitem__(self, position):
        point = super().__getitem__(position)
        draws = torch.rand(()) + random.random() + np.random.rand()  # noqa: NPY002
        return point | {"input_ids": (point["input_ids"] + int(10 * draws)) % 50}


def make(data, *, accelerator=None, accumulate_steps=1):
    """Model, loader, optimiser and schedule, prepared if there is an accelerator."""
    for seed in (torch.manual_seed, random.seed, np.random.seed):
        seed(SEED)
    model, (selector, irreducible) = make_model(), make_parts()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    batches = DataLoader(data, batch_size=NUM_CANDIDATES, shuffle=True, collate_fn=default_collate)
    if accelerator is not None:
        model, optimizer, schedule, batches = accelerator.prepare(model, optimizer, schedule, batches)
    loader = reducr.SelectiveLoader(
        batches,
        model.train(),
        selector,
        irreducible,
        FRACTION,
        holdout=list(DataLoader(Texts(60, seed=2, columns=()), batch_size=20)),
        refresh_steps=REFRESH_STEPS,
        accumulate_steps=accumulate_steps,
        seed=SEED,
    )
    return model, loader, optimizer, schedule


def plain_training(*, accumulate_steps, autocast):
    """A user's own loop without accelerate."""
    model, loader, optimizer, schedule = make(Texts(), accumulate_steps=accumulate_steps)
    picked = []
    for _ in range(NUM_EPOCHS):
        for place, batch in enumerate(under_autocast(loader, autocast), start=1):
            picked.append(batch["idx"])
            with torch.autocast("cpu", dtype=autocast) if autocast else nullcontext():
                logits = model(batch["input_ids"]).logits.float()
            (nn.functional.cross_entropy(logits, batch["label"]) / accumulate_steps).backward()
            if place % accumulate_steps == 0 or place == len(loader):
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
    loader.state_dict()  # the last batch counts now, too
    return model, loader, picked


def training(data, *, accumulate_steps=1, precision=None, folder=None, save_after=(), load=None):
    """The same with accelerate."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=accumulate_steps, mixed_precision=precision)
    model, loader, optimizer, schedule = make(data, accelerator=accelerator, accumulate_steps=accumulate_steps)
    accelerator.register_for_checkpointing(loader)
    if load is not None:
        accelerator.load_state(load)
    picked, seen = [], loader.report().num_batches
    while loader.epoch < NUM_EPOCHS:
        for batch in loader:
            picked.append(batch["idx"])
            with accelerator.accumulate(model):
                loss = nn.functional.cross_entropy(model(batch["input_ids"]).logits, batch["label"])
                accelerator.backward(loss)
                optimizer.step()
                schedule.step()
                optimizer.zero_grad()
            seen += 1
            if seen in save_after:
                accelerator.save_state(folder / str(seen))
    loader.state_dict()
    return model, loader, picked


def assert_same(one, two):
    (model, loader, picked), (others, other, those) = one, two
    assert all(torch.equal(*pair) for pair in zip(picked, those, strict=True))
    for (key, value), theirs in zip(model.state_dict().items(), others.state_dict().values(), strict=True):
        assert torch.equal(value, theirs), key
    for key, value in loader.downsampler.selector.state_dict().items():
        assert torch.equal(value, other.downsampler.selector.state_dict()[key]), key
    report, theirs = loader.report(), other.report()
    assert (report.num_steps, report.group_counts) == (theirs.num_steps, theirs.group_counts)


@pytest.mark.parametrize(("accumulate_steps", "precision"), [(1, None), (2, None), (1, "bf16")])
def test_the_same_points_and_parameters_as_the_plain_loop(accumulate_steps, precision):
    """With dropout, shuffling, a schedule, a short last batch and a step of what is left over."""
    plain = plain_training(accumulate_steps=accumulate_steps, autocast=torch.bfloat16 if precision else None)
    assert_same(training(Texts(), accumulate_steps=accumulate_steps, precision=precision), plain)
    assert plain[1].report().num_steps == {1: 18, 2: 10}[accumulate_steps]


@pytest.mark.parametrize(("accumulate_steps", "save_after"), [(1, (1, 5, 9, 12, 17)), (2, (4, 9, 11))])
def test_a_resumed_run_goes_on_bit_for_bit(tmp_path, accumulate_steps, save_after):
    """In the middle and at the end of epochs; points draw random numbers, a batch ahead of the model's dropout."""
    model, loader, picked = training(Noisy(), accumulate_steps=accumulate_steps, folder=tmp_path, save_after=save_after)
    assert len(picked) == 18
    for seen in save_after:
        again = training(Noisy(), accumulate_steps=accumulate_steps, load=tmp_path / str(seen))
        assert len(again[2]) == 18 - seen
        assert_same(again, (model, loader, picked[seen:]))
