"""``reducr run`` on several processes by torchrun: the run of one process, also after one has been killed."""

import csv
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

OPTIONS = [
    "seeds=[0]",
    "compare=[rho_loss,reducr,uniform]",
    "num_steps=80",
    "holdout.refresh_steps=4",
    "irreducible=trained",
    "irreducible.num_epochs=3",
    "methods.reducr.options.step_size=0.01",
    "model_io.resume_seconds=0",
    "trainer.accelerator=cpu",
    "record.test_accuracy=true",
    "record.page=false",
    "model_io.run_dir=run",
]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def command(*arguments, num_ranks):
    launcher = (
        [] if num_ranks == 1 else ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}", "-m"]
    )
    return [sys.executable, "-m", *launcher, "reducr.cli", *arguments]


def finish(*arguments, num_ranks, cwd):
    done = subprocess.run(
        command(*arguments, num_ranks=num_ranks),
        cwd=cwd,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def results(folder):
    with (folder / "results.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if "seconds" not in name} for row in csv.DictReader(file)]


def group_weights(folder):
    with (folder / "seed_0" / "reducr" / "csv" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return np.array([[float(row[f"group_weight/{group}"]) for group in range(10)] for row in rows])


def accuracies_over_time(folder, method):
    with (folder / "seed_0" / method / "csv" / "metrics.csv").open(newline="") as file:
        found = [(row["step"], row["test/mean_accuracy"]) for row in csv.DictReader(file) if row["test/mean_accuracy"]]
    assert len(found) == 20
    return found


def assert_same_run(one, other):
    """The same points in every step, and parameters and weights up to rounding."""
    assert results(one) == results(other)
    for method in ("rho_loss", "reducr", "uniform"):
        selected, of_other = (np.load(run / "seed_0" / method / "selected.npz") for run in (one, other))
        # several ranks note theirs one after another
        np.testing.assert_array_equal(*(np.sort(file["index"], axis=1) for file in (selected, of_other)))
        for name in ("num_times_selected", "num_times_scored"):
            np.testing.assert_array_equal(selected[name], of_other[name])
        assert selected["num_times_scored"].sum() == 80 * 100
        np.testing.assert_allclose(selected["score_sum"], of_other["score_sum"], rtol=0, atol=1e-3)
        losses, other_losses = (np.load(run / "seed_0" / method / "point_loss.npy") for run in (one, other))
        np.testing.assert_allclose(losses, other_losses, atol=1e-4)
        predictions, others = (
            np.load(run / "seed_0" / method / "test_predictions.npz")["last"] for run in (one, other)
        )
        np.testing.assert_array_equal(predictions, others)
        assert accuracies_over_time(one, method) == accuracies_over_time(other, method)
        states = [
            torch.load(run / "seed_0" / method / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for run in (one, other)
        ]
        for name, value in states[0].items():
            if name.startswith("model."):
                torch.testing.assert_close(value, states[1][name], rtol=0, atol=1e-5)
    weights = group_weights(one)
    assert weights.shape == (80, 10)
    assert float(np.ptp(weights[-1])) > 0.03
    np.testing.assert_allclose(weights, group_weights(other), rtol=1e-5)
    tables = [np.load(run / "seed_0" / "irreducible" / "table_all" / "values.npy") for run in (one, other)]
    np.testing.assert_allclose(*tables, rtol=0, atol=1e-6)


@pytest.mark.long
def test_a_run_of_two_ranks_one_of_which_is_killed_goes_on_with_four(tmp_path):
    """Two ranks until one gets SIGKILL, which ends the other in bounded time; then four; against one process."""
    for name in ("one", "several"):
        (tmp_path / name).mkdir()
    finish("run", *OPTIONS, num_ranks=1, cwd=tmp_path / "one")

    several = tmp_path / "several"
    launched = subprocess.Popen(
        command("run", "distributed=global", *OPTIONS, num_ranks=2),
        cwd=several,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    states = several / "run" / "seed_0" / "reducr" / "checkpoints" / "resume"
    try:
        while not any(states.glob("step_*.ckpt")):
            assert launched.poll() is None, launched.communicate()[0]
            time.sleep(0.005)
        workers = subprocess.run(
            ["pgrep", "-P", str(launched.pid)], capture_output=True, text=True, check=True
        ).stdout.split()
        assert len(workers) == 2
        os.kill(int(workers[1]), signal.SIGKILL)
        output, _ = launched.communicate(timeout=60)
    finally:
        launched.kill()
    assert launched.returncode != 0
    assert "SIGKILL" in output or "exitcode" in output
    assert [row["method"] for row in results(several / "run")[::3]] == ["rho_loss"]

    output = finish("resume", "run", num_ranks=4, cwd=several)
    assert output.count("run folder: ") == 1
    assert "rho_loss               finished before" in output
    assert_same_run(tmp_path / "one" / "run", several / "run")


@pytest.mark.long
def test_local_selection_and_ranks_that_were_not_told(tmp_path):
    """Each rank's best 5 of 50: 10 a step, balanced over the ranks' halves of the candidates."""
    options = [*OPTIONS, "num_steps=40", "compare=[reducr]", "irreducible=adjusted"]
    finish("run", "distributed=local", *options, num_ranks=2, cwd=tmp_path)
    index = np.load(tmp_path / "run" / "seed_0" / "reducr" / "selected.npz")["index"]
    assert index.shape == (40, 10)
    assert all(len(set(row)) == 10 for row in index)
    with (tmp_path / "run" / "seed_0" / "reducr" / "csv" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    for row in rows:
        assert float(row["select/fraction"]) == 0.1
        assert sum(float(row[f"select/group_count/{group}"]) for group in range(10)) == 10
    assert {row["selected_fraction"] for row in results(tmp_path / "run")} == {"0.1"}
    done = subprocess.run(
        command("run", *options[:-3], "model_io.run_dir=other", num_ranks=2),
        cwd=tmp_path,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode != 0
    assert "2 processes train together and `distributed` is None" in done.stderr
    assert not (tmp_path / "other").exists()
