"""``reducr run`` on several processes: the run of one process, also after one has been killed.

The default lane forks the ranks, with the environment that torchrun gives them; in the long lane torchrun starts them.
"""

import csv
import os
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import torch

import forked

OPTIONS = [
    "seeds=[0]",
    "compare=[rho_loss,reducr,uniform]",
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


class ByTorchrun:
    """Ranks that torchrun starts, which ends them all when one of them has died."""

    def __init__(self, *arguments, num_ranks, cwd):
        launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={num_ranks}", "-m"]
        self.process = subprocess.Popen(
            [sys.executable, "-m", *launcher, "reducr.cli", *arguments],
            cwd=cwd,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def is_running(self):
        return self.process.poll() is None

    def kill(self, rank):
        workers = subprocess.run(["pgrep", "-P", str(self.process.pid)], capture_output=True, text=True, check=True)
        os.kill(int(workers.stdout.split()[rank]), signal.SIGKILL)

    def end(self, *, timeout):
        """Exit statuses, standard output and errors."""
        try:
            output, errors = self.process.communicate(timeout=timeout)
        finally:
            self.process.kill()
        return [self.process.returncode], output, errors


class Forked:
    """Ranks that the test starts; one that misses another ends by itself."""

    def __init__(self, *arguments, num_ranks, cwd):
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        environment = {
            "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "TORCHELASTIC_RUN_ID": "none", "GROUP_RANK": 0,
            "WORLD_SIZE": num_ranks, "LOCAL_WORLD_SIZE": num_ranks,
        }  # fmt: skip
        self.processes = []
        for rank in range(num_ranks):
            own = {} if num_ranks == 1 else environment | {"RANK": rank, "LOCAL_RANK": rank}
            own = ENVIRONMENT | {name: str(value) for name, value in own.items()}
            self.processes.append(forked.start(["-m", "reducr.cli", *arguments], cwd=cwd, env=own))

    def is_running(self):
        return all(process.poll() is None for process in self.processes)

    def kill(self, rank):
        self.processes[rank].kill()

    def end(self, *, timeout):
        """Exit statuses, standard output and errors."""
        try:
            texts = [process.communicate(timeout) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()
        output, errors = ("".join(parts) for parts in zip(*texts, strict=True))
        return [process.returncode for process in self.processes], output, errors


NUM_STEPS = {Forked: 40, ByTorchrun: 80}
launchers = pytest.mark.parametrize("launch", [Forked, pytest.param(ByTorchrun, marks=pytest.mark.long)])


def finish(launch, *arguments, num_ranks, cwd):
    statuses, output, errors = launch(*arguments, num_ranks=num_ranks, cwd=cwd).end(timeout=300)
    assert not any(statuses), errors
    return output


def results(folder):
    with (folder / "results.csv").open(newline="") as file:
        return [{name: cell for name, cell in row.items() if "seconds" not in name} for row in csv.DictReader(file)]


def group_weights(folder):
    with (folder / "seed_0" / "reducr" / "csv" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    return np.array([[float(row[f"group_weight/{group}"]) for group in range(10)] for row in rows])


def accuracies_over_time(folder, method):
    with (folder / "seed_0" / method / "csv" / "metrics.csv").open(newline="") as file:
        return [(row["step"], row["test/mean_accuracy"]) for row in csv.DictReader(file) if row["test/mean_accuracy"]]


def assert_same_run(one, other, *, num_steps):
    """The same points in every step, and parameters and weights up to rounding."""
    assert results(one) == results(other)
    for method in ("rho_loss", "reducr", "uniform"):
        selected, of_other = (np.load(run / "seed_0" / method / "selected.npz") for run in (one, other))
        # several ranks note theirs one after another
        np.testing.assert_array_equal(*(np.sort(file["index"], axis=1) for file in (selected, of_other)))
        for name in ("num_times_selected", "num_times_scored"):
            np.testing.assert_array_equal(selected[name], of_other[name])
        assert selected["num_times_scored"].sum() == num_steps * 100
        np.testing.assert_allclose(selected["score_sum"], of_other["score_sum"], rtol=0, atol=1e-3)
        losses, other_losses = (np.load(run / "seed_0" / method / "point_loss.npy") for run in (one, other))
        np.testing.assert_allclose(losses, other_losses, atol=1e-4)
        predictions, others = (
            np.load(run / "seed_0" / method / "test_predictions.npz")["last"] for run in (one, other)
        )
        np.testing.assert_array_equal(predictions, others)
        assert accuracies_over_time(one, method) == accuracies_over_time(other, method)
        assert len(accuracies_over_time(one, method)) == num_steps // 4
        states = [
            torch.load(run / "seed_0" / method / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
            for run in (one, other)
        ]
        for name, value in states[0].items():
            if name.startswith("model."):
                torch.testing.assert_close(value, states[1][name], rtol=0, atol=1e-5)
    weights = group_weights(one)
    assert weights.shape == (num_steps, 10)
    assert float(np.ptp(weights[-1])) > 0.03
    np.testing.assert_allclose(weights, group_weights(other), rtol=1e-5)
    tables = [np.load(run / "seed_0" / "irreducible" / "table_all" / "values.npy") for run in (one, other)]
    np.testing.assert_allclose(*tables, rtol=0, atol=1e-6)


@pytest.mark.long
@launchers
def test_a_run_of_two_ranks_one_of_which_is_killed_goes_on_with_four(launch, tmp_path):
    """Two ranks until one gets SIGKILL, which ends the other in bounded time; then four; against one process."""
    options = [*OPTIONS, f"num_steps={NUM_STEPS[launch]}"]
    for name in ("one", "several"):
        (tmp_path / name).mkdir()
    finish(Forked, "run", *options, num_ranks=1, cwd=tmp_path / "one")

    several = tmp_path / "several"
    launched = launch("run", "distributed=global", *options, num_ranks=2, cwd=several)
    states = several / "run" / "seed_0" / "reducr" / "checkpoints" / "resume"
    while not any(states.glob("step_*.ckpt")):
        assert launched.is_running(), launched.end(timeout=60)
        time.sleep(0.005)
    launched.kill(rank=1)
    statuses, output, errors = launched.end(timeout=60)
    assert statuses == [1, -signal.SIGKILL][: len(statuses)], errors
    if launch is ByTorchrun:
        assert "SIGKILL" in errors or "exitcode" in errors
    assert [row["method"] for row in results(several / "run")[::3]] == ["rho_loss"]

    output = finish(launch, "resume", "run", num_ranks=4, cwd=several)
    assert output.count("run folder: ") == 1
    assert "rho_loss               finished before" in output
    assert_same_run(tmp_path / "one" / "run", several / "run", num_steps=NUM_STEPS[launch])


def test_a_moving_holdout_loss_of_two_ranks_is_that_of_one_process(tmp_path):
    """Each rank keeps its own sums, which DistributedDataParallel must not copy from the first one."""
    options = [*OPTIONS, "num_steps=24", "compare=[reducr]", "irreducible=adjusted", "holdout.refresh_steps=null"]
    options += ["holdout.decay=0.9", "holdout.batch_size=50", "methods.reducr.options.step_size=0.05"]
    folders = [tmp_path / name for name in ("one", "two")]
    for num_ranks, folder in enumerate(folders, start=1):
        folder.mkdir()
        mode = ["distributed=global"] if num_ranks > 1 else []
        finish(Forked, "run", *options, *mode, num_ranks=num_ranks, cwd=folder)
    weights, of_two = (group_weights(folder / "run") for folder in folders)
    assert float(np.ptp(weights[-1])) > 0.01
    np.testing.assert_allclose(of_two, weights, rtol=1e-4)


@pytest.mark.long
@launchers
def test_local_selection_and_ranks_that_were_not_told(launch, tmp_path):
    """Each rank's best 5 of 50: 10 a step, balanced over the ranks' halves of the candidates."""
    options = [*OPTIONS, "num_steps=40", "compare=[reducr]", "irreducible=adjusted"]
    finish(launch, "run", "distributed=local", *options, num_ranks=2, cwd=tmp_path)
    index = np.load(tmp_path / "run" / "seed_0" / "reducr" / "selected.npz")["index"]
    assert index.shape == (40, 10)
    assert all(len(set(row)) == 10 for row in index)
    with (tmp_path / "run" / "seed_0" / "reducr" / "csv" / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["train/loss"]]
    for row in rows:
        assert float(row["select/fraction"]) == 0.1
        assert sum(float(row[f"select/group_count/{group}"]) for group in range(10)) == 10
    assert {row["selected_fraction"] for row in results(tmp_path / "run")} == {"0.1"}
    launched = launch("run", *options[:-3], "model_io.run_dir=other", num_ranks=2, cwd=tmp_path)
    statuses, _, errors = launched.end(timeout=300)
    assert any(statuses)
    assert "2 processes train together and `distributed` is None" in errors
    assert not (tmp_path / "other").exists()
