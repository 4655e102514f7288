import pytest
import torch
from torch import nn

from reducr.models import resnet18, resnet50
from reducr.models.resnet import BasicBlock, Bottleneck


@pytest.mark.parametrize(
    ("make", "options", "num_parameters"),
    [
        (resnet18, {}, 11_173_962),
        (resnet50, {}, 23_520_842),
        (resnet18, {"in_channels": 1}, 11_173_962 - 2 * 9 * 64),
    ],
)
def test_parameters_are_as_many_as_published_for_ten_classes(make, options, num_parameters):
    with torch.device("meta"):
        model = make(10, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize(("make", "channels"), [(resnet18, 32), (resnet50, 128)])
def test_three_of_the_four_stages_halve_the_image(make, channels):
    model = make(7, in_channels=2, width=4)
    image = torch.zeros(2, 2, 16, 16)
    assert model(image).shape == (2, 7)
    assert model.features(image).shape == (2, channels, 2, 2)
    assert model.features[0](image).shape == (2, 4, 16, 16)


@pytest.mark.parametrize(("block", "num_convolutions"), [(BasicBlock, 2), (Bottleneck, 3)])
def test_the_shortcut_is_the_identity_where_the_shape_stays(block, num_convolutions):
    same, other = block(4 * block.expansion, 4, 1).eval(), block(4 * block.expansion, 8, 2)
    assert isinstance(same.shortcut, nn.Identity)
    assert [type(layer) for layer in other.shortcut] == [nn.Conv2d, nn.BatchNorm2d]
    assert sum(isinstance(layer, nn.Conv2d) for layer in same.layers) == num_convolutions
    nn.init.zeros_(same.layers[-1].weight)
    images = torch.randn(2, 4 * block.expansion, 5, 5)
    assert torch.equal(same(images), images.relu())


def test_dropout_is_before_the_last_layer():
    model = resnet18(3, width=2, dropout=0.5)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.5]
    model.eval()
    images = torch.randn(4, 3, 8, 8)
    assert torch.equal(model(images), model(images))
    model.classifier.train()
    assert not torch.equal(model(images), model(images))
