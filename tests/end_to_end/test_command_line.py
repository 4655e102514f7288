"""The command line as its users call it: real processes, real files, real data."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml

import forked

ROOT = Path(__file__).parents[2]
QUICK = ["num_steps=12", "holdout.refresh_steps=6", "irreducible.num_epochs=2", "seeds=[0]"]


def reducr(*arguments, cwd, command=("-m", "reducr.cli")):
    return forked.run([*command, *arguments], cwd=cwd)


def rows_of(folder):
    with (folder / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def only_run(home, name="digits"):
    (folder,) = (home / name).iterdir()
    return folder


@pytest.fixture(scope="module")
def quick_run(tmp_path_factory):
    """One short run of every method that the default experiment compares, by an interpreter of its own."""
    home = tmp_path_factory.mktemp("quick")
    command = [sys.executable, "-m", "reducr.cli", "run", *QUICK]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr
    return only_run(home / "runs"), done


def test_a_run_leaves_everything_it_promises(quick_run):
    folder, done = quick_run
    compared = [
        "uniform",
        "train_loss",
        "rho_loss",
        "reducr",
        "irreducible_model",
        "uniform_with_holdout",
        "class_balanced",
    ]
    rows = rows_of(folder)
    columns = """method seed checkpoint_rule worst_class_accuracy worst_group_accuracy mean_accuracy steps
        irreducible_seconds selection_seconds training_seconds total_seconds selected_fraction corrupted_fraction"""
    assert list(rows[0]) == columns.split()
    assert [(row["method"], row["checkpoint_rule"]) for row in rows] == [
        (method, rule) for method in compared for rule in ("last", "best_worst_group", "best_mean")
    ]
    for row in rows:
        assert 0 <= float(row["worst_class_accuracy"]) <= float(row["mean_accuracy"]) <= 1
        assert row["worst_group_accuracy"] == row["worst_class_accuracy"]
        parts = [float(row[f"{part}_seconds"]) for part in ("irreducible", "selection", "training")]
        assert float(row["total_seconds"]) >= sum(parts) - 1e-3
    by_method = {row["method"]: row for row in rows}
    assert by_method["reducr"]["selected_fraction"] == "0.1"
    assert by_method["reducr"]["steps"] == "12"
    assert by_method["irreducible_model"]["selected_fraction"] == ""
    assert float(by_method["uniform"]["irreducible_seconds"]) == 0
    assert float(by_method["reducr"]["irreducible_seconds"]) > 0

    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert (config["num_steps"], config["datamodule"]["label_noise"]["train"]) == (12, 0.3)
    assert (folder / "command.txt").read_text() == f"reducr run {' '.join(map(repr_if_needed, QUICK))}\n"
    assert (folder / "report.html").read_text().startswith("<!DOCTYPE html>")
    for text in ("worst class", "selecting", "corrupted", "best_worst_group", *compared):
        assert text in done.stdout
    assert "12/12" in done.stdout
    assert done.stdout.rstrip().endswith(f"run folder: runs/digits/{folder.name}")

    reducr_folder = folder / "seed_0" / "reducr"
    for rule in ("last", "best_worst_group", "best_mean"):
        assert (reducr_folder / "checkpoints" / f"{rule}.ckpt").stat().st_size > 1000
    with np.load(reducr_folder / "selected.npz") as selected, np.load(folder / "seed_0" / "data.npz") as data:
        assert selected["index"].shape == (12, 10)
        counts = np.bincount(selected["index"].ravel(), minlength=len(data["train_target"]))
        assert np.array_equal(counts, selected["num_times_selected"])
        share = data["train_is_corrupted"][selected["index"]].mean()
        assert float(by_method["reducr"]["corrupted_fraction"]) == pytest.approx(share, abs=1e-6)
        assert not set(data["train_source"]) & set(data["holdout_source"])
    with (reducr_folder / "csv" / "metrics.csv").open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["train/loss"]]
    assert [int(line["step"]) for line in lines] == list(range(1, 13))
    for line in lines:
        assert sum(float(line[f"group_weight/{group}"]) for group in range(10)) == pytest.approx(1, abs=1e-9)


def repr_if_needed(argument):
    return f"'{argument}'" if "[" in argument else argument


def test_the_same_seed_gives_the_same_results_but_for_seconds(quick_run, tmp_path):
    done = reducr("run", *QUICK, "record.page=false", cwd=tmp_path)
    assert done.returncode == 0, done.stderr

    def without_seconds(rows):
        return [{name: cell for name, cell in row.items() if not name.endswith("_seconds")} for row in rows]

    assert without_seconds(rows_of(only_run(tmp_path / "runs"))) == without_seconds(rows_of(quick_run[0]))


@pytest.mark.long
def test_report_prints_the_tables_of_finished_runs(quick_run, tmp_path):
    done = reducr("report", str(quick_run[0]), "--out", str(tmp_path / "out"), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "uniform_with_holdout" in done.stdout
    assert "| reducr |" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "report" / "accuracy_by_class.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    refused = reducr("report", str(tmp_path), cwd=tmp_path)
    assert refused.returncode == 2
    assert "is not a run folder: it has no config.yaml" in refused.stderr


@pytest.mark.long
def test_stages_one_by_one_with_the_original_entry_points(tmp_path):
    """run_irreducible.py, then run.py with the original repository's option names, equals `reducr run`."""
    quick = [argument for argument in QUICK if not argument.startswith("seeds")]
    trained = reducr(*quick, "seed=0", cwd=tmp_path, command=(str(ROOT / "run_irreducible.py"),))
    assert trained.returncode == 0, trained.stderr
    stage = only_run(tmp_path / "runs") / "seed_0" / "irreducible"
    assert (stage / "table_plain" / "manifest.json").is_file()
    run = stage.parents[1]
    target = reducr(
        *quick,
        "selection_method=robust_reducible_loss_selection",
        "percent_train=0.1",
        "seed=0",
        f"irreducible.dir={run}",
        "model_io.home_dir=target",
        cwd=tmp_path,
        command=(str(ROOT / "run.py"),),
    )
    assert target.returncode == 0, target.stderr
    whole = reducr("run", *QUICK, "compare=[reducr]", "model_io.home_dir=whole", cwd=tmp_path)
    assert whole.returncode == 0, whole.stderr
    staged, direct = rows_of(only_run(tmp_path / "target")), rows_of(only_run(tmp_path / "whole"))
    for name in ("method", "worst_class_accuracy", "mean_accuracy", "corrupted_fraction"):
        assert [row[name] for row in staged] == [row[name] for row in direct]
    assert float(staged[0]["irreducible_seconds"]) > 0

    other_seed = reducr("train", *quick, "seed=1", f"irreducible.dir={stage}", cwd=tmp_path)
    assert other_seed.returncode == 2
    assert f"irreducible.dir={stage} does not belong to this data" in other_seed.stderr
    assert "the targets or their order differ" in other_seed.stderr


def test_one_class_and_all_classes_of_the_irreducible_stage(tmp_path):
    quick = ["irreducible.num_epochs=1", "seed=0"]
    done = reducr("irreducible", *quick, "gradient_weighted_class=3", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    done = reducr("irreducible", *quick, "gradient_weighted_class=all", "model_io.home_dir=all", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    one = np.load(only_run(tmp_path / "runs") / "seed_0" / "irreducible" / "table_class_3" / "values.npy")
    every = np.load(only_run(tmp_path / "all") / "seed_0" / "irreducible" / "table_all" / "values.npy")
    assert every.shape == (len(every), 10)
    np.testing.assert_array_equal(one[:, 3], every[:, 3])
    assert np.isnan(one[:, [0, 9]]).all()
    refused = reducr("irreducible", *quick, "gradient_weighted_class=10", cwd=tmp_path)
    assert refused.returncode == 2
    assert "a group in 0..9; got 10" in refused.stderr


def test_a_users_fault_ends_in_its_message(tmp_path):
    done = reducr("run", *QUICK, "fraction=10", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == (
        "reducr: `fraction` must be in (0, 1], the fraction of the candidates to keep; got 10. For 10 percent, pass "
        "0.1.\n"
    )
    assert not (tmp_path / "runs").exists()


def test_hydras_own_errors_name_what_there_is(tmp_path):
    done = reducr("run", "experiment=digit", cwd=tmp_path)
    assert done.returncode == 2
    assert "digits" in done.stderr
    assert "fashion_mnist" in done.stderr
    assert "Traceback" not in done.stderr
    done = reducr("run", "holdout.refresh_step=3", cwd=tmp_path)
    assert done.returncode == 2
    assert "Did you mean holdout.refresh_steps" in done.stderr


def test_the_console_script_is_the_command(tmp_path):
    script = Path(sys.executable).with_name("reducr")
    done = subprocess.run([script, "runn"], cwd=tmp_path, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert "unknown command 'runn'" in done.stderr
    assert done.stderr == reducr("runn", cwd=tmp_path).stderr


def test_a_run_folder_is_never_overwritten(quick_run, tmp_path):
    before = (quick_run[0] / "results.csv").read_bytes()
    done = reducr("run", *QUICK, f"model_io.run_dir={quick_run[0]}", cwd=tmp_path)
    assert done.returncode == 2
    assert "a run is never overwritten" in done.stderr
    assert (quick_run[0] / "results.csv").read_bytes() == before


def test_ctrl_c_leaves_a_usable_run_folder(tmp_path):
    """Interrupted within a fit: checkpoint and selected points of what it had reached."""
    process = forked.start(
        ["-m", "reducr.cli", "run", *QUICK, "compare=[uniform,reducr]", "num_steps=100000"],
        cwd=tmp_path,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
    )
    try:
        metrics = Path("seed_0/uniform/csv/metrics.csv")
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not list((tmp_path / "runs").glob(f"digits/*/{metrics}")):
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130, errors
    assert "interrupted" in errors
    folder = only_run(tmp_path / "runs") / "seed_0" / "uniform"
    with np.load(folder / "selected.npz") as selected:
        num_steps = len(selected["index"])
    assert num_steps >= 6
    import torch

    checkpoint = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=False)
    assert abs(num_steps - checkpoint["global_step"]) <= 1  # it may come between a step and its record
    assert int(checkpoint["state_dict"]["selector.step"]) in (checkpoint["global_step"], checkpoint["global_step"] - 1)


def test_a_users_own_yaml_files(tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "short.yaml").write_text(
        "# @package _global_\ndefaults:\n  - digits\nname: short\nnum_steps: 5\nseeds: [7]\ncompare: [reducr]\n"
    )
    done = reducr("run", "--config-dir", "mine", "experiment=short", "irreducible.num_epochs=1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert [row["seed"] for row in rows_of(only_run(tmp_path / "runs", "short"))] == ["7"] * 3
