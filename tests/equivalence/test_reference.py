"""The library against the slow references of tests/reference, on random float64 inputs."""

import pytest
import torch

import reducr
from reducr import functional
from reference import scores as slow
from reference.reducr_step import ReferenceOptions, reducr_step

NUM_STEPS, NUM_CANDIDATES, NUM_SELECTED, NUM_GROUPS = 50, 40, 7, 5

OPTION_SETS = {
    "published": {"step_size": 1e-2},
    "large_step_size": {"step_size": 3.0},
    "step_size_zero": {"step_size": 0.0},
    "unclipped": {"step_size": 1e-2, "clip": False},
    "per_step": {"step_size": 1e-2, "holdout_weighting": "per_step"},
    "per_step_unclipped": {"step_size": 1e-2, "holdout_weighting": "per_step", "clip": False},
    "no_holdout": {"step_size": 1e-2, "use_holdout": False},
    "no_irreducible": {"step_size": 1e-2, "use_irreducible": False},
    "no_model_loss": {"step_size": 1e-2, "use_model_loss": False},
    "no_model_loss_unclipped": {"step_size": 1e-2, "use_model_loss": False, "clip": False},
    "only_model_loss": {"step_size": 1e-2, "use_irreducible": False, "use_holdout": False, "clip": False},
    "initial_payoff": {"step_size": 1e-1, "initial_payoff": [3.0, -2.0, 0.0, 1.5, -0.25]},
    "payoff_decay": {"step_size": 1e-1, "payoff_decay": 0.9, "initial_payoff": [3.0, -2.0, 0.0, 1.5, -0.25]},
}


def random_step(generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Model loss, group-irreducible loss, group-holdout loss: wide enough to clip some, not all."""

    def draw(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64).square() * 4

    return draw(NUM_CANDIDATES), draw(NUM_CANDIDATES, NUM_GROUPS), draw(NUM_GROUPS)


@pytest.mark.parametrize("option_set", OPTION_SETS)
def test_reducr_takes_the_steps_of_the_reference(option_set):
    options = dict(OPTION_SETS[option_set])
    selector = reducr.make_selector("reducr", num_groups=NUM_GROUPS, **options)
    cumulative_payoff = options.pop("initial_payoff", [0.0] * NUM_GROUPS)
    generator = torch.Generator().manual_seed(7)
    for step in range(NUM_STEPS):
        model_loss, group_irreducible_loss, group_holdout_loss = random_step(generator)
        expected = reducr_step(
            model_loss.tolist(),
            group_irreducible_loss.tolist(),
            group_holdout_loss.tolist(),
            cumulative_payoff,
            num_selected=NUM_SELECTED,
            options=ReferenceOptions(**options),
        )
        cumulative_payoff = expected.cumulative_payoff

        selector.set_group_holdout_loss(group_holdout_loss)
        candidates = reducr.Candidates(model_loss=model_loss, group_irreducible_loss=group_irreducible_loss)
        assert selector.group_weights.tolist() == pytest.approx(expected.weights_used, abs=1e-12), step
        selection = selector.select(candidates, num_selected=NUM_SELECTED)
        assert selection.positions.tolist() == expected.picks, step
        assert selection.scores.tolist() == pytest.approx(expected.scores, abs=1e-12), step
        assert selection.payoff.tolist() == pytest.approx(expected.payoff, abs=1e-12), step
        selector.update(selection)
        assert selector.cumulative_payoff.tolist() == pytest.approx(cumulative_payoff, abs=1e-10), step
        assert selector.group_weights.tolist() == pytest.approx(expected.weights_next, abs=1e-12), step


def test_the_random_steps_are_ones_where_weights_matter():
    """Otherwise the agreement above would hold for wrong weights too."""
    weighted = reducr.make_selector("reducr", num_groups=NUM_GROUPS, step_size=3.0)
    uniform = reducr.make_selector("reducr", num_groups=NUM_GROUPS, step_size=0.0)
    generator = torch.Generator().manual_seed(7)
    num_different = 0
    for _ in range(NUM_STEPS):
        model_loss, group_irreducible_loss, group_holdout_loss = random_step(generator)
        candidates = reducr.Candidates(model_loss=model_loss, group_irreducible_loss=group_irreducible_loss)
        picks = []
        for selector in (weighted, uniform):
            selector.set_group_holdout_loss(group_holdout_loss)
            selection = selector.select(candidates, num_selected=NUM_SELECTED)
            selector.update(selection)
            picks.append(set(selection.positions.tolist()))
        num_different += picks[0] != picks[1]
    assert num_different >= 40


@pytest.fixture
def logits():
    """(B, C)."""
    return torch.randn(30, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 3


@pytest.fixture
def samples():
    """(S, B, C)."""
    return torch.randn(4, 30, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) * 3


@pytest.fixture
def targets():
    return torch.randint(0, 6, (30,), generator=torch.Generator().manual_seed(3))


def test_point_cross_entropy(logits, targets):
    expected = [slow.cross_entropy(*point) for point in zip(logits.tolist(), targets.tolist(), strict=True)]
    assert functional.per_example_cross_entropy(logits, targets).tolist() == pytest.approx(expected, abs=1e-12)


def test_gradient_norm(logits, targets):
    expected = [slow.gradient_norm(*point) for point in zip(logits.tolist(), targets.tolist(), strict=True)]
    assert functional.gradient_norm(logits, targets).tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("name", ["predictive_entropy", "conditional_entropy", "mutual_information"])
def test_entropies_over_dropout_samples(name, samples):
    expected = [getattr(slow, name)(point) for point in samples.transpose(0, 1).tolist()]
    assert getattr(functional, name)(samples).tolist() == pytest.approx(expected, abs=1e-12)


def test_entropies_of_one_pass(logits):
    expected = [slow.entropy(slow.softmax(point)) for point in logits.tolist()]
    assert functional.predictive_entropy(logits).tolist() == pytest.approx(expected, abs=1e-12)
    assert functional.conditional_entropy(logits).tolist() == pytest.approx(expected, abs=1e-12)
    assert functional.mutual_information(logits).tolist() == pytest.approx([0.0] * 30, abs=1e-12)


def test_max_min_payoff():
    model_loss, table, holdout = random_step(torch.Generator().manual_seed(4))
    expected = [
        slow.max_min_payoff(loss, row, holdout.tolist())
        for loss, row in zip(model_loss.tolist(), table.tolist(), strict=True)
    ]
    scores = functional.max_min_payoff(functional.excess_loss(model_loss, table), holdout)
    assert scores.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("name", "sign"), [("loss_minus_conditional_entropy", -1), ("loss_plus_conditional_entropy", 1)]
)
def test_loss_and_conditional_entropy(name, sign, samples):
    model_loss = torch.rand(30, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    selector = reducr.make_selector(name, num_groups=6)
    selection = selector.select(reducr.Candidates(model_loss=model_loss, logits=samples), num_selected=4)
    expected = [
        loss + sign * slow.conditional_entropy(point)
        for loss, point in zip(model_loss.tolist(), samples.transpose(0, 1).tolist(), strict=True)
    ]
    assert selection.scores.tolist() == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("gradient_weight", [1.0, 1.5, 10.0, 1e4])
@pytest.mark.parametrize(
    "group_of_target",
    [None, [0, 1, 2, 3, 4, 5], [0, 0, 1, 1, 2, 2], [2, 0, 1, 0, 2, 0], [0, 0, 0, 0, 0, 0]],
    ids=["classes", "classes_listed", "pairs", "uneven", "one_group"],
)
def test_adjusted_irreducible_loss(gradient_weight, group_of_target, logits, targets):
    groups = list(range(6)) if group_of_target is None else group_of_target
    expected = [
        slow.adjusted_losses(
            point, target, gradient_weight=gradient_weight, group_of_target=groups, num_groups=max(groups) + 1
        )
        for point, target in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    losses = functional.adjusted_irreducible_loss(
        logits,
        targets,
        gradient_weight=gradient_weight,
        group_of_target=None if group_of_target is None else torch.tensor(group_of_target),
    )
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("gradient_weight", [1.0, 1.5, 10.0, 1e4])
def test_adjusted_joint_irreducible_loss(gradient_weight):
    generator = torch.Generator().manual_seed(6)
    logits = torch.randn(25, 4, 3, generator=generator, dtype=torch.float64) * 3
    targets = torch.randint(0, 4, (25,), generator=generator)
    expected = [
        slow.adjusted_joint_losses(point, target, gradient_weight=gradient_weight)
        for point, target in zip(logits.tolist(), targets.tolist(), strict=True)
    ]
    losses = functional.adjusted_joint_irreducible_loss(logits, targets, gradient_weight=gradient_weight)
    torch.testing.assert_close(losses, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-9)


def test_adjusted_joint_loss_of_groups_that_are_the_targets_is_the_adjusted_loss(logits, targets):
    impossible = torch.full((30, 6, 6), -torch.inf, dtype=torch.float64)
    joint = impossible.diagonal_scatter(logits, dim1=1, dim2=2)
    torch.testing.assert_close(
        functional.adjusted_joint_irreducible_loss(joint, targets, gradient_weight=10.0),
        functional.adjusted_irreducible_loss(logits, targets, gradient_weight=10.0),
        rtol=0,
        atol=1e-12,
    )
