"""``SelectiveLoader`` in anyone's loop is the plain loop: same points, same parameters, also after a resume."""

import copy
import random
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

import reducr
from reducr.batch import Batch, BatchSpec
from reducr.data import ExampleLoader
from reducr.data.published.digits import Digits
from reducr.downsampler import Downsampler
from reducr.irreducible import AdjustedIrreducibleLoss, IrreducibleTable, PlainIrreducibleLoss, TableLogits
from reducr.models import MLP
from reducr.scoring import GroupHoldoutLoss, Holdout, Scoring, num_selected_of
from reducr.training import loop
from reducr.training.checkpoints import Checkpoints
from selecting import pick, update_holdout_loss

NUM_STEPS, REFRESH_STEPS, FRACTION, SEED = 30, 7, 0.2, 3
RULES = [
    "reducr", "rho_loss", "train_loss", "uniform", "bald", "class_balanced", "drop", "divbs", "rs2", "group_dro",
    "infobatch", "rcap", "priority_sampling",
]  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return Digits(holdout_size=100, test_size=500, label_noise={"train": 0.3}, imbalance={"train": 10.0}).splits(seed=0)


def parts(digits, name, **options):
    """Model, selector, irreducible losses, optimiser: made afresh."""
    torch.random.manual_seed(SEED)
    model = MLP(num_features=64, num_classes=10, hidden_sizes=[32], dropout=0.3)
    logits = torch.randn(len(digits.train), 10, generator=torch.Generator().manual_seed(1))
    source = TableLogits(IrreducibleTable(logits.numpy(), kind="logits"))
    selector = reducr.make_selector(name, num_groups=10, **({"step_size": 0.05} if name == "reducr" else {}), **options)
    reads_plain_loss = "irreducible_loss" in selector.needs
    irreducible = PlainIrreducibleLoss(source) if reads_plain_loss else AdjustedIrreducibleLoss(source)
    return model, selector, irreducible, torch.optim.AdamW(model.parameters(), lr=1e-2)


def candidates_of(digits):
    return ExampleLoader(digits.train, batch_size=60, shuffle=True, drop_last=True, seed=SEED)


def holdout_of(digits):
    return ExampleLoader(digits.holdout, batch_size=40)


def user_loop(
    loader, model, optimizer, *, num_steps=NUM_STEPS, call=lambda model, batch: model(batch[1]), has_weights=False
):
    """What a user has: knows nothing of selection, but for the weights of points."""
    picked, step = [], 0
    while step < num_steps:
        for batch in loader:
            loss = nn.functional.cross_entropy(
                call(model, batch),
                batch["labels"] if "labels" in batch else batch[2],
                reduction="none" if has_weights else "mean",
            )
            if has_weights:
                loss = (loss * loader.example_weights).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            picked.append(batch["idx"] if "labels" in batch else batch[0])
            step += 1
            if step == num_steps:
                break
    return picked


def assert_same(model, plain_model, selector, plain_selector):
    for (key, value), plain in zip(model.state_dict().items(), plain_model.state_dict().values(), strict=True):
        assert torch.equal(value, plain), key
    for key, value in selector.state_dict().items():
        torch.testing.assert_close(value, plain_selector.state_dict()[key], rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize(("name", "refresh_steps"), [*((name, REFRESH_STEPS) for name in RULES), ("reducr", None)])
def test_the_same_points_and_parameters_as_the_plain_loop(digits, name, refresh_steps):
    """With refreshes of the holdout loss after so many steps, or at the ends of epochs."""
    model, selector, irreducible, optimizer = parts(digits, name)
    plain = []
    loop.train(
        model,
        candidates_of(digits),
        Downsampler(
            selector, irreducible, fraction=FRACTION, holdout=Holdout(holdout_of(digits), refresh_steps), seed=SEED
        ),
        optimizer,
        num_steps=NUM_STEPS,
        on_step=lambda step, selected, selection, loss: plain.append(selected.index),
    )
    again, again_selector, irreducible, optimizer = parts(digits, name)
    loader = reducr.SelectiveLoader(
        candidates_of(digits),
        again,
        again_selector,
        irreducible,
        FRACTION,
        holdout=holdout_of(digits),
        refresh_steps=refresh_steps,
        weights_examples=again_selector.weights_examples,
        seed=SEED,
    )
    picked = user_loop(loader, again.train(), optimizer, has_weights=again_selector.weights_examples)
    loader.state_dict()  # the last batch counts now, too
    assert torch.equal(torch.stack(picked), torch.stack(plain))
    assert_same(again, model, again_selector, selector)
    report = loader.report()
    assert (report.num_steps, report.num_batches) == (NUM_STEPS, NUM_STEPS)
    assert (report.num_candidates, report.num_selected, report.fraction) == (30 * 60, 30 * 12, 0.2)
    groups = digits.train.group[torch.cat(plain)]
    assert report.group_counts == torch.bincount(groups, minlength=10).tolist()
    assert report.group_weights == selector.group_weights.tolist()
    assert f"{30 * 12} of {30 * 60} candidates selected (0.200)" in str(report)


@dataclass(frozen=True)
class Sample:
    index: torch.Tensor
    input: torch.Tensor
    target: torch.Tensor
    note: list


class Dicts(Dataset):
    """The digits as Hugging Face data sets yield them."""

    def __init__(self, points):
        self.points = points

    def __len__(self):
        return len(self.points)

    def __getitem__(self, position):
        index, pixels, target, _ = self.points[position]
        return {"idx": index, "pixels": pixels, "labels": target, "text": f"digit {int(index)}"}


class TakesPixels(nn.Module):
    """A model that is called by name, and answers like those of transformers."""

    def __init__(self, model):
        super().__init__()
        self.model = model

    def forward(self, *, pixels):
        return {"loss": None, "logits": self.model(pixels)}


def test_dicts_and_dataclasses_keep_their_structure_and_select_the_same_points(digits):
    """The same points in the same order as tuples, dicts and dataclasses from DataLoaders, with texts beside them."""

    def as_sample(items):
        index, inputs, target, _ = (torch.stack(list(column)) for column in zip(*items, strict=True))
        return Sample(index, inputs, target, [f"digit {number}" for number in index.tolist()])

    picked = {}
    for kind in ("tuple", "dict", "dataclass"):
        # a list, as every pass over a DataLoader draws from the generator that dropout draws from
        holdout = list(DataLoader(Dicts(digits.holdout), batch_size=40)) if kind == "dict" else holdout_of(digits)
        model, selector, irreducible, optimizer = parts(digits, "reducr")
        sampler = torch.utils.data.RandomSampler(digits.train, generator=torch.Generator().manual_seed(SEED))
        data = Dicts(digits.train) if kind == "dict" else digits.train
        collate = as_sample if kind == "dataclass" else None
        batches = DataLoader(data, batch_size=60, sampler=sampler, collate_fn=collate)
        scorer = TakesPixels(model) if kind == "dict" else model
        loader = reducr.SelectiveLoader(batches, scorer, selector, irreducible, FRACTION, holdout=holdout)
        assert len(loader) == 9
        rows = []
        for batch in loader:
            if kind == "dict":
                assert list(batch) == ["idx", "pixels", "labels", "text"]
                assert batch["text"] == [f"digit {number}" for number in batch["idx"].tolist()]
                batch = Batch(batch["idx"], batch["pixels"], batch["labels"], batch["labels"])  # noqa: PLW2901
            elif kind == "dataclass":
                assert isinstance(batch, Sample)
                assert batch.note == [f"digit {number}" for number in batch.index.tolist()]
                batch = Batch(batch.index, batch.input, batch.target, batch.target)  # noqa: PLW2901
            else:
                batch = Batch(*batch)  # noqa: PLW2901
            assert torch.equal(batch.input, digits.train.input[batch.index])
            rows.append(batch.index)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(batch.input), batch.target).backward()
            optimizer.step()
        assert [len(row) for row in rows] == [12] * 8 + [2]  # a fifth of the last, shorter batch of 10
        picked[kind] = torch.cat(rows)
    assert torch.equal(picked["tuple"], picked["dict"])
    assert torch.equal(picked["tuple"], picked["dataclass"])


@pytest.mark.parametrize("holdout_weighting", ["per_point", "per_step"])
def test_accumulated_batches_update_the_selector_once_a_gradient_step(digits, holdout_weighting):
    """Three batches a step: all are selected from with the same weights, and the payoff of the three counts at once."""
    model, selector, irreducible, optimizer = parts(digits, "reducr", holdout_weighting=holdout_weighting)
    options = {"holdout": holdout_of(digits), "refresh_steps": 2, "accumulate_steps": 3}
    loader = reducr.SelectiveLoader(candidates_of(digits), model.train(), selector, irreducible, FRACTION, **options)
    picked, weights = [], []
    for epoch in range(2):
        for number, batch in enumerate(loader):
            picked.append(batch[0])
            weights.append(selector.group_weights)
            (nn.functional.cross_entropy(model(batch[1]), batch[2]) / 3).backward()
            if number % 3 == 2 or number == len(loader) - 1:
                optimizer.step()
                optimizer.zero_grad()
        assert loader.epoch == epoch + 1

    # by hand: what a step selects, summed, less the holdout loss once a point or once a step
    again, other, irreducible, optimizer = parts(digits, "reducr", holdout_weighting=holdout_weighting)
    again.train()
    candidates, holdout_loss = (
        candidates_of(digits),
        GroupHoldoutLoss(10),
    )

    update_holdout_loss(again, holdout_of(digits), other, holdout_loss)
    by_hand, steps = [], 0
    cumulative = torch.zeros(10, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        waiting = []
        for number, batch in enumerate(candidates):
            selected, selection = pick(
                again, batch, other, irreducible, num_selected=num_selected_of(FRACTION, 60), generator=generator
            )
            waiting.append(selection)
            by_hand.append(selected.index)
            (nn.functional.cross_entropy(again(selected.input), selected.target) / 3).backward()
            if number % 3 == 2 or number == len(candidates) - 1:
                optimizer.step()
                optimizer.zero_grad()
                payoff = sum(one.payoff for one in waiting)
                if holdout_weighting == "per_step":
                    payoff = payoff + (len(waiting) - 1) * other.group_holdout_loss
                cumulative += payoff
                other.weighting.cumulative_payoff.copy_(cumulative)
                steps += 1
                waiting = []
                if steps % 2 == 0:
                    update_holdout_loss(again, holdout_of(digits), other, holdout_loss)
    assert torch.equal(torch.stack(picked), torch.stack(by_hand))
    assert steps == loader.report().num_steps == int(selector.step) == 6
    torch.testing.assert_close(selector.cumulative_payoff, cumulative, rtol=0, atol=1e-12)
    assert all(torch.equal(weights[3 * step], weights[3 * step + 2]) for step in range(2))
    assert not torch.equal(weights[2], weights[3])
    assert all(torch.equal(one, two) for one, two in zip(model.parameters(), again.parameters(), strict=True))


class Noisy(Dataset):
    """Draws from all global generators for every point, in whichever process reads it."""

    def __init__(self, points):
        self.points = points

    def __len__(self):
        return len(self.points)

    def __getitem__(self, position):
        index, inputs, target, group = self.points[position]
        noise = torch.randn(()) + random.random() + float(np.random.rand())  # noqa: NPY002
        return index, inputs + 0.01 * noise, target, group


def training(digits, folder, *, num_workers, accumulate_steps, num_batches=None, save_after=None, name="reducr"):
    """A user's own loop with checkpoints: goes on from the newest one; stops for good after ``num_batches``."""
    model, selector, irreducible, optimizer = parts(digits, name)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=100)
    batches = DataLoader(Noisy(digits.train), batch_size=60, shuffle=True, num_workers=num_workers)
    loader = reducr.SelectiveLoader(
        batches,
        model.train(),
        selector,
        irreducible,
        FRACTION,
        holdout=holdout_of(digits),
        refresh_steps=4,
        accumulate_steps=accumulate_steps,
    )
    checkpoints = Checkpoints(folder)
    kept = {"model": model, "optimizer": optimizer, "schedule": schedule, "loader": loader}
    for seed in (torch.random.manual_seed, random.seed, np.random.seed):
        seed(SEED + 1)
    checkpoints.resume(**kept)
    picked, seen = [], loader.report().num_batches
    while loader.epoch < 3:
        for batch in loader:
            nn.functional.cross_entropy(model(batch[1]), batch[2]).backward()
            seen += 1
            if seen % accumulate_steps == 0:
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
            picked.append(batch[0])
            if seen == save_after:
                checkpoints.save(seen, **kept)
            if seen == num_batches:
                return model, selector, loader, picked
    return model, selector, loader, picked


@pytest.mark.parametrize(
    ("name", "num_workers", "stop"),
    [
        *(("reducr", 0, stop) for stop in ((1, 4), (1, 9), (1, 20), (2, 12))),
        *(("reducr", 2, stop) for stop in ((1, 9), (2, 12))),
        *(pytest.param("reducr", 2, stop, marks=pytest.mark.long) for stop in ((1, 4), (1, 20))),
        ("rs2", 0, (2, 12)),
    ],
)
def test_a_resumed_run_goes_on_bit_for_bit(digits, tmp_path, name, num_workers, stop):
    """Stopped in the middle, at the last batch and in the third epoch; with dropout, random inputs and workers."""
    accumulate_steps, save_after = stop
    options = {"num_workers": num_workers, "accumulate_steps": accumulate_steps, "name": name}
    model, selector, loader, picked = training(digits, tmp_path / "whole", **options)
    assert len(picked) == 27
    training(digits, tmp_path / "killed", num_batches=save_after + 3, save_after=save_after, **options)
    again, again_selector, again_loader, rest = training(digits, tmp_path / "killed", **options)
    assert len(rest) == 27 - save_after
    assert all(torch.equal(one, two) for one, two in zip(picked[save_after:], rest, strict=True))
    assert_same(again, model, again_selector, selector)
    report, again_report = loader.report(), again_loader.report()
    assert (report.num_steps, report.group_counts) == (again_report.num_steps, again_report.group_counts)


def test_a_compiled_model_and_channels_last_images_select_the_same(digits):
    """``torch.compile`` changes nothing but speed; selected images stay in channels-last order."""
    torch.random.manual_seed(0)
    images = digits.train.input.reshape(-1, 1, 8, 8).repeat(1, 3, 1, 1)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 10))
    network = network.to(memory_format=torch.channels_last)
    picked = {}
    for kind in ("eager", "compiled"):
        model = copy.deepcopy(network)
        if kind == "compiled":
            model = torch.compile(model, backend="aot_eager")
        selector = reducr.make_selector("train_loss", num_groups=10, sampler="top_k")
        batches = [
            (place, images[place].to(memory_format=torch.channels_last), digits.train.target[place])
            for place in torch.arange(480).split(80)
        ]
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rows = []
        for index, pixels, target in reducr.SelectiveLoader(batches, model, selector):
            assert pixels.is_contiguous(memory_format=torch.channels_last)
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels), target).backward()
            optimizer.step()
            rows.append(index)
        picked[kind] = torch.stack(rows)
    assert torch.equal(picked["eager"], picked["compiled"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_scoring_and_a_gradient_scaler(digits, dtype, tmp_path):
    """The model scores and trains in half precision; scores, payoffs and weights stay in float32 or better."""
    model, selector, irreducible, optimizer = parts(digits, "reducr")
    scaler = torch.amp.GradScaler("cpu", enabled=dtype == torch.float16)
    loader = reducr.SelectiveLoader(
        candidates_of(digits),
        model.train(),
        selector,
        irreducible,
        FRACTION,
        holdout=holdout_of(digits),
        scoring=Scoring(autocast=dtype),
    )
    seen = []
    update = selector.update
    selector.update = lambda selection: (seen.append(selection), update(selection))
    before = copy.deepcopy(model.state_dict())
    for index, inputs, target, _ in loader:
        with torch.autocast("cpu", dtype=dtype):
            output = model(inputs)
            assert output.dtype == dtype
            loss = nn.functional.cross_entropy(output, target)
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.step(optimizer)
        scaler.update()
        assert torch.equal(inputs, digits.train.input[index])
    assert {selection.scores.dtype for selection in seen} == {torch.float32}
    assert {selection.payoff.dtype for selection in seen} == {torch.float64}
    assert selector.group_weights.dtype == torch.float64
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    assert all(not torch.equal(before[name], value) for name, value in model.state_dict().items())
    kept = {"model": model, "loader": loader, "optimizer": optimizer, "scaler": scaler}
    Checkpoints(tmp_path).save(8, **kept)
    assert Checkpoints(tmp_path).resume(**kept) == 8


def test_groups_and_inputs_where_a_spec_says(digits):
    """Groups that are not the targets, deep in a batch; two arguments of a model by position."""

    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 10)

        def forward(self, first, second):
            return self.linear(first + second)

    batches = [
        {"views": [digits.train.input[place], digits.train.input[place]], "y": digits.train.target[place],
         "meta": {"ids": place, "site": place % 3}}
        for place in torch.arange(480).split(80)
    ]  # fmt: skip
    spec = BatchSpec(input="views", target="y", index=("meta", "ids"), group=("meta", "site"))
    selector = reducr.make_selector("class_balanced", num_groups=3)
    loader = reducr.SelectiveLoader(batches, Two(), selector, fraction=0.15, spec=spec)
    for batch in loader:
        assert torch.bincount(batch["meta"]["site"], minlength=3).sum() == 12
        assert torch.equal(batch["views"][1], digits.train.input[batch["meta"]["ids"]])
    assert sum(loader.report().group_counts) == 72
