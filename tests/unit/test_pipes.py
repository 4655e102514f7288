"""A named pipe in place of a file is refused at once; opening it would wait for ever."""

import os
import shutil
import signal
from contextlib import contextmanager

import pytest
import torch

from reducr._internal.manifest import Manifest, record_files, start_manifest
from reducr._internal.reading import read_array, read_arrays, read_checkpoint, read_json
from reducr._internal.run_folder import read_results
from reducr.data.io.delimited import delimited_rows
from reducr.data.io.download import fetch
from reducr.data.io.image_pool import MappedArray
from reducr.data.io.token_cache import cached_tokens
from reducr.data.own.table_files import TextFormat, read_table
from reducr.data.published.cifar import CIFAR10
from reducr.data.published.cifar_files import read_human_labels
from reducr.data.published.clothing1m import _lines
from reducr.data.published.fashion_mnist import read_idx
from reducr.data.published.waterbirds import Waterbirds
from reducr.irreducible import DataFingerprint, IrreducibleTable, load_table
from reducr.irreducible.store import save_table
from reducr.pipeline.stored_config import read_plain
from reducr.training.checkpoints import Checkpoints


@contextmanager
def at_once():
    """Raise an error in a block that waits."""

    def stop(*_):
        pytest.fail("the pipe was opened, and its reader waits")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(5)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


READERS = {
    "config.yaml": read_plain,
    "a.json": lambda path: read_json(path, "names"),
    "a.npz": read_arrays,
    "a.npy": read_array,
    "a.ckpt": read_checkpoint,
    "b.npy": MappedArray,
    "a.csv": lambda path: read_table(path, TextFormat()),
    "a.tsv.gz": lambda path: read_table(path, TextFormat()),
    "a.parquet": lambda path: read_table(path, TextFormat()),
    "c.tsv": lambda path: list(delimited_rows(path, delimiter="\t", quoting=False)),
    "train-images-idx3-ubyte": read_idx,
    "train-images-idx3-ubyte.gz": read_idx,
    "CIFAR-10_human.pt": read_human_labels,
    "CIFAR-10_human.npz": read_human_labels,
    "clean_label_kv.txt": _lines,
    "noisy_label_kv.txt.gz": _lines,
    "metadata.csv": lambda path: Waterbirds(data_dir=str(path.parent))._table(path),
    "a.tar.gz": lambda path: fetch("http://localhost:9/a.tar.gz", path, sha256="0"),
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_is_refused(name, tmp_path):
    os.mkfifo(tmp_path / name)
    with (
        at_once(),
        pytest.raises((ValueError, OSError), match=f"{name}.*not a regular file|not a regular file.*{name}"),
    ):
        READERS[name](tmp_path / name)


@pytest.mark.parametrize("layout", ["cifar-10-batches-py", "plain_text"])
def test_a_pipe_among_published_files_is_refused(layout, tmp_path):
    folder = tmp_path / layout
    folder.mkdir()
    names = ["batches.meta", "test_batch", *(f"data_batch_{number}" for number in range(1, 6))]
    if layout == "plain_text":
        names = ["train-00000-of-00001.parquet", "test-00000-of-00001.parquet"]
    for name in names:
        os.mkfifo(folder / name)
    with at_once(), pytest.raises((ValueError, OSError)):
        CIFAR10(data_dir=str(tmp_path)).raw  # noqa: B018


def test_a_pipe_in_a_table_of_losses_or_among_states_is_refused(tmp_path):
    table = IrreducibleTable(torch.zeros(4, 2).numpy(), kind="logits")
    fingerprint = DataFingerprint(4, "", "", "")
    for name in ("values.npy", "manifest.json"):
        folder = tmp_path / name
        save_table(folder, table, fingerprint=fingerprint, settings={}, sources={})
        (folder / name).unlink()
        os.mkfifo(folder / name)
        with at_once(), pytest.raises((ValueError, OSError), match="not a regular file"):
            load_table(folder, fingerprint=fingerprint)
    checkpoints = Checkpoints(tmp_path / "states")
    path = checkpoints.write(1, {"x": 1})
    path.unlink()
    os.mkfifo(path)
    with at_once(), pytest.raises(OSError, match="not a regular file"):
        checkpoints.read()
    for name in ("tokens_key.npy", "tokens_key.json", "tokenizer_key.json"):
        os.mkfifo(tmp_path / name)
    with at_once():
        assert cached_tokens(tmp_path, "key") is None


@pytest.mark.parametrize("other", ["pipe", "folder"])
def test_a_file_of_a_run_that_has_become_something_else_has_changed(other, tmp_path):
    start_manifest(tmp_path)
    path = tmp_path / "results.csv"
    path.write_text("method\n")
    record_files(tmp_path, path)
    path.unlink()
    if other == "pipe":
        os.mkfifo(path)
    else:
        path.mkdir()
    with at_once():
        (change,) = Manifest.read(tmp_path).changes()
        assert (change.file, change.fault) == ("results.csv", "is not a file")
        with pytest.raises(FileNotFoundError):
            read_results(tmp_path)
    path.unlink() if other == "pipe" else shutil.rmtree(path)
    assert Manifest.read(tmp_path).changes() == []  # to be made again
