"""A finished irreducible stage serves the data and settings that it was made with, and no others."""

import json
import shutil

import numpy as np
import pytest
from hydra import compose, initialize_config_module

from reducr._internal.run_check import accept_changes
from reducr._internal.run_folder import read_results
from reducr.pipeline import run_experiment, run_irreducible, run_train

QUICK = ["num_steps=2", "seed=0", "irreducible.num_epochs=1", "trainer.accelerator=cpu", "datamodule.holdout_size=50"]


def composed(*overrides):
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=[*QUICK, *overrides])


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Run folders of `reducr irreducible`: models of all classes by kind, and the plain model."""
    home = tmp_path_factory.mktemp("stages")
    folders = {
        kind: run_irreducible(
            composed(f"irreducible={kind}", "gradient_weighted_class=all", f"model_io.run_dir={home / kind}")
        )
        for kind in ("adjusted", "ensemble")
    }
    return folders | {"plain": run_irreducible(composed(f"model_io.run_dir={home / 'plain'}"))}


def train(folder, stage, *overrides, method="reducr"):
    options = [f"irreducible.dir={stage}", f"selection_method={method}", f"model_io.run_dir={folder}"]
    return run_train(composed(*options, *overrides))


@pytest.mark.long
def test_models_of_single_classes_serve_irreducible_trained(stages, tmp_path):
    row, *_ = read_results(train(tmp_path / "run", stages["adjusted"], "irreducible=trained"))
    record = json.loads((stages["adjusted"] / "seed_0" / "irreducible" / "stage.json").read_text())
    assert row.irreducible_seconds == pytest.approx(record["seconds"]["all"], rel=1e-4)


def test_the_seconds_of_the_stage_are_part_of_the_total(stages, tmp_path):
    folder = tmp_path / "stage"
    shutil.copytree(stages["plain"], folder)
    path = folder / "seed_0" / "irreducible" / "stage.json"
    record = json.loads(path.read_text())
    path.write_text(json.dumps(record | {"seconds": record["seconds"] | {"plain": 1000.0}}))
    accept_changes(folder)
    options = ["compare=[reducr,irreducible_model]"]
    row, *_, alone = read_results(train(tmp_path / "run", folder, *options, method="null"))
    assert 1000 <= row.irreducible_seconds < 1010
    parts = row.irreducible_seconds + row.selection_seconds + row.training_seconds
    assert parts <= row.total_seconds < 1000 + 120
    assert alone.total_seconds == alone.irreducible_seconds > 0


def test_the_seconds_of_tables_of_single_classes_add_up(tmp_path):
    stages = []
    for group in (1, 9):
        options = [
            "irreducible=trained",
            f"gradient_weighted_class={group}",
            f"model_io.run_dir={tmp_path / str(group)}",
        ]
        stages.append(run_irreducible(composed(*options)))
        path = stages[-1] / "seed_0" / "irreducible" / "stage.json"
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"seconds": record["seconds"] | {f"class_{group}": 1000.0 * group}}))
        accept_changes(stages[-1])
    weights = "methods.fixed_weights.options.group_weights=[0,1,0,0,0,0,0,0,0,2]"
    stage = f"[{','.join(map(str, stages))}]"
    row, *_ = read_results(train(tmp_path / "run", stage, "irreducible=trained", weights, method="fixed_weights"))
    assert row.irreducible_seconds == 10_000


@pytest.mark.parametrize(
    ("stage", "options", "message"),
    [
        ("ensemble", ["irreducible=trained"], "was made with irreducible.kind=ensemble; this run has trained."),
        ("adjusted", ["irreducible=ensemble"], "was made with irreducible.kind=trained; this run has ensemble."),
        (
            "adjusted",
            ["irreducible=trained", "irreducible.lookup=live", "irreducible.gradient_weight=5"],
            "class_0/model.ckpt was made with irreducible.gradient_weight=10.0; this run has 5",
        ),
        (
            "plain",
            ["model@irreducible.model=mlp", "irreducible.model.hidden_sizes=[7]"],
            "table_plain was made with irreducible.model={'_target_': 'reducr.models.MLP'",
        ),
        (
            "plain",
            ["irreducible.lookup=live", "model.hidden_sizes=[7]"],
            "plain/model.ckpt was made with irreducible.model={'_target_': 'reducr.models.MLP'",
        ),
        (
            "plain",
            ["datamodule.label_noise.holdout=0.1"],
            "was trained on another holdout part: the targets or their order differ",
        ),
        ("plain", ["datamodule.label_noise.train=0.1"], "does not belong to this data: the targets"),
        ("plain", ["seed=null", "seeds=[0,1]"], "is not a finished irreducible stage"),
    ],
)  # fmt: skip
def test_a_stage_with_other_settings_is_an_error_before_anything_is_written(stage, options, message, stages, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError)) as fault:
        train(tmp_path / "run", stages[stage], *options)
    assert message in str(fault.value)
    assert not (tmp_path / "run").exists()


def test_of_several_stages_the_one_that_fits_is_used(stages, tmp_path):
    both = f"[{stages['ensemble']},{stages['adjusted']}]"
    row, *_ = read_results(train(tmp_path / "run", both, "irreducible=trained"))
    record = json.loads((stages["adjusted"] / "seed_0" / "irreducible" / "stage.json").read_text())
    assert row.irreducible_seconds == pytest.approx(record["seconds"]["all"], rel=1e-4)


def test_a_table_serves_another_target_model(stages, tmp_path):
    rows = read_results(train(tmp_path / "run", stages["plain"], "model.hidden_sizes=[7]"))
    assert {row.steps for row in rows} == {2}


def test_cross_fitted_models_serve_any_holdout_part(tmp_path):
    cross_fit = ["irreducible.trained_on=cross_fit"]
    stage = run_irreducible(composed(*cross_fit, f"model_io.run_dir={tmp_path / 'cross_fit'}"))
    rows = read_results(train(tmp_path / "run", stage, *cross_fit, "datamodule.label_noise.holdout=0.1"))
    assert {row.steps for row in rows} == {2}


def test_a_record_of_another_version_is_refused(stages, tmp_path):
    folder = tmp_path / "seed_0" / "irreducible"
    folder.mkdir(parents=True)
    record = json.loads((stages["plain"] / "seed_0" / "irreducible" / "stage.json").read_text())
    (folder / "stage.json").write_text(json.dumps({"data_fingerprint": record["data_fingerprints"]["train"]}))
    with pytest.raises(ValueError, match=r"stage.json has format None; this version reads format 2"):
        train(tmp_path / "run", tmp_path)


def test_the_irreducible_stage_records_the_parts_of_the_data(stages, tmp_path):
    folder = train(tmp_path / "run", stages["plain"])
    with np.load(stages["plain"] / "seed_0" / "data.npz") as kept, np.load(folder / "seed_0" / "data.npz") as same:
        assert sorted(kept) == sorted(same)
        for name in kept:
            np.testing.assert_array_equal(kept[name], same[name])


def test_a_seed_that_cannot_be_drawn_is_an_error_before_any_training(tmp_path):
    """With two holdout examples per class and four wrong labels, some seeds corrupt both examples of a class."""
    few = ["datamodule.holdout_size=20", "datamodule.label_noise.holdout=0.2"]
    seeds = ["seed=null", "seeds=[0,1,2,3,4,5]"]
    for run, options in ((run_experiment, ["compare=[uniform]"]), (run_irreducible, [])):
        folder = tmp_path / run.__name__
        with pytest.raises(ValueError, match=r"^seed \d: every class needs at least one holdout example"):
            run(composed(*few, *seeds, *options, f"model_io.run_dir={folder}"))
        assert not folder.exists()
