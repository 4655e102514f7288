import importlib.util
import json
import pickle
import shutil

import pytest
import torch
from torch import nn

from reducr.models import timm_model, transformers_image_model
from reducr.models.pretrained import transformers_model, with_dropout

pytest.importorskip("transformers", reason="transformers is not installed")

RESNET = {"depths": [1, 1], "hidden_sizes": [4, 8], "embedding_size": 4, "layer_type": "basic"}
VIT = {
    "hidden_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 8,
    "image_size": 8,
    "patch_size": 4,
}


@pytest.fixture
def offline(monkeypatch):
    """No requests to the hub, as with HF_HUB_OFFLINE=1."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A small published model with five classes."""
    path = tmp_path_factory.mktemp("resnet")
    transformers_image_model(5, pretrained=False, architecture="resnet", config=RESNET).model.save_pretrained(path)
    return path


def test_an_architecture_is_built_with_its_sizes():
    model = transformers_image_model(7, pretrained=False, architecture="resnet", config={**RESNET, "num_channels": 2})
    assert model(torch.zeros(3, 2, 16, 16)).shape == (3, 7)
    assert model.model.config.hidden_sizes == [4, 8]
    assert model.training
    assert not any(isinstance(module, nn.Dropout) for module in model.modules())


def test_parameters_depend_only_on_the_seed():
    first, second, other = (
        torch.random.manual_seed(seed) and transformers_image_model(3, pretrained=False, architecture="vit", config=VIT)
        for seed in (0, 0, 1)
    )
    images = torch.ones(1, 3, 8, 8)
    assert torch.equal(first(images), second(images))
    assert not torch.equal(first(images), other(images))


def test_published_parameters_are_loaded_and_the_last_layer_is_new(folder):
    published = transformers_image_model(5, name=str(folder)).state_dict()
    models = []
    for _ in range(2):
        torch.random.manual_seed(0)
        models.append(transformers_image_model(3, name=str(folder)))
    model = models[0]
    assert model.training
    assert model.eval()(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    last = {"model.classifier.1.weight", "model.classifier.1.bias"}
    assert set(published) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(value, models[1].state_dict()[name])
        assert torch.equal(value, published[name]) == (name not in last)


def test_half_precision_parameters_are_loaded_in_single_precision(folder, tmp_path):
    transformers_image_model(5, name=str(folder)).model.half().save_pretrained(tmp_path)
    model = transformers_image_model(5, name=str(tmp_path))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_one_configuration_serves_published_and_random_parameters(folder):
    options = {"name": str(folder), "architecture": "resnet", "config": RESNET}
    published, random = (transformers_image_model(5, **options, pretrained=pretrained) for pretrained in (True, False))
    assert {name: value.shape for name, value in published.state_dict().items()} == {
        name: value.shape for name, value in random.state_dict().items()
    }
    first = "model.resnet.embedder.embedder.convolution.weight"
    again = transformers_image_model(5, name=str(folder)).state_dict()
    assert torch.equal(published.state_dict()[first], again[first])
    assert not torch.equal(random.state_dict()[first], again[first])


def test_without_an_architecture_the_sizes_come_from_the_name(folder):
    model = transformers_image_model(3, name=str(folder), pretrained=False)
    assert model.model.config.hidden_sizes == [4, 8]
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)
    first = "model.resnet.embedder.embedder.convolution.weight"
    assert not torch.equal(model.state_dict()[first], transformers_image_model(3, name=str(folder)).state_dict()[first])


def test_with_an_architecture_and_random_parameters_the_name_is_not_used():
    model = transformers_image_model(3, name="no/such/model", pretrained=False, architecture="resnet", config=RESNET)
    assert model(torch.zeros(2, 3, 16, 16)).shape == (2, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, r"pretrained=true needs `name`.*set `pretrained=false` and `architecture`"),
        ({"architecture": "resnet"}, r"pretrained=true needs `name`"),
        ({"pretrained": False}, r"needs `architecture`, such as 'resnet' or 'bert', or the `name` of a model"),
        (
            {"name": "x", "config": RESNET},
            r"config=\{'depths'.*needs an architecture; got only 'x', which has sizes of its own",
        ),
        (
            {"pretrained": False, "architecture": "resnt"},
            r"unknown architecture for ImageClassification 'resnt'\. Did you mean 'resnet'",
        ),
        ({"pretrained": False, "architecture": "bert"}, r"unknown architecture for ImageClassification 'bert'"),
        (
            {"pretrained": False, "architecture": "resnet", "config": {"depth": [1]}},
            r"unknown config entry 'depth' of resnet\. Did you mean 'depths'",
        ),
        (
            {"pretrained": False, "architecture": "resnet", "config": {"num_labels": 4}},
            r"config\.num_labels=4 is set from the number of classes of the data\. Remove it",
        ),
    ],
)
def test_contradictory_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        transformers_image_model(3, **options)


@pytest.mark.parametrize(
    ("architecture", "config", "message"),
    [
        ("resnet", {"depths": [1, 2]}, r"config\.depths is \[1, 2\], but the parameters of '.*' are for \[1, 1\]"),
        ("convnext", {}, r"architecture is 'convnext', but the parameters of '.*' are for 'resnet'"),
    ],
)
def test_sizes_that_disagree_with_the_published_ones_are_refused(folder, architecture, config, message):
    with pytest.raises(ValueError, match=message + r".*or set `pretrained=false`\."):
        transformers_image_model(5, name=str(folder), architecture=architecture, config=config)


@pytest.mark.parametrize("name", ["someone/nothing", "/no/such/folder"])
@pytest.mark.parametrize("pretrained", [True, False])
def test_the_error_for_a_missing_model_names_the_places_searched(offline, name, pretrained):
    with pytest.raises(
        FileNotFoundError,
        match=rf"model '{name}' cannot be loaded: searched the folder /.*, the cache .*hub.*name=FOLDER",
    ):
        transformers_image_model(3, name=name, pretrained=pretrained)


def test_a_folder_without_parameters_is_refused(folder, tmp_path):
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match=r"searched the folder .*no file named model\.safetensors"):
        transformers_image_model(5, name=str(tmp_path))


class Attack:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


def write_attack(folder, kind):
    """Files of a published model that would run code."""
    path = folder / "config.json"
    config = json.loads(path.read_text())
    if kind == "pickle":
        (folder / "model.safetensors").unlink()
        (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Attack()))
    elif kind == "archive":
        (folder / "model.safetensors").unlink()
        torch.save({"x": Attack()}, folder / "pytorch_model.bin")
    elif kind == "tensors":
        (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    elif kind == "code":
        (folder / "attack.py").write_text("raise SystemExit('imported')")
        path.write_text(json.dumps(config | {"model_type": "attack", "auto_map": {"AutoConfig": "attack.Attack"}}))
    else:
        path.write_text(json.dumps(config | {kind: "someone/kernel"}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("pickle", "damaged, or hold more than tensors"),
        ("archive", "damaged, or hold more than tensors"),
        ("tensors", "damaged, or hold more than tensors"),
        ("code", "has code of its own, which is not run"),
        ("attn_implementation", "names the kernel 'someone/kernel'"),
        ("_attn_implementation", "names the kernel 'someone/kernel'"),
        ("experts_implementation", "names the kernel 'someone/kernel'"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # of transformers
def test_no_code_of_a_published_model_is_run(kind, message, folder, tmp_path, offline):
    place = shutil.copytree(folder, tmp_path / "model")
    write_attack(place, kind)
    with pytest.raises(ValueError, match=message) as error:
        transformers_image_model(5, name=str(place))
    assert not any(advice in str(error.value) for advice in ("trust_remote_code", "weights_only"))


def test_a_published_model_of_another_task_is_refused(folder):
    with pytest.raises(ValueError, match="unknown architecture for SequenceClassification 'resnet'"):
        transformers_model(
            "SequenceClassification", 3, name=str(folder), pretrained=True, architecture=None, config=None
        )


@pytest.mark.parametrize(("architecture", "config"), [("resnet", RESNET), ("vit", VIT)])
def test_dropout_is_before_the_last_layer(architecture, config):
    # with eight classes, more than one layer has as many outputs as there are classes
    model = transformers_image_model(8, pretrained=False, architecture=architecture, config=config, dropout=0.5).eval()
    layers = [module for module in model.modules() if isinstance(module, nn.Dropout) and module.p == 0.5]
    assert len(layers) == 1
    images = torch.randn(4, 3, 8, 8)
    plain = model(images)
    last = next(module for module in model.modules() if layers[0] in module.children())[1]
    features = []
    last.register_forward_pre_hook(lambda _, inputs: features.append(inputs[0]))
    layers[0].train()
    dropped = model(images)
    assert torch.equal(dropped, last(features[0]))
    assert 0.2 < float((features[0] == 0).float().mean()) < 0.9
    assert not torch.equal(dropped, plain)


def test_dropout_without_a_last_linear_layer_is_refused():
    with pytest.raises(ValueError, match=r"dropout=0\.5 goes before .*, but Conv2d has no linear layer with 3 outputs"):
        with_dropout(nn.Conv2d(1, 3, 1), 3, 0.5)


@pytest.mark.skipif(importlib.util.find_spec("timm") is not None, reason="timm is installed")
def test_a_missing_timm_is_an_error_with_the_command_to_install_it():
    with pytest.raises(ImportError, match=r"needs timm, which cannot be imported .*pip install 'reducr\[timm\]'"):
        timm_model(3, name="resnet18")


def test_timm_models_fit_the_data():
    pytest.importorskip("timm", reason="timm is not installed", exc_type=ImportError)
    model = timm_model(5, name="resnet18", pretrained=False, in_channels=1, dropout=0.5)
    assert model(torch.zeros(2, 1, 32, 32)).shape == (2, 5)
    assert [module.p for module in model.modules() if isinstance(module, nn.Dropout)] == [0.5]
