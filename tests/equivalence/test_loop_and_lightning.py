"""The plain loop and the Lightning module are the same algorithm: same selected points, same parameters."""

import copy
from functools import partial

import pytest
import torch
from torch import nn

import reducr
from reducr.auxiliary import Auxiliary, AuxiliaryModel, ExtraBatches
from reducr.data import ExampleLoader
from reducr.data.published.digits import Digits
from reducr.downsampler import Downsampler
from reducr.functional import per_example_cross_entropy
from reducr.irreducible import (
    AdjustedIrreducibleLoss,
    IrreducibleObjective,
    IrreducibleTable,
    LiveLogits,
    PlainIrreducibleLoss,
    TableLogits,
)
from reducr.lightning import SelectionRecorder, TargetModule, fit_target
from reducr.models import MLP
from reducr.scoring import Holdout
from reducr.training import loop

OPTIONS = {
    "reducr": {"step_size": 0.05},
    "priority_sampling by errors": {"step_size": 0.05, "holdout_loss": "zero_one"},
}
NUM_STEPS, REFRESH_STEPS, FRACTION, SEED = 30, 7, 0.2, 3
RULES = [
    "reducr", "rho_loss", "train_loss", "uniform", "bald", "class_balanced", "drop", "divbs", "rs2", "group_dro",
    "infobatch", "rcap", "priority_sampling", "priority_sampling by errors",
]  # fmt: skip


@pytest.fixture(scope="module")
def digits():
    return Digits(holdout_size=100, test_size=500, label_noise={"train": 0.3}, imbalance={"train": 10.0}).splits(seed=0)


def parts(digits, name):
    """Everything a training needs, made afresh: model, selector, irreducible losses, loaders, optimiser."""
    torch.random.manual_seed(SEED)
    model = MLP(num_features=64, num_classes=10, hidden_sizes=[32], dropout=0.3 if name == "bald" else 0.0)
    logits = torch.randn(len(digits.train), 10, generator=torch.Generator().manual_seed(1))
    source = TableLogits(IrreducibleTable(logits.numpy(), kind="logits"))
    selector = reducr.make_selector(name.split()[0], num_groups=10, **OPTIONS.get(name, {}))
    reads_plain_loss = "irreducible_loss" in selector.needs
    irreducible = PlainIrreducibleLoss(source) if reads_plain_loss else AdjustedIrreducibleLoss(source)
    candidates = ExampleLoader(digits.train, batch_size=60, shuffle=True, drop_last=True, seed=SEED)
    holdout = ExampleLoader(digits.holdout, batch_size=40)
    return model, selector, irreducible, candidates, holdout, partial(torch.optim.AdamW, lr=1e-2)


def run_loop(digits, name):
    model, selector, irreducible, candidates, holdout, make_optimizer = parts(digits, name)
    downsampler = Downsampler(
        selector, irreducible, fraction=FRACTION, holdout=Holdout(holdout, REFRESH_STEPS), seed=SEED
    )
    picked, weights = [], []

    def note(step, selected, selection, loss):
        picked.append(selected.index)
        weights.append(selector.group_weights)

    loop.train(
        model,
        candidates,
        downsampler,
        make_optimizer(model.parameters()),
        num_steps=NUM_STEPS,
        on_step=note,
    )
    return model, selector, torch.stack(picked), torch.stack(weights)


def run_lightning(digits, name, folder):
    model, selector, irreducible, candidates, holdout, make_optimizer = parts(digits, name)
    downsampler = Downsampler(selector, irreducible, fraction=FRACTION, holdout=holdout, seed=SEED)
    module = TargetModule(model, downsampler, optimizer=make_optimizer, num_classes=10)
    recorder = SelectionRecorder(folder / "selected.npz", num_examples=len(digits.train))
    steps = fit_target(
        module,
        candidates,
        num_steps=NUM_STEPS,
        refresh_steps=REFRESH_STEPS,
        folder=folder,
        callbacks=[recorder],
        trainer_options={"accelerator": "cpu"},
    )
    assert steps == NUM_STEPS
    return model, selector, torch.stack(recorder.index_by_step)


@pytest.mark.parametrize("name", RULES)
def test_same_selected_points_and_same_parameters(digits, tmp_path, name):
    plain_model, plain_selector, plain_picked, weights = run_loop(digits, name)
    model, selector, picked = run_lightning(digits, name, tmp_path)
    assert torch.equal(picked, plain_picked)
    for (key, value), plain_value in zip(model.state_dict().items(), plain_model.state_dict().values(), strict=True):
        assert torch.equal(value, plain_value), key
    for key, value in selector.state_dict().items():
        torch.testing.assert_close(value, plain_selector.state_dict()[key], rtol=0, atol=0, equal_nan=True)
    if name in OPTIONS:
        assert not torch.equal(weights[0], weights[-1])
        assert bool((plain_selector.group_holdout_loss > 0).any())
    if name == "reducr":
        assert bool((plain_selector.group_holdout_loss > 0).all())


class Jitter(nn.Module):
    """An augmentation of vectors."""

    def forward(self, inputs):
        return inputs + 0.1 * torch.randn_like(inputs)


def further_models(digits):
    """A proxy that scores, and a reference model that keeps learning, and extra batches: made afresh."""
    torch.random.manual_seed(SEED + 1)
    proxy, reference = (MLP(num_features=64, num_classes=10, hidden_sizes=[16]) for _ in range(2))
    irreducible = AdjustedIrreducibleLoss(LiveLogits(reference, is_frozen=False))
    optimizers = [torch.optim.AdamW(one.parameters(), lr=lr) for one, lr in ((proxy, 1e-2), (reference, 1e-4))]
    objective = IrreducibleObjective(lambda batch: batch.target)
    models = [
        AuxiliaryModel(proxy, optimizers[0], is_proxy=True),
        AuxiliaryModel(reference, optimizers[1], objective),
    ]
    draws = ExampleLoader(digits.holdout, batch_size=7, shuffle=True, drop_last=True, seed=SEED)
    jitter = Jitter()
    extra = ExtraBatches(draws, transform=lambda batch: batch._replace(input=jitter(batch.input)))
    return proxy, reference, irreducible, Auxiliary(models, extra)


def test_augmentation_other_points_proxy_and_learning_irreducible_models(digits, tmp_path):
    model, selector, _, candidates, holdout, make_optimizer = parts(digits, "reducr")
    proxy, reference, irreducible, auxiliary = further_models(digits)
    holdout = Holdout(holdout, REFRESH_STEPS)
    downsampler = Downsampler(selector, irreducible, fraction=FRACTION, holdout=holdout, auxiliary=auxiliary)
    before = [copy.deepcopy(one.state_dict()) for one in (proxy, reference)]
    picked = []
    torch.random.manual_seed(SEED)
    loop.train(
        model,
        candidates,
        downsampler,
        make_optimizer(model.parameters()),
        num_steps=NUM_STEPS,
        augment=Jitter(),
        on_step=lambda step, selected, selection, loss: picked.append(downsampler.selected.index),
    )
    plain = [copy.deepcopy(one.state_dict()) for one in (model, proxy, reference)]
    moved = [
        max(float((after[key] - start[key]).abs().max()) for key in start)
        for start, after in zip(before, plain[1:], strict=True)
    ]
    assert moved[0] > 10 * moved[1] > 0  # the irreducible model at 1/100 of the learning rate

    model, selector, _, candidates, holdout, make_optimizer = parts(digits, "reducr")
    proxy, reference, irreducible, auxiliary = further_models(digits)
    downsampler = Downsampler(selector, irreducible, fraction=FRACTION, holdout=holdout, auxiliary=auxiliary)
    module = TargetModule(model, downsampler, optimizer=make_optimizer, num_classes=10, augment=Jitter())
    recorder = SelectionRecorder(tmp_path / "selected.npz", num_examples=len(digits.train))
    torch.random.manual_seed(SEED)
    fit_target(
        module,
        candidates,
        num_steps=NUM_STEPS,
        refresh_steps=REFRESH_STEPS,
        folder=tmp_path,
        callbacks=[recorder],
        trainer_options={"accelerator": "cpu"},
    )
    assert torch.equal(torch.stack(recorder.index_by_step), torch.stack(picked))
    for one, state in zip((model, proxy, reference), plain, strict=True):
        assert all(torch.equal(value, state[key]) for key, value in one.state_dict().items())
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    assert torch.equal(kept["auxiliary_modules.1.layers.0.weight"], plain[2]["layers.0.weight"])


def test_reducr_with_one_group_and_no_clip_trains_as_rho_loss_does(digits):
    """C = 1: the only weight is 1, so the score is the reducible holdout loss."""
    from reducr.data import ExampleDataset

    one_group = ExampleDataset(
        digits.train.input,
        digits.train.target,
        num_classes=10,
        group=torch.zeros(len(digits.train), dtype=torch.int64),
        num_groups=1,
    )
    losses = per_example_cross_entropy(
        torch.randn(len(digits.train), 10, generator=torch.Generator().manual_seed(1)), digits.train.target
    )

    class Column:
        def __init__(self, *, as_matrix):
            self.as_matrix = as_matrix

        def lookup(self, batch):
            values = losses[batch.index]
            return values.unsqueeze(1) if self.as_matrix else values

    picked = {}
    for name, options in (("reducr", {"clip": False, "use_holdout": False}), ("rho_loss", {})):
        torch.random.manual_seed(SEED)
        model = MLP(num_features=64, num_classes=10, hidden_sizes=[32])
        indices = []
        loop.train(
            model,
            ExampleLoader(one_group, batch_size=60, shuffle=True, drop_last=True, seed=SEED),
            Downsampler(
                reducr.make_selector(name, num_groups=1, **options),
                Column(as_matrix=name == "reducr"),
                fraction=0.1,
                holdout=[one_group.batch(torch.arange(20))],
            ),
            torch.optim.SGD(model.parameters(), lr=0.1),
            num_steps=20,
            on_step=lambda step, selected, selection, loss, indices=indices: indices.append(selected.index),
        )
        picked[name] = torch.stack(indices)
    assert torch.equal(picked["reducr"], picked["rho_loss"])
