import gzip
import hashlib
import os
import re
import struct
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import torch

from reducr.data.published.fashion_mnist import CLASS_NAMES, FashionMNIST, read_idx

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
    assert raw.input.shape == (80, 1, 4, 4)
    assert raw.input.dtype == torch.float32
    assert float(raw.input[0, 0, 0, 0]) == pytest.approx((0 / 255 - 0.2860) / 0.3530, abs=1e-6)
    assert float(raw.input[15, 0, 3, 3]) == pytest.approx((255 / 255 - 0.2860) / 0.3530, abs=1e-6)
    assert torch.equal(raw.input[60:], raw.input[:20])
    assert raw.target.tolist() == [position % 10 for position in range(80)]
    assert raw.target.dtype == torch.int64
    assert {name: positions.tolist() for name, positions in raw.parts.items()} == {"test": list(range(60, 80))}
    assert raw.class_names == CLASS_NAMES
    assert len(set(CLASS_NAMES)) == 10


def test_the_splits_keep_the_published_test_part(tmp_path):
    write_release(tmp_path)
    splits = FashionMNIST(data_dir=str(tmp_path), holdout_size=20).splits(seed=0)
    assert [len(part) for part in (splits.train, splits.holdout, splits.test)] == [40, 20, 20]
    assert torch.bincount(splits.holdout.target).tolist() == [2] * 10
    assert splits.test.target.tolist() == [position % 10 for position in range(20)]
    assert splits.test.source.tolist() == list(range(60, 80))


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
    assert f"is not an idx file of unsigned bytes: it starts with {begin}." in damaged(path)


@pytest.mark.parametrize("change", [-1, 1, 16])
def test_a_wrong_length_is_named(tmp_path, change):
    path = write_idx(tmp_path / "images", np.zeros((5, 4, 4), dtype=np.uint8))
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    message = damaged(path)
    assert "its header says (5, 4, 4), 96 bytes in all" in message
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
    with pytest.raises(FileNotFoundError, match=rf"Fashion-MNIST has no {name} \(or \.gz\) in ") as caught:
        FashionMNIST(data_dir=tmp_path, holdout_size=20).read()
    assert f" in {tmp_path / 'FashionMNIST' / 'raw'} or {tmp_path}. Set " in str(caught.value)
    assert "Set `datamodule.download=true`, or put the four idx files" in str(caught.value)
    assert "datamodule.data_dir=DIR" in str(caught.value)


def test_no_folder_is_an_error_at_construction():
    with pytest.raises(ValueError, match=r"Fashion-MNIST needs `datamodule\.data_dir=DIR`"):
        FashionMNIST(data_dir=None, holdout_size=20)


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """The class with the address and checksums of a server that has the release."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    folder = tmp_path / "served"
    write_release(folder, ".gz")
    md5 = {path.stem: hashlib.md5(path.read_bytes()).hexdigest() for path in folder.iterdir()}
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(folder))) as server:
        thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield type("Served", (FashionMNIST,), {"url": f"http://127.0.0.1:{server.server_port}", "md5": md5})
        server.shutdown()
        thread.join()


def test_missing_files_are_downloaded_and_then_read_without_a_server(served, tmp_path):
    raw = served(data_dir=tmp_path / "data", download=True, holdout_size=20).read()
    names = sorted(path.name for path in (tmp_path / "data" / "FashionMNIST" / "raw").iterdir())
    assert names == sorted(f"{name}.gz" for name in FashionMNIST.md5)
    offline = FashionMNIST(data_dir=tmp_path / "data", holdout_size=20).read()
    assert torch.equal(offline.input, raw.input)
    assert offline.target.tolist() == [position % 10 for position in range(80)]


def test_only_missing_files_are_downloaded(served, tmp_path):
    write_release(tmp_path / "data")
    (tmp_path / "data" / "t10k-labels-idx1-ubyte").unlink()
    served(data_dir=tmp_path / "data", download=True, holdout_size=20).read()
    raw = tmp_path / "data" / "FashionMNIST" / "raw"
    assert [path.name for path in raw.iterdir()] == ["t10k-labels-idx1-ubyte.gz"]


def test_a_download_that_is_another_file_is_refused(served, tmp_path):
    served.md5 = FashionMNIST.md5
    with pytest.raises(ValueError, match=r"returned an unexpected file.*expected 25c81989df183df01b3e8a0aad5dffbe"):
        served(data_dir=tmp_path / "data", download=True, holdout_size=20).read()


@pytest.mark.skipif(DATA_DIR is None, reason="set REDUCR_DATA_DIR to the folder that holds FashionMNIST/raw")
def test_the_real_files_have_the_published_counts():
    raw = FashionMNIST(data_dir=DATA_DIR, holdout_size=5000).read()
    assert raw.input.shape == (70_000, 1, 28, 28)
    assert torch.bincount(raw.target[:60_000]).tolist() == [6000] * 10
    assert torch.bincount(raw.target[60_000:]).tolist() == [1000] * 10
    assert raw.parts["test"].tolist() == list(range(60_000, 70_000))
    assert float(raw.input[:60_000].mean()) == pytest.approx(0.0, abs=1e-3)
    assert float(raw.input[:60_000].std()) == pytest.approx(1.0, abs=1e-3)
    for name, digest in FashionMNIST.md5.items():
        path = Path(DATA_DIR) / "FashionMNIST" / "raw" / f"{name}.gz"
        assert hashlib.md5(path.read_bytes()).hexdigest() == digest


@pytest.mark.parametrize(
    ("sizes", "content"),
    [
        ((2**32 - 1, 2**32 - 1), b""),
        ((2**31, 2**31, 4), b""),  # 2^64 values, which is 0 in 64 bits
        ((2**32 - 1, 28, 28), bytes(3 * 28 * 28)),
        ((1,) * 70, b"1"),
    ],
)
def test_sizes_that_no_file_has_are_named(tmp_path, sizes, content):
    path = tmp_path / "images.gz"
    header = bytes([0, 0, 8, len(sizes)]) + b"".join(size.to_bytes(4, "big") for size in sizes)
    path.write_bytes(gzip.compress(header + content))
    assert f"its header says {sizes}" in damaged(path)


def test_a_small_file_that_unpacks_to_a_large_one_is_not_unpacked_to_its_end(tmp_path):
    path = tmp_path / "labels.gz"
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(bytes([0, 0, 8, 1, 0, 0, 0, 5]))
        for _ in range(8):
            file.write(bytes(2**20))
    assert f"13 bytes in all; it has {13 + 2**20} or more" in damaged(path)


@pytest.mark.timeout(20)
def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "labels")
    with pytest.raises(OSError, match=r"it is not a regular file: .*labels"):
        read_idx(tmp_path / "labels")
