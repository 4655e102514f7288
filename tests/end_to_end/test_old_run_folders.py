"""Run folders and configurations with the module paths and option values of earlier versions."""

import json
import shutil
from contextlib import contextmanager

import pytest
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from reducr._internal.run_folder import read_results, write_results
from reducr.exports import ExportOptions, export_run
from reducr.pipeline import open_data, resume_run, run_experiment
from reducr.reports import make_console, write_report
from reducr.reports.comparison import comparisons
from reducr.reports.run_reader import Run

QUICK = ["num_steps=4", "seeds=[0]", "holdout.refresh_steps=2", "irreducible.num_epochs=1", "trainer.accelerator=cpu"]
OLD_PATHS = {
    "reducr.data.published.digits.Digits": "reducr.data.digits.Digits",
    "reducr.lightning.CSVMetrics": "reducr.integrations.lightning.CSVMetrics",
}


def composed(*overrides):
    with initialize_config_module("reducr.configs", version_base="1.3"):
        return compose("main", overrides=[*QUICK, "record.page=false", *overrides])


def accuracies(folder):
    return [(row.method, row.worst_class_accuracy, row.mean_accuracy) for row in read_results(folder)]


@pytest.fixture(scope="module")
def new_run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("new") / "run"
    return run_experiment(composed("compare=[uniform,reducr]", f"model_io.run_dir={folder}"))


@pytest.fixture
def old_run(new_run, tmp_path):
    folder = tmp_path / "old"
    shutil.copytree(new_run, folder)
    text = (folder / "config.yaml").read_text()
    for new, old in OLD_PATHS.items():
        assert new in text
        text = text.replace(new, old)
    without_callbacks = text.replace("callbacks: {}\n", "")
    assert without_callbacks != text
    (folder / "config.yaml").write_text(without_callbacks)
    without_checksums(folder)
    return folder


def without_checksums(folder):
    """What earlier versions did not write."""
    (folder / "manifest.jsonl").unlink()
    (folder / "inputs.npz").unlink()
    start = json.loads((folder / "run.json").read_text())
    old = {name: start[name] for name in ("format", "command", "started_in")}
    (folder / "run.json").write_text(json.dumps(old))
    for path in folder.glob("seed_*/*/results.csv"):
        path.unlink()


@contextmanager
def renaming():
    with pytest.warns(FutureWarning) as warned:
        yield
    for new, old in OLD_PATHS.items():
        assert any(f"`_target_: {old}` was renamed to `_target_: {new}`" in str(one.message) for one in warned)


def test_resume(old_run, new_run, capsys):
    write_results(old_run, read_results(old_run)[:3])
    shutil.rmtree(old_run / "seed_0" / "reducr")
    with renaming():
        resume_run(old_run)
    assert accuracies(old_run) == accuracies(new_run)
    assert "unverified: an earlier version wrote this run" in capsys.readouterr().err
    assert not (old_run / "manifest.jsonl").exists()


@pytest.mark.long
def test_report(old_run, new_run, tmp_path):
    with renaming():
        write_report([old_run, new_run], out=tmp_path / "out", console=make_console(), open_data=open_data)
    report = (tmp_path / "out" / "results.md").read_text()
    assert "| reducr (" in report
    assert report.count("unverified: an earlier version wrote this run, without checksums of its files") == 1
    # the same settings, so the same comparison and no options in the names of its methods
    (comparison,) = comparisons([Run.read(old_run), Run.read(new_run)])
    assert {series.method for series in comparison.series} == {"uniform", "reducr"}
    assert Run.read(old_run).settings == Run.read(new_run).settings


def test_export(old_run, new_run, tmp_path):
    options = ExportOptions(fraction=0.1)
    with renaming():
        old = export_run(old_run, tmp_path / "old_export", options)
    new = export_run(new_run, tmp_path / "new_export", options)
    assert (old.num_chosen, old.counts) == (new.num_chosen, new.counts)


def test_a_users_configuration_and_the_stage_of_an_old_run(old_run, new_run, tmp_path):
    options = ["compare=[reducr]", f"irreducible.dir={old_run}", f"model_io.run_dir={tmp_path / 'run'}"]
    config = composed(*options, "datamodule._target_=reducr.data.digits.Digits")
    with pytest.warns(FutureWarning, match="reducr.data.digits.Digits"):
        run_experiment(config)
    assert accuracies(tmp_path / "run") == accuracies(new_run)[3:]
    stored = OmegaConf.load(tmp_path / "run" / "config.yaml")
    assert stored.datamodule._target_ == "reducr.data.published.digits.Digits"


def test_twins_is_the_old_name_of_cross_fit(tmp_path):
    folders = {}
    for value in ("cross_fit", "twins"):
        folders[value] = tmp_path / value
        options = [f"irreducible.trained_on={value}", "compare=[reducr]", f"model_io.run_dir={folders[value]}"]
        if value == "cross_fit":
            run_experiment(composed(*options))
            continue
        with pytest.warns(FutureWarning, match=r"`irreducible.trained_on=twins` was renamed to .*=cross_fit`"):
            run_experiment(composed(*options))
    assert accuracies(folders["twins"]) == accuracies(folders["cross_fit"])
    assert OmegaConf.load(folders["twins"] / "config.yaml").irreducible.trained_on == "cross_fit"

    # a stage that an earlier version wrote
    record = folders["cross_fit"] / "seed_0" / "irreducible" / "stage.json"
    settings = json.loads(record.read_text())
    settings["settings"]["trained_on"] = "twins"
    record.write_text(json.dumps(settings))
    without_checksums(folders["cross_fit"])
    options = ["irreducible.trained_on=cross_fit", "compare=[reducr]", f"irreducible.dir={folders['cross_fit']}"]
    again = run_experiment(composed(*options, f"model_io.run_dir={tmp_path / 'again'}"))
    assert accuracies(again) == accuracies(folders["cross_fit"])
