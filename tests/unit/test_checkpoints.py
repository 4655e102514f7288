"""Checkpoints are restored intact, whatever a crash, a disk or a user has done to the newest."""

import os
import random
import re
import signal
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import forked
from reducr._internal.rng import random_state, set_random_state
from reducr.training.checkpoints import Checkpoints


class Part:
    """Anything with a state."""

    def __init__(self, state=None):
        self.state = state

    def state_dict(self):
        return self.state

    def load_state_dict(self, state):
        self.state = state


def save(folder, *steps, keep=2):
    """Save a checkpoint for each step, with the step as its state."""
    checkpoints = Checkpoints(folder, keep=keep)
    for step in steps:
        checkpoints.save(step, part=Part(step))
    return checkpoints


def resumed(folder):
    """The step and the state of the checkpoint resumed from; fails on any warning."""
    part = Part()
    return Checkpoints(folder).resume(part=part), part.state


def steps_in(folder):
    return [int(path.name.split("_")[1]) for path in Checkpoints(folder).paths()]


def test_nothing_to_resume_from_changes_nothing(tmp_path):
    part = Part("unchanged")
    before = random_state()
    assert Checkpoints(tmp_path / "missing").resume(part=part) == 0
    assert part.state == "unchanged"
    assert torch.equal(random_state()["torch"], before["torch"])
    assert not (tmp_path / "missing").exists()


def test_parts_are_restored_as_saved(tmp_path):
    def parts():
        model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.1)
        return {
            "model": model,
            "optimizer": optimizer,
            "scheduler": torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=9),
            "scaler": torch.amp.GradScaler("cpu"),
        }

    def step(parts, seed):
        inputs = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
        parts["optimizer"].zero_grad()
        parts["scaler"].scale(parts["model"](inputs).square().mean()).backward()
        parts["scaler"].step(parts["optimizer"])
        parts["scaler"].update()
        parts["scheduler"].step()

    whole = parts()
    for seed in range(5):
        step(whole, seed)
    path = Checkpoints(tmp_path).save(5, **whole)
    assert path.parent == tmp_path
    restored = parts()
    assert Checkpoints(tmp_path).resume(**restored) == 5
    for each in (whole, restored):
        step(each, 5)
    for value, restored_value in zip(
        whole["model"].state_dict().values(), restored["model"].state_dict().values(), strict=True
    ):
        assert torch.equal(value, restored_value)
    assert restored["scheduler"].get_last_lr() == whole["scheduler"].get_last_lr()
    assert restored["scaler"].state_dict() == whole["scaler"].state_dict()


def test_random_states_are_restored_bit_for_bit(tmp_path):
    def draws():
        values = [float(torch.randn(())), random.gauss(0, 1), float(np.random.standard_normal())]  # noqa: NPY002
        return [*values, float(torch.rand(())), random.random(), float(np.random.rand())]  # noqa: NPY002

    before = random_state()
    try:
        draws()  # Python and numpy draw normals in pairs; the state includes the second
        Checkpoints(tmp_path).save(1, part=Part(0))
        expected = [draws() for _ in range(3)]
        for seed in (torch.manual_seed, random.seed, np.random.seed):
            seed(1)
        assert draws() not in expected
        Checkpoints(tmp_path).resume(part=Part())
        assert [draws() for _ in range(3)] == expected
    finally:
        set_random_state(before)


def test_plain_values_and_tensors_are_restored(tmp_path):
    content = {
        "tensor": torch.arange(3),
        "half": torch.ones(2, dtype=torch.bfloat16),
        "nested": [(1, 2.5, None), {"text": "ü", "bytes": b"\x00", "yes": True, 3: [float("inf")]}],
    }
    Checkpoints(tmp_path).save(1, part=Part(content))
    part = Part()
    Checkpoints(tmp_path).resume(part=part)
    assert torch.equal(part.state.pop("tensor"), content.pop("tensor"))
    assert torch.equal(part.state.pop("half"), content.pop("half"))
    assert part.state == content


@pytest.mark.parametrize(
    ("state", "types"),
    [
        (np.ones(2), r"numpy\.dtype, numpy\.ndarray"),
        ({"best": [np.float64(0.5)]}, r"numpy\._core\.multiarray\.scalar"),
        (Part, r"test_checkpoints\.Part"),
        (range(3), "range"),
    ],
)
def test_a_state_that_could_not_be_read_again_is_refused_when_saved(tmp_path, state, types):
    save(tmp_path, 1)
    with pytest.raises(TypeError, match=rf"may only hold tensors and plain values .* got .*{types}"):
        Checkpoints(tmp_path).save(2, part=Part(state))
    assert resumed(tmp_path) == (1, 1)
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize("keep", [2, 3])
def test_keep_is_the_number_of_files_kept(tmp_path, keep):
    save(tmp_path, 0, 10, 20, 30, 40, keep=keep)
    assert steps_in(tmp_path) == [40, 30, 20][:keep]
    assert resumed(tmp_path) == (40, 40)


def test_going_back_to_an_earlier_step_removes_the_later_ones(tmp_path):
    save(tmp_path, 10, 20, 30, keep=3)
    save(tmp_path, 15)
    assert steps_in(tmp_path) == [15, 10]
    assert resumed(tmp_path) == (15, 15)


def test_a_step_saved_again_replaces_the_first(tmp_path):
    save(tmp_path, 10, 20)
    Checkpoints(tmp_path).save(20, part=Part("again"))
    assert steps_in(tmp_path) == [20, 10]
    assert resumed(tmp_path) == (20, "again")


def test_steps_are_compared_as_numbers(tmp_path):
    save(tmp_path, 999_999_999, 1_000_000_000)
    assert steps_in(tmp_path) == [1_000_000_000, 999_999_999]


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def empty(path):
    path.write_bytes(b"")


def rename_to_a_later_step(path):
    path.rename(path.with_name(path.name.replace("step_000000020", "step_000000090")))


def rename_to_another_checksum(path):
    path.rename(path.with_name("step_000000020_0123456789abcdef.ckpt"))


DAMAGES = [truncate, flip_a_bit, lengthen, empty, rename_to_a_later_step, rename_to_another_checksum]


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_gives_a_warning_and_the_one_before_is_used(tmp_path, damage):
    damage(save(tmp_path, 10, 20).paths()[0])
    part = Part()
    with pytest.warns(
        RuntimeWarning, match="is damaged .truncated or altered.: its checksum does not match its name"
    ) as warned:
        assert Checkpoints(tmp_path).resume(part=part) == 10
    assert len(warned) == 1
    assert str(Checkpoints(tmp_path).paths()[0]) in str(warned[0].message)
    assert part.state == 10
    # the next save removes the damaged file
    save(tmp_path, 12)
    assert resumed(tmp_path) == (12, 12)
    assert steps_in(tmp_path) == [12, 10]


@pytest.mark.parametrize("damage", DAMAGES)
def test_saving_a_step_again_replaces_its_damaged_file(tmp_path, damage):
    damage(save(tmp_path, 10, 20).paths()[0])
    save(tmp_path, 20)
    assert steps_in(tmp_path) == [20, 10]
    assert resumed(tmp_path) == (20, 20)


def test_an_error_names_the_files_if_all_are_damaged(tmp_path):
    paths = save(tmp_path, 10, 20).paths()
    for path in paths:
        truncate(path)
    message = (
        f"every checkpoint in {tmp_path} is damaged (truncated or altered): {paths[0].name}, {paths[1].name}. "
        "Restore a copy, or remove them to start again."
    )
    with (
        pytest.warns(RuntimeWarning, match="is damaged") as warned,
        pytest.raises(ValueError, match=re.escape(message)),
    ):
        Checkpoints(tmp_path).resume(part=Part())
    assert len(warned) == 2


def test_any_altered_byte_is_detected(tmp_path):
    path = save(tmp_path, 10).paths()[0]
    data = path.read_bytes()
    for offset in range(0, len(data), 97):
        path.write_bytes(data[:offset] + bytes([data[offset] ^ 0x10]) + data[offset + 1 :])
        with pytest.warns(RuntimeWarning, match="is damaged"), pytest.raises(ValueError, match="every checkpoint in"):
            Checkpoints(tmp_path).read()
    path.write_bytes(data)
    assert resumed(tmp_path) == (10, 10)


def test_other_files_in_the_folder_are_kept(tmp_path):
    others = [tmp_path / name for name in ("step_1.ckpt", "step_000000005_xyz.ckpt", "last.ckpt", "notes.txt")]
    for path in others:
        path.write_text("another file")
    save(tmp_path, 1, 2, 3)
    assert resumed(tmp_path) == (3, 3)
    assert all(path.read_text() == "another file" for path in others)


SAVE_AND_BE_KILLED = """
import io, os, signal, sys
import torch
from reducr.training.checkpoints import Checkpoints

def save(path):
    buffer = io.BytesIO()
    torch.save(torch.zeros(100_000), buffer)
    with path.open("wb") as file:
        file.write(buffer.getvalue()[: int(float(sys.argv[2]) * len(buffer.getvalue()))])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

Checkpoints(sys.argv[1]).write_with(30, save)
"""


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_a_process_killed_while_writing_leaves_the_earlier_files(tmp_path, fraction):
    save(tmp_path, 10, 20)
    killed = forked.run(["-c", SAVE_AND_BE_KILLED, tmp_path, fraction])
    assert killed.returncode == -signal.SIGKILL
    partial_files = list(tmp_path.glob(".*.partial"))
    assert len(partial_files) == 1
    assert resumed(tmp_path) == (20, 20)
    # a later process removes the file at its next save
    os.utime(partial_files[0], times=(1, 1))
    save(tmp_path, 30)
    assert sorted(tmp_path.iterdir()) == sorted(Checkpoints(tmp_path).paths())
    assert resumed(tmp_path) == (30, 30)


def test_a_failed_save_leaves_no_file(tmp_path):
    save(tmp_path, 10)

    def fail(path):
        path.write_bytes(b"half")
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        Checkpoints(tmp_path).write_with(20, fail)
    assert [path.name for path in tmp_path.iterdir()] == [path.name for path in Checkpoints(tmp_path).paths()]
    assert resumed(tmp_path) == (10, 10)


def test_a_file_written_by_a_function_is_named_after_its_content(tmp_path):
    checkpoints = Checkpoints(tmp_path)
    path = checkpoints.write_with(7, lambda path: torch.save({"a": 1}, path))
    assert re.fullmatch(r"step_000000007_[0-9a-f]{16}\.ckpt", path.name)
    assert checkpoints.newest() == path
    assert checkpoints.read() == {"a": 1}
    assert checkpoints.write(7, {"a": 1}) == path


@pytest.mark.parametrize("keep", [1, 0, -1, 2.5, True, "3"])
def test_keep_below_two_is_refused(tmp_path, keep):
    message = f"keep must be a whole number of at least 2: the newest and one before it; got {keep!r}."
    with pytest.raises(ValueError, match=re.escape(message)):
        Checkpoints(tmp_path, keep=keep)


@pytest.mark.parametrize("step", [-1, 1.5, True, "3", None, 10**400])
def test_an_invalid_step_is_refused(tmp_path, step):
    with pytest.raises(ValueError, match=re.escape(f"step must be a whole number of at least 0; got {step!r}.")):
        Checkpoints(tmp_path).save(step, part=Part(0))
    assert list(tmp_path.iterdir()) == []


def test_other_parts_than_those_saved_are_named(tmp_path):
    Checkpoints(tmp_path).save(1, model=Part(1), optimizer=Part(2))
    model = Part("unchanged")
    message = f"the checkpoints in {tmp_path} hold model, optimizer; got loader, model. Resume with the parts that"
    with pytest.raises(ValueError, match=re.escape(message)):
        Checkpoints(tmp_path).resume(model=model, loader=Part())
    assert model.state == "unchanged"


@pytest.mark.parametrize("act", [lambda checkpoints, **parts: checkpoints.save(1, **parts), Checkpoints.resume])
def test_parts_without_a_state_are_refused(tmp_path, act):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(
        TypeError, match=r"epoch must have state_dict\(\) and load_state_dict\(\); got int. Pass models, optimisers,"
    ):
        act(checkpoints, model=Part(1), epoch=3)
    with pytest.raises(
        ValueError, match=r"a checkpoint needs at least one part, such as model=..., optimizer=.*; got none"
    ):
        act(checkpoints)
    assert not list(Path(tmp_path).iterdir())


def test_intact_files_give_no_warning(tmp_path):
    save(tmp_path, 10, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert resumed(tmp_path) == (20, 20)


@pytest.mark.parametrize("sync", [False, True])
def test_equal_tensors_are_apart_after_a_resume(tmp_path, sync):
    """With ``sync`` they are stored once."""
    zeros = {"first": torch.zeros(3), "nested": [torch.zeros(3), (1, "two")], "none": None}
    Checkpoints(tmp_path, sync=sync).save(4, part=Part(zeros), model=nn.BatchNorm1d(2))
    part, model = Part(), nn.BatchNorm1d(2)
    assert Checkpoints(tmp_path, sync=sync).resume(part=part, model=model) == 4
    part.state["first"].add_(1)
    assert part.state["nested"][0].tolist() == [0, 0, 0]
    assert part.state["nested"][1] == (1, "two")
    assert part.state["none"] is None


@pytest.mark.parametrize("sync", [False, True])
def test_checkpoints_are_resumed_as_they_were_saved(tmp_path, sync):
    Checkpoints(tmp_path, sync=sync).save(1, part=Part(2))
    with pytest.raises(ValueError, match=rf"saved with sync={sync}, and are resumed with sync={not sync}\. Use what"):
        Checkpoints(tmp_path, sync=not sync).resume(part=Part())


def test_checkpoints_of_another_number_of_ranks_are_refused(tmp_path):
    checkpoints = Checkpoints(tmp_path, sync=True)
    checkpoints.write(1, {"step": 1, "ranks": [{}, {}], "tensors": {}})
    with pytest.raises(ValueError, match=r"was saved by 2 processes, and 1 resume: .* Start 2 processes\."):
        checkpoints.resume(part=Part())


def test_sync_must_be_a_flag(tmp_path):
    with pytest.raises(ValueError, match="sync must be True or False"):
        Checkpoints(tmp_path, sync="yes")
