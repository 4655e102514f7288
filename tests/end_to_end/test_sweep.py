"""A sweep over classes and seeds in parallel processes leaves the same models as one run that trains them all."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import forked
from reducr._internal.run_folder import read_results

SMALL = [
    "irreducible=trained",
    "irreducible.num_epochs=2",
    "num_steps=4",
    "holdout.refresh_steps=2",
    "compare=[reducr]",
]
CLASSES = ",".join(map(str, range(10)))
# processes side by side get a thread each, and sums over another number of threads differ in the last digit
ONE_THREAD = os.environ | dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def reducr(*arguments, folder):
    command = [sys.executable, "-m", "reducr.cli", *arguments, *SMALL, "trainer.accelerator=cpu"]
    run = subprocess.run(command, cwd=folder, env=ONE_THREAD, capture_output=True, text=True, timeout=600, check=True)
    return run.stdout


@pytest.mark.long
def test_classes_and_seeds_swept_in_parallel_processes_are_used_together(tmp_path):
    reducr(
        "irreducible",
        "--multirun",
        "hydra/launcher=joblib",
        "hydra.launcher.n_jobs=2",
        f"gradient_weighted_class={CLASSES}",
        "seed=0,1",
        "model_io.home_dir=swept",
        folder=tmp_path,
    )
    stages = sorted((tmp_path / "swept" / "digits").glob("*/seed_*/irreducible"))
    assert len(stages) == 20
    reducr("irreducible", "gradient_weighted_class=all", "seed=0", "model_io.run_dir=at_once", folder=tmp_path)
    at_once = np.load(tmp_path / "at_once/seed_0/irreducible/table_all/values.npy")
    for stage in stages:
        (table,) = stage.glob("table_class_*")
        group = int(table.name.removeprefix("table_class_"))
        column = np.load(table / "values.npy")
        assert np.isfinite(column).all(axis=0).tolist() == [place == group for place in range(10)]
        if stage.parent.name == "seed_0":
            np.testing.assert_array_equal(column[:, group], at_once[:, group])

    options = ["seeds=[0,1]", "irreducible.dir=swept/digits/*", "model_io.run_dir=trained"]
    reducr("train", *options, folder=tmp_path)
    swept = read_results(tmp_path / "trained")
    assert [(row.method, row.seed) for row in swept[::3]] == [("reducr", 0), ("reducr", 1)]
    reducr("train", "seed=0", "irreducible.dir=at_once", "model_io.run_dir=trained_at_once", folder=tmp_path)
    (first, *_), (same, *_) = swept, read_results(tmp_path / "trained_at_once")
    assert (first.worst_class_accuracy, first.mean_accuracy) == (same.worst_class_accuracy, same.mean_accuracy)
    picked = [
        np.load(Path(tmp_path, run, "seed_0/reducr/selected.npz"))["index"] for run in ("trained", "trained_at_once")
    ]
    np.testing.assert_array_equal(*picked)
    assert first.irreducible_seconds > 0


def test_a_class_that_no_run_has_trained_is_named(tmp_path):
    command = ["-m", "reducr.cli", "irreducible", *SMALL, "gradient_weighted_class=3", "seed=0"]
    forked.run([*command, "model_io.run_dir=three"], cwd=tmp_path, check=True)
    done = forked.run(["-m", "reducr.cli", "train", *SMALL, "seed=0", "irreducible.dir=three"], cwd=tmp_path)
    assert done.returncode == 2
    assert "There is no table_all in" in done.stderr
    assert "no table of class 0, 1, 2, 4, 5, 6, 7, 8, 9 alone" in done.stderr
