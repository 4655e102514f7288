"""Every configuration composes, and every method, choice and experiment runs for a few steps."""

import contextlib
import copy
import csv
import functools
import json
import re
import sqlite3
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from omegaconf import OmegaConf

import local_data
import reducr
from reducr import cli, pipeline
from reducr._internal.run_folder import read_results
from reducr.pipeline import register, run_experiment, run_irreducible
from reducr.pipeline.setup import METHOD_ALIASES, methods_of

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "src" / "reducr" / "configs"
with (CONFIGS / "published" / "experiments.csv").open(newline="") as table:
    PUBLISHED = [row["experiment"] for row in csv.DictReader(table)]
EXPERIMENTS = sorted([*PUBLISHED, *(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))])
# Published experiments of one data set and kind of reference differ in their rule alone, and digits run every rule
# below. The default lane composes all of them and trains one of each; superclasses are trained with other choices, and
# the data sets in the layout of CIFAR-10 once.
SAME_DATA_AND_REFERENCE = re.compile("_(uniform|train_loss|payoff|weighted|irred|irred_weights|irred_weighted)(_|$)")
TRAINED_ELSEWHERE = {name for name in PUBLISHED if SAME_DATA_AND_REFERENCE.search(name)}
TRAINED_ELSEWHERE -= {"cifar10_resnet18_irred", "cifar10_resnet18_irred_weights"}
TRAINED_ELSEWHERE |= {"cifar100_resnet18_robust", "cifar100_resnet18_rho", "cinic10_resnet18_robust", "cifar10n_worse"}
TRAINED_ELSEWHERE |= {"cifar10_resnet18_rho", "clothing1m_main_rho", "clothing1m_main_robust_convnext", "mnli_rho"}
METHODS = sorted([*reducr.SELECTORS, *(path.stem for path in (CONFIGS / "method").glob("*.yaml"))])
QUICK = [
    "num_steps=4",
    "seeds=[0]",
    "holdout.refresh_steps=2",
    "irreducible.num_epochs=1",
    "trainer.accelerator=cpu",
    "record.page=false",
]


def composed(*overrides):
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=list(overrides))


TINY_BERT = [
    "datamodule.tokenizer=own",
    "datamodule.num_tokens=200",
    "model.pretrained=false",
    "model.config={hidden_size:16,num_hidden_layers:1,num_attention_heads:2,intermediate_size:16}",
]
TINY_RESNET = "{hidden_sizes:[8,8],depths:[1,1]}"
TINY_CONVNEXT = "{hidden_sizes:[8,8,8,8],depths:[1,1,1,1]}"
# Prefix of the experiment's name -> function that makes its data, options that make models and batches small.
LOCAL = {
    "digits": (None, []),
    "fashion_mnist": (local_data.fashion_mnist, ["datamodule.holdout_size=100", "num_candidates=40"]),
    "cifar10n_": (
        local_data.cifar10,
        ["num_candidates=40", "model.widths=[4,4,4]", "datamodule.holdout_size=40", "datamodule.imbalance.train=2"],
    ),
    "cifar10_": (local_data.cifar10, ["num_candidates=40", "model.width=4"]),
    "cifar100_": (local_data.cifar100, ["num_candidates=40", "model.width=4"]),
    "cinic10_": (local_data.cinic10, ["num_candidates=40", "model.width=4"]),
    "clothing1m_": (
        local_data.clothing1m,
        ["num_candidates=20", "datamodule.irreducible_size=50", "datamodule.resize=36", "datamodule.image_size=32",
         "model.pretrained=false"],
    ),
    "mnli_": (local_data.mnli, TINY_BERT),
    "qqp_": (local_data.qqp, TINY_BERT),
    "waterbirds": (
        local_data.waterbirds,
        ["num_candidates=20", "datamodule.resize=36", "datamodule.image_size=32", "model.pretrained=false",
         f"model.config={TINY_RESNET}"],
    ),
    "nli": (local_data.nli, ["num_candidates=40", "datamodule.test_size=30"]),
    "tweeteval_emoji": (local_data.tweets, ["num_candidates=40"]),
    "table": (
        local_data.intents,
        ["datamodule.train_file=intents.csv", "datamodule.text_columns=[text]", "datamodule.target_column=label"],
    ),
    "image_folder": (local_data.image_folder, ["num_candidates=40"]),
    "hugging_face": (
        local_data.intents,
        ["datamodule.input_column=text", "datamodule.target_column=label", "num_candidates=40"],
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def local_options(tmp_path_factory):
    """Options that point an experiment to small synthetic data in its official layout, and keep it small."""
    folders = {}

    def options(experiment):
        begin, (make, small) = next((begin, local) for begin, local in LOCAL.items() if experiment.startswith(begin))
        if make is None:
            return small
        if begin not in folders:
            folders[begin] = tmp_path_factory.mktemp("data")
            make(folders[begin])
        if begin == "clothing1m_":
            config = TINY_CONVNEXT if "convnext" in experiment else TINY_RESNET
            small = [*small, f"model.config={config}"]
        folder_option = "path" if begin == "hugging_face" else "data_dir"
        return [f"datamodule.{folder_option}={folders[begin]}", *small]

    return options


def test_every_selector_is_a_method_of_its_own_name():
    config = composed()
    assert list(config.methods) == [*reducr.SELECTORS, "irreducible_model", "uniform_with_holdout"]
    for name in reducr.SELECTORS:
        assert config.methods[name].selector == name
    assert set(METHOD_ALIASES.values()) <= set(METHODS)


def test_every_option_that_a_method_shows_is_its_selectors_default():
    config = composed("~experiment")
    for name in reducr.SELECTORS:
        options = OmegaConf.to_container(config.methods[name].options)
        plain = reducr.make_selector(name, num_groups=3)
        shown = reducr.make_selector(name, num_groups=3, **options)
        assert type(plain.sampler) is type(shown.sampler), name
        for key in (
            "clip",
            "holdout_weighting",
            "needs",
            "needs_group_holdout_loss",
            "num_dropout_samples",
            "alpha",
            "prune_probability",
        ):
            assert getattr(plain, key, None) == getattr(shown, key, None), (name, key)
        assert plain.weighting.step_size == shown.weighting.step_size
        assert plain.weighting.payoff_decay == shown.weighting.payoff_decay


class Margin(reducr.Selector):
    """A selector of another package."""

    name = "margin"
    needs = frozenset({"logits"})

    def __init__(self, *, num_groups, width, power=2.0, dtype=torch.float64, sampler=None, **sampler_options):
        super().__init__(num_groups=num_groups, sampler=sampler, **sampler_options)

    def score(self, candidates, *, generator):
        return candidates.logits[:, 0]


def test_a_selector_of_another_package_is_a_method_without_a_yaml(monkeypatch):
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))
    monkeypatch.setattr(register, "SELECTORS", dict(reducr.SELECTORS) | {"margin": Margin})
    register.register()
    config = composed("methods.margin.options.power=3")
    # Options without a default, or with one that YAML cannot hold, are left out.
    assert config.methods.margin == {
        "selector": "margin",
        "train_on": "train",
        "options": {"sampler": "top_k", "power": 3},
    }
    assert list(config.methods)[-3:] == ["margin", "irreducible_model", "uniform_with_holdout"]


def test_a_selector_that_cannot_be_imported_leaves_other_methods_usable(monkeypatch):
    class Broken(dict):
        def __getitem__(self, name):
            if name == "margin":
                raise ValueError("cannot be imported")
            return super().__getitem__(name)

    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", copy.deepcopy(store.repo))
    monkeypatch.setattr(register, "SELECTORS", Broken(reducr.SELECTORS, margin=None))
    register.register()
    assert composed().methods.margin.options == {}


PUBLISHED_BEFORE = json.loads((Path(__file__).parent / "published_experiments.json").read_text())


@functools.cache
def default_with(*choices):
    return OmegaConf.to_container(composed("~experiment", *choices), resolve=True)


def flat(node, prefix=""):
    if not (isinstance(node, dict) and node):
        return {prefix: node}
    return {name: value for key in node for name, value in flat(node[key], f"{prefix}.{key}".lstrip(".")).items()}


@pytest.mark.parametrize("experiment", PUBLISHED_BEFORE)
def test_a_published_experiment_is_what_it_was_as_a_yaml_file(experiment):
    """``published_experiments.json`` was written when each experiment was a file of its own."""
    before = PUBLISHED_BEFORE[experiment]
    config = composed(f"experiment={experiment}")
    default = default_with(*before["choices"])
    assert flat(OmegaConf.to_container(config, resolve=True)) == flat(default) | before["options"]
    assert list(config) == list(default)
    if stage_of(experiment) == "run":
        methods = {method.name: method.make_selector(10) for method in methods_of(config)}
        assert list(methods) == [config.selection_method]


def test_the_table_of_published_experiments_names_each_once():
    assert sorted(PUBLISHED) == sorted(PUBLISHED_BEFORE)


def test_published_experiments_serve_sweeps_and_a_users_own_files(tmp_path, capfd, monkeypatch):
    (tmp_path / "experiment").mkdir()
    (tmp_path / "experiment" / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - qqp_robust\nname: mine\nnum_steps: 7\n"
    )
    monkeypatch.setattr("sys.argv", ["reducr"])
    monkeypatch.chdir(tmp_path)
    cli.main(["run", "--config-dir", str(tmp_path), "--cfg", "job", "experiment=mine"])
    config = OmegaConf.create(capfd.readouterr().out)
    assert (config.name, config.num_steps, config.selection_method) == ("mine", 7, "reducr")
    assert (config.irreducible.kind, config.optimizer.weight_decay) == ("trained", 0.01)
    runs = []
    monkeypatch.setattr(pipeline, "run_experiment", lambda config: runs.append(config.name))
    cli.main(["run", "--config-dir", str(tmp_path), "--multirun", "experiment=mine,mnli_robust_mh,digits"])
    assert runs == ["mine", "mnli_robust_mh", "digits"]


def test_help_and_errors_list_the_published_experiments(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["reducr"])
    for arguments in (["--help"], ["run", "--help"], ["run", "experiment=nothing"]):
        with contextlib.suppress(SystemExit):
            cli.main(arguments)
        streams = capsys.readouterr()
        assert set(re.findall(r"\w+", streams.out + streams.err)) >= set(EXPERIMENTS), arguments


def stage_of(experiment):
    return "irreducible" if "_irred" in experiment else "run"


@pytest.mark.parametrize("experiment", sorted(set(EXPERIMENTS) - set(PUBLISHED)))
def test_every_experiment_starts_with_its_command(experiment):
    lines = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# reducr {stage_of(experiment)} experiment={experiment}")


@pytest.mark.parametrize(
    "experiment",
    [pytest.param(name, marks=pytest.mark.long if name in TRAINED_ELSEWHERE else ()) for name in EXPERIMENTS],
)
def test_every_experiment_runs(experiment, local_options, tmp_path):
    home = f"model_io.home_dir={tmp_path}"
    config = composed(f"experiment={experiment}", *local_options(experiment), *QUICK, home)
    assert config.name == experiment
    if stage_of(experiment) == "irreducible":
        stage_folder = run_irreducible(config) / "seed_0" / "irreducible"
        table = np.load(next(stage_folder.glob("table_*/values.npy")))
        assert np.isfinite(table).all()
        return
    folder = run_experiment(config)
    rows = read_results(folder)
    expected = [config.selection_method] if config.selection_method else list(config.compare)
    assert [row.method for row in rows[::3]] == expected
    assert {row.steps for row in rows if row.method != "irreducible_model"} == {4}
    assert "| seeds |" in (folder / "results.md").read_text()


def test_published_settings(local_options):
    """Settings of the paper and its public configurations, for one experiment of each data set."""
    published = {
        "cifar10_resnet18_robust": (320, 10_000, 1e-3, 0.01, 100, 10),
        "cifar100_resnet18_robust": (320, 20_000, 1e-3, 0.01, 100, 5),
        "cinic10_resnet18_robust": (320, 42_000, 1e-3, 0.1, 50, 10),
        "clothing1m_main_robust": (320, 156_000, 1e-3, 0.01, 25, 5),
        "clothing1m_main_robust_convnext": (320, 156_000, 1e-3, 0.01, 25, 3),
        "mnli_robust": (32, 150_000, 1e-6, 0.0, 10, 5),
        "qqp_robust": (32, 125_000, 1e-6, 0.01, 30, 5),
    }
    for experiment, expected in published.items():
        config = composed(f"experiment={experiment}")
        assert (
            config.num_candidates,
            config.num_steps,
            config.optimizer.lr,
            config.optimizer.weight_decay,
            config.irreducible.num_epochs,
            len(config.seeds),
        ) == expected, experiment
        assert config.fraction == 0.1
        assert config.methods.reducr.options.step_size == 1e-4
        assert config.irreducible.gradient_weight == 10
        assert (config.irreducible.kind, config.irreducible.checkpoint_rule) == ("trained", "lowest_loss")
        assert (config.scoring_mode, config.holdout.refresh_steps) == ("train", None)


def test_every_method_runs(tmp_path):
    config = composed(*QUICK, f"compare=[{','.join(METHODS)}]", "model.dropout=0.1", f"model_io.home_dir={tmp_path}")
    rows = read_results(run_experiment(config))
    assert [row.method for row in rows[::3]] == METHODS
    assert all(0 <= row.worst_class_accuracy <= row.mean_accuracy <= 1 for row in rows)


@pytest.mark.parametrize(
    "choice",
    [
        ["irreducible=trained"],
        ["irreducible=trained", "irreducible.lookup=live"],
        ["irreducible=ensemble"],
        ["irreducible=ensemble", "irreducible.lookup=live", "irreducible.checkpoint_rule=lowest_loss"],
        ["irreducible=multi_headed"],
        ["irreducible=multi_headed", "irreducible.lookup=live"],
        ["irreducible.trained_on=cross_fit"],
        ["irreducible.trained_on=cross_fit", "irreducible=ensemble", "irreducible.lookup=live"],
        ["irreducible.lookup=live", "irreducible.update_rate=0.01"],
        ["irreducible=ensemble", "irreducible.lookup=live", "irreducible.update_rate=0.01"],
        ["irreducible=trained", "irreducible.lookup=live", "irreducible.update_rate=0.01"],
        ["model@proxy.model=mlp", "proxy.model.hidden_sizes=[16]"],
        ["model@irreducible.model=mlp", "irreducible.model.hidden_sizes=[16]"],
        ["optimizer@irreducible.optimizer=adamw", "irreducible.optimizer.lr=0.01"],
        ["irreducible.lookup=live"],
        ["irreducible.weight_normalisation=points", "irreducible.checkpoint_rule=lowest_loss"],
        ["holdout.decay=0.9", "holdout.batch_size=10"],
        ["scoring_mode=eval"],
        ["scoring_mode=train_frozen_statistics"],
        ["methods.reducr.options.sampler=softmax", "+methods.reducr.options.temperature=0.5"],
        ["irreducible.model={_target_:reducr.models.MLP,num_features:64,hidden_sizes:[16]}"],
    ],
)
def test_every_choice_runs(choice, tmp_path):
    config = composed(*QUICK, "compare=[rho_loss,reducr]", f"model_io.home_dir={tmp_path}", *choice)
    rows = read_results(run_experiment(config))
    assert [(row.method, row.steps) for row in rows[::3]] == [("rho_loss", 4), ("reducr", 4)]
    assert all(row.irreducible_seconds > 0 for row in rows)


CHOICES = {
    "ensemble": (["irreducible=ensemble"], "table_all"),
    "multi_headed": (["irreducible=multi_headed", "irreducible.lookup=live", "irreducible.update_rate=0.01"], None),
    "cross_fit": (["irreducible=adjusted", "irreducible.trained_on=cross_fit", "irreducible.lookup=live"], None),
    "cross_fit in a table": (["irreducible=multi_headed", "irreducible.trained_on=cross_fit"], "table_all"),
    "proxy": (["irreducible=adjusted", "model@proxy.model={model}", "{small}"], "table_plain"),
    "bald": (["selection_method=bald", "model.dropout=0.2"], None),
}
SMALL_CNN = ["model=small_cnn", "model.widths=[4,4,4]"]
# Experiments with other inputs and groups than digits -> proxy, its size, further options.
OTHERS = {
    "table": ("small_text", "proxy.model.hidden_size=8", []),
    "image_folder": ("small_cnn", "proxy.model.widths=[2,2,2]", SMALL_CNN),
    "cifar100_resnet18_robust": ("small_cnn", "proxy.model.widths=[2,2,2]", SMALL_CNN),
    "waterbirds": ("small_cnn", "proxy.model.widths=[2,2,2]", SMALL_CNN),
}


# The default lane tries a quarter of the pairs: every choice on one kind of data, which all take turns.
PAIRS = [
    pytest.param(choice, experiment, marks=() if (place + number) % 4 == 0 else pytest.mark.long)
    for place, choice in enumerate(CHOICES)
    for number, experiment in enumerate(OTHERS)
]


@pytest.mark.parametrize(("choice", "experiment"), PAIRS)
def test_every_choice_runs_for_every_kind_of_data(choice, experiment, local_options, tmp_path):
    """Texts, images, groups of classes (superclasses), and groups that differ from the classes (joint labels)."""
    model, small, others = OTHERS[experiment]
    local = [option for option in local_options(experiment) if not option.startswith("model.")]
    chosen, table = CHOICES[choice]
    chosen = [option.format(model=model, small=small) for option in chosen]
    config = composed(
        f"experiment={experiment}", *QUICK, *local, "num_steps=2", "num_candidates=20", "selection_method=reducr",
        f"model_io.home_dir={tmp_path}", *others, *chosen,
    )  # fmt: skip
    folder = run_experiment(config)
    (row, *_) = read_results(folder)
    assert (row.method, row.steps) == (config.selection_method, 2)
    assert 0 <= row.worst_class_accuracy <= row.mean_accuracy <= 1
    assert (row.irreducible_seconds > 0) == (choice != "bald")
    found = {path.name for path in (folder / "seed_0").glob("irreducible/table_*")}
    assert found == ({table} if table else set())
    if table:
        values = np.load(folder / "seed_0" / "irreducible" / table / "values.npy")
        with np.load(folder / "seed_0" / "data.npz") as data:
            num_groups = len(np.unique(data["holdout_group"]))
            assert len(data.get("group_names", data["class_names"])) == num_groups
            num_outcomes = {"waterbirds": (2, 4)}.get(experiment, (len(data["class_names"]),))
            assert values.shape == (
                len(data["train_target"]),
                *((num_groups,) if table == "table_all" else num_outcomes),
            )
        assert np.isfinite(values).all()


def test_a_fixed_weight_of_zero_skips_the_model_of_the_class(tmp_path):
    weights = "methods.fixed_weights.options.group_weights=[0,1,0,0,0,0,0,0,0,2]"
    config = composed(
        *QUICK, "compare=[fixed_weights]", "irreducible=trained", weights, f"model_io.home_dir={tmp_path}"
    )
    stage = run_experiment(config) / "seed_0" / "irreducible"
    assert sorted(path.name for path in stage.iterdir() if path.is_dir()) == ["class_1", "class_9", "table_class_1_9"]


EARLY = "{_target_:lightning.pytorch.callbacks.EarlyStopping,monitor:holdout/mean_accuracy,mode:max,min_delta:2}"


def test_a_lightning_callback_stops_the_training_of_the_target_model(tmp_path):
    """No accuracy rises by 2, so early stopping ends each method when its patience ends."""
    (tmp_path / "callbacks").mkdir()
    (tmp_path / "callbacks" / "patient.yaml").write_text(
        "early:\n  _target_: lightning.pytorch.callbacks.EarlyStopping\n  monitor: holdout/mean_accuracy\n"
        "  mode: max\n  min_delta: 2\n  patience: 2\n"
    )
    steps = {}
    for patience, choice in {1: [f"+callbacks.early={EARLY[:-1]},patience:1}}"], 2: ["callbacks=patient"]}.items():
        with initialize_config_module("reducr.configs", version_base="1.3"):
            config = compose(
                "main",
                [*QUICK, "num_steps=20", "compare=[uniform,reducr]", f"model_io.home_dir={tmp_path}", *choice,
                 f"hydra.searchpath=[file://{tmp_path}]"],
            )  # fmt: skip
        folder = run_experiment(config)
        steps[patience] = {row.method: row.steps for row in read_results(folder)}
        assert OmegaConf.load(folder / "config.yaml").callbacks.early.patience == patience
    # The first validation, at step 2, sets the best value.
    assert steps == {1: {"uniform": 4, "reducr": 4}, 2: {"uniform": 6, "reducr": 6}}


def test_a_callback_that_changes_nothing_leaves_the_results_as_they_are(tmp_path):
    timer = "+callbacks.timer={_target_:lightning.pytorch.callbacks.Timer}"
    results = []
    for choice in ([], [timer]):
        config = composed(*QUICK, "compare=[reducr]", f"model_io.home_dir={tmp_path}", *choice)
        results.append([row.worst_class_accuracy for row in read_results(run_experiment(config))])
    assert results[0] == results[1]


@pytest.mark.long
def test_loggers(tmp_path, monkeypatch):
    """csv, tensorboard, wandb (offline) and mlflow (local store) together; each method is one run of a tracker."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = composed(*QUICK, "logger=many", "compare=[uniform,reducr]", f"model_io.home_dir={tmp_path}")
    folder = run_experiment(config)
    for method in ("uniform", "reducr"):
        with (folder / "seed_0" / method / "csv" / "metrics.csv").open(newline="") as file:
            assert {int(line["step"]) for line in csv.DictReader(file)} == {1, 2, 3, 4}
        assert len(list((folder / "seed_0" / method).rglob("events.out.tfevents*"))) == 1
        assert len(list((folder / "seed_0" / method).rglob("run-*.wandb"))) == 1
    with sqlite3.connect(tmp_path / "mlflow.db") as store:
        assert store.execute("select name from experiments where experiment_id > 0").fetchall() == [("digits",)]
        runs = store.execute("select name, status from runs order by start_time").fetchall()
        steps = store.execute("select count(distinct step) from metrics where key = 'train/loss'").fetchall()
    assert runs == [("uniform, seed 0", "FINISHED"), ("reducr, seed 0", "FINISHED")]
    assert steps == [(4,)]
