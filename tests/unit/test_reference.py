"""One reference serves every rule, every loss and every kind of target; wrong columns are refused."""

import copy
import re
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import reducr
from reducr.batch import Batch
from reducr.functional import per_example_cross_entropy
from reducr.irreducible import AdjustedIrreducibleLoss, GroupIrreducibleLoss, LiveLogits, PlainIrreducibleLoss

NUM_CLASSES = 3


def make_data(size=240, seed=0, num_features=5):
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(size, num_features, generator=generator)
    return inputs, inputs[:, :NUM_CLASSES].argmax(dim=1)


def make_model(num_outputs=NUM_CLASSES, seed=0, scale=3.0):
    """A linear model that predicts make_data's targets well."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Linear(5, num_outputs)
    with torch.no_grad():
        if scale:
            model.weight[:NUM_CLASSES, :NUM_CLASSES] += scale * torch.eye(NUM_CLASSES)
    return model


def make_selector(name, num_groups=NUM_CLASSES):
    options = {"fixed_weights": {"group_weights": [2.0, 1.0, 1.0][:num_groups]}}.get(name, {})
    if name in ("reducr", "priority_sampling"):
        options["step_size"] = 0.05
    selector = reducr.make_selector(name, num_groups=num_groups, **options)
    selector.set_group_holdout_loss(torch.linspace(0.3, 0.7, num_groups))
    return selector


def make_batch(size=6, group=None):
    inputs, target = make_data(size, seed=1)
    return Batch(None, inputs, target, target if group is None else group)


def selected_by(name, irreducible, **options):
    inputs, targets = make_data()
    loader = list(zip(torch.arange(240).split(40), inputs.split(40), targets.split(40), strict=True))
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(5, 8), nn.Dropout(0.5), nn.Linear(8, NUM_CLASSES))
    holdout = [(torch.arange(30), *make_data(30, seed=2))]
    selective = reducr.SelectiveLoader(
        loader, model, make_selector(name), irreducible, 0.2, holdout=holdout, weights_examples=True, **options
    )
    picked, weights = [], []
    for index, *_ in selective:
        picked.append(index)
        weights.append(selective.example_weights)
    return torch.cat(picked), torch.cat(weights), selective.downsampler.selector.cumulative_payoff


@pytest.mark.parametrize("name", reducr.SELECTORS)
def test_every_rule_selects_what_it_selects_with_its_own_source(name):
    needs = make_selector(name).needs
    irreducible = None
    if "irreducible_loss" in needs:
        irreducible = PlainIrreducibleLoss(LiveLogits(make_model()))
    elif "group_irreducible_loss" in needs:
        irreducible = AdjustedIrreducibleLoss(LiveLogits(make_model()))
    reference = reducr.Reference(make_model())
    for expected, actual in zip(selected_by(name, irreducible), selected_by(name, reference), strict=True):
        assert torch.equal(expected, actual)


def test_there_are_rules_of_both_kinds():
    fields = {name: make_selector(name).needs for name in reducr.SELECTORS}
    for name in ("reducr", "payoff", "fixed_weights"):
        assert "group_irreducible_loss" in fields[name]
    for name in ("rho_loss", "priority_sampling"):
        assert "irreducible_loss" in fields[name]


def test_large_batches_are_scored_a_few_rows_at_a_time_with_the_same_result(monkeypatch):
    whole = selected_by("reducr", reducr.Reference(make_model()))
    monkeypatch.setattr("reducr.scoring.scorer._LAZY_ABOVE", 10)
    lazy = selected_by("reducr", reducr.Reference(make_model()), scoring=reducr.Scoring(mode="eval", batch_size=7))
    assert hasattr(reducr.Reference(make_model()).bind(make_selector("reducr")).view("group_irreducible_loss"), "lazy")
    eager = selected_by(
        "reducr",
        AdjustedIrreducibleLoss(LiveLogits(make_model())),
        scoring=reducr.Scoring(mode="eval", batch_size=7),
    )
    assert torch.equal(lazy[0], eager[0])
    assert len(whole[0]) == len(lazy[0])


class Both(reducr.Selector):
    """A rule that needs both kinds of irreducible losses."""

    name = "both"
    needs = frozenset({"irreducible_loss", "group_irreducible_loss"})

    def score(self, candidates, *, generator):
        return candidates.irreducible_loss - candidates.group_losses[:, 0]


def test_a_rule_may_need_both_kinds():
    reference = reducr.Reference(make_model())
    downsampler = reducr.Downsampler(Both(num_groups=NUM_CLASSES), reference, fraction=0.5)
    batch = make_batch()
    downsampler.select((batch.input, batch.target), make_model(seed=1))
    plain = per_example_cross_entropy(make_model()(batch.input), batch.target)
    columns = AdjustedIrreducibleLoss(LiveLogits(make_model())).lookup(batch)
    assert torch.allclose(downsampler.selection.scores, (plain - columns[:, 0]).detach(), atol=1e-6)


# ---- losses other than the cross-entropy


def smoothed(output, target):
    return F.cross_entropy(output, target, reduction="none", label_smoothing=0.1)


def binary(output, target):
    return F.binary_cross_entropy_with_logits(output, target, reduction="none").mean(dim=1)


def squared(output, target):
    return (output.squeeze(1) - target).square()


def token_loss(output, target):
    losses = F.cross_entropy(output.transpose(1, 2), target, reduction="none", ignore_index=-100)
    return losses.sum(dim=1) / (target != -100).sum(dim=1)


class Tokens(nn.Module):
    """A language model of 7 words."""

    def __init__(self, seed=0):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding, self.head = nn.Embedding(7, 4), nn.Linear(4, 7)

    def forward(self, ids):
        return self.head(self.embedding(ids))


def cases():
    generator = torch.Generator().manual_seed(0)
    inputs, targets = make_data(12)
    group = torch.arange(12) % 2
    hot = F.one_hot(targets, NUM_CLASSES).float()
    ids = torch.randint(0, 7, (12, 6), generator=generator)
    padded = ids.masked_fill(torch.arange(6) > 3, -100)
    return {
        "label smoothing": (make_model, smoothed, inputs, targets, group),
        "soft labels": (make_model, smoothed, inputs, 0.7 * hot + 0.3 * hot.roll(1, 0), group),
        "several labels": (make_model, binary, inputs, (inputs[:, :3] > 0).float(), group),
        "regression": (lambda seed=0: make_model(1, seed, 0.0), squared, inputs, inputs[:, 0], group),
        "tokens": (Tokens, token_loss, ids, padded, group),
    }


CASES = cases()


@pytest.mark.parametrize("case", CASES)
def test_plain_losses_of_any_kind_of_target_are_those_of_the_loops_loss(case):
    make, loss, inputs, targets, group = CASES[case]
    reference = reducr.Reference(make())
    spec = reducr.BatchSpec(input=0, target=1, group=2)
    loader = reducr.SelectiveLoader(
        [(inputs, targets, group)], make(seed=1), make_selector("rho_loss", 2), reference, 0.5, loss=loss, spec=spec
    )
    (picked,) = list(loader)
    with torch.no_grad():
        excess = loss(make(seed=1)(inputs), targets) - loss(make()(inputs), targets)
    assert torch.equal(picked[0], inputs[excess.topk(6).indices])
    assert reference.loss is None  # the reference of the user is not changed


@pytest.mark.parametrize("case", CASES)
def test_one_model_per_group_works_with_any_target_and_any_groups(case):
    make, loss, inputs, targets, group = CASES[case]
    models = [make(seed=1), make(seed=2)]
    bound = reducr.Reference(models).bind(make_selector("reducr", 2), loss=loss)
    batch = Batch(None, inputs, targets, group)
    with torch.no_grad():
        expected = torch.stack([loss(model(inputs), targets) for model in models], dim=1)
    assert torch.equal(bound.lookup(batch), expected)
    plain = reducr.Reference(models).bind(make_selector("rho_loss", 2), loss=loss)
    assert torch.equal(plain.lookup(batch), expected.gather(1, group.unsqueeze(1)).squeeze(1))


@pytest.mark.parametrize("case", ["several labels", "regression", "tokens"])
def test_one_model_has_no_losses_by_group_where_no_closed_form_exists(case):
    make, loss, inputs, targets, group = CASES[case]
    batch = Batch(None, inputs, targets, group)
    bound = reducr.Reference(make(), loss=loss).bind(make_selector("reducr", 2))
    with pytest.raises(ValueError, match=r"'reducr' needs the loss of each example under .* one model per group"):
        bound.lookup(batch)
    limit = reducr.Reference(make(), loss=loss, gradient_weight=1.0).bind(make_selector("reducr", 2))
    with torch.no_grad():
        assert torch.equal(limit.lookup(batch), loss(make()(inputs), targets).unsqueeze(1).expand(-1, 2))


def test_with_equal_columns_reducr_selects_what_rho_loss_selects():
    """Why a gradient weight of 1 is no way to have REDUCR with groups that are not the targets."""
    limit = reducr.Reference(make_model(), gradient_weight=1.0)
    assert torch.equal(selected_by("reducr", limit)[0], selected_by("rho_loss", limit)[0])
    assert not torch.equal(selected_by("reducr", reducr.Reference(make_model()))[0], selected_by("rho_loss", limit)[0])


def test_the_closed_form_of_another_loss_is_that_loss_of_the_shifted_logits():
    batch, weight = make_batch(), 10.0
    losses = reducr.Reference(make_model()).bind(make_selector("reducr"), loss=smoothed).lookup(batch)
    with torch.no_grad():
        logits = make_model()(batch.input)
        for group in range(NUM_CLASSES):
            shifted = logits + torch.log(torch.tensor(weight)) * F.one_hot(torch.tensor(group), NUM_CLASSES)
            assert torch.allclose(losses[:, group], smoothed(shifted, batch.target))


def test_the_closed_form_of_the_cross_entropy_is_its_own():
    batch = make_batch()

    def cross_entropy(output, target):
        return F.cross_entropy(output, target, reduction="none")

    for options, group in (({}, None), ({"group_of_target": [0, 0, 1]}, (make_batch().target == 2).long())):
        batch = make_batch(group=group)
        selector = make_selector("reducr", 3 if group is None else 2)
        reference = reducr.Reference(make_model(), **options)
        closed = reference.bind(selector).lookup(batch)
        assert torch.allclose(closed, reference.bind(selector, loss=cross_entropy).lookup(batch), atol=1e-6)
    joint = reducr.Reference(make_model(6, scale=0.0), num_joint_groups=2)
    batch, selector = make_batch(group=torch.tensor([0, 1, 1, 0, 1, 0])), make_selector("reducr", 2)
    closed = joint.bind(selector).lookup(batch)
    assert closed.shape == (6, 2)
    assert torch.allclose(closed, joint.bind(selector, loss=cross_entropy).lookup(batch), atol=1e-6)


def test_soft_labels_have_the_classes_as_groups_if_the_groups_are_their_largest():
    hot = F.one_hot(make_batch().target, NUM_CLASSES).float()
    soft = 0.8 * hot + 0.2 * hot.roll(1, 0)
    batch = Batch(None, make_batch().input, soft, soft.argmax(dim=1))
    losses = reducr.Reference(make_model()).bind(make_selector("reducr"), loss=smoothed).lookup(batch)
    assert losses.shape == (6, 3)
    other = batch._replace(group=(soft.argmax(dim=1) + 1) % 3)
    with pytest.raises(ValueError, match="follow from the targets, and the group of example 0 is"):
        reducr.Reference(make_model()).bind(make_selector("reducr"), loss=smoothed).lookup(other)


def test_the_loss_of_a_reference_comes_before_that_of_the_loop():
    bound = reducr.Reference(make_model(), loss=smoothed).bind(make_selector("rho_loss"), loss=binary)
    with torch.no_grad():
        expected = smoothed(make_model()(make_batch().input), make_batch().target)
    assert torch.equal(bound.lookup(make_batch()), expected)


def test_two_loops_share_a_reference():
    reference = reducr.Reference(make_model())
    first, second = reference.bind(make_selector("rho_loss"), loss=smoothed), reference.bind(make_selector("reducr"))
    assert first.lookup(make_batch()).shape == (6,)
    assert second.lookup(make_batch()).shape == (6, 3)
    assert reference.lookup(make_batch()).tolist() == pytest.approx(
        PlainIrreducibleLoss(LiveLogits(make_model())).lookup(make_batch()).tolist()
    )


# ---- wrong columns are refused

UNRELATED = torch.tensor([0, 1, 0, 1, 0, 1])


def two_classes(group=UNRELATED):
    inputs = make_batch().input
    return Batch(None, inputs, torch.tensor([0, 0, 1, 1, 1, 1]), group)


def two_class_model(seed=0):
    return make_model(2, seed, scale=0.0)


REFUSAL = (
    r"follow from the targets, and the group of example 1 is 1, not 0 \(.*3 of 6 differ\).*"
    r"one reference model per group.*num_joint_groups=G.*group_of_target"
)


def test_a_model_of_classes_is_refused_where_groups_are_not_the_targets():
    with pytest.raises(ValueError, match=REFUSAL):
        AdjustedIrreducibleLoss(LiveLogits(two_class_model())).lookup(two_classes())
    spec, batch = reducr.BatchSpec(input=0, target=1, group=2), two_classes()
    for reference in (reducr.Reference(two_class_model()), AdjustedIrreducibleLoss(LiveLogits(two_class_model()))):
        loader = reducr.SelectiveLoader(
            [(batch.input, batch.target, batch.group)],
            two_class_model(),
            make_selector("reducr", 2),
            reference,
            spec=spec,
        )
        with pytest.raises(ValueError, match=REFUSAL):
            list(loader)


def test_rules_with_one_loss_per_example_take_any_groups():
    for name in ("rho_loss", "priority_sampling"):
        bound = reducr.Reference(two_class_model()).bind(make_selector(name, 2))
        assert bound.lookup(two_classes()).shape == (6,)


def test_a_joint_model_and_one_model_per_group_are_accepted():
    joint = make_model(4, scale=0.0)
    expected = AdjustedIrreducibleLoss(LiveLogits(joint, num_joint_groups=2)).lookup(two_classes())
    for reference in (
        reducr.Reference(joint, num_joint_groups=2),
        reducr.Reference(LiveLogits(joint, num_joint_groups=2)),
    ):
        assert torch.equal(reference.bind(make_selector("reducr", 2)).lookup(two_classes()), expected)
    models = [two_class_model(1), two_class_model(2)]
    per_group = reducr.Reference(models).bind(make_selector("reducr", 2)).lookup(two_classes())
    assert torch.equal(per_group, GroupIrreducibleLoss(models).lookup(two_classes()))


def test_groups_that_are_checked_late_on_a_device_are_checked_again():
    """On the host every batch is checked, not only the first."""
    bound = reducr.Reference(two_class_model()).bind(make_selector("reducr", 2))
    same = two_classes()._replace(group=two_classes().target.clone())
    for _ in range(4):
        bound.lookup(same)
    with pytest.raises(ValueError, match=REFUSAL):
        bound.lookup(two_classes())


def test_groups_of_targets_are_compared():
    model, groups = make_model(), [0, 0, 1]
    right = (make_batch().target == 2).long()
    bound = reducr.Reference(model, group_of_target=groups).bind(make_selector("reducr", 2))
    assert bound.lookup(make_batch(group=right)).shape == (6, 2)
    with pytest.raises(ValueError, match=r"group of example \d is \d, not \d \(group_of_target\[\d\]; 6 of 6 differ"):
        bound.lookup(make_batch(group=1 - right))


def test_tabulated_columns_are_compared_too():
    from reducr.irreducible import IrreducibleTable, TableLogits

    source = TableLogits(IrreducibleTable(torch.randn(6, 2).numpy(), kind="logits"))
    table = AdjustedIrreducibleLoss(source).tabulate(two_classes().target)
    with pytest.raises(ValueError, match=REFUSAL):
        table.lookup(two_classes()._replace(index=torch.arange(6)))


@pytest.mark.parametrize(
    ("options", "num_groups", "message"),
    [
        ({"num_joint_groups": 2}, 3, "This reference has num_joint_groups=2, and 'reducr' has 3 groups."),
        (
            {"group_of_target": [0, 0, 1]},
            3,
            "`group_of_target` names groups up to 1, and 'reducr' has num_groups=3. Pass num_groups=2 to the rule",
        ),
        (
            {"group_of_target": [0, 3, 1]},
            3,
            "`group_of_target` names groups up to 3, and 'reducr' has num_groups=3. Pass num_groups=4 to the rule",
        ),
    ],
)
def test_groups_that_are_not_the_rules_are_refused_at_construction(options, num_groups, message):
    reference = reducr.Reference(make_model(6 if "num_joint_groups" in options else 3), **options)
    with pytest.raises(ValueError, match=re.escape(message)):
        reducr.Downsampler(make_selector("reducr", num_groups), reference)


def test_another_number_of_models_is_refused_at_construction():
    reference = reducr.Reference([make_model(), make_model()])
    for name in ("reducr", "rho_loss"):
        with pytest.raises(ValueError, match=f"This reference has 2 models, one per group, and '{name}' has 3 groups"):
            reducr.Downsampler(make_selector(name, 3), reference)


@pytest.mark.parametrize(
    ("reference", "num_groups", "message"),
    [
        (lambda: reducr.Reference(make_model(4)), 3, "returns 4 logits and 'reducr' has 3 groups. Without `group_of_"),
        (
            lambda: reducr.Reference(make_model(3), group_of_target=[0, 1, 2, 2]),
            3,
            "`group_of_target` holds the groups of 4 classes, and the reference model returns 3 logits.",
        ),
        (
            lambda: reducr.Reference(make_model(5), num_joint_groups=3),
            3,
            "must return one logit for each (target, group) pair, (B, C * 3) for num_joint_groups=3; got (6, 5).",
        ),
    ],
)
def test_another_number_of_logits_is_refused_at_the_first_batch(reference, num_groups, message):
    bound = reference().bind(make_selector("reducr", num_groups))
    with pytest.raises(ValueError, match=re.escape(message)):
        bound.lookup(make_batch())


def test_a_model_of_classes_that_is_called_joint_is_refused():
    bound = reducr.Reference(make_model(2, scale=0.0), num_joint_groups=2).bind(make_selector("reducr", 2))
    with pytest.raises(ValueError, match=r"targets must be in 0\.\.0"):
        bound.lookup(two_classes())


# ---- options


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        ((lambda x: x,), {}, TypeError, "A reference needs a torch.nn.Module, a list of them (one per group)"),
        (([],), {}, ValueError, "needs one model for each group; got none"),
        (([nn.Linear(1, 1), None],), {}, TypeError, "must hold torch.nn.Modules; entry 1 is a NoneType"),
        ((nn.Linear(1, 1),), {"loss": "mse"}, TypeError, "`loss` must be a function of (output, target); got str"),
        ((nn.Linear(1, 1),), {"num_joint_groups": 0}, ValueError, "num_joint_groups must be a whole number"),
        ((nn.Linear(1, 1),), {"gradient_weight": 0.5}, ValueError, "gradient_weight must be a finite number"),
        ((nn.Linear(1, 1),), {"group_of_target": [0.5]}, ValueError, "group_of_target must hold one non-negative"),
        (
            (nn.Linear(1, 4),),
            {"group_of_target": [0, 1], "num_joint_groups": 2},
            ValueError,
            "`group_of_target` has no effect, because pairs have their groups.",
        ),
        (
            ([nn.Linear(1, 4)],),
            {"group_of_target": [0, 1]},
            ValueError,
            "`group_of_target` has no effect, because a list of models has one for each group.",
        ),
    ],
)
def test_options_are_checked_at_construction(arguments, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        reducr.Reference(*arguments, **options)


def test_targets_that_the_cross_entropy_cannot_take_ask_for_a_loss():
    bound = reducr.Reference(make_model()).bind(make_selector("rho_loss"))
    soft = make_batch()._replace(target=torch.rand(6, 3))
    with pytest.raises(ValueError, match=r"The cross-entropy needs targets \(B,\).* pass `loss=`"):
        bound.lookup(soft)
    with pytest.raises(ValueError, match=r"The reference model must return floating-point logits of shape \(B, C\)"):
        reducr.Reference(Tokens()).bind(make_selector("rho_loss")).lookup(
            make_batch()._replace(input=torch.ones(6, 4).long())
        )


def test_the_model_is_frozen_in_eval_mode_unless_it_keeps_learning():
    model = nn.Sequential(nn.Linear(5, 3), nn.Dropout(0.5)).train()
    first = reducr.Reference(model)
    assert torch.equal(first.lookup(make_batch()), first.lookup(make_batch()))
    assert not any(parameter.requires_grad for parameter in model.parameters())
    learning = nn.Linear(5, 3)
    reducr.Reference(learning, is_frozen=False)
    assert all(parameter.requires_grad for parameter in learning.parameters())


def test_the_model_itself_is_refused_as_its_own_reference():
    model = make_model()
    reference = reducr.Reference(model)
    with pytest.raises(
        ValueError, match=r"shares parameters with the model that is trained. .*copy\.deepcopy\(model\)"
    ):
        list(reducr.SelectiveLoader([make_data(40)], model, make_selector("rho_loss"), reference))
    batches = [make_data(40)]
    assert len(list(reducr.SelectiveLoader(batches, copy.deepcopy(model), make_selector("rho_loss"), reference))) == 1


# ---- near chance


def watched(model, inputs, targets, batch_size=64, name="rho_loss", **options):
    bound = reducr.Reference(model, **options).bind(make_selector(name))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for part, target in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
            bound.lookup(Batch(None, part, target, target))
    return [str(warning.message) for warning in caught]


@pytest.mark.parametrize("name", ["rho_loss", "reducr"])
def test_an_untrained_reference_is_told_once(name):
    inputs, targets = make_data(2000, num_features=20)
    messages = watched(nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 3)), inputs, targets, name=name)
    assert len(messages) == 1
    assert re.match(
        r"The reference model is near chance on the candidates: its mean loss is 1\.\d+ \(log C is 1\.099\), and 1\.",
        messages[0],
    )
    assert "reducr.fit_reference(copy.deepcopy(model), clean)" in messages[0]


@pytest.mark.parametrize("name", ["rho_loss", "reducr"])
def test_a_trained_reference_is_not_told_of_under_heavy_label_noise(name):
    """Its mean loss is above log C all the same."""
    inputs, targets = make_data(2000)
    generator = torch.Generator().manual_seed(1)
    is_noisy = torch.rand(2000, generator=generator) < 0.5
    noisy = torch.where(is_noisy, torch.randint(0, 3, (2000,), generator=generator), targets)
    model = make_model()
    assert reducr.Reference(model).lookup(Batch(None, inputs, noisy, noisy)).mean() > 1.099
    assert watched(model, inputs, noisy, name=name) == []


def test_a_constant_prediction_is_near_chance_whatever_the_frequencies():
    inputs, targets = make_data(2000)
    rare = torch.where(targets == 2, targets, 0)
    model = nn.Linear(5, 3)
    with torch.no_grad():
        model.weight.zero_()
        model.bias.copy_(torch.log(torch.tensor([0.66, 0.01, 0.33])))
    assert len(watched(model, inputs, rare)) == 1


def test_batches_of_one_target_say_nothing():
    """Sorted data has no pairs of different targets within a batch."""
    inputs, targets = make_data(2000)
    order = targets.argsort()
    assert watched(nn.Linear(5, 3), inputs[order], targets[order].div(3, rounding_mode="floor")) == []


def test_another_loss_is_near_chance_if_it_does_not_depend_on_the_targets():
    inputs, _ = make_data(2000)

    def messages(model):
        bound = reducr.Reference(model).bind(make_selector("rho_loss"), loss=squared)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for part in inputs.split(64):
                bound.lookup(Batch(None, part, part[:, 0], torch.zeros(len(part), dtype=torch.int64)))
        return [str(warning.message) for warning in caught]

    good, bad = nn.Linear(5, 1), nn.Linear(5, 1)
    with torch.no_grad():
        good.weight.copy_(torch.tensor([[1.0, 0, 0, 0, 0]]))
        bad.weight.copy_(torch.tensor([[0.0, 1, 0, 0, 0]]))
    assert messages(good) == []
    assert len(messages(bad)) == 1
