"""Checkpoints are written where they belong."""

import os
import tempfile

import pytest
import torch

from reducr.lightning.checkpoint_files import CheckpointFiles


@pytest.mark.parametrize("name", ["last.ckpt", "a::b.ckpt", "file:x.ckpt", "[0]*.ckpt", ".step_1.partial"])
def test_a_checkpoint_is_written_beside_its_final_place(tmp_path, monkeypatch, name):
    """Lightning wrote it into $TMPDIR, and took ``::`` in a name for an address."""
    (tmp_path / "no room").write_text("here")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "no room"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "no room"))
    path = tmp_path / "deep" / name
    path.parent.mkdir()
    CheckpointFiles().save_checkpoint({"state_dict": {"w": torch.ones(3)}}, path)
    assert [file.name for file in path.parent.iterdir()] == [name]
    assert torch.load(path, weights_only=True)["state_dict"]["w"].tolist() == [1, 1, 1]


def test_a_checkpoint_that_cannot_be_written_leaves_the_old_one(tmp_path, monkeypatch):
    path = tmp_path / "last.ckpt"
    CheckpointFiles().save_checkpoint({"step": 1}, path)

    def full(*_):
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(OSError, match="No space left"):
        CheckpointFiles().save_checkpoint({"step": 2}, path)
    assert torch.load(path, weights_only=True) == {"step": 1}
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]
