"""Every YAML is one choice that composes, and every method and experiment runs for a few steps."""

import csv
import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

import reducr
from reducr.pipeline import run_experiment
from reducr.pipeline.setup import METHOD_ALIASES
from reducr.runs import read_results

ROOT = Path(__file__).parents[2]
CONFIGS = ROOT / "src" / "reducr" / "configs"
EXPERIMENTS = sorted(path.stem for path in (CONFIGS / "experiment").glob("*.yaml"))
METHODS = sorted(path.stem for path in (CONFIGS / "method").glob("*.yaml"))
QUICK = ["num_steps=4", "seeds=[0]", "holdout.refresh_steps=2", "irreducible.num_epochs=1", "trainer.accelerator=cpu"]


def composed(*overrides):
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=list(overrides))


def write_idx(path, array):
    header = struct.pack(f">BBBB{array.ndim}i", 0, 0, 8, array.ndim, *array.shape)
    path.write_bytes(gzip.compress(header + array.tobytes()))


@pytest.fixture(scope="module")
def local_data(tmp_path_factory):
    """Small data in the layout of every data set, by experiment: the overrides that point to it."""
    folder = tmp_path_factory.mktemp("data")
    raw = folder / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    generator = np.random.default_rng(0)
    for part, size in (("train", 900), ("t10k", 60)):
        write_idx(raw / f"{part}-images-idx3-ubyte.gz", generator.integers(0, 256, (size, 28, 28), dtype=np.uint8))
        write_idx(raw / f"{part}-labels-idx1-ubyte.gz", (np.arange(size) % 10).astype(np.uint8))
    return {
        "digits": [],
        "fashion_mnist": [f"datamodule.data_dir={folder}", "datamodule.holdout_size=100", "num_candidates=40"],
    }


def test_every_selector_is_a_method_of_its_own_name():
    assert set(reducr.SELECTORS) <= set(METHODS)
    config = composed()
    assert set(config.methods) == set(METHODS)
    for name in reducr.SELECTORS:
        assert config.methods[name].selector == name
    assert set(METHOD_ALIASES.values()) <= set(METHODS)


def test_every_yaml_option_of_a_selector_is_its_default():
    """What a method's YAML shows is what the library does without it."""
    config = composed("~experiment")
    for name in reducr.SELECTORS:
        options = OmegaConf.to_container(config.methods[name].options)
        plain = reducr.make_selector(name, num_groups=3)
        shown = reducr.make_selector(name, num_groups=3, **options)
        assert type(plain.sampler) is type(shown.sampler), name
        for key in ("clip", "holdout_weighting", "needs", "needs_group_holdout_loss", "num_dropout_samples"):
            assert getattr(plain, key, None) == getattr(shown, key, None), (name, key)
        assert plain.weighting.step_size == shown.weighting.step_size


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_every_experiment_starts_with_its_command_and_runs(experiment, local_data, tmp_path):
    lines = (CONFIGS / "experiment" / f"{experiment}.yaml").read_text().splitlines()
    assert lines[0] == "# @package _global_"
    assert lines[1].startswith(f"# reducr run experiment={experiment}")
    home = f"model_io.home_dir={tmp_path}"
    config = composed(f"experiment={experiment}", *local_data[experiment], *QUICK, home)
    folder = run_experiment(config)
    rows = read_results(folder)
    assert [row.method for row in rows[::3]] == list(config.compare)
    assert {row.steps for row in rows if row.method != "irreducible_model"} == {4}
    assert (folder / "report.png").stat().st_size > 10_000


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


def test_a_fixed_weight_of_zero_skips_that_classs_model(tmp_path):
    weights = "methods.fixed_weights.options.group_weights=[0,1,0,0,0,0,0,0,0,2]"
    config = composed(
        *QUICK, "compare=[fixed_weights]", "irreducible=trained", weights, f"model_io.home_dir={tmp_path}"
    )
    stage = run_experiment(config) / "seed_0" / "irreducible"
    assert sorted(path.name for path in stage.iterdir() if path.is_dir()) == ["class_1", "class_9", "table_class_1_9"]


def test_loggers(tmp_path, monkeypatch):
    """csv, tensorboard and wandb (offline) together, one tracker run for every method."""
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    config = composed(*QUICK, "logger=many", "compare=[uniform,reducr]", f"model_io.home_dir={tmp_path}")
    folder = run_experiment(config)
    for method in ("uniform", "reducr"):
        with (folder / "seed_0" / method / "csv" / "metrics.csv").open(newline="") as file:
            assert {int(line["step"]) for line in csv.DictReader(file)} == {1, 2, 3, 4}
        assert len(list((folder / "seed_0" / method).rglob("events.out.tfevents*"))) == 1
        assert len(list((folder / "seed_0" / method).rglob("run-*.wandb"))) == 1
