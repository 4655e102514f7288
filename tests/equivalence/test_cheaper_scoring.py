"""A cheaper scoring pass is the scoring pass where it can be, the same in every loop, and goes on bit for bit."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from torch import nn

import reducr
from reducr.data import ExampleLoader
from reducr.data.published.digits import Digits
from reducr.downsampler import Downsampler
from reducr.functional import per_example_cross_entropy
from reducr.irreducible import AdjustedIrreducibleLoss, IrreducibleTable, PlainIrreducibleLoss, TableLogits
from reducr.lightning import RunProgress, SelectionRecorder, TargetModule, fit_target
from reducr.models import MLP, resnet18
from reducr.pipeline import run_experiment
from reducr.scoring import Holdout, Scoring, ScoringBudget
from reducr.training import loop
from selecting import pick

NUM_STEPS, SEED = 25, 3
RULES = {
    "reducr": {"step_size": 0.05},
    "rho_loss": {},
    "train_loss": {},
    "fixed_weights": {"group_weights": [2.0] + [1.0] * 9},
    "payoff": {},
}


@pytest.fixture(scope="module")
def digits():
    return Digits(holdout_size=100, test_size=500, label_noise={"train": 0.3}, imbalance={"train": 10.0}).splits(seed=0)


def irreducible_of(digits, name="reducr"):
    logits = torch.randn(len(digits.train), 10, generator=torch.Generator().manual_seed(1))
    source = TableLogits(IrreducibleTable(logits.numpy(), kind="logits"))
    return PlainIrreducibleLoss(source) if name == "rho_loss" else AdjustedIrreducibleLoss(source)


def model_of(dropout=0.0):
    torch.random.manual_seed(SEED)
    return MLP(num_features=64, num_classes=10, hidden_sizes=[32], dropout=dropout)


def candidates_of(digits):
    return ExampleLoader(digits.train, batch_size=60, shuffle=True, drop_last=True, seed=SEED)


def holdout_of(digits):
    return ExampleLoader(digits.holdout, batch_size=40)


def loader_of(digits, model, name="reducr", *, sampler=None, **options):
    options = {"fraction": 0.2, "holdout": holdout_of(digits), "refresh_steps": 7, "seed": SEED} | options
    selector = reducr.make_selector(
        name, num_groups=10, **({} if sampler is None else {"sampler": sampler}), **RULES[name]
    )
    return reducr.SelectiveLoader(candidates_of(digits), model, selector, irreducible_of(digits, name), **options)


def trained(loader, model, *, num_steps=NUM_STEPS, step=0, optimizer=None, on_step=None):
    """The indices of the points that were trained on."""
    optimizer = optimizer or torch.optim.AdamW(model.parameters(), lr=1e-2)
    picked = []
    while step < num_steps:
        for batch in loader:
            loss = nn.functional.cross_entropy(model(batch.input), batch.target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            picked.append(batch.index)
            step += 1
            if on_step is not None:
                on_step(step, optimizer)
            if step == num_steps:
                return torch.stack(picked)
    raise AssertionError


def assert_equal_states(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        torch.testing.assert_close(value, other[name], rtol=0, atol=0, equal_nan=True)


# within a budget


@pytest.mark.parametrize("sampler", ["top_k", "softmax", "rank"])
@pytest.mark.parametrize("name", RULES)
def test_a_budget_of_all_selects_as_without_one(digits, name, sampler):
    plain, within = model_of(), model_of()
    loader = loader_of(digits, plain, name, sampler=sampler)
    other = loader_of(digits, within, name, sampler=sampler, scoring=Scoring(budget=1))
    assert torch.equal(trained(loader, plain), trained(other, within))
    assert_equal_states(plain.state_dict(), within.state_dict())
    assert_equal_states(loader.downsampler.selector.state_dict(), other.downsampler.selector.state_dict())
    assert torch.equal(loader.downsampler.generator.get_state(), other.downsampler.generator.get_state())
    assert torch.equal(loader.downsampler.selection.scores, other.downsampler.selection.scores)
    assert int(other.downsampler.budget.step) == NUM_STEPS


@pytest.mark.parametrize("name", RULES)
def test_only_scored_points_are_selected_and_their_losses_remembered(digits, name):
    model = model_of()
    selector = reducr.make_selector(name, num_groups=10, **RULES[name])
    selector.set_group_holdout_loss(torch.linspace(0.5, 2.0, 10))
    budget, irreducible = ScoringBudget(0.3), irreducible_of(digits, name)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    for batch in [*candidates_of(digits), *candidates_of(digits)]:
        full, _ = pick(model, batch, selector, irreducible, num_selected=60)
        losses = per_example_cross_entropy(model(batch.input), batch.target).detach()
        selected, selection = pick(model, batch, selector, irreducible, num_selected=12, budget=budget)
        is_scored = ~selection.scores.isnan()
        assert int(is_scored.sum()) == 18
        assert selection.scores.shape == (60,)
        assert bool(is_scored[selection.positions].all())
        assert selection.num_non_finite == 0
        assert torch.equal(selected.index, batch.index[selection.positions])
        torch.testing.assert_close(budget.loss[batch.index[is_scored]], losses[is_scored])
        assert bool((budget.scored_step[batch.index[is_scored]] == budget.step - 1).all())
        assert bool((budget.scored_step[batch.index[~is_scored]] < budget.step - 1).all())
        assert len(full.index) == 60
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(selected.input), selected.target).backward()
        optimizer.step()
        selector.update(selection)
    assert selector.group_weights.isfinite().all()


def test_the_best_of_the_scored_points_are_selected(digits):
    """What is selected within a budget is what would be selected from the scored points alone."""
    model, irreducible = model_of(), irreducible_of(digits)
    selector = reducr.make_selector("reducr", num_groups=10)
    selector.set_group_holdout_loss(torch.ones(10))
    budget = ScoringBudget(0.5)
    for batch in candidates_of(digits):
        selected, selection = pick(model, batch, selector, irreducible, num_selected=6, budget=budget)
        scored = batch.take(torch.nonzero(~selection.scores.isnan()).flatten())
        alone, own = pick(model, scored, selector, irreducible, num_selected=6)
        assert torch.equal(selected.index, alone.index)
        torch.testing.assert_close(selection.payoff, own.payoff)


def test_a_fixed_model_is_scored_by_its_own_losses_after_a_pass(digits):
    """Remembered losses of a model that does not change are its losses: what is missed are only points never scored."""
    model, irreducible = model_of(), irreducible_of(digits)
    selector = reducr.make_selector("reducr", num_groups=10)
    selector.set_group_holdout_loss(torch.ones(10))
    budget = ScoringBudget(0.5, oldest_fraction=0.4)
    batches = [batch.take(torch.arange(60)) for batch in candidates_of(digits)]
    for _ in range(4):
        for batch in batches:
            pick(model, batch, selector, irreducible, num_selected=6, budget=budget)
    for batch in batches:
        within, _ = pick(model, batch, selector, irreducible, num_selected=6, budget=budget)
        full, _ = pick(model, batch, selector, irreducible, num_selected=6)
        assert torch.equal(within.index, full.index)


def test_broken_points_within_a_budget_are_counted_and_not_selected(digits):
    model, irreducible = model_of(), irreducible_of(digits)
    selector = reducr.make_selector("reducr", num_groups=10)
    selector.set_group_holdout_loss(torch.ones(10))
    batch = next(iter(candidates_of(digits)))
    broken = batch._replace(input=batch.input.index_fill(0, torch.arange(60), torch.nan))
    half = batch._replace(input=torch.where(torch.arange(60).unsqueeze(1) % 2 == 0, broken.input, batch.input))
    budget = ScoringBudget(0.5)
    _, selection = pick(model, half, selector, irreducible, num_selected=5, budget=budget)
    scored = torch.nonzero(~selection.scores.isnan()).flatten()
    assert len(scored) == 30
    assert selection.num_non_finite == int((scored % 2 == 0).sum()) > 0
    assert bool((selection.positions % 2 == 1).all())
    with pytest.raises(ValueError, match="the losses of all 30 candidates are NaN or infinite"):
        pick(model, broken, selector, irreducible, num_selected=5, budget=ScoringBudget(0.5))


def test_points_without_an_index_are_refused_before_anything_is_scored(digits):
    selector = reducr.make_selector("train_loss", num_groups=10)
    batch = next(iter(candidates_of(digits)))
    with pytest.raises(
        ValueError, match="A scoring budget remembers the loss of every example by its index, and these"
    ):
        pick(nn.Identity(), batch._replace(index=None), selector, None, num_selected=5, budget=ScoringBudget(0.5))
    downsampler = Downsampler(selector, scoring=Scoring(budget=0.5))
    with pytest.raises(
        ValueError, match="A scoring budget remembers the loss of every example by its index, and these"
    ):
        downsampler.select((batch.input, batch.target), model_of())


@pytest.mark.parametrize(("accumulate_steps", "save_after"), [(1, 4), (1, 19), (3, 13)])
def test_a_resumed_loop_goes_on_bit_for_bit(digits, accumulate_steps, save_after):
    model = model_of(dropout=0.3)
    options = {"accumulate_steps": accumulate_steps, "sampler": "softmax"}
    loader = loader_of(digits, model, scoring=Scoring(budget=ScoringBudget(0.4)), **options)
    kept = {}

    def keep(step, optimizer):
        if step == save_after:
            kept.update(
                model=copy.deepcopy(model.state_dict()),
                optimizer=copy.deepcopy(optimizer.state_dict()),
                loader=copy.deepcopy(loader.state_dict()),
                random=torch.get_rng_state(),
            )

    picked = trained(loader, model, on_step=keep)

    again = model_of(dropout=0.3)
    resumed = loader_of(digits, again, scoring=Scoring(budget=ScoringBudget(0.4)), **options)
    optimizer = torch.optim.AdamW(again.parameters(), lr=1e-2)
    again.load_state_dict(kept["model"])
    optimizer.load_state_dict(kept["optimizer"])
    resumed.load_state_dict(kept["loader"])
    torch.set_rng_state(kept["random"])
    assert torch.equal(trained(resumed, again, step=save_after, optimizer=optimizer), picked[save_after:])
    assert_equal_states(again.state_dict(), model.state_dict())
    budgets = [one.downsampler.budget.state_dict() for one in (resumed, loader)]
    assert_equal_states(*budgets)


def test_the_state_of_a_run_without_a_budget_is_refused_by_one_with(digits):
    state = loader_of(digits, model_of()).state_dict()
    with pytest.raises(ValueError, match=r"a Downsampler must hold counts, .*, scoring_budget, .*; got counts"):
        loader_of(digits, model_of(), scoring=Scoring(budget=ScoringBudget(0.4))).load_state_dict(state)


# the same in the plain loop and in the program's module


def module_of(digits, model, **options):
    selector = reducr.make_selector("reducr", num_groups=10, step_size=0.05)
    downsampler = Downsampler(
        selector, irreducible_of(digits), fraction=0.2, holdout=holdout_of(digits), seed=SEED, **options
    )
    return TargetModule(model, downsampler, optimizer=partial(torch.optim.AdamW, lr=1e-2), num_classes=10)


def fitted(digits, module, folder, *, advance=lambda step, worst: None):
    recorder = SelectionRecorder(folder / "selected.npz", num_examples=len(digits.train))
    fit_target(
        module,
        candidates_of(digits),
        num_steps=NUM_STEPS,
        refresh_steps=7,
        folder=folder,
        callbacks=[recorder, RunProgress(advance)],
        trainer_options={"accelerator": "cpu"},
        resume_seconds=0,
    )
    return torch.stack(recorder.index_by_step)


@pytest.mark.parametrize(
    "options",
    [{"budget": 0.4}, {"autocast": torch.bfloat16}, {"budget": 0.3, "autocast": torch.bfloat16}, {"batch_size": 7}],
)
def test_the_plain_loop_the_loader_and_the_module_agree(digits, tmp_path, options):
    scoring = Scoring(**options)
    plain = model_of()
    optimizer, picked = torch.optim.AdamW(plain.parameters(), lr=1e-2), []
    selector = reducr.make_selector("reducr", num_groups=10, step_size=0.05)
    loop.train(
        plain,
        candidates_of(digits),
        Downsampler(
            selector,
            irreducible_of(digits),
            fraction=0.2,
            holdout=Holdout(holdout_of(digits), 7),
            scoring=scoring,
            seed=SEED,
        ),
        optimizer,
        num_steps=NUM_STEPS,
        on_step=lambda step, selected, selection, loss: picked.append(selected.index),
    )
    model = model_of()
    assert torch.equal(fitted(digits, module_of(digits, model, scoring=scoring), tmp_path), torch.stack(picked))
    assert_equal_states(model.state_dict(), plain.state_dict())
    model = model_of()
    assert torch.equal(trained(loader_of(digits, model, scoring=scoring), model), torch.stack(picked))
    assert_equal_states(model.state_dict(), plain.state_dict())


class BrokenOffError(Exception):
    """In place of a killed process."""


def test_a_module_that_is_broken_off_goes_on_bit_for_bit(digits, tmp_path):
    def stop(step, worst):
        if step == 16:
            raise BrokenOffError

    whole = module_of(digits, model_of(), scoring=Scoring(budget=ScoringBudget(0.4)))
    picked = fitted(digits, whole, tmp_path / "whole")
    parts = tmp_path / "parts"
    with pytest.raises(BrokenOffError):
        fitted(digits, module_of(digits, model_of(), scoring=Scoring(budget=ScoringBudget(0.4))), parts, advance=stop)
    resumed = module_of(digits, model_of(), scoring=Scoring(budget=ScoringBudget(0.4)))
    assert torch.equal(fitted(digits, resumed, parts), picked)
    assert_equal_states(resumed.state_dict(), whole.state_dict())
    assert int(resumed.scoring_budget.step) == NUM_STEPS


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"scoring": Scoring(budget=0.1)},
            ValueError,
            "A scoring budget of 0.1 of the candidates cannot select 0.2",
        ),
        ({"scoring": Scoring(budget=0.3), "distributed": "global"}, ValueError, "A scoring budget does not work with"),
    ],
)
def test_faults_are_found_at_construction(digits, options, error, message):
    for make in (loader_of, module_of):
        with pytest.raises(error, match=message):
            make(digits, model_of(), **options)


# at a lower resolution, and compiled


@pytest.mark.parametrize("scoring_mode", ["eval", "train_frozen_statistics"])
def test_small_images_are_scored_and_whole_ones_trained_on(scoring_mode):
    torch.random.manual_seed(SEED)
    model = resnet18(10, in_channels=1, width=4)
    model(torch.randn(50, 1, 16, 16))
    images = torch.randn(40, 1, 16, 16)
    target = torch.arange(40) % 10
    buffers = copy.deepcopy(dict(model.named_buffers()))
    selector = reducr.make_selector("train_loss", num_groups=10, sampler="top_k")
    downsampler = Downsampler(selector, scoring=Scoring(resolution=0.5, mode=scoring_mode))
    index, selected, _ = downsampler.select((torch.arange(40), images, target), model)
    assert torch.equal(selected, images[index])
    assert_equal_states(dict(model.named_buffers()), buffers)
    small = nn.functional.avg_pool2d(images, 2)
    with torch.no_grad():
        losses = per_example_cross_entropy(model.train(scoring_mode != "eval")(small), target)
    assert torch.equal(downsampler.selection.scores, losses)


@pytest.mark.long
@pytest.mark.filterwarnings("ignore:.*torch.jit.script_method:DeprecationWarning")  # of the compiler itself
def test_a_compiled_scoring_pass_scores_the_model_that_is_trained(digits):
    """With the parameters of every step, in the mode that was asked for, and the mode left as found."""
    model = model_of(dropout=0.5)
    selector = reducr.make_selector("train_loss", num_groups=10, sampler="top_k")
    downsampler = Downsampler(selector, scoring=Scoring(compile=True, mode="eval"))
    for batch in list(candidates_of(digits))[:3]:
        selected = downsampler.select(batch, model)
        with torch.no_grad():
            losses = per_example_cross_entropy(model.eval()(batch.input), batch.target)
        model.train()
        torch.testing.assert_close(downsampler.selection.scores, losses, rtol=1e-5, atol=1e-5)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        nn.functional.cross_entropy(model(selected.input), selected.target).backward()
        optimizer.step()
        optimizer.zero_grad()
        downsampler.step(model)


# from the command line


@pytest.mark.long
def test_the_program_hands_the_options_on(tmp_path):
    """A budget of all changes nothing, and a smaller one nothing for a rule that runs no model."""

    def selected(name, *options):
        with initialize_config_module("reducr.configs", version_base="1.3"):
            config = compose(
                "main",
                overrides=[
                    "compare=[uniform,reducr]",
                    "seeds=[0]",
                    "num_steps=12",
                    "irreducible.num_epochs=1",
                    f"model_io.run_dir={tmp_path / name}",
                    *options,
                ],
            )
        folder = run_experiment(config)
        return [np.load(folder / "seed_0" / method / "selected.npz")["index"] for method in ("uniform", "reducr")]

    plain, whole, part = (
        selected("plain"),
        selected("whole", "scoring.budget=1.0", "scoring.oldest_fraction=0.5"),
        selected("part", "scoring.budget=0.2", "scoring.autocast=bfloat16"),
    )
    assert all(np.array_equal(one, other) for one, other in zip(plain, whole, strict=True))
    assert np.array_equal(plain[0], part[0])
    assert not np.array_equal(plain[1], part[1])
