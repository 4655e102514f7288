"""Logit adjustment: offsets from held-back examples, and when they are refused."""

import re

import pytest
import torch
from torch import nn

import reducr
from reducr.functional import group_accuracy, logit_offsets
from reducr.training.calibration import adjustment_of


def skewed(size, *, generator, num_classes=3, shift=1.5):
    """Logits of a model that favours class 0, for balanced targets."""
    targets = torch.arange(size) % num_classes
    logits = torch.randn(size, num_classes, generator=generator)
    logits[torch.arange(size), targets] += 1.5
    logits[:, 0] += shift
    return logits, targets


def accuracies(logits, targets):
    return group_accuracy(logits.argmax(1), targets, targets, logits.shape[1])


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def slow_offsets(logits, targets, num_steps):
    """The formula, one class and one step at a time, in Python's floats."""
    num_classes = len(logits[0])
    offsets, kept = [0.0] * num_classes, []
    for step in range(num_steps):
        errors = []
        for c in range(num_classes):
            rows = [row for row, target in zip(logits, targets, strict=True) if target == c]
            wrong = 0
            for row in rows:
                values = [value + offset for value, offset in zip(row, offsets, strict=True)]
                wrong += values.index(max(values)) != c
            errors.append(wrong / len(rows))
        mean = sum(errors) / num_classes
        offsets = [o + 0.3 / (1 + step) ** 0.5 * (e - mean) for o, e in zip(offsets, errors, strict=True)]
        if step >= num_steps // 2:
            kept.append(offsets)
    means = [sum(column) / len(kept) for column in zip(*kept, strict=True)]
    return [value - sum(means) / num_classes for value in means]


def test_offsets_are_those_of_the_formula(generator):
    logits, targets = skewed(60, generator=generator)
    expected = slow_offsets(logits.double().tolist(), targets.tolist(), 21)
    assert logit_offsets(logits, targets, num_steps=21).tolist() == pytest.approx(expected, abs=1e-12)


def test_a_model_that_favours_a_class_does_better_on_its_worst_class_on_new_examples(generator):
    adjustment = adjustment_of(*skewed(3000, generator=generator))
    logits, targets = skewed(3000, generator=generator)
    before, after = accuracies(logits, targets), accuracies(adjustment(logits), targets)
    assert before.min() < 0.5
    assert after.min() > before.min() + 0.15
    assert after.mean() > before.mean()
    assert adjustment.share in (0.5, 1.0)
    assert float(adjustment.before.min()) == pytest.approx(
        float(before.min()), abs=0.04
    )  # the same law, other examples
    assert float(adjustment.after.min()) == pytest.approx(float(after.min()), abs=0.04)
    assert float(adjustment.offsets.sum()) == pytest.approx(0, abs=1e-6)
    assert re.fullmatch(
        r"Logit adjustment from 3000 held-back examples, 1000 of the smallest group, cross-fitted: worst 0\.\d{3} -> "
        r"0\.\d{3}, mean 0\.\d{3} -> 0\.\d{3}\.",
        str(adjustment),
    )


def test_a_fair_model_is_left_alone(generator):
    logits, targets = skewed(3000, generator=generator, shift=0.0)
    adjustment = adjustment_of(logits, targets)
    assert adjustment.share == 0
    assert adjustment.offsets.tolist() == [0, 0, 0]
    assert torch.equal(adjustment(logits), logits)
    assert str(adjustment).startswith("No logit adjustment: no offsets were better than none on 3000")


def test_few_examples_are_told_and_do_little_harm(generator):
    """With 20 examples a class, to a model that needs no offsets."""
    new, targets = skewed(3000, generator=generator, shift=0.0)
    gains = []
    for _ in range(20):
        held_back = skewed(60, generator=generator, shift=0.0)
        with pytest.warns(RuntimeWarning, match="The smallest group has 20 held-back examples: its error is known to"):
            adjustment = adjustment_of(*held_back)
        gains.append(float(accuracies(adjustment(new), targets).min() - accuracies(new, targets).min()))
    assert gains.count(0) >= 14
    assert sum(gains) / 20 > -0.02


def test_groups_that_are_not_the_classes(generator):
    """Group 1 is the class 1 alone and misjudged; group 0 holds both classes."""
    targets = torch.arange(4000) % 2
    groups = ((torch.arange(4000) % 8) == 1).long()
    logits = torch.randn(4000, 2, generator=generator)
    logits[torch.arange(4000), targets] += 1.0
    logits[groups == 1, 0] += 2.0
    adjustment = adjustment_of(logits, targets, groups)
    accuracy = [group_accuracy(z.argmax(1), targets, groups, 2) for z in (logits, adjustment(logits))]
    assert accuracy[0][1] < 0.3
    assert accuracy[1].min() > accuracy[0].min() + 0.1
    assert adjustment.offsets[1] > 0 > adjustment.offsets[0]


class Named(nn.Module):
    def __init__(self, net):
        super().__init__()
        self.net = net

    def forward(self, x):
        return {"logits": self.net(x), "loss": None}


@pytest.mark.parametrize("outer", [nn.Identity, Named])
def test_the_wrapped_model_adds_the_offsets_and_keeps_them_in_its_state(outer, generator):
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
        model.bias.zero_()
    logits, targets = skewed(900, generator=generator)
    net = nn.Sequential(model, nn.Dropout(0.5)) if outer is nn.Identity else outer(model)
    net.train()
    batches = [(logits[i : i + 100], targets[i : i + 100]) for i in range(0, 900, 100)]
    adjustment = reducr.fit_logit_adjustment(net, batches)
    assert net.training  # left as it was, and evaluated without dropout:
    assert torch.equal(adjustment.offsets, adjustment_of(logits, targets).offsets)
    wrapped = adjustment.wrap(net).eval()
    torch.testing.assert_close(wrapped(logits), logits + adjustment.offsets)
    again = adjustment.wrap(net)
    again.offsets.zero_()
    again.load_state_dict(wrapped.state_dict())
    assert torch.equal(again.offsets, adjustment.offsets)


def test_faults_are_told():
    model = nn.Linear(2, 3)
    with pytest.raises(ValueError, match="no held-back examples"):
        reducr.fit_logit_adjustment(model, [])
    with pytest.raises(ValueError, match="examples of all 3 classes; got none of 1, 2"):
        reducr.fit_logit_adjustment(model, [(torch.zeros(4, 2), torch.zeros(4, dtype=torch.long))])
    with pytest.raises(ValueError, match=r"logits of shape \(B, C\) with B = 4; got torch\.float32 \(4,\)"):
        reducr.fit_logit_adjustment(nn.Flatten(0), [(torch.zeros(4, 1), torch.zeros(4, dtype=torch.long))])
    with pytest.raises(ValueError, match=r"targets must be in 0\.\.2; position 1 holds 3"):
        logit_offsets(torch.zeros(2, 3), torch.tensor([0, 3]))
