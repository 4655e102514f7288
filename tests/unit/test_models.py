import pytest
import torch
from torch import nn

from reducr.models import MLP, SmallCNN


@pytest.mark.parametrize(("hidden_sizes", "num_parameters"), [((), 15), ((8,), 67), ((8, 6), 115)])
def test_mlp_has_the_layers_it_is_asked_for(hidden_sizes, num_parameters):
    model = MLP(num_features=4, num_classes=3, hidden_sizes=hidden_sizes)
    assert model(torch.zeros(5, 2, 2)).shape == (5, 3)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize(("channels", "size"), [(1, 28), (3, 32), (1, 8), (2, 5)])
def test_small_cnn_takes_images_of_any_size(channels, size):
    model = SmallCNN(in_channels=channels, image_size=size, num_classes=7, widths=(2, 3, 4), hidden_size=5)
    assert model(torch.zeros(2, channels, size, size)).shape == (2, 7)


@pytest.mark.parametrize(
    "model",
    [
        MLP(num_features=16, num_classes=3, dropout=0.5),
        SmallCNN(in_channels=1, image_size=4, num_classes=3, dropout=0.5),
    ],
    ids=["mlp", "small_cnn"],
)
def test_dropout_can_be_asked_for(model):
    inputs = torch.ones(4, 1, 4, 4)
    probabilities = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert probabilities == [0.5, 0.5]
    assert not torch.equal(model.train()(inputs), model(inputs))
    assert torch.equal(model.eval()(inputs), model(inputs))
