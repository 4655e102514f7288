"""How much to believe labels, and how strongly to filter by it."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, TensorDataset

import reducr
from reducr.training.filters import FILTERS
from reducr.training.probe import Part, fit_probe, group_losses, last_layer_inputs, paired_gain

NUM_CLASSES = 3


def mixture(num, generator):
    """Overlapping clouds of points, one for each class."""
    targets = torch.arange(num) % NUM_CLASSES
    centres = 1.2 * torch.eye(NUM_CLASSES, 6)
    return centres[targets] + torch.randn(num, 6, generator=generator), targets


def flipped(targets, share, generator):
    """Uniform label noise."""
    is_wrong = torch.rand(len(targets), generator=generator) < share
    return torch.where(is_wrong, (targets + 1 + torch.randint(0, 2, targets.shape, generator=generator)) % 3, targets)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


class Problem:
    """Noisy training data, a reference model fitted on clean data, and held-back clean data."""

    def __init__(self, share, *, seed=0, num=1500):
        generator = torch.Generator().manual_seed(seed)
        x, self.true = mixture(num, generator)
        self.noisy = flipped(self.true, share, generator)
        self.data = TensorDataset(x, self.noisy)
        clean, held_back = mixture(300, generator), mixture(300, generator)
        self.held_back = DataLoader(TensorDataset(*held_back), batch_size=100)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, NUM_CLASSES))
        self.reference = reducr.fit_reference(
            model, DataLoader(TensorDataset(*clean), batch_size=50), num_epochs=15, num_folds=0, progress=False
        )

    @property
    def is_wrong(self):
        return self.noisy != self.true


@cache
def problem_with(share, *, seed=0, num=1500):
    """Problems are made once; tests do not change them."""
    return Problem(share, seed=seed, num=num)


@pytest.mark.parametrize("filter_", FILTERS.values(), ids=FILTERS)
def test_weights_are_those_of_a_loop_over_examples(filter_, generator):
    probabilities = torch.randn(40, NUM_CLASSES, generator=generator).softmax(dim=1)
    targets = torch.randint(0, NUM_CLASSES, (40,), generator=generator)
    expected = []
    for k in range(NUM_CLASSES):
        rows = [i for i in range(40) if targets[i] == k]
        num = int(filter_.dropped * sum(int(probabilities[i].argmax()) != k for i in rows))
        dropped = sorted(rows, key=lambda i: float(probabilities[i, k]))[: min(num, int(0.9 * len(rows)))]
        expected += [(i, 0.0 if i in dropped else float(probabilities[i, k]) ** filter_.power) for i in rows]
    values = torch.tensor([value for _, value in sorted(expected)], dtype=torch.float64)
    torch.testing.assert_close(filter_.weights(probabilities, targets), values, rtol=1e-6, atol=1e-9)


def test_a_class_that_the_model_never_predicts_keeps_a_tenth():
    probabilities = torch.tensor([[0.9, 0.1]]).repeat(50, 1)
    weights = FILTERS["drop 1.5"].weights(probabilities, torch.tensor([1]).repeat(50))
    assert int((weights > 0).sum()) == 5


def test_wrong_labels_get_small_weights_where_there_are_many():
    problem = problem_with(0.4)
    belief = reducr.Belief(problem.data, problem.held_back).fit(problem.reference)
    assert belief.filter != "none"
    assert belief.losses[belief.filter] == min(belief.losses.values()) < belief.losses["none"] - 0.02
    share = float(belief.weights[problem.is_wrong].sum() / belief.weights.sum())
    assert share < 0.5 * float(problem.is_wrong.double().mean())
    assert str(belief).startswith(f"Filter {belief.filter!r}: probe loss 0.")
    suspects = belief.suspects(100)
    assert float(problem.is_wrong[suspects].double().mean()) > 0.9
    assert (belief.probabilities[suspects].diff() >= 0).all()


def test_few_held_back_examples_cannot_tell():
    problem = problem_with(0.0)
    inputs, targets = (column[:15] for column in problem.held_back.dataset.tensors)
    with pytest.warns(
        RuntimeWarning, match=r"A group of the training data has 5 held-back examples, too few .* 'belief\^0.5'"
    ):
        belief = reducr.Belief(problem.data, [(inputs, targets)]).fit(problem.reference)
    assert belief.filter == "belief^0.5"
    torch.testing.assert_close(belief.weights, belief.probabilities**0.5, rtol=1e-5, atol=1e-3)


@pytest.mark.parametrize("seed", [0, 1, 3])
def test_clean_labels_are_left_alone(seed):
    problem = problem_with(0.0, seed=seed)
    belief = reducr.Belief(problem.data, problem.held_back).fit(problem.reference)
    mean = float(belief.weights.mean() / belief.weights.max())
    assert belief.filter in ("none", "belief^0.25")
    assert mean > 0.8


def test_a_belief_begins_with_equal_weights_and_can_be_fitted_again():
    problem = problem_with(0.4)
    belief = reducr.Belief(problem.data, problem.held_back)
    assert (belief.filter, str(belief)) == ("none", "No filter: no model has been asked yet.")
    assert torch.equal(belief.weights, torch.ones(1500, dtype=torch.float64))
    index = torch.tensor([3, 0])
    batch = reducr.Batch(index, None, problem.noisy[index], problem.noisy[index])
    assert torch.equal(belief.lookup(batch), torch.zeros(2))
    with pytest.raises(RuntimeError, match="No model has been asked yet"):
        belief.suspects(3)
    first = belief.fit(problem.reference).weights
    torch.testing.assert_close(belief.lookup(batch), -first[index].log().float())
    other = copy.deepcopy(problem.reference)
    with torch.no_grad():
        other[2].weight.mul_(3)
    assert not torch.allclose(belief.fit(other).weights, first)
    torch.testing.assert_close(belief.fit(problem.reference).weights, first)


@pytest.mark.parametrize("ids", [None, "index"])
def test_a_state_restores_the_weights(ids):
    problem = problem_with(0.4, num=300)
    index = torch.arange(300).flip(0) + 7
    data = problem.data
    spec = None
    if ids is not None:
        data = TensorDataset(*problem.data.tensors, index)
        spec = reducr.BatchSpec(input=0, target=1, index=2)
    belief = reducr.Belief(data, problem.held_back).fit(problem.reference) if ids is None else None
    if belief is None:
        held_back = DataLoader(TensorDataset(*problem.held_back.dataset.tensors, torch.arange(300)), batch_size=100)
        belief = reducr.Belief(data, held_back, spec=spec).fit(problem.reference)
    other = reducr.Belief(data, problem.held_back, spec=spec)
    other.load_state_dict(belief.state_dict())
    asked = torch.tensor([20, 11])
    positions = asked if ids is None else 306 - asked
    batch = reducr.Batch(asked, None, problem.noisy[positions], problem.noisy[positions])
    assert torch.equal(other.lookup(batch), belief.lookup(batch))
    torch.testing.assert_close(belief.lookup(batch), -belief.weights[positions].log().float().clamp(max=1000))
    assert (other.filter, other.losses, str(other)) == (belief.filter, belief.losses, str(belief))
    assert torch.equal(other.suspects(20), belief.suspects(20))
    shuffled = problem_with(0.4, seed=1, num=300)
    fitted = reducr.Belief(shuffled.data, shuffled.held_back).fit(shuffled.reference)
    with pytest.raises(ValueError, match="of 300 labels differ between this belief's training data and the state"):
        fitted.load_state_dict(belief.state_dict())
    with pytest.raises(ValueError, match=r"This belief has 200 training examples; the state has .* shape \(300,\)"):
        reducr.Belief(problem_with(0.4, num=200).data, []).load_state_dict(belief.state_dict())
    with pytest.raises(
        ValueError,
        match="the state of a belief must hold filter, index, is_suspect, losses, probabilities, targets, weights",
    ):
        other.load_state_dict({})


def test_nothing_of_the_model_or_the_random_state_changes():
    problem = problem_with(0.3)
    reference = copy.deepcopy(problem.reference).train()
    before = copy.deepcopy(reference.state_dict())
    torch.manual_seed(3)
    loader = DataLoader(problem.data, batch_size=7, shuffle=True)
    first = reducr.Belief(loader, problem.held_back).fit(reference)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.rand(1))
    assert reference.training
    assert all(parameter.grad is None for parameter in reference.parameters())
    assert all(torch.equal(value, before[name]) for name, value in reference.state_dict().items())
    second = reducr.Belief(problem.data, problem.held_back).fit(reference)
    torch.testing.assert_close(first.weights, second.weights)
    assert first.filter == second.filter


def test_a_loop_and_a_batch_sampler_draw_fewer_wrong_labels():
    problem = problem_with(0.4)
    belief = reducr.Belief(problem.data, problem.held_back).fit(problem.reference)
    model = nn.Linear(6, NUM_CLASSES)
    data = reducr.indexed(problem.data)
    options = {"holdout": problem.held_back, "irreducible_temperature": 1.0, "refresh_steps": 5, "fraction": 0.1}
    loader = reducr.SelectiveLoader(
        DataLoader(data, batch_size=100, shuffle=True), model, "priority_sampling", belief, **options
    )
    num_drawn = 0
    for x, y in loader:
        cross_entropy(model(x), y).backward()
        num_drawn += len(y)
    assert num_drawn == 150
    sampler = reducr.SelectiveBatchSampler(problem.data, model, "priority_sampling", belief, batch_size=10, **options)
    chosen = torch.tensor([position for batch in sampler for position in batch])
    assert float(problem.is_wrong[chosen].double().mean()) < 0.6 * float(problem.is_wrong.double().mean())


@pytest.mark.parametrize(
    ("rule", "options", "message"),
    [
        ("rho_loss", {}, "'rho_loss' does not draw by belief. Use the rule 'priority_sampling'"),
        ("reducr", {}, "'reducr' does not draw by belief"),
        ("priority_sampling", {}, "irreducible_temperature=2.0 of 'priority_sampling' would change it. Pass"),
    ],
)
def test_rules_that_would_not_draw_by_it_are_refused(rule, options, message):
    problem = problem_with(0.3, num=300)
    belief = reducr.Belief(problem.data, problem.held_back).fit(problem.reference)
    loader = DataLoader(reducr.indexed(problem.data), batch_size=100)
    with pytest.raises(ValueError, match=message):
        reducr.SelectiveLoader(loader, nn.Linear(6, 3), rule, belief, holdout=problem.held_back, **options)


def test_what_is_no_classification_is_refused():
    problem = problem_with(0.3, num=90)
    floats = TensorDataset(problem.data.tensors[0], torch.rand(90))
    with pytest.raises(ValueError, match="A belief is in a class label"):
        reducr.Belief(floats, problem.held_back).fit(problem.reference)
    with pytest.raises(ValueError, match="this model returns one logit"):
        reducr.Belief(problem.data, problem.held_back).fit(nn.Linear(6, 1))
    with pytest.raises(ValueError, match=r"logits of shape \(B, C\) with B = 90; got torch.float32 \(90, 3, 1\)"):
        reducr.Belief(problem.data, problem.held_back).fit(nn.Sequential(nn.Linear(6, 3), nn.Unflatten(1, (3, 1))))
    with pytest.raises(ValueError, match="no held-back examples to choose a filter by"):
        reducr.Belief(problem.data, []).fit(problem.reference)
    with pytest.raises(ValueError, match=r"Targets must be in \[0, 2\).*got 0 to 2"):
        reducr.Belief(problem.data, problem.held_back).fit(nn.Linear(6, 2))
    with pytest.raises(ValueError, match="num_probed must be"):
        reducr.Belief(problem.data, problem.held_back, num_probed=0)


def test_logits_that_are_not_finite_are_refused():
    problem = problem_with(0.3, num=90)
    inputs = problem.data.tensors[0].clone()
    inputs[[3, 50]] = torch.nan
    belief = reducr.Belief(TensorDataset(inputs, problem.noisy), problem.held_back)
    with pytest.raises(ValueError, match="returned NaN or infinite logits for 2 of 90 examples"):
        belief.fit(problem.reference)
    assert (belief.filter, float(belief.weights.min())) == ("none", 1.0)


def test_a_group_that_is_not_held_back_cannot_be_judged():
    problem = problem_with(0.4)
    inputs, targets = problem.held_back.dataset.tensors
    held_back = [(inputs[targets < 2], targets[targets < 2])]
    with pytest.warns(RuntimeWarning, match="A group of the training data has 0 held-back examples"):
        assert reducr.Belief(problem.data, held_back).fit(problem.reference).filter == "belief^0.5"


@pytest.mark.parametrize("group", [lambda label: label * 10**8, lambda label: label - 5])
def test_groups_may_have_any_numbers(group):
    problem = problem_with(0.4)
    spec = reducr.BatchSpec(input=0, target=1, group=lambda batch: group(batch[1]))
    plain = reducr.Belief(problem.data, problem.held_back).fit(problem.reference)
    belief = reducr.Belief(problem.data, problem.held_back, spec=spec).fit(problem.reference)
    assert (belief.filter, belief.losses) == (plain.filter, pytest.approx(plain.losses))


def test_what_is_around_a_model_or_masked_in_it_changes_nothing():
    problem = problem_with(0.4)
    plain = reducr.Belief(problem.data, problem.held_back).fit(problem.reference)

    class Masked(nn.Module):
        def __init__(self, model):
            super().__init__()
            self.model, self.unused = model, nn.Linear(6, 3)

        def forward(self, x):
            logits = self.model(x)
            self.unused(x)
            return torch.cat([logits, torch.full((len(x), 1), -1e9)], dim=1)

    compiled = torch.compile(problem.reference, backend="eager")
    assert reducr.Belief(problem.data, problem.held_back).fit(compiled).losses == pytest.approx(plain.losses, rel=1e-4)
    masked = reducr.Belief(problem.data, problem.held_back).fit(Masked(problem.reference))
    assert masked.filter != "none"
    with torch.inference_mode():
        again = reducr.Belief(problem.data, problem.held_back).fit(problem.reference)
    assert again.losses == pytest.approx(plain.losses, rel=1e-4)
    with pytest.raises(TypeError, match=r"`model` must be a torch\.nn\.Module; got NoneType"):
        plain.fit(None)


def test_labels_that_are_as_likely_as_others_are_no_suspects():
    problem = problem_with(0.4)
    constant = nn.Linear(6, 3)
    nn.init.zeros_(constant.weight), nn.init.zeros_(constant.bias)
    assert len(reducr.Belief(problem.data, problem.held_back).fit(constant).suspects(10)) == 0


def test_held_back_batches_that_can_be_read_once_only_are_refused():
    problem = problem_with(0.3, num=90)
    with pytest.raises(ValueError, match=r"a generator can be iterated only once\. Pass a loader"):
        reducr.Belief(problem.data, (batch for batch in problem.held_back))


def test_the_probe_is_logistic_regression(generator):
    features, targets = mixture(400, generator)
    weights = torch.rand(400, generator=generator).double()
    part = Part(features, targets, targets)
    part, _ = part.standardised(part)
    head = fit_probe(part, weights, num_classes=NUM_CLASSES)
    weights = (weights / weights.sum()).numpy()
    slow = LogisticRegression(C=1 / 2e-3, tol=1e-8, max_iter=1000)
    slow.fit(part.features.numpy(), targets.numpy(), sample_weight=weights)
    expected = slow.predict_proba(part.features.numpy())
    actual = (part.features @ head[:-1] + head[-1]).softmax(dim=1).numpy()
    np.testing.assert_allclose(actual, expected, atol=0.02)


def test_losses_are_means_over_groups_of_the_best_scale():
    part = Part(torch.eye(2)[[0, 0, 0, 1]], torch.tensor([0, 0, 1, 1]), torch.tensor([0, 0, 0, 1]))
    head = torch.tensor([[0.7, 0.0], [0.0, 0.7], [0.0, 0.0]])
    scaled = [
        cross_entropy(s * part.features @ head[:-1], part.targets, reduction="none")
        for s in (0.3, 0.5, 0.7, 1, 1.4, 2, 3, 5)
    ]
    expected = min(float(losses[:3].mean() + losses[3]) / 2 for losses in scaled)
    losses = group_losses(head, part)
    assert float(losses.mean) == pytest.approx(expected, rel=1e-6)
    gain, error = paired_gain(losses._replace(losses=losses.losses + torch.tensor([0.1, 0.1, 0.1, 0.1])), losses)
    assert gain == pytest.approx(0.1)
    assert error == pytest.approx(0.0, abs=0.05)


def test_the_last_layer_is_the_one_that_gives_the_logits():
    x = torch.randn(5, 6)
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    torch.testing.assert_close(last_layer_inputs(plain, lambda model: model(x)), plain[:2](x))
    not_last = nn.Sequential(nn.Linear(6, 3), nn.Softplus(), nn.Unflatten(1, (3, 1)), nn.Conv1d(3, 4, 1), nn.Flatten())
    torch.testing.assert_close(last_layer_inputs(not_last, lambda model: model(x)), not_last(x))
    assert not plain[0]._forward_hooks
