import pytest
import torch
from torch import nn

from reducr.batch import Batch
from reducr.training.auxiliary import AuxiliaryModel, ExtraBatches, joint_optimizer, selected_loss, total_loss


@pytest.fixture
def selected():
    generator = torch.Generator().manual_seed(0)
    target = torch.arange(8) % 3
    return Batch(torch.arange(8), torch.randn(8, 4, generator=generator), target, target)


def models(number):
    torch.random.manual_seed(5)
    return [nn.Linear(4, 3) for _ in range(number)]


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.1)


def test_every_model_learns_as_it_would_alone(selected):
    model, proxy, slow = models(3)
    auxiliary_models = [AuxiliaryModel(proxy), AuxiliaryModel(slow, rate=0.01)]
    optimizer = joint_optimizer(adamw, model, auxiliary_models)
    for _ in range(3):
        optimizer.zero_grad()
        total_loss(selected_loss(model, selected), auxiliary_models, selected).backward()
        optimizer.step()
    for together, alone, rate in zip((model, proxy, slow), models(3), (0.1, 0.1, 0.001), strict=True):
        own = torch.optim.AdamW(alone.parameters(), lr=rate)
        for _ in range(3):
            own.zero_grad()
            selected_loss(alone, selected).backward()
            own.step()
        assert torch.equal(together.weight, alone.weight)
        assert torch.equal(together.bias, alone.bias)


def test_without_companions_the_optimizer_is_the_models_own(selected):
    (model,) = models(1)
    optimizer = joint_optimizer(adamw, model, [])
    assert [group["lr"] for group in optimizer.param_groups] == [0.1]
    loss = selected_loss(model, selected)
    assert total_loss(loss, [], selected) is loss


def test_a_companion_has_a_loss_of_its_own(selected):
    model, other = models(2)
    doubled = AuxiliaryModel(other, lambda model, batch: 2 * selected_loss(model, batch))
    with torch.no_grad():
        loss = total_loss(selected_loss(model, selected), [doubled], selected)
        expected = selected_loss(model, selected) + 2 * selected_loss(other, selected)
    assert float(loss) == pytest.approx(float(expected))


def test_other_points_come_batch_after_batch_and_from_the_start_again(selected):
    batches = [selected.take(torch.tensor(positions)) for positions in ([0, 1], [2, 3], [4])]
    others = ExtraBatches(batches, augment=lambda inputs: -inputs, first_step=2)
    seen = [others.append_to(selected) for _ in range(3)]
    assert [one.index[8:].tolist() for one in seen] == [[4], [0, 1], [2, 3]]
    for one in seen:
        assert torch.equal(one.input[:8], selected.input)
        assert torch.equal(one.input[8:], -selected.input[one.index[8:]])
        assert torch.equal(one.target, one.index % 3)


def test_weights_are_those_of_the_selected_points_and_others_count_once(selected):
    (model,) = models(1)
    weights = torch.tensor([2.0, 0.0, 0.5])
    losses = torch.nn.functional.cross_entropy(model(selected.input), selected.target, reduction="none")
    expected = (2 * losses[0] + 0.5 * losses[2] + losses[3:].sum()) / 8
    torch.testing.assert_close(selected_loss(model, selected, weights), expected)
    torch.testing.assert_close(selected_loss(model, selected, torch.ones(3)), selected_loss(model, selected))
