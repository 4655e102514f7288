"""Damaged files are named, with what was expected; nothing in them is run or unpacked without bound."""

import json
import pickle
import zipfile

import numpy as np
import pytest
import torch

from reducr._internal.memory import available_memory, in_units
from reducr._internal.reading import DamagedFileError, read_array, read_arrays, read_checkpoint, read_json


class Attack:
    def __reduce__(self):
        return pytest.fail, ("a pickle was run",)


def test_what_is_intact_is_read(tmp_path):
    np.savez(tmp_path / "a.npz", x=np.arange(3))
    np.save(tmp_path / "a.npy", np.arange(3))
    torch.save({"x": torch.arange(3)}, tmp_path / "a.ckpt")
    (tmp_path / "a.json").write_text('{"x": 1}')
    assert read_arrays(tmp_path / "a.npz")["x"].tolist() == read_array(tmp_path / "a.npy").tolist() == [0, 1, 2]
    assert read_checkpoint(tmp_path / "a.ckpt")["x"].tolist() == [0, 1, 2]
    assert read_json(tmp_path / "a.json", "x", names=["x"]) == {"x": 1}
    for read in (read_arrays, read_array, read_checkpoint):
        with pytest.raises(FileNotFoundError):
            read(tmp_path / "none")


@pytest.mark.parametrize("read", [read_arrays, read_array, read_checkpoint], ids=lambda read: read.__name__)
def test_no_pickle_is_run(read, tmp_path):
    objects = np.array([Attack()], dtype=object)
    np.save(tmp_path / "objects.npy", objects, allow_pickle=True)
    np.savez(tmp_path / "objects.npz", x=objects)
    (tmp_path / "plain").write_bytes(pickle.dumps(Attack()))
    torch.save({"x": Attack()}, tmp_path / "attack.ckpt")
    for path in tmp_path.iterdir():
        with pytest.raises(DamagedFileError, match=str(path)) as error:
            read(path)
        assert "weights_only" not in str(error.value)
        assert "allow_pickle=True" not in str(error.value)


def test_every_flipped_bit_of_weights_is_found(tmp_path):
    path = tmp_path / "a.ckpt"
    weights = torch.full((64,), 7.0)
    torch.save({"x": weights}, path)
    content = path.read_bytes()
    start = content.index(weights.numpy().tobytes())
    for bit in range(0, 64 * 32, 97):
        flipped = bytearray(content)
        flipped[start + bit // 8] ^= 1 << bit % 8
        path.write_bytes(flipped)
        with pytest.raises(DamagedFileError, match=r"the checksum of .* in it does not match"):
            read_checkpoint(path)


@pytest.mark.parametrize("read", [read_arrays, read_checkpoint], ids=lambda read: read.__name__)
def test_an_archive_that_unpacks_to_more_than_the_memory_is_refused(read, tmp_path):
    path = tmp_path / "a.npz"
    if read is read_arrays:
        np.savez_compressed(path, x=np.zeros(1000))
    else:
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("a/data/0", bytes(1000))
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02")  # in the directory at the end: sizes of 4 bytes, at most
    size = 2**32 - 2
    content[entry + 24 : entry + 28] = size.to_bytes(4, "little")
    path.write_bytes(content)
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].file_size == size
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("reducr._internal.reading.available_memory", lambda: 2**30)
        with pytest.raises(DamagedFileError, match=r"it unpacks to 4 GiB, and 1 GiB of memory are available"):
            read(path)


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "Expecting value"), ("[]", "it holds a list"), ("{}", "it lacks x"), ("[" * 100_000, "cannot be read")],
    ids=range(4),
)
def test_a_damaged_json_file_is_named(text, message, tmp_path):
    path = tmp_path / "a.json"
    path.write_text(text)
    with pytest.raises(DamagedFileError, match=message) as error:
        read_json(path, "the facts", names=["x"])
    assert str(error.value).startswith(f"{path} is damaged: expected the facts, but ")


def test_the_advice_names_the_run(tmp_path):
    run = tmp_path / "run"
    (run / "seed_0").mkdir(parents=True)
    (run / "run.json").write_text(json.dumps({}))
    (run / "seed_0" / "data.npz").write_bytes(b"x")
    with pytest.raises(DamagedFileError, match=f"`reducr resume {run} --make-again`"):
        read_arrays(run / "seed_0" / "data.npz")


def test_memory():
    available = available_memory()
    assert available is None or 2**20 < available < 2**60
    assert [in_units(size) for size in (10, 2**10, 3 * 2**20, 32 * 2**30, 3000 * 2**30)] == [
        "10 bytes", "1 KiB", "3 MiB", "32 GiB", "3,000 GiB",
    ]  # fmt: skip
