import pytest
import torch
import torch.nn.functional as F
from torch import nn

from reducr.irreducible.ensemble import Ensemble, MultiHead
from reducr.models import MLP, SmallCNN, resnet18

MAKES = {
    "mlp": lambda: MLP(num_features=16, num_classes=3, hidden_sizes=(8,)),
    "small_cnn": lambda: SmallCNN(in_channels=1, image_size=4, num_classes=3, widths=(3, 4, 5), hidden_size=6),
    "resnet": lambda: resnet18(3, in_channels=1, width=2),
}


def make_models(make, num_models=3, dtype=torch.float32):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [make().to(dtype) for _ in range(num_models)]


def make_images(size=6, dtype=torch.float32, seed=1):
    return torch.randn(size, 1, 4, 4, generator=torch.Generator().manual_seed(seed)).to(dtype)


def states_differ_by(first, second):
    first, second = first.state_dict(), second.state_dict()
    assert first.keys() == second.keys()
    return max(float((first[name] - second[name]).abs().max()) for name in first)


@pytest.mark.parametrize(
    ("name", "dtype", "tolerance"),
    [
        ("mlp", torch.float32, 1e-6),
        ("small_cnn", torch.float32, 1e-6),
        # batch normalisation over six examples magnifies rounding errors, those of float32 up to 1e-4
        ("resnet", torch.float64, 1e-8),
    ],
)
def test_twenty_steps_equal_separate_training(name, dtype, tolerance):
    models = make_models(MAKES[name], dtype=dtype)
    ensemble = Ensemble(models)
    together = torch.optim.AdamW(ensemble.parameters(), lr=1e-3)
    apart = [torch.optim.AdamW(model.parameters(), lr=1e-3) for model in models]
    for step in range(20):
        images, target = make_images(dtype=dtype, seed=step), torch.tensor([0, 1, 2, 0, 1, 2])
        weights = torch.rand(6, 3, generator=torch.Generator().manual_seed(step), dtype=dtype)
        logits = ensemble(images)
        losses = F.cross_entropy(logits.transpose(1, 2), target.unsqueeze(1).expand(-1, 3), reduction="none")
        together.zero_grad()
        (weights * losses).sum().backward()
        together.step()
        for c, (model, optimizer) in enumerate(zip(models, apart, strict=True)):
            optimizer.zero_grad()
            (weights[:, c] * F.cross_entropy(model(images), target, reduction="none")).sum().backward()
            optimizer.step()
    for c, model in enumerate(models):
        assert states_differ_by(ensemble.member(c), model) < tolerance
    images = make_images(dtype=dtype)
    logits = ensemble.eval()(images)
    assert logits.shape == (6, 3, 3)
    for c, model in enumerate(models):
        torch.testing.assert_close(logits[:, c], model.eval()(images), rtol=0, atol=10 * tolerance)


@pytest.mark.parametrize("name", MAKES)
@pytest.mark.parametrize("is_training", [True, False])
def test_without_gradients_logits_and_statistics_equal_those_of_each_model(name, is_training):
    models = make_models(MAKES[name])
    ensemble = Ensemble(models).train(is_training)
    with torch.no_grad():
        logits = ensemble(make_images())
        for c, model in enumerate(models):
            assert torch.equal(logits[:, c], model.train(is_training)(make_images()))
            assert states_differ_by(ensemble.member(c), model) == 0


@pytest.mark.parametrize("shape", [(5, 4), (5, 2, 4)])
@pytest.mark.parametrize("bias", [True, False])
def test_linear_layers_with_and_without_bias_on_inputs_of_any_shape(shape, bias):
    models = make_models(lambda: nn.Sequential(nn.Linear(4, 3, bias=bias), nn.ReLU(), nn.Linear(3, 2, bias=bias)))
    ensemble = Ensemble(models)
    inputs = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    ensemble(inputs).square().sum().backward()
    for c, model in enumerate(models):
        model(inputs).square().sum().backward()
        for stacked, parameter in zip(ensemble.parameters(), model.parameters(), strict=True):
            torch.testing.assert_close(stacked.grad[c], parameter.grad)


def test_the_models_are_copied():
    models = make_models(MAKES["mlp"])
    ensemble = Ensemble(models)
    before = ensemble(make_images())
    with torch.no_grad():
        for parameter in models[0].parameters():
            parameter.zero_()
    assert torch.equal(ensemble(make_images()), before)


@pytest.mark.parametrize("name", MAKES)
def test_members_equal_the_models_and_are_copies(name):
    models = make_models(MAKES[name])
    ensemble = Ensemble(models)
    for c, model in enumerate(models):
        member = ensemble.member(c)
        assert type(member) is type(model)
        assert states_differ_by(member, model) == 0
        assert all(isinstance(parameter, nn.Parameter) and parameter.is_leaf for parameter in member.parameters())
    with torch.no_grad():
        for parameter in ensemble.member(0).parameters():
            parameter.zero_()
    assert states_differ_by(ensemble.member(0), models[0]) == 0
    for tensor in [*member.parameters(), *member.buffers()]:  # no views: a checkpoint would hold all members
        assert tensor.untyped_storage().nbytes() == tensor.nbytes
    again = Ensemble([ensemble.member(c) for c in range(3)])
    assert states_differ_by(again, ensemble) == 0


def test_the_state_has_the_names_of_one_model_and_can_be_loaded():
    models, others = make_models(MAKES["resnet"]), make_models(MAKES["resnet"], num_models=6)[3:]
    state = Ensemble(models).state_dict()
    assert {name.removeprefix("model.") for name in state} == set(models[0].state_dict())
    assert all(state[f"model.{name}"].shape == (3, *value.shape) for name, value in models[0].state_dict().items())
    ensemble = Ensemble(others)
    ensemble.load_state_dict(state)
    assert states_differ_by(ensemble.member(2), models[2]) == 0


def test_modes_and_dtypes_reach_every_layer():
    ensemble = Ensemble(make_models(MAKES["resnet"])).double().eval()
    images = make_images(dtype=torch.float64)
    before = {name: value.clone() for name, value in ensemble.state_dict().items()}
    assert ensemble(images).dtype == torch.float64
    assert all(torch.equal(value, before[name]) for name, value in ensemble.state_dict().items())
    assert not any(module.training for module in ensemble.member(1).modules())
    ensemble.train()
    ensemble(images)
    counts = {name: value.tolist() for name, value in ensemble.state_dict().items() if name.endswith("_tracked")}
    assert len(counts) == 20
    assert set(map(tuple, counts.values())) == {(1, 1, 1)}


def test_dropout_differs_between_members():
    model = nn.Dropout(0.5)
    ones = torch.ones(64, 16)
    logits = Ensemble([nn.Sequential(nn.Flatten(), nn.Linear(16, 16, bias=False), model) for _ in range(2)])
    with torch.no_grad():
        logits.model[1].weight.copy_(torch.eye(16))
    outputs = logits(ones)
    assert set(outputs.unique().tolist()) == {0.0, 2.0}
    share_equal = (outputs[:, 0] == outputs[:, 1]).float().mean()
    assert 0.4 < share_equal < 0.6
    assert torch.equal(logits.eval()(ones), torch.ones(64, 2, 16))


def test_shared_and_frozen_parameters_stay_so():
    def make():
        model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
        model[2].weight = model[0].weight
        model[0].bias.requires_grad_(False)
        return model

    models = make_models(make)
    ensemble = Ensemble(models)
    assert ensemble.model[2].weight is ensemble.model[0].weight
    assert [parameter.requires_grad for parameter in ensemble.parameters()] == [True, False, True]
    member = ensemble.member(1)
    assert member[2].weight is member[0].weight
    inputs = torch.randn(5, 4)
    torch.testing.assert_close(ensemble(inputs)[:, 1], models[1](inputs))


def test_models_that_differ_are_refused():
    with pytest.raises(ValueError, match="Ensemble needs at least one model; got none"):
        Ensemble([])
    with pytest.raises(ValueError, match=r"model 1 differs from model 0 in weight\."):
        Ensemble([nn.Linear(4, 3), nn.Linear(5, 3)])
    with pytest.raises(ValueError, match=r"same mode; model 2 differs from model 0 in the model\."):
        Ensemble([nn.Linear(4, 3), nn.Linear(4, 3), nn.Linear(4, 3).eval()])


def test_heads_are_the_outputs_in_order_and_share_the_trunk():
    trunk = MLP(num_features=16, num_classes=6, hidden_sizes=(5,))
    model = MultiHead(trunk, num_heads=3)
    images = make_images()
    outputs, logits = trunk(images), model(images)
    assert logits.shape == (6, 3, 2)
    for g in range(3):
        assert torch.equal(logits[:, g], outputs[:, 2 * g : 2 * g + 2])
        assert torch.equal(model.head(g)(images), logits[:, g])
    assert next(model.head(1).parameters()) is next(trunk.parameters())


def test_outputs_that_are_not_a_multiple_of_the_heads_are_refused():
    with pytest.raises(ValueError, match=r"must return \(B, 4 \* C\) outputs; got \(6, 6\).*num_classes = 4 times"):
        MultiHead(MLP(num_features=16, num_classes=6), num_heads=4)(make_images())


@pytest.mark.parametrize("position", [-1, 3])
def test_members_and_heads_out_of_range_are_refused(position):
    with pytest.raises(ValueError, match=rf"member must be in 0\.\.2; got {position}\."):
        Ensemble(make_models(MAKES["mlp"])).member(position)
    with pytest.raises(ValueError, match=rf"head must be in 0\.\.2; got {position}\."):
        MultiHead(MLP(num_features=16, num_classes=6), num_heads=3).head(position)
