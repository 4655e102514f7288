"""Behaviour of single rules; tests/contract has the behaviour of all."""

import re
from dataclasses import replace

import pytest
import torch

import reducr
from reducr.batch import Candidates


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def candidates():
    return Candidates(
        model_loss=torch.tensor([1.0, 2.0, 0.5, 3.0]),
        irreducible_loss=torch.tensor([0.0, 1.5, 0.25, 3.5]),
        group_irreducible_loss=torch.tensor([[0.5, 2.0], [2.0, 0.0], [0.0, 0.5], [3.0, 3.5]]),
    )


@pytest.mark.parametrize(
    ("name", "options", "scores"),
    [
        ("train_loss", {"sampler": "top_k"}, [1.0, 2.0, 0.5, 3.0]),
        ("irreducible_loss", {}, [0.0, -1.5, -0.25, -3.5]),
        ("rho_loss", {}, [1.0, 0.5, 0.25, -0.5]),
        ("reducr", {}, [0.25, 1.0, 0.25, 0.0]),
        ("reducr", {"clip": False}, [-0.25, 1.0, 0.25, -0.25]),
        ("reducr", {"use_irreducible": False}, [1.0, 2.0, 0.5, 3.0]),
        ("reducr", {"use_model_loss": False, "clip": False}, [-1.25, -1.0, -0.25, -3.25]),
        ("reducr", {"use_model_loss": False}, [0.0, 0.0, 0.0, 0.0]),
        ("fixed_weights", {"group_weights": [1.0, 3.0]}, [0.125, 1.5, 0.125, 0.0]),
        ("fixed_weights", {"group_weights": [0.0, 2.0]}, [0.0, 2.0, 0.0, 0.0]),
        ("payoff", {}, [-2.0, -0.5, -1.0, -1.5]),
    ],
)
def test_scores_by_hand(name, options, scores, candidates):
    selector = reducr.make_selector(name, num_groups=2, **options)
    selector.set_group_holdout_loss(torch.tensor([0.5, 1.0]))
    selection = selector.select(candidates, num_selected=2)
    assert selection.scores.tolist() == scores
    assert selection.positions.tolist() == sorted(range(4), key=lambda i: (-scores[i], i))[:2]


def test_reducr_payoff_by_hand(candidates):
    selector = reducr.make_selector("reducr", num_groups=2, step_size=1.0)
    selector.set_group_holdout_loss(torch.tensor([0.5, 1.0]))
    selection = selector.select(candidates, num_selected=2)
    assert selection.positions.tolist() == [1, 0]
    assert selection.payoff.tolist() == [0.5 + 0.0 - 1.0, 0.0 + 2.0 - 2.0]
    selector.update(selection)
    assert selector.cumulative_payoff.tolist() == [-0.5, 0.0]
    assert selector.group_weights.tolist() == pytest.approx([0.6224593312018546, 0.3775406687981454])


def test_the_weights_of_a_step_come_from_the_steps_before(candidates):
    selector = reducr.make_selector("reducr", num_groups=2, step_size=1.0)
    selector.set_group_holdout_loss(torch.tensor([0.5, 1.0]))
    first = selector.select(candidates, num_selected=2)
    again = selector.select(candidates, num_selected=2)
    assert first.scores.tolist() == again.scores.tolist()
    selector.update(first)
    assert selector.select(candidates, num_selected=2).scores.tolist() != first.scores.tolist()


def test_unused_terms_of_reducr_are_not_needed(candidates):
    no_table = reducr.make_selector("reducr", num_groups=2, use_irreducible=False, use_holdout=False)
    assert no_table.needs == {"model_loss"}
    assert no_table.select(Candidates(model_loss=candidates.model_loss), num_selected=1).positions.tolist() == [3]
    no_loss = reducr.make_selector("reducr", num_groups=2, use_model_loss=False, use_holdout=False, clip=False)
    assert no_loss.needs == {"group_irreducible_loss"}
    only_table = Candidates(group_irreducible_loss=candidates.group_irreducible_loss)
    assert no_loss.select(only_table, num_selected=1).positions.tolist() == [2]


def test_a_non_finite_irreducible_loss_that_is_not_used_has_no_effect(candidates):
    selector = reducr.make_selector("reducr", num_groups=2, use_irreducible=False, use_holdout=False)
    table = torch.full((4, 2), torch.nan)
    selection = selector.select(replace(candidates, group_irreducible_loss=table), num_selected=4)
    assert sorted(selection.positions.tolist()) == [0, 1, 2, 3]
    assert selection.num_non_finite == 0


def test_groups_of_weight_zero_need_no_irreducible_loss(candidates):
    selector = reducr.make_selector("fixed_weights", num_groups=2, group_weights=[0.0, 5.0])
    table = candidates.group_irreducible_loss.clone()
    table[:, 0] = torch.nan
    selection = selector.select(replace(candidates, group_irreducible_loss=table), num_selected=2)
    assert selection.scores.tolist() == [0.0, 2.0, 0.0, 0.0]
    assert selection.num_non_finite == 0
    assert selector.group_weights.tolist() == [0.0, 1.0]
    assert selector.weighted_groups.tolist() == [1]


def test_fixed_weights_never_move(candidates):
    selector = reducr.make_selector("fixed_weights", num_groups=2, group_weights=[1.0, 3.0])
    for _ in range(3):
        selector.update(selector.select(candidates, num_selected=2))
    assert selector.group_weights.tolist() == [0.25, 0.75]


def test_initial_payoff_sets_the_first_weights():
    selector = reducr.make_selector("reducr", num_groups=2, step_size=2.0, initial_payoff=[0.0, 1.0])
    assert selector.cumulative_payoff.tolist() == [0.0, 1.0]
    assert selector.group_weights.tolist() == pytest.approx([0.8807970779778823, 0.11920292202211755])


def test_train_loss_draws_by_exponential_rank_by_default():
    candidates = Candidates(model_loss=torch.arange(50.0))
    default, named = (
        reducr.make_selector("train_loss", num_groups=2, **options)
        for options in ({}, {"sampler": "exponential_rank", "pressure": 100.0})
    )
    one = default.select(candidates, num_selected=5, generator=seeded(1))
    other = named.select(candidates, num_selected=5, generator=seeded(1))
    assert one.positions.tolist() == other.positions.tolist()
    assert one.positions.tolist() != [49, 48, 47, 46, 45]


def test_class_balanced_draws_rare_groups_as_often_as_frequent_ones():
    """Of 90 and 10 candidates, half of the first draws are of the rare group."""
    groups = torch.tensor([0] * 90 + [1] * 10)
    selector = reducr.make_selector("class_balanced", num_groups=3)
    generator = seeded(3)
    candidates = Candidates(groups=groups)
    num_rare = 0
    for _ in range(1000):
        num_rare += int(selector.select(candidates, num_selected=1, generator=generator).positions[0] >= 90)
    assert abs(num_rare - 500) <= 4.5 * (1000 * 0.25) ** 0.5


def test_uniform_draws_every_example_equally_often():
    selector = reducr.make_selector("uniform", num_groups=1)
    candidates = Candidates(targets=torch.zeros(10, dtype=torch.int64))
    generator, hits = seeded(4), torch.zeros(10)
    for _ in range(1000):
        hits[selector.select(candidates, num_selected=2, generator=generator).positions] += 1
    assert float((hits - 200).abs().max()) <= 4.5 * (1000 * 0.2 * 0.8) ** 0.5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("reducr", {"step_size": -1.0}, "step_size must be a finite number of at least 0; got -1.0."),
        ("reducr", {"holdout_weighting": "per_epoch"}, "unknown holdout_weighting 'per_epoch'."),
        (
            "reducr",
            {"use_model_loss": False, "use_irreducible": False},
            "use_irreducible and use_model_loss are both False. Set one of them: there is no other term.",
        ),
        ("reducr", {"initial_payoff": [1.0]}, "initial_payoff must hold one value for each of the 2 groups"),
        ("reducr", {"initial_payoff": [1.0, float("nan")]}, "initial_payoff must be finite"),
        ("reducr", {"stepsize": 1.0}, "Did you mean 'step_size'"),
        (
            "reducr",
            {"temperature": 1.0},
            "unknown option 'temperature' of selector 'reducr' with sampler 'top_k'",
        ),
        ("fixed_weights", {"group_weights": [0.0, 0.0]}, "group_weights must not be negative nor all zero"),
        ("fixed_weights", {"group_weights": [1.0, -1.0]}, "group_weights must not be negative nor all zero"),
        ("fixed_weights", {"group_weights": [1.0]}, "group_weights must hold one value for each of the 2"),
        ("bald", {"num_dropout_samples": 1}, "num_dropout_samples must be a whole number of at least 2; got 1."),
        (
            "rho_loss",
            {"sampler": "softmax", "temperature": -1.0},
            "temperature must be a finite",
        ),
    ],
)
def test_wrong_options_are_refused_at_construction(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        reducr.make_selector(name, num_groups=2, **options)


def test_a_table_of_another_number_of_groups_is_refused(candidates):
    selector = reducr.make_selector("reducr", num_groups=3, use_holdout=False)
    with pytest.raises(ValueError, match=r"one column for each of the 3 groups; got shape \(4, 2\)"):
        selector.select(candidates, num_selected=1)


@pytest.mark.parametrize(
    ("name", "fields", "message"),
    [
        (
            "gradient_norm",
            {"logits": torch.zeros(3, 2), "targets": torch.tensor([0, 2, 5])},
            "targets must be in 0..1; position 1 holds 2 (2 such in all).",
        ),
        (
            "class_balanced",
            {"groups": torch.tensor([0, -1, 0])},
            "groups must be in 0..1; position 1 holds -1 (1 such in all).",
        ),
    ],
)
def test_integers_out_of_range_are_named(name, fields, message):
    selector = reducr.make_selector(name, num_groups=2)
    with pytest.raises(ValueError, match=re.escape(message)):
        selector.select(Candidates(**fields), num_selected=1)


def test_epochs_are_counted_from_zero():
    selector = reducr.make_selector("uniform", num_groups=1)
    with pytest.raises(ValueError, match="epoch must be a whole number of at least 0; got -1"):
        selector.set_epoch(-1)
    assert int(selector.epoch) == 0


def test_scores_are_not_a_view_of_the_inputs():
    candidates = Candidates(model_loss=torch.tensor([1.0, 2.0]))
    selection = reducr.make_selector("train_loss", num_groups=1).select(candidates, num_selected=1)
    selection.scores.zero_()
    assert candidates.model_loss.tolist() == [1.0, 2.0]


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("reducr", {"clip": None}, "clip must be True or False; got None."),
        ("reducr", {"use_holdout": 1}, "use_holdout must be True or False; got 1."),
        ("fixed_weights", {"clip": "no"}, "clip must be True or False; got 'no'."),
        ("reducr", {"step_size": "0.1"}, "step_size must be a finite number of at least 0; got 0.1."),
        ("reducr", {"step_size": None}, "step_size must be a finite number of at least 0; got None."),
        ("uniform", {"sampler": 3}, "unknown sampler 3. There are: exponential_rank, power, rank, softmax, top_k."),
        ("uniform", {"sampler": ""}, "unknown sampler ''."),
        ("uniform", {"sampler": ["top_k"]}, "unknown sampler ['top_k']."),
        (
            "uniform",
            {"uniform_first_epochs": 0.5},
            "uniform_first_epochs must be a whole number of at least 0; got 0.5.",
        ),
        (["reducr"], {}, "unknown selector ['reducr']."),
    ],
)
def test_options_of_another_kind_are_refused_by_name(name, options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        reducr.make_selector(name, num_groups=2, **options)


def test_huge_weights_are_scaled_to_the_simplex():
    selector = reducr.make_selector("fixed_weights", num_groups=3, group_weights=[1.7e308, 1.7e308, 0.0])
    assert selector.group_weights.tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("field", ["model_loss", "group_irreducible_loss"])
@pytest.mark.parametrize("value", [1e39, -1e39, 1e300])
def test_a_loss_beyond_float32_counts_as_infinite(field, value):
    """In float64 their sum would be finite today, and infinite some steps later."""
    fields = {"model_loss": torch.ones(4).double(), "group_irreducible_loss": torch.ones(4, 2).double()}
    fields[field][1] = value
    selector = reducr.make_selector("reducr", num_groups=2, use_holdout=False)
    selection = selector.select(Candidates(**fields), num_selected=4)
    assert selection.positions.tolist() == [0, 2, 3]
    assert selection.num_non_finite == 1
    assert selection.payoff.tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (None, "group_holdout_loss must be a tensor of one value for each of the 2 groups; got NoneType."),
        ("ab", "group_holdout_loss must be a tensor of one value for each of the 2 groups; got str."),
        (torch.ones(2, dtype=torch.complex64), "group_holdout_loss must hold real numbers; got torch.complex64."),
        (torch.tensor([True, False]), "group_holdout_loss must hold real numbers; got torch.bool."),
        (torch.tensor([1.0, 1e39], dtype=torch.float64), "group_holdout_loss must be finite; group 1 is not."),
    ],
)
def test_a_holdout_loss_of_another_kind_is_refused(loss, message):
    selector = reducr.make_selector("reducr", num_groups=2)
    with pytest.raises(ValueError, match=re.escape(message)):
        selector.set_group_holdout_loss(loss)
    assert bool(torch.isnan(selector.group_holdout_loss).all())


@pytest.mark.parametrize("epoch", [1.5, "1", None, True, 2**63])
def test_epochs_are_whole_numbers(epoch):
    selector = reducr.make_selector("uniform", num_groups=1)
    with pytest.raises(ValueError, match=re.escape(f"epoch must be a whole number of at least 0; got {epoch!r}.")):
        selector.set_epoch(epoch)
    assert int(selector.epoch) == 0


def test_select_takes_candidates_and_update_a_selection(candidates):
    selector = reducr.make_selector("train_loss", num_groups=2)
    with pytest.raises(TypeError, match=re.escape("such as reducr.Candidates(model_loss=...); got Tensor.")):
        selector.select(torch.ones(3), num_selected=1)
    with pytest.raises(
        TypeError, match=re.escape("update() takes the Selection that select() returned; got NoneType.")
    ):
        selector.update(None)
    other = reducr.make_selector("train_loss", num_groups=3).select(candidates, num_selected=1)
    with pytest.raises(ValueError, match="payoff must hold one value for each of the 2 groups"):
        selector.update(other)
    assert int(selector.step) == 0


def test_the_gradient_norm_needs_logits_of_one_forward_pass():
    selector = reducr.make_selector("gradient_norm", num_groups=2)
    candidates = Candidates(logits=torch.zeros(5, 3, 2), targets=torch.tensor([0, 1, 1]))
    with pytest.raises(ValueError, match=re.escape("needs logits (B, C) of one forward pass; got shape (5, 3, 2).")):
        selector.select(candidates, num_selected=1)


def test_divbs_says_what_it_needs_before_it_asks_for_the_memory(monkeypatch):
    selector = reducr.make_selector("divbs", num_groups=2)
    with pytest.raises(ValueError, match=r"4 matrices of 10,000,000 x 10,000,000 numbers, 2,980,232 GiB"):
        selector.check_num_candidates(10_000_000)
    monkeypatch.setattr("reducr.selectors.diversified.available_memory", lambda: 64 * 2**30)
    with pytest.raises(ValueError, match=r"65,536 x 65,536 numbers, 128 GiB, and 64 GiB of memory are available"):
        selector.check_num_candidates(65_536)
    selector.check_num_candidates(320)
