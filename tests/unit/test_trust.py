"""A run folder cannot name code: what a stored configuration may build, before anything is imported."""

import sys
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import reducr
from reducr.pipeline.config import as_literals
from reducr.pipeline.setup import build
from reducr.pipeline.stored_config import load_config, read_plain
from reducr.pipeline.trust import ALLOWED, UntrustedError, check_trusted, demands

CONFIGS = Path(reducr.__file__).parent / "configs"


def node(target, **options):
    return {"_target_": target, **options}


ATTACKS = {
    "a function": node("os.system", command="id"),
    "a function of builtins": node("builtins.exec", _args_=["import os"]),
    "through Hydra": node("hydra.utils.get_method", path="os.system"),
    "Hydra's instantiate": node("hydra.utils.instantiate", config=node("os.system", command="id")),
    "Hydra's call": node("hydra.utils.call", config={}),
    "a class by Hydra": node("hydra.utils.get_class", path="subprocess.Popen"),
    "an object by Hydra": node("hydra.utils.get_object", path="os.environ"),
    "a pickle": node("torch.load", f="x.ckpt", weights_only=False),
    "the hub": node("torch.hub.load", repo_or_dir="x/y", model="z"),
    "another function of torch": node("torch.serialization.load", f="x"),
    "through a module of reducr": node("reducr.cli.os.system", command="id"),
    "through an allowed class": node("reducr.models.MLP.forward.__globals__"),
    "through a moved module": node("reducr.data.digits.torch.load", f="x"),
    "another function of reducr": node("reducr.models.pretrained.transformers_model", task="x"),
    "a prefix": node("reducr.models.MLPx"),
    "a space": node("reducr.models.MLP "),
    "a relative name": node(".os.system"),
    "partly": node("os.system", _partial_=True),
    "in an argument": node("reducr.models.MLP", hidden_sizes=node("os.system", command="id")),
    "in a list": node("torch.nn.Sequential", _args_=[node("torch.nn.ReLU"), [node("os.system", command="id")]]),
    "no text": node(["os.system"]),
    "an interpolation": node("${name}"),
    "nothing": node(None),
    "weights for timm": node("reducr.models.timm_model", name="resnet18", checkpoint_path="x.pth"),
    "weights from elsewhere": node("reducr.models.timm_model", name="hf-hub:someone/model"),
    "remote code": node("reducr.models.TransformersTextClassifier", name="x", config={"trust_remote_code": True}),
    "a map of code": node(
        "reducr.models.transformers_image_model", name="x", config={"auto_map": {"AutoModel": "m.M"}}
    ),
    "a kernel": node("reducr.models.transformers_image_model", config={"attn_implementation": "someone/kernel"}),
    "a log elsewhere": node("reducr.lightning.CSVMetrics", version="../../elsewhere"),
    "a log anywhere": node("lightning.pytorch.loggers.TensorBoardLogger", name="/etc"),
    "a log anywhere by position": node("lightning.pytorch.loggers.CSVLogger", _args_=["/etc"]),
    "a log in an argument of a tracker": node("lightning.pytorch.loggers.WandbLogger", dir="/etc"),
    "settings of a tracker": node("lightning.pytorch.loggers.WandbLogger", settings={"program": "x"}),
    "a store elsewhere": node("lightning.pytorch.loggers.MLFlowLogger", tracking_uri="file:///etc"),
    "a relative store": node("lightning.pytorch.loggers.MLFlowLogger", tracking_uri="file:x"),
    "a data base": node("lightning.pytorch.loggers.MLFlowLogger", tracking_uri="sqlite:////home/me/places.sqlite"),
    "artifacts elsewhere": node("lightning.pytorch.loggers.MLFlowLogger", artifact_location="FILE:///etc"),
}


@pytest.mark.parametrize("where", ["model", "callbacks", "trainer"])
@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS)
def test_whatever_is_not_on_the_list_is_refused_wherever_it_is(attack, where):
    config = {"seeds": [0], where: {"deep": [{"inner": attack}]}}
    found = demands(config)
    assert found
    assert all(demand.place.startswith(f"{where}.deep[0].inner") for demand in found)
    with pytest.raises(UntrustedError, match=r"config.yaml names code that is not part of reducr") as error:
        check_trusted(config, source="config.yaml", command="reducr resume RUN")
    assert "run `reducr resume RUN --trust`" in str(error.value)


def test_the_message_says_what_would_run():
    config = {"callbacks": {"x": node("os.system", command="rm -rf \x1b[2K ~")}}
    with pytest.raises(UntrustedError) as error:
        check_trusted(config, source="config.yaml", command="reducr resume RUN")
    assert "\n  callbacks.x: os.system(command='rm -rf \\x1b[2K ~')\n" in str(error.value)


def test_every_configuration_of_the_package_is_trusted():
    plain = {str(path): OmegaConf.to_container(OmegaConf.load(path)) for path in CONFIGS.rglob("*.yaml")}
    targets = [key for path, config in plain.items() if "_target_" in str(config) for key in [path]]
    assert len(targets) > 25
    assert demands(plain) == []


def test_trackers_on_servers_are_trusted():
    loggers = "lightning.pytorch.loggers"
    for options in (
        {"tracking_uri": "https://host:1/path", "experiment_name": "mine/a: b"},
        {"tracking_uri": "sqlite:////data/runs/mlflow.db", "tags": {"note": "50% / 2"}},
    ):
        assert demands({"logger": {"mlflow": node(f"{loggers}.MLFlowLogger", **options)}}) == []


def test_nothing_on_the_list_is_a_module_or_loads_files():
    for path in ALLOWED:
        module, _, name = path.rpartition(".")
        assert name[0].isupper() or module == "reducr.models", path


def stored(folder, text):
    (folder / "config.yaml").write_text(text)
    return load_config(folder, command="reducr resume RUN", is_trusted=False)


def test_a_stored_configuration_is_never_evaluated(tmp_path, monkeypatch):
    monkeypatch.setenv("SECRET", "a secret")
    OmegaConf.register_new_resolver("attack", lambda: pytest.fail("a resolver ran"), replace=True)
    others = "seeds: [0]\ncompare: [uniform]\nselection_method: null\nseed: null\nmethods: {}\n"
    config = stored(tmp_path, "name: ${oc.env:SECRET}\ndatamodule: {data_dir: 'a${attack:}\\${x}'}\n" + others)
    assert config.name == "${oc.env:SECRET}"
    assert OmegaConf.to_container(config, resolve=True)["datamodule"]["data_dir"] == "a${attack:}\\${x}"
    OmegaConf.clear_resolver("attack")


def test_what_is_built_gets_text_that_is_never_evaluated(monkeypatch):
    monkeypatch.setenv("SECRET", "a secret")
    for text in ("${oc.env:SECRET}", "\\${oc.env:SECRET}", "a\\\\${oc.env:SECRET}", "${"):
        inner = {"_target_": "builtins.dict", "b": [text], "c": {"_target_": "builtins.dict", "d": text}}
        node = {"_target_": "builtins.dict", "a": text, "e": inner}
        expected = {"a": text, "e": {"b": [text], "c": {"d": text}}}
        assert build(OmegaConf.create(as_literals(node))) == expected
        assert build(OmegaConf.create(as_literals(node | {"_partial_": True})))() == expected


def test_text_stays_text():
    for text in ("${x}", "\\${x}", "a\\\\${x}b${y}", "$x", "{x}", "\\"):
        assert OmegaConf.create({"x": as_literals(text)})["x"] == text


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: &a [x]\nb: [*a, *a]\n", "holds aliases"),
        ("a: [", "is not valid YAML"),
        ("a: !!python/object/apply:os.system [id]\n", "is not valid YAML"),
        ("- a\n", "is not the configuration of a run"),
        ("a: !!set {x}\n", "is damaged: expected the configuration of a run"),
    ],
)
def test_other_files_are_no_configuration(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        read_plain(path)
    assert str(path) in str(error.value)


def test_nothing_is_imported_for_a_refusal(tmp_path):
    (tmp_path / "attack.py").write_text("raise SystemExit('imported')")
    sys.path.insert(0, str(tmp_path))
    try:
        with pytest.raises(UntrustedError, match=r"model: attack\.Net\(\)"):
            stored(tmp_path, "model: {_target_: attack.Net}\n")
    finally:
        sys.path.remove(str(tmp_path))
    assert "attack" not in sys.modules
