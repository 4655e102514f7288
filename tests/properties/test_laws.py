"""Laws that hold for any numbers, tried on many."""

import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import reducr
from reducr import functional
from reducr.data.core.imbalance import LongTail
from reducr.data.core.noise import UniformNoise
from reducr.data.core.stratified import stratified_split
from reducr.scoring import GroupHoldoutLoss, num_selected_of
from reducr.selectors.samplers import SAMPLERS, make_sampler

law = pytest.mark.explores  # tests/conftest.py has the number of examples
seeds = st.integers(0, 2**31)
finite = st.floats(allow_nan=False, allow_infinity=False)
gradient_weights = st.one_of(st.just(1.0), st.floats(1.0, 1e6))


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def random_logits(seed, *shape, scale=5.0):
    return torch.randn(*shape, generator=seeded(seed), dtype=torch.float64) * scale


def losses(seed, num_candidates, num_groups):
    """Model loss, group-irreducible loss and group-holdout loss with distinct scores."""
    generator = seeded(seed)
    return (
        torch.rand(num_candidates, generator=generator, dtype=torch.float64) * 4,
        torch.rand(num_candidates, num_groups, generator=generator, dtype=torch.float64) * 4,
        torch.rand(num_groups, generator=generator, dtype=torch.float64) * 2,
    )


# group weights


@law
@given(payoff=st.lists(finite, min_size=1, max_size=8), step_size=st.floats(0.0, 1.0))
def test_weights_are_on_the_simplex(payoff, step_size):
    weights = functional.group_weights(torch.tensor(payoff, dtype=torch.float64), step_size=step_size)
    assert float(weights.min()) >= 0
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)


@law
@given(payoff=st.lists(finite, min_size=2, max_size=8), step_size=st.floats(1.0, 1e6))
def test_weights_are_on_the_simplex_for_huge_payoffs_and_step_sizes(payoff, step_size):
    weights = functional.group_weights(torch.tensor(payoff, dtype=torch.float64), step_size=step_size)
    assert float(weights.min()) >= 0
    assert float(weights.sum()) == pytest.approx(1.0, abs=1e-12)


@law
@given(payoff=st.lists(finite, min_size=1, max_size=8))
def test_step_size_zero_keeps_weights_uniform(payoff):
    weights = functional.group_weights(torch.tensor(payoff, dtype=torch.float64), step_size=0.0)
    assert weights.tolist() == pytest.approx([1 / len(payoff)] * len(payoff), abs=1e-15)


@law
@given(payoff=st.lists(st.floats(-50, 50), min_size=2, max_size=8), step_size=st.floats(0.01, 2.0))
def test_more_payoff_less_weight(payoff, step_size):
    cumulative_payoff = torch.tensor(payoff, dtype=torch.float64)
    weights = functional.group_weights(cumulative_payoff, step_size=step_size).tolist()
    for a in range(len(payoff)):
        for b in range(len(payoff)):
            if payoff[a] > payoff[b] + 1e-9:
                assert weights[a] < weights[b]


@law
@given(payoff=st.lists(st.floats(-50, 50), min_size=2, max_size=8), shift=st.floats(-1e3, 1e3))
def test_a_constant_added_to_every_payoff_changes_no_weight(payoff, shift):
    plain = torch.tensor(payoff, dtype=torch.float64)
    torch.testing.assert_close(
        functional.group_weights(plain + shift, step_size=0.3),
        functional.group_weights(plain, step_size=0.3),
        rtol=0,
        atol=1e-10,
    )


# samplers: whole scores and whole constants, so that adding them is exact


@law
@given(
    scores=st.lists(st.integers(-50, 50), min_size=2, max_size=20),
    constant=st.integers(-100, 100),
    seed=seeds,
    sampler=st.sampled_from(["top_k", "softmax", "rank", "exponential_rank"]),
    data=st.data(),
)
def test_a_constant_added_to_all_scores_changes_no_pick(scores, constant, seed, sampler, data):
    """Holds for every sampler but ``power``, whose probabilities are powers of the scores themselves."""
    num_selected = data.draw(st.integers(1, len(scores)))
    sample = make_sampler(sampler)
    plain = torch.tensor(scores, dtype=torch.float64)
    before = sample(plain, num_selected, epoch=0, generator=seeded(seed))
    after = sample(plain + constant, num_selected, epoch=0, generator=seeded(seed))
    assert before.tolist() == after.tolist()


@law
@given(
    scores=st.lists(st.integers(1, 50), min_size=2, max_size=20),
    exponent=st.integers(-3, 3),
    seed=seeds,
    sampler=st.sampled_from(["top_k", "power", "rank", "exponential_rank"]),
)
def test_a_factor_on_all_positive_scores_changes_no_pick(scores, exponent, seed, sampler):
    """Holds for every sampler but ``softmax``, whose temperature is in units of the score."""
    sample = make_sampler(sampler)
    plain = torch.tensor(scores, dtype=torch.float64)
    before = sample(plain, len(scores) // 2, epoch=0, generator=seeded(seed))
    after = sample(plain * 2.0**exponent, len(scores) // 2, epoch=0, generator=seeded(seed))
    assert before.tolist() == after.tolist()


@law
@given(scores=st.lists(st.floats(-10, 10), min_size=1, max_size=20), data=st.data())
def test_top_k_is_a_stable_sort(scores, data):
    num_selected = data.draw(st.integers(1, len(scores)))
    expected = sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:num_selected]
    positions = functional.top_k(torch.tensor(scores, dtype=torch.float64), num_selected)
    assert positions.tolist() == expected


@law
@given(seed=seeds, size=st.integers(1, 20), sampler=st.sampled_from(sorted(SAMPLERS)))
def test_selecting_everything_is_a_permutation(seed, size, sampler):
    scores = torch.randn(size, generator=seeded(seed), dtype=torch.float64)
    positions = make_sampler(sampler)(scores, size, epoch=0, generator=seeded(seed))
    assert sorted(positions.tolist()) == list(range(size))


NUM_DRAWS = 6000


@pytest.fixture(scope="module")
def draws():
    """Pairs drawn without replacement, and the probabilities they are drawn with."""
    scores = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5], dtype=torch.float64)
    generator = seeded(2024)
    pairs = [functional.gumbel_top_k(scores, 2, generator=generator).tolist() for _ in range(NUM_DRAWS)]
    return pairs, torch.softmax(scores, dim=0).tolist()


def within_binomial_error(num_hits, probability, num_draws):
    """Within 4.5 standard deviations: one failure in about 150,000 for a right sampler and a new seed."""
    return abs(num_hits - num_draws * probability) <= 4.5 * math.sqrt(num_draws * probability * (1 - probability))


@pytest.mark.parametrize("first", range(5))
def test_gumbel_top_k_draws_first_in_proportion_to_softmax(first, draws):
    pairs, probabilities = draws
    num_hits = sum(pair[0] == first for pair in pairs)
    assert within_binomial_error(num_hits, probabilities[first], NUM_DRAWS)


@pytest.mark.parametrize("first", range(5))
def test_gumbel_top_k_draws_second_in_proportion_among_those_left(first, draws):
    pairs, probabilities = draws
    seconds = [pair[1] for pair in pairs if pair[0] == first]
    for second in range(5):
        probability = 0.0 if second == first else probabilities[second] / (1 - probabilities[first])
        assert within_binomial_error(seconds.count(second), probability, len(seconds))


# REDUCR


def step_of(selector, model_loss, table, holdout_loss, num_selected):
    selector.set_group_holdout_loss(holdout_loss)
    candidates = reducr.Candidates(model_loss=model_loss, group_irreducible_loss=table)
    selection = selector.select(candidates, num_selected=num_selected)
    selector.update(selection)
    return selection


@law
@given(seed=seeds, size=st.integers(2, 30), num_groups=st.integers(1, 5), clip=st.booleans())
def test_permuting_points_permutes_the_selected_set(seed, size, num_groups, clip):
    model_loss, table, holdout_loss = losses(seed, size, num_groups)
    options = {"num_groups": num_groups, "step_size": 0.1, "clip": clip}
    plain = reducr.make_selector("reducr", **options)
    permuted = reducr.make_selector("reducr", **options)
    order = torch.randperm(size, generator=seeded(seed))
    one = step_of(plain, model_loss, table, holdout_loss, size // 2)
    assume(len(set(one.scores.tolist())) == size)
    other = step_of(permuted, model_loss[order], table[order], holdout_loss, size // 2)
    assert order[other.positions].tolist() == one.positions.tolist()
    torch.testing.assert_close(permuted.cumulative_payoff, plain.cumulative_payoff, rtol=0, atol=1e-10)


@law
@given(seed=seeds, num_groups=st.integers(2, 6), clip=st.booleans(), steps=st.integers(1, 4))
def test_permuting_groups_permutes_weights_and_payoff_and_leaves_picks(seed, num_groups, clip, steps):
    options = {"num_groups": num_groups, "step_size": 0.2, "clip": clip}
    plain, permuted = reducr.make_selector("reducr", **options), reducr.make_selector("reducr", **options)
    order = torch.randperm(num_groups, generator=seeded(seed))
    for step in range(steps):
        model_loss, table, holdout_loss = losses(seed + step, 20, num_groups)
        one = step_of(plain, model_loss, table, holdout_loss, 6)
        other = step_of(permuted, model_loss, table[:, order], holdout_loss[order], 6)
        assert other.positions.tolist() == one.positions.tolist()
        torch.testing.assert_close(other.payoff, one.payoff[order], rtol=0, atol=1e-10)
    torch.testing.assert_close(permuted.group_weights, plain.group_weights[order], rtol=0, atol=1e-10)


@law
@given(seed=seeds, size=st.integers(1, 30), data=st.data())
def test_reducr_with_one_group_unclipped_picks_what_rho_loss_picks(seed, size, data):
    num_selected = data.draw(st.integers(1, size))
    model_loss, table, holdout_loss = losses(seed, size, 1)
    one_group = reducr.make_selector("reducr", num_groups=1, clip=False)
    rho_loss = reducr.make_selector("rho_loss", num_groups=1)
    candidates = reducr.Candidates(model_loss=model_loss, irreducible_loss=table[:, 0], group_irreducible_loss=table)
    one_group.set_group_holdout_loss(holdout_loss)
    assert (
        one_group.select(candidates, num_selected=num_selected).positions.tolist()
        == rho_loss.select(candidates, num_selected=num_selected).positions.tolist()
    )


@law
@given(seed=seeds, steps=st.integers(1, 5))
def test_reducr_with_step_size_zero_keeps_weights_uniform_while_payoff_grows(seed, steps):
    selector = reducr.make_selector("reducr", num_groups=4, step_size=0.0)
    for step in range(steps):
        step_of(selector, *losses(seed + step, 12, 4), 3)
    assert selector.group_weights.tolist() == [0.25] * 4
    assert float(selector.cumulative_payoff.abs().max()) > 0


@law
@given(seed=seeds)
def test_reducr_and_fixed_weights_agree_where_the_weights_do(seed):
    model_loss, table, holdout_loss = losses(seed, 20, 3)
    payoff = torch.randn(3, generator=seeded(seed)).tolist()
    moving = reducr.make_selector("reducr", num_groups=3, step_size=1.0, initial_payoff=payoff)
    fixed = reducr.make_selector("fixed_weights", num_groups=3, group_weights=moving.group_weights)
    one = step_of(moving, model_loss, table, holdout_loss, 5)
    other = step_of(fixed, model_loss, table, holdout_loss, 5)
    assert one.positions.tolist() == other.positions.tolist()
    torch.testing.assert_close(one.scores, other.scores, rtol=0, atol=1e-12)


# scores


@law
@given(seed=seeds, num_classes=st.integers(2, 8), scale=st.floats(0.1, 300.0))
def test_scores_stay_within_their_bounds(seed, num_classes, scale):
    samples = random_logits(seed, 3, 10, num_classes, scale=scale)
    targets = torch.randint(0, num_classes, (10,), generator=seeded(seed))
    norm = functional.gradient_norm(samples[0], targets)
    assert float(norm.min()) >= 0
    assert float(norm.max()) <= math.sqrt(2) + 1e-12
    predictive = functional.predictive_entropy(samples)
    assert float(predictive.min()) >= 0
    assert float(predictive.max()) <= math.log(num_classes) + 1e-12
    assert float(functional.mutual_information(samples).min()) >= -1e-12


# adjusted irreducible losses


@law
@given(seed=seeds, num_classes=st.integers(2, 8), scale=st.floats(0.1, 300.0))
def test_gradient_weight_one_is_plain_cross_entropy_in_every_column(seed, num_classes, scale):
    logits = random_logits(seed, 10, num_classes, scale=scale)
    targets = torch.randint(0, num_classes, (10,), generator=seeded(seed))
    plain = functional.per_example_cross_entropy(logits, targets).unsqueeze(1).expand(-1, num_classes)
    adjusted = functional.adjusted_irreducible_loss(logits, targets, gradient_weight=1.0)
    torch.testing.assert_close(adjusted, plain, rtol=1e-12, atol=1e-12)
    joint = functional.adjusted_joint_irreducible_loss(
        logits.unsqueeze(2).expand(-1, -1, 3), targets, gradient_weight=1.0
    )
    torch.testing.assert_close(joint, plain[:, :1].expand(-1, 3), rtol=1e-10, atol=1e-10)


@law
@given(seed=seeds, gradient_weight=gradient_weights, num_classes=st.integers(2, 8), scale=st.floats(0.1, 300))
def test_own_class_loss_is_at_most_the_plain_one_and_the_others_at_least(seed, gradient_weight, num_classes, scale):
    logits = random_logits(seed, 10, num_classes, scale=scale)
    targets = torch.randint(0, num_classes, (10,), generator=seeded(seed))
    plain = functional.per_example_cross_entropy(logits, targets).unsqueeze(1)
    adjusted = functional.adjusted_irreducible_loss(logits, targets, gradient_weight=gradient_weight)
    is_own = torch.nn.functional.one_hot(targets, num_classes).bool()
    rounding = 1e-12 * (1 + plain.abs())
    assert bool((adjusted <= plain + rounding)[is_own].all())
    assert bool((adjusted >= plain - rounding)[~is_own].all())


@law
@given(seed=seeds, gradient_weight=gradient_weights, shift=st.floats(-100, 100))
def test_a_constant_added_to_the_logits_changes_no_adjusted_loss(seed, gradient_weight, shift):
    logits = random_logits(seed, 10, 5)
    targets = torch.randint(0, 5, (10,), generator=seeded(seed))
    torch.testing.assert_close(
        functional.adjusted_irreducible_loss(logits + shift, targets, gradient_weight=gradient_weight),
        functional.adjusted_irreducible_loss(logits, targets, gradient_weight=gradient_weight),
        rtol=0,
        atol=1e-9,
    )


@law
@given(seed=seeds, scale=st.floats(1e3, 1e30), gradient_weight=gradient_weights)
def test_extreme_logits_give_finite_adjusted_losses(seed, scale, gradient_weight):
    logits = random_logits(seed, 10, 5, scale=scale)
    targets = torch.randint(0, 5, (10,), generator=seeded(seed))
    groups = torch.tensor([0, 1, 1, 0, 2])
    for group_of_target in (None, groups):
        adjusted = functional.adjusted_irreducible_loss(
            logits, targets, gradient_weight=gradient_weight, group_of_target=group_of_target
        )
        assert bool(torch.isfinite(adjusted).all())


# holdout loss


@law
@given(
    points=st.lists(st.tuples(st.floats(0, 10), st.integers(0, 2)), min_size=1, max_size=30),
    cut=st.integers(0, 30),
)
def test_group_means_do_not_depend_on_how_the_points_are_batched(points, cut):
    points = [*points, (1.0, 0), (2.0, 1), (3.0, 2)]
    whole, parts = GroupHoldoutLoss(3), GroupHoldoutLoss(3)
    loss = torch.tensor([point[0] for point in points], dtype=torch.float64)
    groups = torch.tensor([point[1] for point in points])
    whole.update(loss, groups)
    parts.update(loss[:cut], groups[:cut])
    parts.update(loss[cut:], groups[cut:])
    torch.testing.assert_close(parts.compute(), whole.compute(), rtol=0, atol=1e-12)


# data


@law
@given(targets=st.lists(st.integers(0, 4), min_size=10, max_size=80), seed=seeds, data=st.data())
def test_a_stratified_split_is_disjoint_complete_and_keeps_every_class(targets, seed, data):
    targets = torch.tensor(targets)
    classes, counts = torch.unique(targets, return_counts=True)
    size = data.draw(st.integers(len(classes), len(targets) - 1))
    drawn, rest = stratified_split(targets, size=size, generator=seeded(seed))
    assert len(drawn) == size
    assert sorted(drawn.tolist() + rest.tolist()) == list(range(len(targets)))
    for target, count in zip(classes.tolist(), counts.tolist(), strict=True):
        num_drawn = int((targets[drawn] == target).sum())
        assert 1 <= num_drawn <= count
        share = count * size / len(targets)
        # every class is lifted to one point at the cost of the others, at most one each
        assert num_drawn == 1 or abs(num_drawn - share) < 1 + len(classes)


@law
@given(
    targets=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    fraction=st.floats(0, 1),
    num_classes=st.integers(5, 8),
    seed=seeds,
)
def test_label_noise_flips_exactly_the_wanted_number_never_to_the_own_class(targets, fraction, num_classes, seed):
    clean = torch.tensor(targets)
    noisy, is_corrupted = UniformNoise(fraction).noisy(clean, num_classes=num_classes, generator=seeded(seed))
    assert int(is_corrupted.sum()) == round(fraction * len(targets))
    assert torch.equal(noisy != clean, is_corrupted)
    assert int(noisy.min()) >= 0
    assert int(noisy.max()) < num_classes
    assert clean.tolist() == targets


@law
@given(
    targets=st.lists(st.integers(0, 3), min_size=4, max_size=80),
    ratio=st.floats(1, 100),
    order=st.permutations(range(4)),
    seed=seeds,
)
def test_a_long_tail_keeps_the_announced_share_of_every_class(targets, ratio, order, seed):
    targets = torch.tensor(targets)
    kept = LongTail(ratio, order).positions(targets, num_classes=4, generator=seeded(seed))
    assert kept.tolist() == sorted(set(kept.tolist()))
    for place, target in enumerate(order):
        count = int((targets == target).sum())
        expected = min(count, max(1, round(ratio ** (-place / 3) * count)))
        assert int((targets[kept] == target).sum()) == expected


@law
@given(fraction=st.floats(1e-6, 1), num_candidates=st.integers(1, 2000))
def test_num_selected_is_the_fraction_rounded_down_but_at_least_one(fraction, num_candidates):
    num_selected = num_selected_of(fraction, num_candidates)
    assert 1 <= num_selected <= num_candidates
    assert num_selected == 1 or num_selected <= fraction * num_candidates + 1e-6
    assert num_selected > fraction * num_candidates - 1
