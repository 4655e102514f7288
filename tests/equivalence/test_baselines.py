"""Rules of other papers against the slow references of ``tests/reference/baselines.py``, and their purposes."""

import math

import pytest
import torch
from torch import nn

import reducr
from reducr import functional
from reducr.auxiliary import selected_loss
from reducr.batch import Candidates
from reference import baselines as slow
from reference.reducr_step import weights_of


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


# class_balanced and drop: quotas


@pytest.mark.parametrize(("groups", "num_selected"), [([0, 0, 0, 1, 1, 2], 1), ([0, 0, 0, 1, 1, 2], 3)])
def test_class_balanced_draws_with_the_probabilities_of_all_orders(groups, num_selected):
    selector = reducr.make_selector("class_balanced", num_groups=4)
    candidates, generator, num_draws = Candidates(groups=torch.tensor(groups)), seeded(1), 4000
    hits = torch.zeros(len(groups))
    for _ in range(num_draws):
        hits[selector.select(candidates, num_selected=num_selected, generator=generator).positions] += 1
    powers = [1 / groups.count(group) for group in groups]
    expected = torch.tensor(slow.inclusion_probabilities(powers, num_selected))
    error = 4.5 * (num_draws * expected * (1 - expected)).sqrt()
    assert bool(((hits - num_draws * expected).abs() <= error).all())


@pytest.mark.parametrize(
    ("holdout_loss", "num_selected"),
    [([0.1, 0.5, 1.0, 3.0], 16), ([0.1, 0.5, 1.0, 3.0], 60), ([0.0, 0.0, 1.0, 1.0], 20), ([2.0, 0.01, 0.01, 0.01], 60)],
)
def test_drop_keeps_the_densities_of_the_reference(holdout_loss, num_selected):
    """Within one example in every selection, and on average. A class that runs out leaves the rest to the others."""
    counts = [50, 20, 7, 3]
    groups = torch.repeat_interleave(torch.arange(4), torch.tensor(counts))[torch.randperm(80, generator=seeded())]
    selector = reducr.make_selector("drop", num_groups=4)
    selector.set_group_holdout_loss(torch.tensor(holdout_loss))
    error = [max(1 - math.exp(-loss), 1e-9) for loss in holdout_loss]
    densities = slow.drop_densities(counts, error, num_selected / 80)
    expected = torch.tensor([n * d for n, d in zip(counts, densities, strict=True)])
    mean_counts, hits, generator, num_draws = torch.zeros(4), torch.zeros(80), seeded(5), 400
    for _ in range(num_draws):
        positions = selector.select(Candidates(groups=groups), num_selected=num_selected, generator=generator).positions
        own = torch.bincount(groups[positions], minlength=4)
        assert float((own - expected).abs().max()) < 1 + 1e-6
        mean_counts += own / num_draws
        hits[positions] += 1
    torch.testing.assert_close(mean_counts, expected.float(), rtol=0, atol=0.15)
    probability = (mean_counts / torch.tensor(counts))[groups]  # the same for all examples of a class
    error = 4.5 * (num_draws * probability * (1 - probability)).clamp(min=0).sqrt()
    assert bool(((hits - num_draws * probability).abs() <= error + 1e-3).all())


def test_drop_is_a_uniform_draw_where_no_group_has_an_error():
    selector = reducr.make_selector("drop", num_groups=2)
    selector.set_group_holdout_loss(torch.zeros(2))
    groups = torch.tensor([0] * 30 + [1] * 10)
    for seed in range(20):
        positions = selector.select(Candidates(groups=groups), num_selected=8, generator=seeded(seed)).positions
        assert torch.bincount(groups[positions]).tolist() in ([6, 2], [5, 3], [7, 1])


# priority_sampling


@pytest.mark.parametrize(("irreducible_temperature", "num_selected"), [(1.0, 1), (2.0, 2), (0.5, 3)])
def test_examples_of_a_group_are_drawn_with_the_probabilities_of_all_orders(irreducible_temperature, num_selected):
    losses = [0.1, 0.7, 2.0, 3.0, 0.4]
    selector = reducr.make_selector("priority_sampling", num_groups=1, irreducible_temperature=irreducible_temperature)
    selector.set_group_holdout_loss(torch.ones(1))
    candidates = Candidates(irreducible_loss=torch.tensor(losses), groups=torch.zeros(5, dtype=torch.int64))
    hits, generator, num_draws = torch.zeros(5), seeded(1), 4000
    for _ in range(num_draws):
        hits[selector.select(candidates, num_selected=num_selected, generator=generator).positions] += 1
    beliefs = [math.exp(-loss / irreducible_temperature) for loss in losses]
    expected = torch.tensor(slow.inclusion_probabilities(beliefs, num_selected))
    error = 4.5 * (num_draws * expected * (1 - expected)).sqrt()
    assert bool(((hits - num_draws * expected).abs() <= error).all())


def test_priority_sampling_fills_quotas_of_weights_that_follow_the_holdout_losses():
    """Over a few steps, against the formulas on Python floats. A group that runs out leaves the rest to the others."""
    groups = torch.repeat_interleave(torch.arange(3), torch.tensor([40, 40, 4]))
    candidates = Candidates(irreducible_loss=torch.rand(84, generator=seeded(1)), groups=groups)
    selector = reducr.make_selector(
        "priority_sampling", num_groups=3, step_size=0.01, uniform_share=0.4, payoff_decay=0.9
    )
    generator, cumulative = seeded(2), [0.0, 0.0, 0.0]
    for step in range(6):
        h = [0.2, 1.0 + 0.3 * step, 0.5]
        selector.set_group_holdout_loss(torch.tensor(h, dtype=torch.float64))
        weights = weights_of(cumulative, 0.01)
        assert selector.group_weights.tolist() == pytest.approx(weights, abs=1e-12)
        selection = selector.select(candidates, num_selected=20, generator=generator)
        selected = torch.bincount(groups[selection.positions], minlength=3).tolist()
        shares = [0.6 * weight + 0.4 / 3 for weight in weights]
        counts = [40, 40, 4]
        densities = slow.drop_densities(counts, [share / n for share, n in zip(shares, counts, strict=True)], 20 / 84)
        expected = [n * density for n, density in zip(counts, densities, strict=True)]
        assert all(abs(count - quota) < 1 + 1e-6 for count, quota in zip(selected, expected, strict=True))
        selector.update(selection)
        cumulative = [0.9 * total - 20 * loss for total, loss in zip(cumulative, h, strict=True)]
    assert selector.cumulative_payoff.tolist() == pytest.approx(cumulative, rel=1e-6)
    assert max(range(3), key=selector.group_weights.tolist().__getitem__) == 1


def test_priority_sampling_avoids_mislabelled_examples():
    """A third of the labels is wrong and has a high irreducible loss: almost none of these examples is drawn."""
    is_wrong = torch.arange(90) % 3 == 0
    candidates = Candidates(
        irreducible_loss=torch.where(is_wrong, 9.0, 0.3), groups=torch.arange(90) % 10, model_loss=torch.zeros(90)
    )
    for temperature, least, most in ((1.0, 0.0, 0.02), (1e9, 0.28, 0.38)):
        selector = reducr.make_selector("priority_sampling", num_groups=10, irreducible_temperature=temperature)
        selector.set_group_holdout_loss(torch.ones(10))
        draws = [
            is_wrong[selector.select(candidates, num_selected=10, generator=seeded(seed)).positions]
            for seed in range(80)
        ]
        assert least <= float(torch.stack(draws).double().mean()) <= most


# rcap


@pytest.mark.parametrize(("largest_loss", "num_selected"), [(None, 16), (1.0, 16), (None, 60)])
def test_rcap_keeps_the_quotas_of_the_reference(largest_loss, num_selected):
    """Groups of different sizes and losses, within one example in every selection and on average. One may run out."""
    counts = [50, 20, 7, 3, 0]
    groups = torch.repeat_interleave(torch.arange(5), torch.tensor(counts))[torch.randperm(80, generator=seeded())]
    losses = torch.rand(80, generator=seeded(1)) * torch.tensor([0.3, 0.6, 4.0, 2.0, 1.0])[groups]
    selector = reducr.make_selector("rcap", num_groups=5, largest_loss=largest_loss)
    limit = math.log(5) if largest_loss is None else largest_loss
    quotas = slow.rcap_quotas(losses.tolist(), groups.tolist(), num_groups=5, largest_loss=limit)
    per_point = [quota / n if n else 0.0 for quota, n in zip(quotas, counts, strict=True)]
    densities = slow.drop_densities(counts, per_point, num_selected / 80)
    expected = torch.tensor([n * d for n, d in zip(counts, densities, strict=True)])
    mean_counts, generator, num_draws = torch.zeros(5), seeded(5), 400
    for _ in range(num_draws):
        candidates = Candidates(model_loss=losses, groups=groups)
        positions = selector.select(candidates, num_selected=num_selected, generator=generator).positions
        own = torch.bincount(groups[positions], minlength=5)
        assert float((own - expected).abs().max()) < 1 + 1e-6
        mean_counts += own / num_draws
    torch.testing.assert_close(mean_counts, expected.float(), rtol=0, atol=0.15)


@pytest.mark.parametrize(("loss_temperature", "num_selected"), [(2.0, 1), (0.5, 2), (0.3, 3)])
def test_rcap_draws_high_losses_of_a_group_with_the_probabilities_of_all_orders(loss_temperature, num_selected):
    """Losses are clipped, so the last two examples are equally likely."""
    losses = [0.1, 0.7, 0.4, 2.0, 9.0]
    selector = reducr.make_selector("rcap", num_groups=1, loss_temperature=loss_temperature, largest_loss=1.5)
    candidates = Candidates(model_loss=torch.tensor(losses), groups=torch.zeros(5, dtype=torch.int64))
    hits, generator, num_draws = torch.zeros(5), seeded(1), 4000
    for _ in range(num_draws):
        hits[selector.select(candidates, num_selected=num_selected, generator=generator).positions] += 1
    powers = [math.exp(min(loss, 1.5) / loss_temperature) for loss in losses]
    expected = torch.tensor(slow.inclusion_probabilities(powers, num_selected))
    error = 4.5 * (num_draws * expected * (1 - expected)).sqrt()
    assert bool(((hits - num_draws * expected).abs() <= error).all())


def test_rcap_quotas_follow_group_sizes_if_all_losses_are_zero():
    candidates = Candidates(model_loss=torch.zeros(100), groups=torch.tensor([0] * 64 + [1] * 36))
    selector = reducr.make_selector("rcap", num_groups=2)
    assert selector.largest_loss == pytest.approx(math.log(2))
    for seed in range(20):
        positions = selector.select(candidates, num_selected=14, generator=seeded(seed)).positions
        assert torch.bincount(candidates.groups[positions]).tolist() in ([8, 6], [7, 7], [9, 5])


# divbs


@pytest.mark.parametrize(("size", "num_classes", "num_features"), [(20, 3, 2), (20, 4, 8), (1, 2, 3), (7, 5, 1)])
@pytest.mark.parametrize("seed", range(3))
def test_divbs_selects_the_examples_of_gram_schmidt(size, num_classes, num_features, seed):
    """Also if the gradients span fewer dimensions than there are examples."""
    generator = seeded(seed)
    logits = torch.randn(size, num_classes, generator=generator, dtype=torch.float64) * 2
    features = torch.randn(size, num_features, generator=generator, dtype=torch.float64)
    targets = torch.randint(0, num_classes, (size,), generator=generator)
    examples = zip(logits.tolist(), targets.tolist(), features.tolist(), strict=True)
    gradients = [slow.last_layer_gradient(*example) for example in examples]
    gram = [[slow.dot(one, other) for other in gradients] for one in gradients]
    torch.testing.assert_close(
        functional.last_layer_gram(logits, targets, features), torch.tensor(gram).double(), rtol=0, atol=1e-6
    )
    selector = reducr.make_selector("divbs", num_groups=1)
    selection = selector.select(
        Candidates(logits=logits, targets=targets, features=features), num_selected=size, generator=generator
    )
    assert selection.positions.tolist() == slow.divbs_order(gradients)
    assert selection.scores[selection.positions].tolist() == [float(place) for place in range(size, 0, -1)]


def test_divbs_selects_one_of_many_equal_examples():
    """Of nine equal examples and another one, the other is selected second, however small its gradient."""
    logits, targets = torch.zeros(10, 2), torch.zeros(10, dtype=torch.int64)
    features = torch.tensor([[5.0, 0.0]]).repeat(10, 1)
    features[6] = torch.tensor([0.1, 0.1])
    selector = reducr.make_selector("divbs", num_groups=1)
    positions = selector.select(Candidates(logits=logits, targets=targets, features=features), num_selected=2).positions
    assert positions.tolist() == [0, 6]


def test_divbs_selects_examples_without_a_gradient_last():
    logits = torch.tensor([[1e3, 0.0], [0.0, 0.0], [1e3, 0.0], [0.0, 1.0]])
    candidates = Candidates(logits=logits, targets=torch.zeros(4, dtype=torch.int64), features=torch.ones(4, 3))
    selection = reducr.make_selector("divbs", num_groups=1).select(candidates, num_selected=4)
    assert sorted(selection.positions[:2].tolist()) == [1, 3]
    assert selection.positions[2:].tolist() == [0, 2]


# rs2


def test_rs2_selects_every_example_once_before_any_again():
    """A fifth of each batch of ten, forty examples in a new order in every epoch: each about once in five epochs."""
    selector, uniform = (reducr.make_selector(name, num_groups=1) for name in ("rs2", "uniform"))
    generator = seeded(1)
    counts, times, num_seen = [0] * 40, torch.zeros(40, dtype=torch.int64), []
    for _ in range(10):
        for index in torch.randperm(40, generator=generator).split(10):
            selection = selector.select(Candidates(index=index), num_selected=2, generator=generator)
            chosen = index[selection.positions].tolist()
            least = sorted(counts[i] for i in index.tolist())[:2]
            assert sorted(counts[i] for i in chosen) == least
            for i in chosen:
                counts[i] += 1
            selector.update(selection)
            drawn = uniform.select(Candidates(index=index), num_selected=2, generator=generator).positions
            times[index[drawn]] += 1
        num_seen.append(len([count for count in counts if count]))
    assert selector.num_times_selected.tolist()[: max(i for i in range(40) if counts[i]) + 1] == counts
    assert num_seen[4] >= 35
    assert max(counts) <= 3
    assert int((times > 3).sum()) > 0  # unlike sampling with replacement across epochs


def test_rs2_takes_indices_beyond_its_counts_and_needs_an_index():
    selector = reducr.make_selector("rs2", num_groups=1)
    selector.update(selector.select(Candidates(index=torch.tensor([3, 5])), num_selected=2, generator=seeded()))
    assert selector.num_times_selected.tolist()[:6] == [0, 0, 0, 1, 0, 1]
    selection = selector.select(Candidates(index=torch.tensor([3, 5, 90])), num_selected=1, generator=seeded())
    assert selection.positions.tolist() == [2]
    next_index = len(selector.num_times_selected)
    for seed in range(10):
        unknown = Candidates(index=torch.tensor([5, next_index]))
        assert selector.select(unknown, num_selected=1, generator=seeded(seed)).positions.tolist() == [1]
    with pytest.raises(ValueError, match=r"index must be in 0..2147483647; position 0 holds -1"):
        selector.select(Candidates(index=torch.tensor([-1, 5])), num_selected=1)
    other = reducr.make_selector("uniform", num_groups=1).select(Candidates(index=torch.tensor([1])), num_selected=1)
    with pytest.raises(ValueError, match="'rs2' counts selected examples by index; this selection has none"):
        selector.update(other)


# group_dro


def test_group_dro_makes_the_steps_of_the_reference():
    """Its example weights give the gradient of the weighted sum of the group means."""
    selector = reducr.make_selector("group_dro", num_groups=4, step_size=0.3)
    generator, cumulative = seeded(3), [0.0] * 4
    model = nn.Linear(5, 4)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    for _ in range(30):
        inputs = torch.randn(20, 5, generator=generator)
        targets = torch.randint(0, 3, (20,), generator=generator)  # one group has no example
        losses = functional.per_example_cross_entropy(model(inputs), targets)
        candidates = Candidates(model_loss=losses, groups=targets)
        selection = selector.select(candidates, num_selected=8, generator=generator)
        positions = selection.positions
        chosen, groups = losses[positions].tolist(), targets[positions].tolist()
        cumulative, weights, expected = slow.group_dro_step(chosen, groups, cumulative, step_size=0.3)
        batch = reducr.batch.Batch(positions, inputs[positions], targets[positions], targets[positions])
        loss = selected_loss(model, batch, selection.example_weights)
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
        selector.update(selection)
        assert selector.group_weights.tolist() == pytest.approx(weights, abs=1e-6)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert min(selector.group_weights.tolist()) < 0.2
    assert max(selector.group_weights.tolist()) > 0.28


def test_group_dro_draws_uniformly():
    selector = reducr.make_selector("group_dro", num_groups=2)
    candidates = Candidates(model_loss=torch.arange(10.0), groups=torch.arange(10) % 2)
    generator, hits = seeded(4), torch.zeros(10)
    for _ in range(1000):
        hits[selector.select(candidates, num_selected=2, generator=generator).positions] += 1
    assert float((hits - 200).abs().max()) <= 4.5 * (1000 * 0.2 * 0.8) ** 0.5


# infobatch


@pytest.mark.parametrize("prune_probability", [0.0, 0.5, 0.9])
def test_infobatch_keeps_the_sum_of_any_gradient_in_expectation(prune_probability):
    losses = torch.rand(40, generator=seeded(1)).square() * 4
    gradients = torch.randn(40, 3, generator=seeded(2), dtype=torch.float64) + losses.unsqueeze(1)
    selector = reducr.make_selector("infobatch", num_groups=1, prune_probability=prune_probability)
    generator, num_draws, num_low = seeded(3), 3000, 0
    weighted, total = torch.zeros(3, dtype=torch.float64), 0.0
    is_low = losses < losses.mean()
    for _ in range(num_draws):
        selection = selector.select(Candidates(model_loss=losses), num_selected=6, generator=generator)
        positions, weights = selection.positions, selection.example_weights
        expected = slow.infobatch_weights(losses.tolist(), positions.tolist(), prune_probability=prune_probability)
        if bool((selection.scores[positions] >= 0).all()):
            assert weights.tolist() == pytest.approx(expected)
        weighted += weights.double() @ gradients[positions]
        total += float(weights.sum())
        num_low += int(is_low[positions].sum())
    torch.testing.assert_close(weighted / total, gradients.mean(dim=0), rtol=0, atol=0.08)
    plain = gradients[~is_low].mean(dim=0) - gradients.mean(dim=0)
    assert float(plain.abs().min()) > 0.3  # the error without the weights of examples below the mean
    share = int(is_low.sum()) * (1 - prune_probability)
    assert num_low / (6 * num_draws) == pytest.approx(share / (share + int((~is_low).sum())), abs=0.03)


def test_infobatch_fills_up_with_pruned_examples_and_lowers_their_weight():
    losses = torch.tensor([0.1, 0.2, 0.3, 0.4, 5.0, 6.0])
    selector = reducr.make_selector("infobatch", num_groups=1, prune_probability=0.99)
    for seed in range(10):
        selection = selector.select(Candidates(model_loss=losses), num_selected=4, generator=seeded(seed))
        assert set(selection.positions.tolist()) >= {4, 5}
        by_position = dict(zip(selection.positions.tolist(), selection.example_weights.tolist(), strict=True))
        assert {by_position.pop(4), by_position.pop(5)} == {1.0}
        assert list(by_position.values()) == [2.0, 2.0]  # two of four make up for all four
    everything = selector.select(Candidates(model_loss=losses), num_selected=6, generator=seeded())
    assert everything.example_weights.tolist() == [1.0] * 6


def test_infobatch_has_no_weights_in_uniform_epochs():
    options = {"uniform_last_epochs": 1, "num_epochs": 4}
    selector = reducr.make_selector("infobatch", num_groups=1, **options)
    candidates = Candidates(model_loss=torch.arange(10.0))
    assert selector.select(candidates, num_selected=5, generator=seeded()).example_weights is not None
    selector.set_epoch(3)
    assert selector.select(candidates, num_selected=5, generator=seeded()).example_weights is None


def test_infobatch_means_ignore_non_finite_losses():
    losses = torch.tensor([0.0, 1.0, 2.0, 3.0, float("nan"), float("inf")])
    selector = reducr.make_selector("infobatch", num_groups=1, prune_probability=0.0)
    selection = selector.select(Candidates(model_loss=losses), num_selected=4, generator=seeded())
    assert sorted(selection.positions.tolist()) == [0, 1, 2, 3]
    assert selection.example_weights.tolist() == [1.0] * 4
    halved = reducr.make_selector("infobatch", num_groups=1, prune_probability=0.5)
    weights = {0.0: 2.0, 1.0: 2.0, 2.0: 1.0, 3.0: 1.0}
    selection = halved.select(Candidates(model_loss=losses), num_selected=2, generator=seeded(1))
    chosen = losses[selection.positions].tolist()
    assert selection.example_weights.tolist() == [weights[loss] for loss in chosen]


# bayesian_selection


@pytest.mark.parametrize("alpha", [0.0, 0.2, 1.0])
def test_bayesian_selection(alpha):
    samples = torch.randn(4, 30, 6, generator=seeded(2), dtype=torch.float64) * 3
    targets = torch.randint(0, 6, (30,), generator=seeded(3))
    irreducible_loss = torch.rand(30, generator=seeded(4), dtype=torch.float64)
    selector = reducr.make_selector("bayesian_selection", num_groups=6, alpha=alpha)
    candidates = Candidates(logits=samples, targets=targets, irreducible_loss=irreducible_loss)
    selection = selector.select(candidates, num_selected=5)
    expected = [
        slow.bayesian_score(example, target, loss, alpha=alpha)
        for example, target, loss in zip(
            samples.transpose(0, 1).tolist(), targets.tolist(), irreducible_loss.tolist(), strict=True
        )
    ]
    assert selection.scores.tolist() == pytest.approx(expected, abs=1e-12)


def test_bayesian_selection_with_equal_samples_is_rho_loss():
    logits = torch.randn(1, 30, 6, generator=seeded(2), dtype=torch.float64)
    targets = torch.randint(0, 6, (30,), generator=seeded(3))
    irreducible_loss = torch.rand(30, generator=seeded(4), dtype=torch.float64)
    losses = functional.per_example_cross_entropy(logits[0], targets)
    scores = functional.bayesian_score(logits.repeat(5, 1, 1), targets, irreducible_loss, alpha=0.2)
    torch.testing.assert_close(scores, 0.8 * (losses - irreducible_loss), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("infobatch", {"prune_probability": 1.0}, r"prune_probability must be in \[0, 1\), the share of .*; got 1.0"),
        (
            "bayesian_selection",
            {"alpha": -0.1},
            r"alpha must be in \[0, 1\], the weight of the current model; got -0.1",
        ),
        ("priority_sampling", {"uniform_share": 1.5}, r"uniform_share must be in \[0, 1\], the part .*; got 1.5"),
        ("priority_sampling", {"irreducible_temperature": 0.0}, "irreducible_temperature must be .* above 0; got 0.0"),
        (
            "priority_sampling",
            {"holdout_loss": "zero_on"},
            r"unknown holdout_loss 'zero_on'\. Did you mean 'zero_one'\? There are: cross_entropy, zero_one",
        ),
        ("rcap", {"loss_temperature": 0.0}, "loss_temperature must be a finite number of nats above 0; got 0.0"),
        ("rcap", {"largest_loss": -1.0}, "largest_loss must be a finite number of nats above 0, or None .*; got -1.0"),
        ("group_dro", {"step_size": -1.0}, "step_size must be a finite number of at least 0; got -1.0"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    with pytest.raises(ValueError, match=message):
        reducr.make_selector(name, num_groups=2, **options)


def test_divbs_needs_logits_of_one_forward_pass():
    candidates = Candidates(
        logits=torch.zeros(2, 3, 2), targets=torch.zeros(3, dtype=torch.int64), features=torch.ones(3, 1)
    )
    with pytest.raises(ValueError, match=r"'divbs' needs logits \(B, C\) of one forward pass; got shape \(2, 3, 2\)"):
        reducr.make_selector("divbs", num_groups=2).select(candidates, num_selected=1)
