"""A plain training loop that is killed again and again ends bit for bit like one that is left alone."""

import os
import random
import time
from pathlib import Path

import pytest
import torch

import forked
from end_to_end.killed_loop import CHECKPOINTING, NUM_STEPS, PHASE, SCORING, STARTING, TRAINING, VALIDATION

SCRIPT = Path(__file__).with_name("killed_loop.py")
PATIENCE_SECONDS = 120


def start(folder):
    folder.mkdir(exist_ok=True)
    (folder / "phase").write_bytes(PHASE.pack(STARTING, 0))
    return forked.start(["-W", "error", SCRIPT, folder])


def kill_in(process, folder, *, phase, after_steps):
    """Kill a process after so many steps of its own, once it is in ``phase``; the phase it was in when it died."""
    give_up_at = time.monotonic() + PATIENCE_SECONDS
    file = os.open(folder / "phase", os.O_RDONLY)
    while True:
        now, num_steps = PHASE.unpack(os.pread(file, PHASE.size, 0))
        if now == phase and num_steps >= after_steps:
            break
        assert process.poll() is None, f"it ended by itself, with status {process.returncode}"
        assert time.monotonic() < give_up_at, "it hangs"
        time.sleep(0.0002 if now != STARTING else 0.01)
    process.kill()
    process.wait()
    died_in, _ = PHASE.unpack(os.pread(file, PHASE.size, 0))
    os.close(file)
    return died_in


def assert_same(one, other, place="result"):
    assert type(one) is type(other), place
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, other), place
    elif isinstance(one, dict | list | tuple):
        assert len(one) == len(other), place
        keys = one if isinstance(one, dict) else range(len(one))
        for key in keys:
            assert_same(one[key], other[key], f"{place}[{key!r}]")
    else:
        assert one == other, place


@pytest.mark.parametrize("num_kills", [4, pytest.param(20, marks=pytest.mark.long)])
def test_a_loop_killed_in_each_of_its_phases_ends_as_if_left_alone(tmp_path, num_kills):
    """While it scores, trains, validates and writes checkpoints, at random moments; the results are bit for bit."""
    left_alone = start(tmp_path / "left alone")
    draw, folder = random.Random(0), tmp_path / "killed"
    deaths = dict.fromkeys((SCORING, TRAINING, VALIDATION, CHECKPOINTING), 0)
    while sum(deaths.values()) < num_kills or min(deaths.values()) == 0:
        rarest = [phase for phase, number in deaths.items() if number == min(deaths.values())]
        died_in = kill_in(start(folder), folder, phase=draw.choice(rarest), after_steps=draw.randrange(6))
        deaths[died_in] += 1
        assert not (folder / "result.pt").exists()
    assert start(folder).wait(PATIENCE_SECONDS) == 0
    assert left_alone.wait(PATIENCE_SECONDS) == 0
    results = [torch.load(place / "result.pt", weights_only=True) for place in (folder, tmp_path / "left alone")]
    assert len(results[0]["record"]["indices"]) == NUM_STEPS
    assert_same(*results)
    # what the killed processes left half written is gone, but for the last one's at most
    assert len(list((folder / "checkpoints").glob("*.ckpt"))) == 2
    assert len(list((folder / "checkpoints").glob(".*.partial"))) <= 1
