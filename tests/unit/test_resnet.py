import pytest
import torch
from torch import nn

from reducr.models import resnet8, resnet18, resnet50
from reducr.models.resnet import BasicBlock, Bottleneck


@pytest.mark.parametrize(
    ("make", "options", "num_parameters"),
    [
        # the first layer, a block of 16, one of 32 and one of 64 with their shortcuts, and the last layer
        (resnet8, {}, 464 + 4_672 + 14_528 + 57_728 + 650),
        (resnet18, {}, 11_173_962),
        (resnet50, {}, 23_520_842),
        (resnet18, {"in_channels": 1}, 11_173_962 - 2 * 9 * 64),
    ],
)
def test_the_number_of_parameters_is_the_published_one_for_ten_classes(make, options, num_parameters):
    with torch.device("meta"):
        model = make(10, **options)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize(("make", "num_stages", "channels"), [(resnet8, 3, 16), (resnet18, 4, 32), (resnet50, 4, 128)])
def test_every_stage_but_the_first_halves_the_image(make, num_stages, channels):
    model = make(7, in_channels=2, width=4)
    image = torch.zeros(2, 2, 16, 16)
    assert model(image).shape == (2, 7)
    assert model.features(image).shape == (2, channels, *[16 // 2 ** (num_stages - 1)] * 2)
    assert model.features[0](image).shape == (2, 4, 16, 16)


@pytest.mark.parametrize(("block", "num_convolutions"), [(BasicBlock, 2), (Bottleneck, 3)])
def test_the_shortcut_is_the_identity_if_the_shape_does_not_change(block, num_convolutions):
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
