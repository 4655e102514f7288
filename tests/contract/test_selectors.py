"""The contract of every selector with every sampler. A new selector or sampler is tested without a new test."""

import re
import warnings
from dataclasses import replace

import pytest
import torch

import reducr
from reducr.batch import Candidates
from reducr.selectors import SAMPLERS

NUM_CANDIDATES, NUM_SELECTED, NUM_GROUPS, NUM_SAMPLES = 24, 6, 3, 4
LOSSES = ("model_loss", "irreducible_loss", "group_irreducible_loss")
PAIRS = [(name, sampler) for name in sorted(reducr.SELECTORS) for sampler in sorted(SAMPLERS)]
NEEDED_FIELDS = [
    (name, field)
    for name in sorted(reducr.SELECTORS)
    for field in sorted(reducr.make_selector(name, num_groups=NUM_GROUPS).needs)
]
CHECKED_FIELDS = sorted(
    {(name, field) for name, field in NEEDED_FIELDS if field in (*LOSSES, "logits", "features")}
    | {(name, "model_loss") for name in reducr.SELECTORS}
)


def one_per_implementation(method):
    """Parametrize with the first selector of each class that defines ``method``: the others run the same code."""
    first = {getattr(reducr.SELECTORS[name], method): name for name in sorted(reducr.SELECTORS, reverse=True)}
    return pytest.mark.parametrize("name", sorted(first.values()))


every_selector = pytest.mark.parametrize("name", sorted(reducr.SELECTORS))
every_selector_and_sampler = pytest.mark.parametrize(("name", "sampler"), PAIRS)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def make(name, *, num_groups=NUM_GROUPS, **options):
    """A selector with a holdout loss; REDUCR with a step size at which its weights move."""
    if name == "reducr":
        options.setdefault("step_size", 0.1)
    selector = reducr.make_selector(name, num_groups=num_groups, **options)
    selector.set_group_holdout_loss(torch.linspace(0.2, 1.3, num_groups, dtype=torch.float64))
    return selector


def make_candidates(selector, *, seed=0, size=NUM_CANDIDATES, dtype=torch.float64):
    """Candidates with every field."""
    generator = seeded(seed)
    num_groups = selector.num_groups
    num_classes = max(num_groups, 2)
    samples = (selector.num_dropout_samples,) if selector.num_dropout_samples else ()
    targets = torch.randint(0, num_groups, (size,), generator=generator)
    return Candidates(
        model_loss=torch.rand(size, generator=generator, dtype=torch.float64).mul(4).to(dtype),
        irreducible_loss=torch.rand(size, generator=generator, dtype=torch.float64).mul(4).to(dtype),
        group_irreducible_loss=torch.rand(size, num_groups, generator=generator, dtype=torch.float64).mul(4).to(dtype),
        logits=torch.randn(*samples, size, num_classes, generator=generator, dtype=torch.float64).to(dtype),
        features=torch.randn(size, 5, generator=generator, dtype=torch.float64).to(dtype),
        targets=targets,
        groups=targets,
        index=torch.randperm(2 * size, generator=generator)[:size],
    )


def with_value(candidates, field, position, value):
    """The candidates with the ``field`` of one example, or a part of it, set to ``value``."""
    tensor = getattr(candidates, field).clone()
    if field == "logits":
        tensor[..., position, 0] = value
    elif tensor.ndim == 2:
        tensor[position, -1] = value
    else:
        tensor[position] = value
    return replace(candidates, **{field: tensor})


def assert_same_state(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype, key
        torch.testing.assert_close(actual[key], value, rtol=0, atol=0, equal_nan=True, msg=key)


def state_of(selector):
    return {key: value.clone() for key, value in selector.state_dict().items()}


@every_selector_and_sampler
@pytest.mark.parametrize("num_selected", [1, NUM_SELECTED, NUM_CANDIDATES])
def test_positions_scores_and_payoff_have_the_promised_shapes(name, sampler, num_selected):
    selector = make(name, sampler=sampler)
    selection = selector.select(make_candidates(selector), num_selected=num_selected, generator=seeded())
    positions = selection.positions
    assert positions.dtype == torch.int64
    assert positions.shape == (num_selected,)
    assert len(set(positions.tolist())) == num_selected
    assert set(positions.tolist()) <= set(range(NUM_CANDIDATES))
    assert selection.scores.shape == (NUM_CANDIDATES,)
    assert bool(torch.isfinite(selection.scores).all())
    assert selection.payoff.shape == (NUM_GROUPS,)
    assert selection.payoff.dtype == torch.float64
    assert bool(torch.isfinite(selection.payoff).all())
    assert selection.num_non_finite == 0


@every_selector_and_sampler
def test_examples_have_weights_if_the_rule_says_so(name, sampler):
    selector = make(name, sampler=sampler)
    selection = selector.select(make_candidates(selector), num_selected=NUM_SELECTED, generator=seeded())
    if not selector.weights_examples:
        assert selection.example_weights is None
        return
    assert not selector.is_pointwise
    assert selection.example_weights.shape == (NUM_SELECTED,)
    assert selection.example_weights.dtype == torch.float32
    assert float(selection.example_weights.min()) >= 0
    assert float(selection.example_weights.max()) < torch.inf


@every_selector
def test_the_index_of_the_selection_is_kept_if_the_rule_needs_it(name):
    selector = make(name)
    candidates = make_candidates(selector)
    selection = selector.select(candidates, num_selected=NUM_SELECTED, generator=seeded())
    if "index" in selector.needs:
        assert selection.index.tolist() == candidates.index[selection.positions].tolist()
    else:
        assert selection.index is None


@every_selector
def test_top_k_takes_the_largest_scores_best_first(name):
    selector = make(name, sampler="top_k")
    selection = selector.select(make_candidates(selector), num_selected=NUM_SELECTED, generator=seeded())
    expected = sorted(range(NUM_CANDIDATES), key=lambda i: (-float(selection.scores[i]), i))[:NUM_SELECTED]
    assert selection.positions.tolist() == expected


@every_selector_and_sampler
def test_selecting_changes_neither_state_nor_inputs(name, sampler):
    selector = make(name, sampler=sampler)
    selector.set_epoch(2)
    candidates = make_candidates(selector)
    before, fields = state_of(selector), {key: value.clone() for key, value in candidates.given().items()}
    selector.select(candidates, num_selected=NUM_SELECTED, generator=seeded())
    assert_same_state(selector.state_dict(), before)
    for key, value in candidates.given().items():
        assert torch.equal(value, fields[key]), key


@every_selector_and_sampler
def test_one_seed_gives_one_selection(name, sampler):
    selector = make(name, sampler=sampler)
    candidates = make_candidates(selector)
    first, second = (selector.select(candidates, num_selected=NUM_SELECTED, generator=seeded(5)) for _ in range(2))
    assert first.positions.tolist() == second.positions.tolist()
    assert torch.equal(first.scores, second.scores)
    assert torch.equal(first.payoff, second.payoff)


@every_selector
def test_the_global_generator_is_the_default(name):
    selector = make(name, sampler="softmax")
    candidates = make_candidates(selector)
    picks = []
    for _ in range(2):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(11)
            picks.append(selector.select(candidates, num_selected=NUM_SELECTED).positions.tolist())
    assert picks[0] == picks[1]


@every_selector_and_sampler
def test_a_generator_leaves_the_global_one_alone(name, sampler):
    selector = make(name, sampler=sampler)
    before = torch.random.get_rng_state()
    selector.select(make_candidates(selector), num_selected=NUM_SELECTED, generator=seeded())
    assert torch.equal(torch.random.get_rng_state(), before)


@every_selector_and_sampler
def test_update_counts_the_step_and_adds_the_payoff_and_nothing_else(name, sampler):
    selector = make(name, sampler=sampler)
    selection = selector.select(make_candidates(selector), num_selected=NUM_SELECTED, generator=seeded())
    expected = state_of(selector)
    expected["step"] += 1
    expected["weighting.cumulative_payoff"] += selection.payoff
    if name == "rs2":
        expected["num_times_selected"] = torch.bincount(selection.index).to(torch.int32)
    selector.update(selection)
    assert_same_state(selector.state_dict(), expected)
    assert torch.equal(selector.cumulative_payoff, expected["weighting.cumulative_payoff"])


@every_selector
def test_group_weights_are_float64_on_the_simplex(name):
    selector = make(name)
    for seed in range(3):
        candidates = make_candidates(selector, seed=seed)
        selector.update(selector.select(candidates, num_selected=NUM_SELECTED, generator=seeded()))
        assert selector.group_weights.dtype == torch.float64
        assert selector.group_weights.shape == (NUM_GROUPS,)
        assert float(selector.group_weights.sum()) == pytest.approx(1.0, abs=1e-12)
        assert float(selector.group_weights.min()) >= 0


@every_selector_and_sampler
def test_a_saved_state_continues_in_a_fresh_selector(name, sampler):
    selector = make(name, sampler=sampler)
    for seed in range(3):
        candidates = make_candidates(selector, seed=seed)
        selector.update(selector.select(candidates, num_selected=NUM_SELECTED, generator=seeded(seed)))
    selector.set_epoch(4)
    options = {"step_size": 0.1} if name == "reducr" else {}
    resumed = reducr.make_selector(name, num_groups=NUM_GROUPS, sampler=sampler, **options)
    resumed.load_state_dict(state_of(selector))
    assert_same_state(resumed.state_dict(), state_of(selector))
    for seed in range(3, 6):
        candidates = make_candidates(selector, seed=seed)
        selection, resumed_selection = (
            each.select(candidates, num_selected=NUM_SELECTED, generator=seeded(seed)) for each in (selector, resumed)
        )
        assert selection.positions.tolist() == resumed_selection.positions.tolist()
        assert torch.equal(selection.scores, resumed_selection.scores)
        selector.update(selection)
        resumed.update(resumed_selection)
    assert_same_state(resumed.state_dict(), state_of(selector))


@pytest.mark.parametrize("value", [float("nan"), float("inf")], ids=["nan", "inf"])
@pytest.mark.parametrize(("name", "field"), CHECKED_FIELDS)
def test_a_non_finite_loss_is_not_selected_but_counted(name, field, value):
    selector, reference = make(name), make(name)
    whole = make_candidates(selector)
    position = int(selector.select(whole, num_selected=1, generator=seeded()).positions[0])
    candidates = with_value(whole, field, position, value)
    selection = selector.select(candidates, num_selected=NUM_CANDIDATES - 1, generator=seeded())
    others = [i for i in range(NUM_CANDIDATES) if i != position]
    assert sorted(selection.positions.tolist()) == others
    assert selection.num_non_finite == 1
    assert float(selection.scores[position]) == -torch.inf
    assert bool(torch.isfinite(selection.scores[others]).all())

    without = reference.select(whole.take(selection.positions), num_selected=NUM_CANDIDATES - 1, generator=seeded())
    assert sorted(without.positions.tolist()) == list(range(NUM_CANDIDATES - 1))
    torch.testing.assert_close(selection.payoff, without.payoff, rtol=0, atol=1e-12)
    with pytest.warns(RuntimeWarning, match="1 of 24 candidates have a NaN or infinite loss"):
        selector.update(selection)
    assert int(selector.num_non_finite) == 1
    assert bool(torch.isfinite(selector.cumulative_payoff).all())
    assert bool(torch.isfinite(selector.group_weights).all())


@every_selector_and_sampler
def test_a_non_finite_loss_gives_the_selection_and_payoff_without_that_candidate(name, sampler):
    selector, reference = make(name, sampler=sampler), make(name, sampler=sampler)
    whole = make_candidates(selector)
    position = 5
    kept = torch.tensor([i for i in range(NUM_CANDIDATES) if i != position])
    candidates = with_value(whole, "model_loss", position, float("nan"))
    selection = selector.select(candidates, num_selected=NUM_SELECTED, generator=seeded(3))
    without = reference.select(whole.take(kept), num_selected=NUM_SELECTED, generator=seeded(3))
    assert position not in selection.positions.tolist()
    assert len(selection.positions) == NUM_SELECTED
    assert selection.positions.tolist() == kept[without.positions].tolist()
    with pytest.warns(RuntimeWarning, match="NaN or infinite"):
        selector.update(selection)
    reference.update(without)
    assert selector.cumulative_payoff.tolist() == reference.cumulative_payoff.tolist()


@every_selector
def test_non_finite_losses_warn_once_and_are_counted_every_time(name):
    selector = make(name)
    candidates = with_value(make_candidates(selector), "model_loss", 3, float("nan"))
    candidates = with_value(candidates, "model_loss", 8, float("inf"))
    with pytest.warns(RuntimeWarning, match=r"step 0: 2 of 24 candidates") as caught:
        selector.update(selector.select(candidates, num_selected=NUM_SELECTED, generator=seeded()))
    assert len(caught) == 1
    with warnings.catch_warnings(record=True) as later:
        warnings.simplefilter("always")
        selector.update(selector.select(candidates, num_selected=NUM_SELECTED, generator=seeded()))
    assert later == []
    assert int(selector.num_non_finite) == 4


@pytest.mark.parametrize(("name", "field"), CHECKED_FIELDS)
def test_only_non_finite_losses_are_an_error_that_names_the_step(name, field):
    selector = make(name)
    for seed in range(2):
        candidates = make_candidates(selector, seed=seed)
        selector.update(selector.select(candidates, num_selected=NUM_SELECTED, generator=seeded()))
    candidates = make_candidates(selector)
    candidates = replace(candidates, **{field: torch.full_like(getattr(candidates, field), torch.nan)})
    before = state_of(selector)
    with pytest.raises(ValueError, match="step 2: the losses of all 24 candidates are NaN or infinite"):
        selector.select(candidates, num_selected=NUM_SELECTED, generator=seeded())
    assert_same_state(selector.state_dict(), before)


@every_selector_and_sampler
def test_fewer_finite_losses_than_num_selected_are_all_selected(name, sampler):
    selector = make(name, sampler=sampler)
    candidates = make_candidates(selector)
    model_loss = torch.full_like(candidates.model_loss, torch.nan)
    finite = [2, 7, 19]
    model_loss[finite] = candidates.model_loss[finite]
    selection = selector.select(
        replace(candidates, model_loss=model_loss), num_selected=NUM_SELECTED, generator=seeded()
    )
    assert sorted(selection.positions.tolist()) == finite
    assert selection.num_non_finite == NUM_CANDIDATES - 3


@one_per_implementation("select")
@pytest.mark.parametrize("num_selected", [0, -1, NUM_CANDIDATES + 1])
def test_num_selected_out_of_range_is_refused(name, num_selected):
    selector = make(name)
    message = f"num_selected must be between 1 and the number of candidates, 24; got {num_selected}."
    with pytest.raises(ValueError, match=re.escape(message)):
        selector.select(make_candidates(selector), num_selected=num_selected)


@one_per_implementation("select")
@pytest.mark.parametrize("num_selected", [3.0, 0.1, True, "3", None])
def test_num_selected_that_is_not_a_whole_number_is_refused(name, num_selected):
    selector = make(name)
    message = f"num_selected must be a whole number; got {num_selected!r}."
    with pytest.raises(TypeError, match=re.escape(message)):
        selector.select(make_candidates(selector), num_selected=num_selected)


@pytest.mark.parametrize(("name", "field"), NEEDED_FIELDS)
def test_a_missing_field_is_named(name, field):
    selector = make(name)
    with pytest.raises(ValueError, match=rf"{name!r} needs Candidates\.{field};"):
        selector.select(replace(make_candidates(selector), **{field: None}), num_selected=NUM_SELECTED)


@every_selector
def test_other_fields_make_no_difference(name):
    selector = make(name)
    whole = make_candidates(selector)
    needed = {field: getattr(whole, field) for field in selector.needs} or {"targets": whole.targets}
    all_given = selector.select(whole, num_selected=NUM_SELECTED, generator=seeded())
    only_needed = selector.select(Candidates(**needed), num_selected=NUM_SELECTED, generator=seeded())
    assert all_given.positions.tolist() == only_needed.positions.tolist()


@pytest.mark.parametrize("name", [name for name in sorted(reducr.SELECTORS) if make(name).needs_group_holdout_loss])
def test_a_missing_holdout_loss_is_an_error(name):
    selector = reducr.make_selector(name, num_groups=NUM_GROUPS)
    with pytest.raises(ValueError, match=rf"{name!r} needs the holdout loss before its first selection"):
        selector.select(make_candidates(selector), num_selected=NUM_SELECTED)


@one_per_implementation("set_group_holdout_loss")
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        ([1.0, 2.0], r"one value for each of the 3 groups; got shape \(2,\)"),
        ([1.0, float("nan"), float("inf")], "must be finite; group 1, 2 is not"),
    ],
)
def test_a_wrong_holdout_loss_is_refused_and_not_kept(name, loss, message):
    selector = make(name)
    before = state_of(selector)
    with pytest.raises(ValueError, match=message):
        selector.set_group_holdout_loss(torch.tensor(loss))
    assert_same_state(selector.state_dict(), before)


@every_selector
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_inputs_are_scored_in_float32_or_better(name, dtype):
    selector = make(name)
    half = make_candidates(selector, dtype=dtype)
    wide = Candidates(
        **{key: value.float() if value.is_floating_point() else value for key, value in half.given().items()}
    )
    of_half = selector.select(half, num_selected=NUM_SELECTED, generator=seeded())
    of_wide = selector.select(wide, num_selected=NUM_SELECTED, generator=seeded())
    assert torch.finfo(of_half.scores.dtype).bits >= 32
    assert torch.equal(of_half.scores, of_wide.scores)
    assert of_half.positions.tolist() == of_wide.positions.tolist()
    assert of_half.payoff.tolist() == of_wide.payoff.tolist()


@every_selector
@pytest.mark.parametrize(
    "cast",
    [lambda module: module.half(), lambda module: module.to(torch.bfloat16), lambda module: module.float()],
    ids=["half", "bfloat16", "float"],
)
def test_casting_the_selector_keeps_its_state_exact(name, cast):
    selector = make(name)
    selector.update(selector.select(make_candidates(selector), num_selected=NUM_SELECTED, generator=seeded()))
    before = state_of(selector)
    holder = cast(torch.nn.Sequential(torch.nn.Linear(2, 2), selector))
    assert holder[0].weight.dtype != torch.float64
    assert selector.cumulative_payoff.dtype == torch.float64
    assert_same_state(selector.state_dict(), before)


@every_selector_and_sampler
def test_one_group_is_enough(name, sampler):
    selector = make(name, num_groups=1, sampler=sampler)
    selection = selector.select(make_candidates(selector), num_selected=NUM_SELECTED, generator=seeded())
    selector.update(selection)
    assert len(set(selection.positions.tolist())) == NUM_SELECTED
    assert selection.payoff.shape == (1,)
    assert selector.group_weights.tolist() == [1.0]


@one_per_implementation("__init__")
@pytest.mark.parametrize("num_groups", [0, -1, 2.0, True])
def test_num_groups_must_be_a_whole_number_of_at_least_one(name, num_groups):
    message = f"num_groups must be a whole number of at least 1; got {num_groups!r}."
    with pytest.raises(ValueError, match=re.escape(message)):
        reducr.make_selector(name, num_groups=num_groups)


@every_selector
def test_an_unknown_selector_is_answered_with_the_nearest(name):
    with pytest.raises(ValueError, match=rf"unknown selector '{name}x'\. Did you mean .*'{name}'"):
        reducr.make_selector(f"{name}x", num_groups=NUM_GROUPS)


@every_selector
def test_an_unknown_option_is_answered_with_the_nearest(name):
    with pytest.raises(
        ValueError, match=rf"unknown option 'num_epoch' of selector '{name}'.*Did you mean 'num_epochs'"
    ):
        reducr.make_selector(name, num_groups=NUM_GROUPS, num_epoch=3)


@one_per_implementation("__init__")
@pytest.mark.parametrize("sampler", sorted(SAMPLERS))
def test_an_unknown_sampler_is_answered_with_the_nearest(name, sampler):
    with pytest.raises(ValueError, match=rf"unknown sampler '{sampler}x'\. Did you mean .*'{sampler}'"):
        reducr.make_selector(name, num_groups=NUM_GROUPS, sampler=f"{sampler}x")


@every_selector_and_sampler
def test_results_carry_no_gradient(name, sampler):
    selector = make(name, sampler=sampler)
    candidates = Candidates(
        **{
            key: value.requires_grad_() if value.is_floating_point() else value
            for key, value in make_candidates(selector).given().items()
        }
    )
    selection = selector.select(candidates, num_selected=NUM_SELECTED, generator=seeded())
    selector.update(selection)
    for tensor in (selection.scores, selection.payoff, selector.cumulative_payoff, selector.group_weights):
        assert not tensor.requires_grad
        assert tensor.grad_fn is None


@every_selector
@pytest.mark.parametrize("epoch", [0, 9])
def test_uniform_epochs_ignore_the_scores(name, epoch):
    options = {"uniform_first_epochs": 1, "uniform_last_epochs": 1, "num_epochs": 10}
    at_the_end, in_between, plain = (
        make(name, sampler="top_k", **sampler_options) for sampler_options in (options, options, {})
    )
    at_the_end.set_epoch(epoch)
    in_between.set_epoch(5)
    candidates = make_candidates(plain)
    drawn = set()
    for seed in range(5):
        selection = at_the_end.select(candidates, num_selected=NUM_SELECTED, generator=seeded(seed))
        drawn.add(tuple(selection.positions.tolist()))
    assert len(drawn) == 5
    for seed in range(5):
        between, expected = (
            each.select(candidates, num_selected=NUM_SELECTED, generator=seeded(seed)) for each in (in_between, plain)
        )
        assert between.positions.tolist() == expected.positions.tolist()


def test_every_published_name_is_there():
    assert set(reducr.SELECTORS) >= {
        "uniform",
        "train_loss",
        "irreducible_loss",
        "rho_loss",
        "reducr",
        "fixed_weights",
        "payoff",
        "gradient_norm",
        "entropy",
        "conditional_entropy",
        "bald",
        "loss_minus_conditional_entropy",
        "loss_plus_conditional_entropy",
    }
    assert set(SAMPLERS) >= {"top_k", "softmax", "power", "rank", "exponential_rank"}
    assert all(build.name == name for name, build in reducr.SELECTORS.items())
