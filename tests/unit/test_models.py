from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn

import reducr.configs
from reducr.models import MLP, SmallCNN, SmallTextClassifier, small_model

CONFIGS = Path(reducr.configs.__file__).parent / "model"
FACTS = {"num_features": 192, "in_channels": 3, "image_size": 8, "num_tokens": 20, "max_length": 6}
IMAGES = torch.zeros(2, 3, 8, 8)
TEXTS = torch.tensor([[[1, 2, 3, 4, 0, 0], [0, 0, 1, 1, -1, -1]]] * 2)
RANDOM = {"pretrained": False}
SMALL_BERT = {"num_hidden_layers": 1, "hidden_size": 8, "num_attention_heads": 2, "intermediate_size": 8}
# for each YAML: options that make its model random and small, and inputs for it
CHOICES = {
    "mlp": ({}, IMAGES),
    "small_cnn": ({}, IMAGES),
    "cifar_resnet8": ({"width": 4}, IMAGES),
    "cifar_resnet18": ({"width": 4}, IMAGES),
    "cifar_resnet50": ({"width": 4}, IMAGES),
    "small_text": ({}, TEXTS),
    "by_input": ({}, TEXTS),
    "resnet18_pretrained": ({**RANDOM, "config": {"hidden_sizes": [4, 4, 4, 4]}}, IMAGES),
    "convnext_tiny": ({**RANDOM, "config": {"hidden_sizes": [4, 4, 4, 4]}}, torch.zeros(2, 3, 32, 32)),
    "transformers_image": ({**RANDOM, "architecture": "resnet", "config": {"hidden_sizes": [4] * 4}}, IMAGES),
    "timm": (RANDOM, IMAGES),
    "bert": ({**RANDOM, "config": SMALL_BERT}, TEXTS),
    "transformers_text": ({**RANDOM, "architecture": "bert", "config": SMALL_BERT}, TEXTS),
}


@pytest.mark.parametrize(("hidden_sizes", "num_parameters"), [((), 15), ((8,), 67), ((8, 6), 115)])
def test_mlp_has_the_hidden_layers_of_its_option(hidden_sizes, num_parameters):
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
def test_dropout_is_an_option(model):
    inputs = torch.ones(4, 1, 4, 4)
    probabilities = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert probabilities == [0.5, 0.5]
    assert not torch.equal(model.train()(inputs), model(inputs))
    assert torch.equal(model.eval()(inputs), model(inputs))


def instantiated(name, overrides):
    """The model of a YAML for five classes, with the sizes of the data filled in as in the pipeline."""
    config = OmegaConf.merge(OmegaConf.load(CONFIGS / f"{name}.yaml"), overrides)
    facts = {key: FACTS[key] for key in config if config[key] is None and key in FACTS}
    return instantiate(config, num_classes=5, **facts)


def test_every_yaml_is_tested_here():
    assert {path.stem for path in CONFIGS.glob("*.yaml")} == set(CHOICES)


@pytest.mark.parametrize("name", CHOICES)
def test_every_yaml_builds_a_model_that_fits_the_data(name):
    if name == "timm":
        pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    overrides, inputs = CHOICES[name]
    model = instantiated(name, overrides)
    logits = model(inputs)
    assert logits.shape == (2, 5)
    assert logits.dtype == torch.float32


@pytest.mark.parametrize(
    ("name", "num_parameters"),
    [
        ("cifar_resnet18", 11_173_962 - 5 * 513),
        ("cifar_resnet50", 23_520_842 - 5 * 2049),
        ("resnet18_pretrained", 11_689_512 - 995 * 513),  # as published, with 1000 classes
        ("convnext_tiny", 28_589_128 - 995 * 769),
        ("bert", 109_482_240 - (30_522 - 20) * 768 + 5 * 769),  # as published, without a last layer
    ],
)
def test_models_have_the_published_sizes(name, num_parameters):
    with torch.device("meta"):
        model = instantiated(name, RANDOM if name in ("resnet18_pretrained", "convnext_tiny", "bert") else {})
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters


@pytest.mark.parametrize("name", ["transformers_image", "transformers_text"])
def test_a_yaml_for_any_pretrained_model_needs_its_name(name):
    with pytest.raises(Exception, match="pretrained=true needs `name`") as error:
        instantiated(name, {})
    assert isinstance(error.value.__cause__, ValueError)


@pytest.mark.parametrize(
    ("facts", "kind"),
    [
        ({"num_tokens": 50, "has_pairs": 1}, SmallTextClassifier),
        ({"in_channels": 3, "image_size": 16, "num_features": 768}, SmallCNN),
        ({"num_features": 30}, MLP),
    ],
)
def test_small_model_is_chosen_by_the_inputs(facts, kind):
    model = small_model(4, **facts)
    assert type(model) is kind
    assert getattr(model, "has_pairs", True)


def test_unknown_inputs_are_refused():
    with pytest.raises(ValueError, match=r"small_model needs `num_tokens` for texts, .*; got none of them"):
        small_model(4)
