import math

import pytest
import torch
from torch import nn

from reducr.batch import Batch
from reducr.functional import per_example_cross_entropy
from reducr.irreducible import (
    AdjustedIrreducibleLoss,
    GroupIrreducibleLoss,
    HeadIrreducibleLoss,
    LiveLogits,
    PlainIrreducibleLoss,
)


def make_model(num_outputs=3, seed=0):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.ReLU(), nn.Linear(8, num_outputs))


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    target = torch.randint(0, 3, (6,), generator=generator)
    return Batch(torch.arange(6), torch.randn(6, 4, generator=generator), target, target)


def test_the_model_is_in_eval_mode_and_frozen(batch):
    model = make_model().train()
    source = LiveLogits(model)
    buffers = [buffer.clone() for buffer in model.buffers()]
    first, second = source.logits(batch), source.logits(batch)
    assert torch.equal(first, second)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not first.requires_grad
    assert all(torch.equal(buffer, before) for buffer, before in zip(model.buffers(), buffers, strict=True))


def test_plain_loss_is_the_cross_entropy_of_the_model_in_eval_mode(batch):
    model = make_model()
    losses = PlainIrreducibleLoss(LiveLogits(model)).lookup(batch)
    expected = per_example_cross_entropy(model.eval()(batch.input), batch.target)
    assert losses.tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_joint_labels_are_target_major(batch):
    class Constant(nn.Module):
        def forward(self, inputs):
            return torch.arange(6.0).expand(len(inputs), 6)

    logits = LiveLogits(Constant(), num_joint_groups=2).logits(batch)
    assert logits.shape == (6, 3, 2)
    assert logits[0].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    weights = [math.exp(value) for value in range(6)]
    expected = -math.log((weights[0] + weights[1]) / sum(weights))
    first = batch._replace(target=torch.zeros(6, dtype=torch.int64))
    losses = PlainIrreducibleLoss(LiveLogits(Constant(), num_joint_groups=2)).lookup(first)
    assert losses.tolist() == pytest.approx([expected] * 6, abs=1e-6)
    adjusted = AdjustedIrreducibleLoss(LiveLogits(Constant(), num_joint_groups=2), gradient_weight=5.0)
    group_1 = [5 * weight if position % 2 else weight for position, weight in enumerate(weights)]
    expected = -math.log((group_1[0] + group_1[1]) / sum(group_1))
    assert adjusted.lookup(first)[:, 1].tolist() == pytest.approx([expected] * 6, abs=1e-6)


def test_column_c_is_the_loss_of_model_c(batch):
    models = [make_model(seed=seed) for seed in range(3)]
    losses = GroupIrreducibleLoss(models).lookup(batch)
    assert losses.shape == (6, 3)
    for c, model in enumerate(models):
        expected = per_example_cross_entropy(model.eval()(batch.input), batch.target)
        assert losses[:, c].tolist() == pytest.approx(expected.tolist(), abs=1e-6)


def test_a_group_without_a_model_has_a_column_of_nan(batch):
    losses = GroupIrreducibleLoss([None, make_model(), None]).lookup(batch)
    assert torch.isnan(losses).tolist() == [[True, False, True]] * 6


@pytest.mark.parametrize("models", [[None, None], []])
def test_no_model_at_all_is_refused(models):
    with pytest.raises(ValueError, match="GroupIrreducibleLoss needs at least one model; got only None"):
        GroupIrreducibleLoss(models)


class Heads(nn.Module):
    """Three models whose outputs are stacked as heads."""

    def __init__(self, models):
        super().__init__()
        self.models = nn.ModuleList(models)

    def forward(self, inputs):
        return torch.stack([model(inputs) for model in self.models], dim=1)


def test_heads_have_the_losses_of_single_models(batch):
    models = [make_model(seed=seed) for seed in range(3)]
    heads = HeadIrreducibleLoss(Heads(models), groups=[0, 1, 2], num_groups=3).lookup(batch)
    assert torch.allclose(heads, GroupIrreducibleLoss(models).lookup(batch))


def test_a_group_without_a_head_has_no_loss(batch):
    models = [make_model(seed=seed) for seed in range(2)]
    losses = HeadIrreducibleLoss(Heads(models), groups=[3, 0], num_groups=4).lookup(batch)
    assert bool(torch.isnan(losses[:, 1:3]).all())
    expected = GroupIrreducibleLoss([models[1], None, None, models[0]]).lookup(batch)
    assert torch.allclose(losses, expected, equal_nan=True)


def test_joint_heads_and_joint_models_sum_over_the_groups(batch):
    models = [make_model(num_outputs=6, seed=seed) for seed in range(2)]
    heads = HeadIrreducibleLoss(Heads(models), groups=[0, 1], num_groups=2, num_joint_groups=2).lookup(batch)
    assert torch.allclose(heads, GroupIrreducibleLoss(models, num_joint_groups=2).lookup(batch))
    joint = torch.softmax(models[0].eval()(batch.input), dim=1).reshape(6, 3, 2).sum(dim=2)
    expected = -joint[torch.arange(6), batch.target].log()
    assert torch.allclose(heads[:, 0], expected, atol=1e-5)


def test_a_model_that_goes_on_learning_keeps_its_gradients(batch):
    model = make_model()
    logits = LiveLogits(model, is_frozen=False).logits(batch)
    assert not logits.requires_grad
    assert all(parameter.requires_grad for parameter in model.parameters())
    with torch.no_grad():
        model[4].bias += torch.tensor([1.0, 0.0, 0.0])
    assert torch.allclose(LiveLogits(model).logits(batch), logits + torch.tensor([1.0, 0.0, 0.0]), atol=1e-6)
