import gzip
import io
import itertools
import json
import os
import pickle
import tarfile
import zlib

import pytest
import torch
from torch.utils.data import DataLoader

import forked
from reducr.streaming import ShardedStream, read_tar

pytestmark = [
    # Python 3.12 and later warn about processes forked beside threads, such as loader workers
    pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:This DataLoader will create . worker processes:UserWarning"),
]

LETTERS = ["ab", "cde", "f", "ghij", "k", "lm", "nop"]


def stream(shards=LETTERS, **options):
    return ShardedStream(shards, read=iter, **options)


def load(data, *, num_workers):
    iterator = iter(DataLoader(data, batch_size=None, num_workers=num_workers))
    try:
        return list(iterator)
    finally:
        if num_workers:
            iterator._shutdown_workers()  # after an error the garbage collector would wait 5 s for them


@pytest.mark.parametrize("num_workers", [0, 1, 2, 3])
@pytest.mark.parametrize("num_ranks", [1, 2, 3])
def test_ranks_and_workers_read_every_shard_once(num_ranks, num_workers):
    shards_of_rank = [
        load(
            ShardedStream(LETTERS, read=lambda shard: [shard], rank=rank, num_ranks=num_ranks), num_workers=num_workers
        )
        for rank in range(num_ranks)
    ]
    assert sorted(itertools.chain(*shards_of_rank)) == sorted(LETTERS)
    sizes = [len(shards) for shards in shards_of_rank]
    assert max(sizes) - min(sizes) <= 1


def test_one_reader_keeps_the_order_of_shards_and_samples():
    data = stream(map=str.upper)
    assert "".join(data) == "ABCDEFGHIJKLMNOP"
    assert "".join(data) == "ABCDEFGHIJKLMNOP"
    with pytest.raises(TypeError, match="has no len"):
        len(data)


def test_workers_beyond_the_number_of_shards_read_nothing():
    assert sorted(load(stream(["ab", "c"]), num_workers=3)) == ["a", "b", "c"]


def test_fewer_shards_than_ranks_are_refused_at_construction():
    with pytest.raises(ValueError, match="every rank needs at least one shard; got 2 shards for 3 ranks"):
        stream(["ab", "c"], rank=0, num_ranks=3)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"shards": "one.tar"}, TypeError, r"a list of shards; got 'one.tar'. For a single shard, pass \['one.tar'\]"),
        ({"rank": 1}, ValueError, "rank and num_ranks must be given together"),
        ({"rank": 2, "num_ranks": 2}, ValueError, r"rank must be in 0..1; position 0 holds 2"),
        ({"shards": []}, ValueError, "got 0 shards for 1 ranks"),
    ],
)
def test_invalid_arguments_are_refused(options, error, message):
    with pytest.raises(error, match=message):
        stream(**options)


def test_the_order_of_shuffled_shards_depends_on_seed_and_epoch():
    data = stream(shuffle_shards=True, seed=3)
    orders = {}
    for epoch in (0, 1, 0, 2):
        data.set_epoch(epoch)
        order = "".join(data)
        assert orders.setdefault(epoch, order) == order == "".join(data)
    assert len(set(orders.values())) == 3
    assert sorted(orders[0]) == list("abcdefghijklmnop")
    assert all(shard in orders[1] for shard in LETTERS)
    assert "".join(stream(shuffle_shards=True, seed=4)) != orders[0]
    with pytest.raises(ValueError, match="epoch must be at least 0; got -1"):
        data.set_epoch(-1)


def test_a_new_epoch_reaches_persistent_workers():
    data = stream(shuffle_shards=True, rank=0, num_ranks=1)
    loader = DataLoader(data, batch_size=None, num_workers=1, persistent_workers=True)
    first = list(loader)
    assert list(loader) == first
    data.set_epoch(1)
    expected = stream(shuffle_shards=True)
    expected.set_epoch(1)
    assert list(loader) == list(expected) != first


@pytest.mark.parametrize("num_yielded", range(17))
def test_a_pass_resumes_after_any_sample(num_yielded):
    whole = stream(shuffle_shards=True)
    whole.set_epoch(5)
    samples = list(whole)
    first, second = stream(shuffle_shards=True), stream(shuffle_shards=True)
    first.set_epoch(5)
    beginning = list(itertools.islice(iter(first), num_yielded))
    state = json.loads(json.dumps(first.state_dict()))
    second.load_state_dict(state)
    assert second.state_dict() == state
    second.set_epoch(5)  # as a loop over epochs does
    assert beginning + list(second) == samples
    assert list(second) == samples  # the next pass is complete
    second.load_state_dict(state)
    second.set_epoch(6)  # another epoch starts from its first sample
    assert len(list(second)) == 16


def test_a_finished_pass_has_the_state_of_a_new_one():
    data = stream()
    assert data.state_dict() == {
        "epoch": 0, "place": 0, "sample": 0, "shard": "ab", "seed": -1, "num_shards": 7,
        "checksum_of_shards": zlib.crc32(b"ab\ncde\nf\nghij\nk\nlm\nnop"), "reader": 0, "num_readers": 1,
    }  # fmt: skip
    before = data.state_dict()
    list(data)
    assert data.state_dict() == before


def test_a_loader_in_one_process_resumes_after_its_last_batch():
    whole, first, second = (stream([range(5), range(5, 12), range(12, 20)]) for _ in range(3))
    batches = [batch.tolist() for batch in DataLoader(whole, batch_size=3)]
    beginning = [batch.tolist() for batch in itertools.islice(DataLoader(first, batch_size=3), 3)]
    second.load_state_dict(first.state_dict())
    assert beginning + [batch.tolist() for batch in DataLoader(second, batch_size=3)] == batches
    assert second.state_dict()["sample"] == 0


def test_samples_already_yielded_are_not_mapped_again():
    mapped = []
    data = ShardedStream(["abcd"], read=iter, map=lambda sample: mapped.append(sample) or sample)
    list(itertools.islice(iter(data), 3))
    data.load_state_dict(data.state_dict())
    assert list(data) == ["d"]
    assert mapped == ["a", "b", "c", "d"]


def test_the_state_of_another_stream_is_refused(tmp_path):
    shards = [tmp_path / name for name in ("0.tar", "1.tar", "2.tar")]
    data = ShardedStream(shards, read=lambda shard: [1, 2], shuffle_shards=True, seed=1)
    list(itertools.islice(iter(data), 3))
    state = data.state_dict()
    assert (state["shard"], state["place"], state["sample"]) == ("1.tar", 1, 1)
    moved = [tmp_path / "moved" / path.name for path in shards]
    ShardedStream(moved, read=iter, shuffle_shards=True, seed=1).load_state_dict(state)
    for other, message in [
        (ShardedStream(shards, read=iter, shuffle_shards=True, seed=2), "seed is 1 in the state and 2 here"),
        (ShardedStream(shards[::-1], read=iter, shuffle_shards=True, seed=1), "checksum_of_shards is"),
        (ShardedStream(shards[:2], read=iter), "num_shards is 3 in the state and 2 here"),
        (
            ShardedStream(shards, read=iter, shuffle_shards=True, seed=1, rank=1, num_ranks=2),
            "reader is 0 in the state and 1 here, num_readers is 1 in the state and 2 here",
        ),
    ]:
        with pytest.raises(ValueError, match=message):
            other.load_state_dict(state)
        assert other.state_dict()["sample"] == 0
    with pytest.raises(
        ValueError, match=r"the state of a stream needs the keys checksum_of_shards, num_readers, .*; got \['epoch'\]"
    ):
        data.load_state_dict({"epoch": 1})


def test_workers_refuse_a_loaded_state():
    data = stream()
    list(itertools.islice(iter(data), 3))
    data.load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match="Load and read it with num_workers=0"):
        load(data, num_workers=2)


def test_a_shard_that_has_become_shorter_is_refused():
    data = stream(["abcd", "ef"])
    list(itertools.islice(iter(data), 4))
    shorter = ShardedStream(["abcd", "ef"], read=lambda shard: shard[:2])
    shorter.load_state_dict(data.state_dict())
    with pytest.raises(ValueError, match="the shard has only 2 samples, but the state is after sample 4"):
        list(shorter)


def test_an_endless_stream_continues_with_the_next_epoch():
    data = stream(shuffle_shards=True, is_endless=True)
    passes = []
    for epoch in range(3):
        one_pass = stream(shuffle_shards=True)
        one_pass.set_epoch(epoch)
        passes += one_pass
    assert list(itertools.islice(iter(data), 40)) == passes[:40]
    state = data.state_dict()
    assert (state["epoch"], state["place"] > 0) == (2, True)
    resumed = stream(shuffle_shards=True, is_endless=True)
    resumed.load_state_dict(state)
    assert list(itertools.islice(iter(resumed), 8)) == passes[40:48]


def test_an_endless_stream_without_samples_is_refused():
    with pytest.raises(ValueError, match="an endless stream needs at least one sample; a pass over 2 shards had none"):
        next(iter(stream(["", ""], is_endless=True)))
    assert list(stream([""], is_endless=False)) == []


def test_an_error_names_shard_and_sample():
    data = ShardedStream(["12", "34x"], read=iter, map=int)
    with pytest.raises(ValueError, match="invalid literal") as fault:
        list(data)
    assert fault.value.__notes__ == ["in shard 34x, at sample 2 (counted from 0)"]
    with pytest.raises(ValueError, match=r"in shard 34x, at sample 2"):
        load(data, num_workers=1)


RANK = """
import pickle, sys
from torch import distributed
from torch.utils.data import DataLoader
from reducr.streaming import ShardedStream

stream = ShardedStream(list("abcdefg"), read=iter) if sys.argv[3] == "before" else None
distributed.init_process_group("gloo", init_method="file://" + sys.argv[1], rank=int(sys.argv[2]), world_size=2)
stream = stream or ShardedStream(list("abcdefg"), read=iter)
forked = list(DataLoader(stream, batch_size=None, num_workers=2))
copy = pickle.dumps(stream)
distributed.destroy_process_group()
print("".join(sorted(forked)), "".join(pickle.loads(copy)))
"""


@pytest.mark.long
@pytest.mark.parametrize("created", ["after", pytest.param("before", marks=pytest.mark.long)])
def test_ranks_are_those_of_torch_distributed(created, tmp_path):
    """In the process, in forked workers, and in pickled copies, which spawned workers get."""
    command = ["-c", RANK, tmp_path / "store"]
    environment = os.environ | {"GLOO_SOCKET_IFNAME": "lo"}
    ranks = [forked.start([*command, rank, created], env=environment) for rank in range(2)]
    assert [rank.communicate(timeout=60)[0] for rank in ranks] == ["aceg aceg\n", "bdf bdf\n"]


def test_a_copy_in_one_process_does_not_fix_the_rank():
    copy = pickle.loads(pickle.dumps(stream()))
    assert (copy.rank, copy.num_ranks) == (None, None)
    assert "".join(copy) == "abcdefghijklmnop"


def write_tar(path, files, mode="w", **options):
    with tarfile.open(path, mode, **options) as archive:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return path


def test_files_with_one_key_form_one_sample(tmp_path):
    path = tmp_path / "000.tar"
    with tarfile.open(path, "w") as archive:
        for name, content in {
            "README": b"not in a sample",
            "a/000.jpg": b"image",
            "a/000.cls": b"3",
            "a/.DS_Store": b"not in a sample",
            "a/001.JPG": b"",
            "a/001.seg.png": b"mask",
            "b.c/001.jpg": b"another folder",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        folder = tarfile.TarInfo("d.e")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
    assert list(read_tar(path)) == [
        {"__key__": "a/000", "jpg": b"image", "cls": b"3"},
        {"__key__": "a/001", "jpg": b"", "seg.png": b"mask"},
        {"__key__": "b.c/001", "jpg": b"another folder"},
    ]


@pytest.mark.parametrize("kind", ["w:gz", "w:bz2", "w:xz"])
@pytest.mark.parametrize("header", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_compressed_archives_and_long_names(kind, header, tmp_path):
    folder = "/".join(["folder"] * (20 if header != tarfile.USTAR_FORMAT else 10))
    path = write_tar(tmp_path / "000.tar", {f"{folder}/0.txt": b"x" * 3000, "1.txt": b"y"}, kind, format=header)
    assert list(read_tar(path)) == [{"__key__": f"{folder}/0", "txt": b"x" * 3000}, {"__key__": "1", "txt": b"y"}]


SAMPLES = {f"{number:03d}.{extension}": bytes([number]) * 700 for number in range(3) for extension in ("jpg", "cls")}


END = 6 * (512 + 1024)
"""Offset of the end-of-archive marker in bytes: six files, each with a header and two blocks."""


@pytest.mark.parametrize("is_compressed", [False, True])
def test_an_archive_truncated_anywhere_is_refused(is_compressed, tmp_path):
    path = write_tar(tmp_path / "000.tar", SAMPLES)
    whole = gzip.compress(path.read_bytes()) if is_compressed else path.read_bytes()
    lengths = range(len(whole)) if is_compressed else [*range(0, END + 512, 37), END - 1, END, END + 1, END + 511]
    for length in lengths:
        path.write_bytes(whole[:length])
        with pytest.raises(ValueError, match=r"000\.tar is truncated, damaged or not a tar file \(.+\)"):
            list(read_tar(path))
    for length in [len(whole)] if is_compressed else [END + 512, END + 1024, len(whole)]:
        path.write_bytes(whole[:length])
        assert [sample["__key__"] for sample in read_tar(path)] == ["000", "001", "002"]


def test_damaged_archives_are_refused(tmp_path):
    path = write_tar(tmp_path / "damaged.tar", SAMPLES)
    whole = bytearray(path.read_bytes())
    for offset in (0, 600 + 1024, 1536 * 3 + 10):  # headers lie at multiples of 1536
        damaged = whole.copy()
        damaged[offset // 1536 * 1536 + 5] ^= 0xFF
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"damaged\.tar is truncated, damaged or not a tar file"):
            list(read_tar(path))
    for content in (b"", b"not a tar file", b"\x1f\x8b" + b"x" * 600):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"damaged\.tar is truncated, damaged or not a tar file"):
            list(read_tar(path))


def sparse_tar():
    """Half a kilobyte of archive that stands for a file of a terabyte of zeros."""
    member = tarfile.TarInfo("000.bin")
    member.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    header[483:495] = tarfile.itn(2**40, 12, tarfile.GNU_FORMAT)  # the size with its holes
    header[148:156] = b" " * 8
    header[148:156] = f"{sum(header):06o}".encode() + b"\0 "
    return bytes(header) + bytes(1024)


@pytest.mark.timeout(20)
def test_archives_that_would_fill_the_memory_or_wait_for_ever_are_refused(tmp_path):
    (tmp_path / "sparse.tar").write_bytes(sparse_tar())
    with pytest.raises(ValueError, match=r"sparse\.tar is .* \(000\.bin is a sparse file\)"):
        list(read_tar(tmp_path / "sparse.tar"))
    os.mkfifo(tmp_path / "pipe.tar")
    with pytest.raises(OSError, match=r"it is not a regular file: .*pipe"):
        list(read_tar(tmp_path / "pipe.tar"))


def test_archives_with_another_layout_are_refused(tmp_path):
    plain = write_tar(tmp_path / "plain.tar", {"README": b"x", "Makefile": b"y"})
    with pytest.raises(ValueError, match=r"plain\.tar has no samples: none of its files is named KEY\.EXTENSION"):
        list(read_tar(plain))
    double = write_tar(tmp_path / "double.tar", {"0.cls": b"1", "0.CLS": b"2"})
    with pytest.raises(ValueError, match=r"double\.tar has two files 0\.cls in one sample"):
        list(read_tar(double))
    with pytest.raises(FileNotFoundError):
        list(read_tar(tmp_path / "nowhere.tar"))


def pair(sample):
    return torch.frombuffer(bytearray(sample["bin"]), dtype=torch.uint8), int(sample["cls"])


def test_tar_shards_in_a_loader_with_workers(tmp_path):
    shards = [
        write_tar(
            tmp_path / f"{shard}.tar",
            {
                f"{shard}{number}.{extension}": content
                for number in range(5)
                for extension, content in (("bin", bytes([shard, number])), ("cls", b"%d" % (number % 3)))
            },
        )
        for shard in range(4)
    ]
    batches = list(DataLoader(ShardedStream(shards, read_tar, map=pair), batch_size=4, num_workers=2))
    inputs = torch.cat([batch[0] for batch in batches])
    targets = torch.cat([batch[1] for batch in batches])
    assert sorted(inputs.tolist()) == [[shard, number] for shard in range(4) for number in range(5)]
    assert targets.tolist() == (inputs[:, 1] % 3).tolist()


def test_the_loader_names_a_damaged_shard(tmp_path):
    path = write_tar(tmp_path / "000.tar", SAMPLES)
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"(?s)000\.tar is truncated.*at sample 0 \(counted from 0\)"):
        load(ShardedStream([path], read_tar), num_workers=1)
