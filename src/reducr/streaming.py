"""Streams of points without index or length: shards over ranks and workers, with a place to go on from."""

from __future__ import annotations

import bz2
import gzip
import lzma
import tarfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.utils.data import IterableDataset, get_worker_info

from reducr._internal import distributed
from reducr._internal.checks import check_range
from reducr._internal.seeds import mixed_seed

_DECOMPRESSORS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_CHUNK = 2**16


class _Position(NamedTuple):
    """How far a pass has come: ``sample`` samples of the shard at ``place`` in the reader's order."""

    epoch: int
    place: int = 0
    sample: int = 0


class ShardedStream(IterableDataset[Any]):
    """Samples of many shards, one shard after the other, divided over ranks and loader workers.

    Reader k of K, one for each rank and each of its workers, reads the shards ``order[k::K]``, so every shard is read
    once over all. A worker beyond the number of shards has nothing to do. The samples of a shard keep their order:
    shuffle them when the shards are written. Nothing is kept of what was read.

    One pass over the stream is one epoch: number 0 until ``set_epoch``, which also reaches workers that persist.

    Where the samples are read in the process that asks for the state (``num_workers=0``), ``state_dict`` is the place
    after the last sample given. The next pass after ``load_state_dict`` goes on there: it opens that shard and skips
    what was given of it, without calling ``map``. A pass that was broken off otherwise begins again.

    Args:
        shards: what ``read`` takes, such as paths, told apart by their ``str``; the same list on all ranks.
        read: gives the samples of a shard, in the same order every time, such as ``read_tar``.
        map: makes what a loader collates, such as (input, target), of a sample; None leaves samples as they are.
        shuffle_shards: a new order of the shards every epoch, from ``seed`` and the epoch alone.
        is_endless: go on with the next epoch at the end of one: for a loop that ends after a number of steps, on
            ranks whose shards are not of one length.
        seed: of the orders, at least 0.
        rank: of this process; None for that of ``torch.distributed`` if it is initialised, else 0.
        num_ranks: how many processes share the shards, given with ``rank``. Give ``rank=0, num_ranks=1`` where
            something else divides the samples over processes, as accelerate does.

    Raises:
        TypeError: if ``shards`` is a single path.
        ValueError: if there are fewer shards than ranks or an argument is out of range. An error raised by ``read`` or
            ``map`` gets a note with the shard and the sample.

    Example:
        >>> stream = ShardedStream(["ab", "cde"], read=iter, map=str.upper)
        >>> samples = iter(stream)
        >>> next(samples), next(samples), next(samples)
        ('A', 'B', 'C')
        >>> state = stream.state_dict()
        >>> stream.load_state_dict(state)
        >>> list(stream)
        ['D', 'E']
    """

    has_exact_state = True
    """What ``Resumable`` asks: the state is the very next sample."""

    def __init__(
        self,
        shards: Sequence[Any],
        read: Callable[[Any], Iterable[Any]],
        *,
        map: Callable[[Any], Any] | None = None,  # noqa: A002  (its name in datasets and webdataset)
        shuffle_shards: bool = False,
        is_endless: bool = False,
        seed: int = 0,
        rank: int | None = None,
        num_ranks: int | None = None,
    ) -> None:
        if isinstance(shards, str | bytes | Path):
            raise TypeError(f"shards must be a list of shards; got {shards!r}. For a single one give [{shards!r}].")
        if (rank is None) != (num_ranks is None):
            raise ValueError("give rank and num_ranks together, or neither to take those of torch.distributed.")
        if rank is not None and num_ranks is not None:
            check_range("rank", torch.tensor([rank]), num_ranks)
        self.shards = list(shards)
        self.read = read
        self.map = map
        self.shuffle_shards = shuffle_shards
        self.is_endless = is_endless
        self.seed = seed
        self.rank = rank
        self.num_ranks = num_ranks
        # shared, so that workers that persist see a new epoch
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._position = _Position(0)
        self._resuming_reader: tuple[int, int] | None = None
        self.has_ended = False
        """Whether the pass begun last has given all its samples, though its reader may not have asked for more."""
        self._reader()

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next pass; another one than the present drops the place within it."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0; got {epoch}.")
        if epoch != self._position.epoch:
            self._position, self._resuming_reader = _Position(epoch), None
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, int | str]:
        """Where the pass is: epoch, shard, samples given of it; and what a stream must agree on to go on there."""
        return self._state(self._position)

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Let the next pass go on from ``state``.

        Raises:
            ValueError: if it is the state of other shards, of another seed, or of another number of ranks or workers.
        """
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(f"the state of a stream also holds {', '.join(missing)}; got {sorted(state)}.")
        position = _Position(*(int(state[name]) for name in _Position._fields))
        differences = [
            f"{name} is {state[name]!r} in the state and {value!r} here"
            for name, value in self._state(position).items()
            if state[name] != value
        ]
        if differences:
            raise ValueError(
                f"the state is of another stream: {', '.join(differences)}. Give the same shards, seed, number of "
                "ranks and number of workers, or begin the stream anew."
            )
        self.set_epoch(position.epoch)
        self._position, self._resuming_reader = position, self._reader()

    def __iter__(self) -> Iterator[Any]:
        if self._resuming_reader is None:
            self._position = _Position(int(self._epoch))
        elif self._resuming_reader != self._reader():
            raise ValueError(
                "the state of this stream was loaded in one process, and its samples are read by workers of a loader, "
                "each of which has a place of its own. Load and read it with num_workers=0."
            )
        self._resuming_reader = None
        self.has_ended = False
        return self._samples(self._position)

    def __getstate__(self) -> dict[str, Any]:
        """With the rank, which a worker that is spawned has no way to ask for."""
        rank, num_ranks = self._rank()
        return self.__dict__ | ({"rank": rank, "num_ranks": num_ranks} if num_ranks > 1 else {})

    def _samples(self, start: _Position) -> Iterator[Any]:
        epoch, first_place, num_given = start
        while order := self._order(epoch):
            is_empty = first_place == num_given == 0
            for place in range(first_place, len(order)):
                for number, sample in enumerate(self._rest_of(order[place], num_given), start=num_given + 1):
                    self._position = _Position(epoch, place, number)
                    is_empty = False
                    yield sample
                num_given = 0
            if not self.is_endless:
                break
            if is_empty:
                raise ValueError(f"a pass over all {len(order)} shards gave no sample: an endless stream needs some.")
            epoch, first_place = epoch + 1, 0
        self._position = _Position(epoch)
        self.has_ended = True

    def _rest_of(self, shard: Any, num_given: int) -> Iterator[Any]:
        """The samples of ``shard`` after the first ``num_given``."""
        number = num_given
        try:
            for sample in self._skipped_to(num_given, shard):
                yield sample if self.map is None else self.map(sample)
                number += 1
        except Exception as error:
            error.add_note(f"in shard {shard!s}, at sample {number} (counted from 0)")
            raise

    def _skipped_to(self, num_given: int, shard: Any) -> Iterator[Any]:
        samples = iter(self.read(shard))
        num_skipped = sum(1 for _ in islice(samples, num_given))
        if num_skipped < num_given:
            raise ValueError(
                f"the shard has {num_skipped} samples, of which the state says that {num_given} were given: it is "
                "another than it was. Begin the stream anew."
            )
        return samples

    def _state(self, position: _Position) -> dict[str, int | str]:
        reader, num_readers = self._reader()
        order = self._order(position.epoch)
        return {
            **position._asdict(),
            "shard": _name(order[position.place]) if position.place < len(order) else "",
            "seed": self.seed if self.shuffle_shards else -1,
            "num_shards": len(self.shards),
            "checksum_of_shards": zlib.crc32("\n".join(map(_name, self.shards)).encode()),
            "reader": reader,
            "num_readers": num_readers,
        }

    def _order(self, epoch: int) -> list[Any]:
        """The shards that this reader reads in an epoch."""
        places = list(range(len(self.shards)))
        if self.shuffle_shards:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            places = torch.randperm(len(places), generator=generator).tolist()
        reader, num_readers = self._reader()
        return [self.shards[place] for place in places[reader::num_readers]]

    def _reader(self) -> tuple[int, int]:
        """Which reader this is, and of how many; workers of one rank are far apart, so that ranks get equal shares."""
        rank, num_ranks = self._rank()
        if len(self.shards) < num_ranks:
            raise ValueError(
                f"every rank needs a shard of its own; got {len(self.shards)} shards for {num_ranks} ranks. Write the "
                "data in more shards, or run fewer ranks."
            )
        worker = get_worker_info()
        return (rank, num_ranks) if worker is None else (worker.id * num_ranks + rank, worker.num_workers * num_ranks)

    def _rank(self) -> tuple[int, int]:
        if self.rank is not None and self.num_ranks is not None:
            return self.rank, self.num_ranks
        return distributed.rank(), distributed.num_ranks()


def _name(shard: Any) -> str:
    """What a shard is known by: the last part of a path, so that a folder of shards can be moved."""
    return str(shard).replace("\\", "/").rsplit("/", 1)[-1]


def read_tar(path: str | Path) -> Iterator[dict[str, Any]]:
    """The samples of a tar file in the layout of WebDataset, read in one pass from front to back.

    Files that follow each other and have the same name up to the first dot are one sample: ``7/000123.jpg`` and
    ``7/000123.cls`` give ``{"__key__": "7/000123", "jpg": b"...", "cls": b"..."}``, with extensions in lower case.
    Folders, and files whose name has no dot or begins with one, belong to no sample. The archive may be compressed by
    gzip, bzip2 or xz.

    Args:
        path: of the archive.

    Yields:
        Samples as dicts of bytes, one in memory at a time.

    Raises:
        ValueError: if the file is truncated, damaged, not a tar file or without any sample, or if a sample has two
            files of one extension; names the file.
    """
    sample: dict[str, Any] = {}
    is_empty = True
    for name, content in _files(Path(path)):
        folder, _, base = name.rpartition("/")
        stem, dot, extension = base.partition(".")
        if not (stem and dot):
            continue
        key, extension = f"{folder}/{stem}" if folder else stem, extension.lower()
        if sample and sample["__key__"] != key:
            yield sample
            sample = {}
        if extension in sample:
            raise ValueError(f"{path} has two files {key}.{extension} in one sample; every extension may come once.")
        sample |= {"__key__": key, extension: content}
        is_empty = False
    if sample:
        yield sample
    if is_empty:
        raise ValueError(
            f"{path} holds no sample: none of its files is called KEY.EXTENSION, such as 000123.jpg and 000123.cls."
        )


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of every file in an archive."""
    try:
        # not by tarfile's own decompression, which does not notice where a file is cut off
        with _opened(path) as content, tarfile.open(fileobj=content, mode="r|", tarinfo=_Header) as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile keeps every header it has read
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name, file.read()
            while content.read(_CHUNK):  # to the checksum of a compressed file
                pass
    except (tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError) as error:
        raise ValueError(f"{path} is truncated, damaged or not a tar file ({error}). Get the file again.") from error


def _opened(path: Path) -> Any:
    """The file, decompressed while it is read if it begins as a compressed one does."""
    with path.open("rb") as file:
        begin = file.read(max(map(len, _DECOMPRESSORS)))
    for magic, decompressed in _DECOMPRESSORS.items():
        if begin.startswith(magic):
            return decompressed(path)
    return path.open("rb")


class _Header(tarfile.TarInfo):
    """A header that must be sound: tarfile takes one that is cut off or damaged for the end, unless it is the first."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # the mark of the end
            raise tarfile.ReadError(str(error)) from error
