"""The manifest of a run folder: what it notices, and what a kill may leave."""

import numpy as np
import pytest
import torch

from reducr._internal.manifest import (
    NAME,
    LogDigest,
    Manifest,
    TrainingProgress,
    deciding_files,
    record_files,
    start_manifest,
    withdraw,
    write_recorded,
)


@pytest.fixture
def run(tmp_path):
    start_manifest(tmp_path)
    write_recorded(tmp_path, tmp_path / "config.yaml", "a: 1\n")
    (tmp_path / "seed_0" / "reducr" / "checkpoints").mkdir(parents=True)
    np.save(tmp_path / "seed_0" / "reducr" / "point_loss.npy", np.zeros(3))
    record_files(tmp_path, tmp_path / "seed_0" / "reducr")
    return tmp_path


def changed(run):
    return [change.file for change in Manifest.read(run).changes()]


def test_any_changed_bit_is_noticed(run):
    assert changed(run) == []
    path = run / "seed_0" / "reducr" / "point_loss.npy"
    content = path.read_bytes()
    for place in (0, 10, len(content) - 1):
        flipped = bytearray(content)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        assert changed(run) == ["seed_0/reducr/point_loss.npy"]
    path.write_bytes(content)
    assert changed(run) == []


def test_a_text_with_a_name_that_is_not_utf_8_is_listed_as_its_bytes(run):
    write_recorded(run, run / "command.txt", "reducr run model_io.home_dir=caf\udce9\n")
    assert (run / "command.txt").read_bytes().endswith(b"caf\xe9\n")
    assert changed(run) == []


def test_an_empty_file_that_only_claimed_the_folder_is_not_accepted_in_place_of_its_text(run):
    (run / "run.json").touch()
    write_recorded(run, run / "run.json", "{}")
    (run / "run.json").write_text("")
    assert changed(run) == ["run.json"]


def test_any_changed_bit_of_the_manifest_is_noticed(run):
    path = run / NAME
    content = path.read_bytes()
    for place in range(0, len(content) - 1, 7):
        flipped = bytearray(content)
        flipped[place] ^= 1
        path.write_bytes(flipped)
        assert NAME in changed(run), place


def test_a_line_that_was_cut_off_is_left_out_and_replaced(run):
    content = (run / NAME).read_bytes()
    (run / NAME).write_bytes(content + b"12345678 {'file'")
    assert changed(run) == []
    write_recorded(run, run / "config.yaml", "a: 2\n")
    assert changed(run) == []
    assert (run / NAME).read_bytes().startswith(content + content[:0] + b"")
    assert b"'file'" not in (run / NAME).read_bytes()


def test_a_kill_between_an_entry_and_its_file_is_no_change(run):
    """The old content and the new one are accepted; a third is not."""
    path = run / "config.yaml"
    write_recorded(run, path, "a: 2\n")
    assert changed(run) == []
    path.write_text("a: 1\n")
    assert changed(run) == []
    path.write_text("a: 3\n")
    assert changed(run) == ["config.yaml"]


def test_withdrawn_entries_no_longer_count(run):
    (run / "seed_0" / "reducr" / "point_loss.npy").write_bytes(b"made again")
    assert changed(run) == ["seed_0/reducr/point_loss.npy"]
    withdraw(run, run / "seed_0" / "reducr")
    assert changed(run) == []


def test_files_that_decide_nothing_are_not_listed(run):
    for name in ("report.html", "seed_0/reducr/checkpoints/resume/step_1.ckpt", "seed_0/reducr/tensorboard/events"):
        (run / name).parent.mkdir(parents=True, exist_ok=True)
        (run / name).write_text("x")
    assert deciding_files(folder=run) == ["config.yaml", "seed_0/reducr/point_loss.npy"]


@pytest.fixture
def progress(run):
    training = run / "seed_0" / "reducr"
    (training / "csv").mkdir()
    (training / "csv" / "metrics.csv").write_text("step,loss\n1,0.5\n2,0.25\n3,0.125\n")
    best = training / "checkpoints" / "best_mean.ckpt"
    torch.save({"global_step": 2, "state_dict": {"weight": torch.zeros(8)}}, best)
    progress = TrainingProgress(run, training, [best])
    progress.record(2)
    return progress


def test_an_unfinished_training_may_go_on_but_not_change(run, progress):
    log, best = run / "seed_0/reducr/csv/metrics.csv", run / "seed_0/reducr/checkpoints/best_mean.ckpt"
    assert changed(run) == []
    log.write_text("step,accuracy,loss\n1,,0.5\n2,,0.25\n3,,0.5\n4,0.75,0.0625\n")  # later lines and another column
    torch.save({"global_step": 4, "state_dict": {"weight": torch.ones(8)}}, best)
    assert changed(run) == []
    log.write_text("step,loss\n1,0.5\n2,0.75\n3,0.125\n")
    assert changed(run) == ["seed_0/reducr/csv/metrics.csv"]
    torch.save({"global_step": 2, "state_dict": {"weight": torch.ones(8)}}, best)
    assert changed(run) == ["seed_0/reducr/checkpoints/best_mean.ckpt", "seed_0/reducr/csv/metrics.csv"]


def test_a_later_checkpoint_must_be_intact(run, progress):
    best = run / "seed_0/reducr/checkpoints/best_mean.ckpt"
    torch.save({"global_step": 4, "state_dict": {"weight": torch.full((8,), 7.0)}}, best)
    content = bytearray(best.read_bytes())
    place = content.index(torch.full((8,), 7.0).numpy().tobytes())
    content[place + 5] ^= 16
    best.write_bytes(content)
    assert changed(run) == ["seed_0/reducr/checkpoints/best_mean.ckpt"]


def test_a_log_is_read_once(tmp_path):
    path = tmp_path / "metrics.csv"
    path.write_text("step,loss\n1,0.5\n2,0.2")
    digest = LogDigest(path)
    first = digest.up_to(1)
    path.write_text("step,loss\n1,0.5\n2,0.25\n3,1\n")
    assert digest.up_to(1) == first
    assert digest.up_to(3) == LogDigest(path).up_to(3) != digest.up_to(2)
    assert LogDigest(tmp_path / "none.csv").up_to(3) is None
