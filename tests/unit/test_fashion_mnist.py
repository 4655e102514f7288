import gzip
import os
import re
import struct

import numpy as np
import pytest
import torch

from reducr.data.fashion_mnist import CLASS_NAMES, FashionMNIST, read_idx

DATA_DIR = os.environ.get("REDUCR_DATA_DIR")


def idx_bytes(values):
    """An idx file, from the format's description: 0, 0, type, number of axes, sizes, values."""
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}i", *values.shape) + values.tobytes()


def write_idx(path, values):
    content = idx_bytes(values)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
    return path


def write_release(folder, suffix=""):
    """Sixty training and twenty test images of 4 x 4, labels in turn."""
    for part, size in (("train", 60), ("t10k", 20)):
        images = np.arange(size * 16, dtype=np.int64).reshape(size, 4, 4) % 256
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", images.astype(np.uint8))
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", (np.arange(size) % 10).astype(np.uint8))


@pytest.mark.parametrize("name", ["values", "values.gz"])
@pytest.mark.parametrize("shape", [(7,), (2, 3, 4), (0,), (3, 0)])
def test_what_was_written_is_read(tmp_path, name, shape):
    values = np.arange(np.prod(shape), dtype=np.uint8).reshape(shape)
    read = read_idx(write_idx(tmp_path / name, values))
    assert read.dtype == np.uint8
    assert read.shape == shape
    assert read.tolist() == values.tolist()
    assert read.flags.writeable


@pytest.mark.parametrize("suffix", ["", ".gz"])
@pytest.mark.parametrize("place", ["FashionMNIST/raw", "."])
def test_the_four_files_are_found_and_standardised(tmp_path, suffix, place):
    write_release(tmp_path / place, suffix)
    raw = FashionMNIST(data_dir=tmp_path, holdout_size=20).read()
    assert raw.input.shape == (60, 1, 4, 4)
    assert raw.test_input.shape == (20, 1, 4, 4)
    assert raw.input.dtype == torch.float32
    assert float(raw.input[0, 0, 0, 0]) == pytest.approx((0 / 255 - 0.2860) / 0.3530, abs=1e-6)
    assert float(raw.input[15, 0, 3, 3]) == pytest.approx((255 / 255 - 0.2860) / 0.3530, abs=1e-6)
    assert raw.target.tolist() == [position % 10 for position in range(60)]
    assert raw.test_target.dtype == torch.int64
    assert raw.class_names == CLASS_NAMES
    assert len(set(CLASS_NAMES)) == 10


def test_the_splits_keep_the_published_test_part(tmp_path):
    write_release(tmp_path)
    splits = FashionMNIST(data_dir=str(tmp_path), holdout_size=20).splits(seed=0)
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [40, 20, 20]
    assert torch.bincount(splits.holdout.target).tolist() == [2] * 10
    assert splits.test.target.tolist() == [position % 10 for position in range(20)]


def damaged(path):
    """Reading must name the file; returns the message."""
    with pytest.raises(ValueError, match=re.escape(str(path))) as caught:
        read_idx(path)
    return str(caught.value)


@pytest.mark.parametrize("num_bytes", [5, 10, 60, -1, -9])
def test_a_truncated_gz_file_is_named(tmp_path, num_bytes):
    path = write_idx(tmp_path / "images.gz", np.arange(240, dtype=np.uint8).reshape(15, 4, 4))
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert "is truncated or damaged" in damaged(path)


def test_an_altered_gz_file_is_named(tmp_path):
    path = write_idx(tmp_path / "images.gz", np.arange(200, dtype=np.uint8))
    content = bytearray(path.read_bytes())
    content[-6] ^= 1
    path.write_bytes(bytes(content))
    assert "is truncated or damaged" in damaged(path)


def test_a_file_that_is_not_gz_is_named(tmp_path):
    path = tmp_path / "images.gz"
    path.write_bytes(b"<html>not found</html>")
    assert "is truncated or damaged" in damaged(path)


@pytest.mark.parametrize(
    ("content", "begin"),
    [
        (b"\x00\x01\x08\x01\x00\x00\x00\x01\x05", "00010801"),
        (b"\x00\x00\x0d\x01\x00\x00\x00\x01\x05", "00000d01"),
        (b"<html>", "3c68746d"),
        (b"\x00\x00", "0000"),
    ],
    ids=["first_bytes", "floats", "html", "two_bytes"],
)
def test_a_wrong_magic_number_is_named(tmp_path, content, begin):
    path = tmp_path / "labels"
    path.write_bytes(content)
    assert f"is not an idx file of unsigned bytes: it begins with {begin}." in damaged(path)


@pytest.mark.parametrize("change", [-1, 1, 16])
def test_a_wrong_length_is_named(tmp_path, change):
    path = write_idx(tmp_path / "images", np.zeros((5, 4, 4), dtype=np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    message = damaged(path)
    assert "its header announces (5, 4, 4), 96 bytes in all" in message
    assert f"it has {96 + change}" in message


@pytest.mark.parametrize("num_bytes", [4, 6, 8, 15])
def test_a_truncated_header_is_named(tmp_path, num_bytes):
    path = write_idx(tmp_path / "images", np.zeros((5, 4, 4), dtype=np.uint8))
    path.write_bytes(path.read_bytes()[:num_bytes])
    assert "is truncated or damaged" in damaged(path)


@pytest.mark.parametrize(
    "name",
    [
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    ],
)
def test_a_missing_file_is_named_with_where_it_was_looked_for(tmp_path, name):
    write_release(tmp_path)
    (tmp_path / name).unlink()
    with pytest.raises(FileNotFoundError, match=rf"Fashion-MNIST file {name} \(or {name}\.gz\) is missing") as caught:
        FashionMNIST(data_dir=tmp_path, holdout_size=20).read()
    assert f"looked in {tmp_path / 'FashionMNIST' / 'raw'} and {tmp_path}" in str(caught.value)
    assert "datamodule.data_dir=DIR" in str(caught.value)


def test_no_folder_is_an_error_at_construction():
    with pytest.raises(ValueError, match=r"Fashion-MNIST needs datamodule\.data_dir=DIR"):
        FashionMNIST(data_dir=None, holdout_size=20)


@pytest.mark.skipif(DATA_DIR is None, reason="REDUCR_DATA_DIR is not set: no folder with the real files")
def test_the_real_files_have_the_published_counts():
    raw = FashionMNIST(data_dir=DATA_DIR, holdout_size=5000).read()
    assert raw.input.shape == (60_000, 1, 28, 28)
    assert raw.test_input.shape == (10_000, 1, 28, 28)
    assert torch.bincount(raw.target).tolist() == [6000] * 10
    assert torch.bincount(raw.test_target).tolist() == [1000] * 10
    assert float(raw.input.mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(raw.input.std()) == pytest.approx(1.0, abs=1e-3)
