import copy
import re

import pytest
import torch
from torch import nn

import reducr
from reducr.batch import Batch
from reducr.functional import last_layer_gram, per_example_cross_entropy
from reducr.irreducible import GroupIrreducibleLoss, LiveLogits, PlainIrreducibleLoss
from reducr.scoring import (
    SCORING_MODES,
    GroupHoldoutLoss,
    Scoring,
    check_model_output,
    dropout_samples,
    num_selected_of,
    score_candidates,
    scoring_pass,
)
from selecting import pick, update_holdout_loss

every_mode = pytest.mark.parametrize("scoring_mode", SCORING_MODES)


def make_model(*, dropout=0.5, num_outputs=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(
            nn.Linear(4, 8),
            nn.BatchNorm1d(8),
            nn.Sequential(nn.ReLU(), nn.Dropout(dropout)),
            nn.Linear(8, num_outputs),
        )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 3, (12,), generator=generator)
    return Batch(torch.arange(100, 112), torch.randn(12, 4, generator=generator) * 2 + 1, target, target)


@pytest.fixture
def train_loss():
    return reducr.make_selector("train_loss", num_groups=3, sampler="top_k")


class Fixed:
    """Irreducible losses that are given."""

    def __init__(self, losses):
        self.losses = losses

    def lookup(self, batch):
        return self.losses


class Broken(nn.Module):
    """A model that must not be called."""

    def forward(self, inputs):
        raise RuntimeError("the model was run")


def modes_of(model):
    return [module.training for module in model.modules()]


def buffers_of(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same_buffers(model, before):
    return [name for name, buffer in model.named_buffers() if not torch.equal(buffer, before[name])] == []


def set_modes(model, found):
    model.train(found != "eval")
    if found == "mixed":
        model[1].eval()
    return model


@every_mode
@pytest.mark.parametrize("found", ["train", "eval", "mixed"])
def test_every_module_is_left_in_the_mode_it_was_found_in(scoring_mode, found, batch, train_loss):
    model = set_modes(make_model(), found)
    before = modes_of(model)
    pick(model, batch, train_loss, num_selected=3, scoring=Scoring(mode=scoring_mode))
    assert modes_of(model) == before


@every_mode
@pytest.mark.parametrize("found", ["train", "eval", "mixed"])
def test_modes_and_frozen_buffers_are_put_back_after_an_error_too(scoring_mode, found, batch):
    model = set_modes(make_model(), found)
    before, buffers = modes_of(model), buffers_of(model)

    def fail():
        with scoring_pass(model, scoring_mode):
            model(batch.input)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail()
    assert modes_of(model) == before
    assert scoring_mode == "train" or same_buffers(model, buffers)


@pytest.mark.parametrize("scoring_mode", ["eval", "train_frozen_statistics"])
@pytest.mark.parametrize("found", ["train", "eval"])
def test_two_modes_leave_every_buffer_bit_identical(scoring_mode, found, batch, train_loss):
    model = set_modes(make_model(), found)
    model.train(True)(batch.input)
    set_modes(model, found)
    before = buffers_of(model)
    pick(model, batch, train_loss, num_selected=3, scoring=Scoring(mode=scoring_mode))
    assert same_buffers(model, before)


@pytest.mark.parametrize("found", ["train", "eval"])
def test_train_mode_moves_the_running_statistics_by_all_candidates(found, batch, train_loss):
    model = set_modes(make_model(), found)
    pick(model, batch, train_loss, num_selected=3, scoring=Scoring(mode="train"))
    features = model[0](batch.input).detach()
    assert int(model[1].num_batches_tracked) == 1
    torch.testing.assert_close(model[1].running_mean, 0.1 * features.mean(dim=0))
    torch.testing.assert_close(model[1].running_var, 0.9 + 0.1 * features.var(dim=0))


def test_the_mode_decides_which_statistics_score(batch, train_loss):
    model = make_model(dropout=0.0)
    model.train()
    of_batch = per_example_cross_entropy(make_model(dropout=0.0).train()(batch.input), batch.target)
    of_running = per_example_cross_entropy(make_model(dropout=0.0).eval()(batch.input), batch.target)
    assert float((of_batch - of_running).detach().abs().max()) > 0.01
    for scoring_mode, expected in (
        ("eval", of_running),
        ("train_frozen_statistics", of_batch),
        ("train", of_batch),
    ):
        _, selection = pick(model, batch, train_loss, num_selected=3, scoring=Scoring(mode=scoring_mode))
        assert selection.scores.tolist() == pytest.approx(expected.tolist(), abs=1e-6), scoring_mode


@pytest.mark.parametrize("scoring_mode", ["train", "train_frozen_statistics"])
def test_dropout_is_on_in_the_train_modes_and_off_in_eval(scoring_mode, batch, train_loss):
    model = make_model().eval()
    scores = [
        pick(model, batch, train_loss, num_selected=3, scoring=Scoring(mode=mode))[1].scores.tolist()
        for mode in (scoring_mode, scoring_mode, "eval", "eval")
    ]
    assert scores[0] != scores[1]
    assert scores[2] == scores[3]


def test_the_selected_batch_is_the_best_points_of_the_batch(batch, train_loss):
    model = make_model()
    selected, selection = pick(model, batch, train_loss, num_selected=4, scoring=Scoring(mode="eval"))
    losses = per_example_cross_entropy(model.eval()(batch.input), batch.target).tolist()
    best = sorted(range(12), key=lambda i: -losses[i])[:4]
    assert selection.positions.tolist() == best
    assert selected.index.tolist() == [100 + position for position in best]
    assert torch.equal(selected.input, batch.input[best])
    assert torch.equal(selected.target, batch.target[best])
    assert torch.equal(selected.group, batch.group[best])


def test_picking_leaves_no_gradient_and_does_not_update_the_selector(batch, train_loss):
    model = make_model()
    _, selection = pick(model, batch, train_loss, num_selected=4)
    assert not selection.scores.requires_grad
    assert all(parameter.grad is None for parameter in model.parameters())
    assert int(train_loss.step) == 0


def test_reducr_is_given_model_and_group_irreducible_losses(batch):
    model, others = make_model(), [make_model(seed=seed) for seed in (1, 2, 3)]
    selector = reducr.make_selector("reducr", num_groups=3)
    selector.set_group_holdout_loss(torch.ones(3))
    irreducible = GroupIrreducibleLoss(others)
    _, selection = pick(model, batch, selector, irreducible, num_selected=4, scoring=Scoring(mode="eval"))
    model_loss = per_example_cross_entropy(model.eval()(batch.input), batch.target)
    excess = (model_loss.unsqueeze(1) - irreducible.lookup(batch)).clamp(min=0)
    assert selection.scores.tolist() == pytest.approx(excess.mean(dim=1).tolist(), abs=1e-6)


def test_rho_loss_is_given_the_plain_irreducible_loss(batch):
    model, other = make_model(), make_model(seed=1)
    selector = reducr.make_selector("rho_loss", num_groups=3)
    irreducible = PlainIrreducibleLoss(LiveLogits(other))
    _, selection = pick(model, batch, selector, irreducible, num_selected=4, scoring=Scoring(mode="eval"))
    expected = per_example_cross_entropy(model.eval()(batch.input), batch.target) - irreducible.lookup(batch)
    assert selection.scores.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


@pytest.mark.parametrize("name", ["uniform", "class_balanced", "irreducible_loss", "drop", "rs2", "priority_sampling"])
def test_a_rule_that_reads_no_output_does_not_run_the_model(name, batch):
    selector = reducr.make_selector(name, num_groups=3)
    selector.set_group_holdout_loss(torch.ones(3))
    losses = Fixed(torch.arange(12.0))
    selected, selection = pick(Broken(), batch, selector, losses, num_selected=4)
    assert selected.index.tolist() == [100 + position for position in selection.positions.tolist()]


def test_only_what_is_needed_is_computed(batch):
    entropy = reducr.make_selector("entropy", num_groups=3)
    assert sorted(score_candidates(make_model(), batch, entropy, None).given()) == ["logits"]
    divbs = reducr.make_selector("divbs", num_groups=3)
    assert sorted(score_candidates(make_model(), batch, divbs, None).given()) == ["features", "logits", "targets"]
    rs2 = reducr.make_selector("rs2", num_groups=3)
    assert sorted(score_candidates(make_model(), batch, rs2, None).given()) == ["index"]
    uniform = reducr.make_selector("uniform", num_groups=3)
    assert sorted(score_candidates(make_model(), batch, uniform, None).given()) == ["groups"]


def test_features_are_what_the_last_layer_makes_the_logits_of(batch):
    """So gradients made of them are those that autograd finds."""
    model = make_model().eval()
    divbs = reducr.make_selector("divbs", num_groups=3)
    candidates = score_candidates(model, batch, divbs, None, scoring=Scoring(mode="eval"))
    last = model[-1]
    torch.testing.assert_close(last(candidates.features), candidates.logits, rtol=0, atol=0)
    losses = per_example_cross_entropy(model(batch.input), batch.target)
    gradients = torch.stack([torch.autograd.grad(loss, last.weight, retain_graph=True)[0].flatten() for loss in losses])
    gram = last_layer_gram(candidates.logits, candidates.targets, candidates.features)
    torch.testing.assert_close(gram, (gradients @ gradients.T).double(), rtol=1e-4, atol=1e-5)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize("last", [nn.LayerNorm(3), nn.Sequential(nn.Linear(3, 3), nn.Tanh()), nn.Linear(3, 4)])
def test_only_a_linear_layer_that_makes_the_logits_has_features(batch, last):
    model, divbs = nn.Sequential(make_model(), last), reducr.make_selector("divbs", num_groups=3)
    if isinstance(last, nn.Linear):
        assert score_candidates(model, batch, divbs, None).features.shape == (12, 3)
        return
    with pytest.raises(ValueError, match=r"'divbs' needs gradients of the last layer, and this model's logits are not"):
        score_candidates(model, batch, divbs, None)
    assert not any(module._forward_hooks for module in model.modules())


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (torch.zeros(12, 3, 1), "logits of shape (B, C) with B = 12; got torch.float32 (12, 3, 1)."),
        (torch.zeros(12), "logits of shape (B, C) with B = 12; got torch.float32 (12,)."),
        (torch.zeros(11, 3), "logits of shape (B, C) with B = 12; got torch.float32 (11, 3)."),
        (torch.zeros(12, 3, dtype=torch.int64), "got torch.int64 (12, 3)."),
        ((torch.zeros(12, 3),), "a tensor of logits (B, C), or an output with `logits`; got tuple."),
        ({"loss": torch.zeros(())}, "a tensor of logits (B, C), or an output with `logits`; got dict."),
        (torch.tensor(0.7), "The model returns one number, which looks like a loss"),
        ({"logits": torch.zeros(12)}, "logits of shape (B, C) with B = 12; got torch.float32 (12,)."),
    ],
)
def test_an_output_that_is_not_logits_is_refused(output, message, batch, train_loss):
    class Constant(nn.Module):
        def forward(self, inputs):
            return output

    with pytest.raises(ValueError, match=re.escape(message)):
        pick(Constant(), batch, train_loss, num_selected=3)
    with pytest.raises(ValueError, match=re.escape(message)):
        check_model_output(Constant(), batch, 3)


def test_check_model_output_wants_one_logit_a_class_and_touches_nothing(batch):
    model = make_model().train()
    before, buffers = modes_of(model), buffers_of(model)
    assert check_model_output(model, batch, 3) is None
    with pytest.raises(ValueError, match=r"each of the 5 classes; its output has shape \(12, 3\)"):
        check_model_output(model, batch, 5)
    assert modes_of(model) == before
    assert same_buffers(model, buffers)


@every_mode
def test_dropout_samples_differ_and_leave_modes_and_buffers(scoring_mode, batch):
    model = make_model().train(scoring_mode != "eval")
    before, buffers = modes_of(model), buffers_of(model)
    samples = dropout_samples(model, batch.input, num_samples=5)
    assert samples.shape == (5, 12, 3)
    assert not samples.requires_grad
    assert len({tuple(sample.flatten().tolist()) for sample in samples}) == 5
    assert modes_of(model) == before
    assert same_buffers(model, buffers)


def test_dropout_samples_average_to_the_linear_model_without_dropout():
    """Dropout before one linear layer: the mean over samples is the output without it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Dropout(0.5), nn.Linear(4, 2)).double()
        inputs = torch.randn(3, 4, dtype=torch.float64)
        samples = dropout_samples(model, inputs, num_samples=4000)
    error = 4.5 * samples.std(dim=0) / 4000**0.5
    assert bool(((samples.mean(dim=0) - model.eval()(inputs)).abs() <= error).all())


def test_bald_is_scored_from_dropout_samples(batch):
    selector = reducr.make_selector("bald", num_groups=3, num_dropout_samples=6)
    candidates = score_candidates(make_model(), batch, selector, None)
    assert candidates.logits.shape == (6, 12, 3)
    _, selection = pick(make_model(), batch, selector, num_selected=3)
    assert float(selection.scores.max()) > 1e-4


@pytest.mark.parametrize("dropout", [None, 0.0])
def test_dropout_samples_of_a_model_without_dropout_are_refused(dropout, batch):
    model = nn.Linear(4, 3) if dropout is None else make_model(dropout=dropout)
    selector = reducr.make_selector("bald", num_groups=3)
    with pytest.raises(ValueError, match="MC-dropout needs a model with dropout layers of p > 0"):
        pick(model, batch, selector, num_selected=3)


@pytest.mark.parametrize("name", ["rho_loss", "irreducible_loss", "reducr", "payoff", "fixed_weights"])
def test_missing_irreducible_losses_are_an_error(name, batch):
    selector = reducr.make_selector(name, num_groups=3)
    with pytest.raises(ValueError, match=f"'{name}' needs irreducible losses; got irreducible=None"):
        pick(make_model(), batch, selector, num_selected=3)


@pytest.mark.parametrize(
    ("name", "shape", "wanted"),
    [
        ("reducr", (12,), "(B, G)"),
        ("reducr", (11, 3), "(B, G)"),
        ("rho_loss", (12, 3), "(B,)"),
        ("rho_loss", (13,), "(B,)"),
    ],
)
def test_irreducible_losses_of_another_shape_are_refused(name, shape, wanted, batch):
    selector = reducr.make_selector(name, num_groups=3)
    selector.set_group_holdout_loss(torch.zeros(3))
    message = f"losses of shape {wanted} with B = 12; Fixed.lookup returned {shape}."
    with pytest.raises(ValueError, match=re.escape(message)):
        pick(make_model(), batch, selector, Fixed(torch.zeros(shape)), num_selected=3)


def test_irreducible_losses_of_another_number_of_groups_are_refused(batch):
    selector = reducr.make_selector("reducr", num_groups=3)
    selector.set_group_holdout_loss(torch.zeros(3))
    with pytest.raises(ValueError, match=r"one column for each of the 3 groups; got shape \(12, 4\)"):
        pick(make_model(), batch, selector, Fixed(torch.zeros(12, 4)), num_selected=3)


def test_an_unknown_scoring_mode_is_answered_with_the_nearest(batch, train_loss):
    model = make_model().eval()
    with pytest.raises(ValueError, match=r"unknown scoring mode 'evall'\. Did you mean 'eval'\?"):
        pick(model, batch, train_loss, num_selected=3, scoring=Scoring(mode="evall"))
    assert not model.training


def test_one_broken_point_of_a_real_batch_is_left_out(batch, train_loss):
    inputs = batch.input.clone()
    inputs[5, 0] = torch.nan
    model = make_model()
    _, selection = pick(model, batch._replace(input=inputs), train_loss, num_selected=12, scoring=Scoring(mode="eval"))
    assert sorted(selection.positions.tolist()) == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10, 11]
    assert selection.num_non_finite == 1


@pytest.mark.parametrize(
    ("fraction", "num_candidates", "expected"),
    [
        (0.1, 320, 32),
        (0.1, 32, 3),
        (0.29, 100, 29),
        (0.57, 100, 57),
        (1.0, 7, 7),
        (0.001, 10, 1),
        (0.5, 1, 1),
        (0.999, 10, 9),
        (1 / 3, 9, 3),
    ],
)
def test_num_selected_of(fraction, num_candidates, expected):
    assert num_selected_of(fraction, num_candidates) == expected


@pytest.mark.parametrize(
    ("fraction", "message"),
    [
        (0.0, "`fraction` must be in (0, 1], the fraction of the candidates to keep; got 0.0."),
        (-0.5, "got -0.5."),
        (10, "got 10. For 10 percent, pass 0.1."),
        (101, "got 101."),
        (float("nan"), "got nan."),
    ],
)
def test_a_fraction_outside_its_range_is_refused(fraction, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        num_selected_of(fraction, 320)


def test_a_loss_of_ones_own_scores_the_points(batch):
    """Per-point squared errors in float16 are used as they are, in float32."""
    model = nn.Linear(batch.input.shape[1], 3)

    def squared_error(output, target):
        return (output - nn.functional.one_hot(target, 3)).square().sum(dim=1).half()

    selector = reducr.make_selector("train_loss", num_groups=3, sampler="top_k")
    _, selection = pick(model, batch, selector, num_selected=4, loss=squared_error)
    expected = squared_error(model(batch.input), batch.target).detach().float()
    assert torch.equal(selection.scores, expected)
    assert torch.equal(selection.positions, expected.sort(descending=True, stable=True).indices[:4])
    means = GroupHoldoutLoss(3)
    update_holdout_loss(model, [batch], selector, means, loss=squared_error)
    for group in range(3):
        assert float(selector.group_holdout_loss[group]) == pytest.approx(
            float(expected[batch.group == group].double().mean()), abs=1e-12
        )


def by_errors():
    return reducr.make_selector("priority_sampling", num_groups=3, holdout_loss="zero_one")


def test_holdout_loss_of_a_rule_that_follows_errors_is_the_share_of_wrong_predictions(batch):
    """In eval mode, whatever loss scores the points."""
    model, selector = make_model(), by_errors()
    wrong = (model.eval()(batch.input).argmax(dim=1) != batch.target).tolist()
    model.train()
    update_holdout_loss(model, [batch], selector, GroupHoldoutLoss(3), loss=lambda output, target: output[:, 0])
    for group in range(3):
        of_group = [one for one, place in zip(wrong, batch.group.tolist(), strict=True) if place == group]
        assert float(selector.group_holdout_loss[group]) == sum(of_group) / len(of_group)
    assert 0 < sum(wrong) < len(wrong)


def test_errors_of_broken_logits_and_of_no_logits_are_refused(batch):
    model = make_model()
    with torch.no_grad():
        model[3].bias[1] = torch.nan
    with pytest.raises(ValueError, match="The holdout loss of group 0, 1, 2 is not finite: the model has diverged"):
        update_holdout_loss(model, [batch], by_errors(), GroupHoldoutLoss(3))
    model = nn.Sequential(make_model(), nn.Flatten(0))
    with pytest.raises(ValueError, match=r"logits of shape \(B, C\) with B = 12; got torch.float32 \(36,\)"):
        update_holdout_loss(model, [batch], by_errors(), GroupHoldoutLoss(3))


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (nn.CrossEntropyLoss(), "torch.float32 (). One value for all examples is their mean or sum: use reduction="),
        (nn.MSELoss(reduction="none"), "torch.float32 (12, 3). Average it over all axes but the first."),
        (lambda output, target: target, "one floating-point value per example, shape (12,); got torch.int64 (12,)."),
        (lambda output, target: 0.5, "shape (12,); got float."),
        (lambda output, target: output[:5, 0], "shape (12,); got torch.float32 (5,)."),
    ],
)
def test_a_loss_that_is_not_of_each_point_is_refused(loss, message, batch, train_loss):
    def targets_as_needed(output, target):
        return loss(output, output.detach() if isinstance(loss, nn.MSELoss) else target)

    model = nn.Linear(batch.input.shape[1], 3)
    with pytest.raises(ValueError, match=re.escape(message)):
        pick(model, batch, train_loss, num_selected=2, loss=targets_as_needed)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("scoring_mode", SCORING_MODES)
def test_scoring_inside_autocast_leaves_the_gradients_of_training(dtype, scoring_mode, batch):
    """One autocast around scoring and training: the weights cast for scoring are not those of the backward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(batch.input.shape[1], 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))
    selector = reducr.make_selector("train_loss", num_groups=3, sampler="top_k")
    gradients = []
    for is_scored in (False, True):
        twin = copy.deepcopy(model)
        with torch.autocast("cpu", dtype=dtype):
            if is_scored:
                _, selection = pick(twin, batch, selector, num_selected=2, scoring=Scoring(mode=scoring_mode))
                assert selection.scores.dtype == torch.float32
            nn.functional.cross_entropy(twin(batch.input), batch.target).backward()
        gradients.append([parameter.grad for parameter in twin.parameters()])
    for alone, scored in zip(*gradients, strict=True):
        assert torch.equal(alone, scored)


def test_a_broken_stand_in_leaves_the_gradients_finite(train_loss):
    """A rank whose candidates are all broken takes part at weight 0, with inputs of zeros: 0 times NaN is NaN."""
    from reducr.batch import Selection
    from reducr.batch.nested import zero_inputs

    scores = torch.full((3,), -torch.inf)
    payoff = torch.zeros(3, dtype=torch.float64)
    broken = Selection(torch.tensor([0]), scores, payoff, num_non_finite=3, loss_weight=0.0)
    assert broken.has_nonfinite_loss
    assert not Selection(torch.tensor([0]), torch.ones(3), payoff, num_non_finite=0, loss_weight=0.0).has_nonfinite_loss
    assert not Selection(torch.tensor([0]), scores, payoff, num_non_finite=3).has_nonfinite_loss
    batch = zero_inputs({"pixels": torch.full((1, 4), torch.nan), "labels": torch.tensor([2]), "text": ["a"]})
    model = nn.Linear(4, 3)
    (0.0 * nn.functional.cross_entropy(model(batch["pixels"]), batch["labels"])).backward()
    assert (batch["labels"].item(), batch["text"]) == (2, ["a"])
    assert all(parameter.grad.count_nonzero() == 0 for parameter in model.parameters())
