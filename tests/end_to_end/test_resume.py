"""A killed run goes on with ``reducr resume`` as if nothing had happened: real processes, SIGKILL, real files."""

import csv
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch

import forked

OPTIONS = [
    "seeds=[0,1]",
    "compare=[rho_loss,reducr,irreducible_model]",
    "num_steps=240",
    "holdout.refresh_steps=6",
    "irreducible.num_epochs=30",
    "irreducible.checkpoint_rule=lowest_loss",
    "irreducible=ensemble",
    "model.dropout=0.2",
    "holdout_fraction=0.3",
    "model_io.resume_seconds=0",
    "trainer.accelerator=cpu",
]


def start(*arguments, cwd):
    return forked.start(["-m", "reducr.cli", *arguments], cwd=cwd, stderr_to_stdout=True)


def finish(*arguments, cwd, code=0):
    process = start(*arguments, cwd=cwd)
    (output,) = process.communicate(timeout=300)
    assert process.returncode == code, output
    return output


def without_seconds(path):
    with path.open(newline="") as file:
        return [{name: cell for name, cell in row.items() if "seconds" not in name} for row in csv.DictReader(file)]


def assert_same_run(one, other):
    """Everything that a run leaves, bit for bit, but for seconds and what names them."""
    files = sorted(path.relative_to(one) for path in one.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(other) for path in other.rglob("*") if path.is_file())
    for path in files:
        if path.suffix == ".ckpt":
            states = [torch.load(run / path, weights_only=True)["state_dict"] for run in (one, other)]
            assert states[0].keys() == states[1].keys()
            assert all(torch.equal(states[0][name], states[1][name]) for name in states[0]), path
        elif path.suffix == ".npz":
            with np.load(one / path) as arrays, np.load(other / path) as others:
                assert all(np.array_equal(arrays[name], others[name]) for name in arrays), path
        elif path.suffix == ".npy":
            assert np.array_equal(np.load(one / path), np.load(other / path)), path
        elif path.suffix == ".csv":
            assert without_seconds(one / path) == without_seconds(other / path), path


PHASES = {
    "irreducible models": "irreducible/ensemble_all/resume/step_*.ckpt",
    "tables": "irreducible/table_all/values.npy",
    "selection": "reducr/checkpoints/resume/step_*.ckpt",
    "tests": "reducr/checkpoints/last.ckpt",
}
SHORT = ["compare=[reducr,irreducible_model]", "num_steps=36", "irreducible.num_epochs=5"]


def test_a_run_killed_in_each_of_its_phases_ends_like_one_that_was_not(tmp_path):
    """SIGKILL as soon as the first file of a phase is there."""
    finish("run", *OPTIONS, *SHORT, "model_io.run_dir=whole", cwd=tmp_path)
    rows = without_seconds(tmp_path / "whole" / "results.csv")[::3]
    assert [(row["method"], row["seed"]) for row in rows] == [
        (method, seed) for seed in "01" for method in ("reducr", "irreducible_model")
    ]
    process = start("run", *OPTIONS, *SHORT, "model_io.run_dir=parts", cwd=tmp_path)
    parts, left = tmp_path / "parts", dict(PHASES)
    while left:
        reached = [phase for phase, pattern in left.items() if any((parts / "seed_0").glob(pattern))]
        if not reached:
            assert process.poll() is None, (process.communicate(), left)
            time.sleep(0.001)
            continue
        process.kill()
        assert process.wait(60) == -signal.SIGKILL
        for phase in reached:
            del left[phase]
        process = start("resume", "parts", cwd=tmp_path)
    (output,) = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert_same_run(tmp_path / "whole", parts)


@pytest.mark.long
def test_a_run_killed_twenty_times_ends_like_one_that_was_not(tmp_path):
    """SIGKILL at 20 random moments after work began: in irreducible models, tables, selection, refreshes and tests."""
    began = time.monotonic()
    finish("run", *OPTIONS, "model_io.run_dir=whole", cwd=tmp_path)
    seconds = time.monotonic() - began
    randomness = random.Random(0)
    kills, moments = 0, []
    process = start("run", *OPTIONS, "model_io.run_dir=parts", cwd=tmp_path)
    parts = tmp_path / "parts"
    while kills < 20:
        while process.poll() is None and not (parts / "run.json").exists():
            time.sleep(0.01)
        # from the start of the process, most of which is imports: the work of a whole run, spread over twenty
        before = _newest(parts)
        while process.poll() is None and _newest(parts) == before:
            time.sleep(0.005)
        time.sleep(randomness.uniform(0, 0.1 * seconds / 4))
        if process.poll() is not None:
            break
        process.send_signal(signal.SIGKILL)
        process.communicate()
        moments.append(_newest(parts))
        kills += 1
        process = start("resume", "parts", cwd=tmp_path)
    (output,) = process.communicate(timeout=300)
    assert process.returncode == 0, output
    assert kills >= 10, kills
    assert len(set(moments)) > 5
    assert_same_run(tmp_path / "whole", parts)
    # and once more: nothing is left to do, but to clear away what a process killed while writing had left
    (parts / "seed_1" / ".data.npz.1.partial").write_bytes(b"half")
    again = finish("resume", str(parts), cwd=Path(__file__).parent)
    assert again.count("finished before") == 6
    assert_same_run(tmp_path / "whole", parts)


def _newest(folder):
    """The file that was written last, of those that are there while others come and go."""
    times = {}
    for parent, _, names in os.walk(folder):  # unlike rglob it passes over a folder that has just gone
        for name in names:
            try:
                times[parent, name] = (Path(parent) / name).stat().st_mtime_ns
            except FileNotFoundError:
                continue
    return max(times.items(), key=lambda item: item[1], default=None)


def test_a_running_run_and_other_data_are_refused(tmp_path):
    options = ["seeds=[0]", "compare=[uniform]", "num_steps=4", "holdout.refresh_steps=2", "model_io.run_dir=run"]
    finish("run", *options, cwd=tmp_path)
    assert "is not a run folder: it has no run.json" in finish("resume", ".", cwd=tmp_path, code=2)
    import fcntl

    with (tmp_path / "run" / "run.json").open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        assert "Another process is using" in finish("resume", "run", cwd=tmp_path, code=2)
    (tmp_path / "run" / "results.csv").unlink()
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace("test_size: 500", "test_size: 400"))
    refused = finish("resume", "run", cwd=tmp_path, code=2)
    assert "run is not as the run wrote it: config.yaml (differs from what the run wrote)" in refused
    changed = finish("resume", "run", "--accept-changes", cwd=tmp_path, code=2)
    assert "The data has changed since the run: " in changed
