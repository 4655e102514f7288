"""Streaming data sets: shards divided over ranks and workers, with an exact position to resume from.

``ShardedStream`` is a ``torch.utils.data.IterableDataset`` over any kind of shard; ``read_tar`` reads tar files in the
layout of WebDataset. Examples of a stream have no index, so their irreducible losses come from a live reference model.
"""

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
from reducr._internal.files import open_regular
from reducr._internal.seeds import mixed_seed

__all__ = ["ShardedStream", "read_tar"]

_DECOMPRESSORS: dict[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ\0": lzma.open,
}
_CHUNK = 2**16


class _Position(NamedTuple):
    """Position of a pass: ``sample`` samples of shard number ``place`` in the reader's order have been yielded."""

    epoch: int
    place: int = 0
    sample: int = 0


class ShardedStream(IterableDataset[Any]):
    """Samples of many shards, one shard after the other, divided over ranks and loader workers.

    Each worker of each rank is a reader. Reader k of K reads the shards ``order[k::K]``, so each shard is read by one
    reader. Readers beyond the number of shards are idle. Samples keep their order within a shard; shuffle them when
    you write the shards. No sample is cached.

    One pass over the stream is one epoch. It is epoch 0 until ``set_epoch`` is called, which also reaches persistent
    workers.

    ``state_dict`` is the position after the last sample yielded, if samples are read in the process that calls it
    (``num_workers=0``). The pass after ``load_state_dict`` resumes there: it opens the shard and skips the samples
    already yielded, without calling ``map`` on them. Without a loaded state, every pass starts from its first shard.

    Args:
        shards: the shards, such as paths, identified by the last part of their ``str``. The same list on all ranks.
        read: returns the samples of a shard, in the same order every time, such as ``read_tar``.
        map: converts a sample to what the loader collates, such as (input, target); None keeps samples as they are.
        shuffle_shards: shuffle the shards in every epoch; the order depends only on ``seed`` and the epoch.
        is_endless: start the next epoch at the end of one. Use it for a loop with a fixed number of steps, on ranks
            with different numbers of samples.
        seed: seed of the shuffled orders, at least 0.
        rank: rank of this process; None for the rank in ``torch.distributed``, or 0 if that is not initialised.
        num_ranks: number of processes that share the shards; give it together with ``rank``. Set
            ``rank=0, num_ranks=1`` if something else divides the samples over processes, as accelerate does.

    Raises:
        TypeError: if ``shards`` is a single path.
        ValueError: if there are fewer shards than ranks, or an argument is out of range. Errors of ``read`` and ``map``
            get a note with the shard and the sample.

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
    """Tells ``reducr``'s loaders that ``state_dict`` is exact, so that a resumed loop reads no sample again."""

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
            raise TypeError(f"shards must be a list of shards; got {shards!r}. For a single shard, pass [{shards!r}].")
        if (rank is None) != (num_ranks is None):
            raise ValueError(
                "rank and num_ranks must be given together. Pass both, or neither to use those of torch.distributed."
            )
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
        # In shared memory, so that persistent workers see a new epoch.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._position = _Position(0)
        self._resuming_reader: tuple[int, int] | None = None
        self.has_ended = False
        """Whether the latest pass has yielded all its samples."""
        self._reader()

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the next pass; a different epoch discards the position within the current one."""
        if epoch < 0:
            raise ValueError(f"epoch must be at least 0; got {epoch}.")
        if epoch != self._position.epoch:
            self._position, self._resuming_reader = _Position(epoch), None
        self._epoch.fill_(epoch)

    def state_dict(self) -> dict[str, int | str]:
        """Position of the pass (epoch, shard, samples yielded) and the settings that a resumed stream must share."""
        return self._state(self._position)

    def load_state_dict(self, state: Mapping[str, int | str]) -> None:
        """Resume the next pass from ``state``.

        Raises:
            ValueError: if the state was saved with other shards, another seed, or another number of ranks or workers.
        """
        missing = sorted(self.state_dict().keys() - state.keys())
        if missing:
            raise ValueError(f"the state of a stream needs the keys {', '.join(missing)}; got {sorted(state)}.")
        position = _Position(*(int(state[name]) for name in _Position._fields))
        differences = [
            f"{name} is {state[name]!r} in the state and {value!r} here"
            for name, value in self._state(position).items()
            if state[name] != value
        ]
        if differences:
            raise ValueError(
                f"the state belongs to another stream: {', '.join(differences)}. Use the same shards, seed, number of "
                "ranks and number of workers, or start the stream from the beginning."
            )
        self.set_epoch(position.epoch)
        self._position, self._resuming_reader = position, self._reader()

    def __iter__(self) -> Iterator[Any]:
        if self._resuming_reader is None:
            self._position = _Position(int(self._epoch))
        elif self._resuming_reader != self._reader():
            raise ValueError(
                "the state of this stream was loaded in one process, but loader workers read its samples. Load and "
                "read it with num_workers=0."
            )
        self._resuming_reader = None
        self.has_ended = False
        return self._samples(self._position)

    def __getstate__(self) -> dict[str, Any]:
        """Include the rank, which a spawned worker cannot look up."""
        rank, num_ranks = self._rank()
        return self.__dict__ | ({"rank": rank, "num_ranks": num_ranks} if num_ranks > 1 else {})

    def _samples(self, start: _Position) -> Iterator[Any]:
        epoch, first_place, num_yielded = start
        while order := self._order(epoch):
            is_empty = first_place == num_yielded == 0
            for place in range(first_place, len(order)):
                for number, sample in enumerate(self._rest_of(order[place], num_yielded), start=num_yielded + 1):
                    self._position = _Position(epoch, place, number)
                    is_empty = False
                    yield sample
                num_yielded = 0
            if not self.is_endless:
                break
            if is_empty:
                raise ValueError(
                    f"an endless stream needs at least one sample; a pass over {len(order)} shards had none."
                )
            epoch, first_place = epoch + 1, 0
        self._position = _Position(epoch)
        self.has_ended = True

    def _rest_of(self, shard: Any, num_yielded: int) -> Iterator[Any]:
        """Mapped samples of ``shard`` after the first ``num_yielded``."""
        number = num_yielded
        try:
            for sample in self._read_after(num_yielded, shard):
                yield sample if self.map is None else self.map(sample)
                number += 1
        except Exception as error:
            error.add_note(f"in shard {shard!s}, at sample {number} (counted from 0)")
            raise

    def _read_after(self, num_yielded: int, shard: Any) -> Iterator[Any]:
        samples = iter(self.read(shard))
        num_skipped = sum(1 for _ in islice(samples, num_yielded))
        if num_skipped < num_yielded:
            raise ValueError(
                f"the shard has only {num_skipped} samples, but the state is after sample {num_yielded}. Restore the "
                "shard, or start the stream from the beginning."
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
        """The shards of this reader in an epoch, in order."""
        places = list(range(len(self.shards)))
        if self.shuffle_shards:
            generator = torch.Generator().manual_seed(mixed_seed(self.seed, epoch))
            places = torch.randperm(len(places), generator=generator).tolist()
        reader, num_readers = self._reader()
        return [self.shards[place] for place in places[reader::num_readers]]

    def _reader(self) -> tuple[int, int]:
        """Number of this reader, and of all readers; workers alternate between ranks, so ranks get equal shares."""
        rank, num_ranks = self._rank()
        if len(self.shards) < num_ranks:
            raise ValueError(
                f"every rank needs at least one shard; got {len(self.shards)} shards for {num_ranks} ranks. Write the "
                "data in more shards, or run fewer ranks."
            )
        worker = get_worker_info()
        return (rank, num_ranks) if worker is None else (worker.id * num_ranks + rank, worker.num_workers * num_ranks)

    def _rank(self) -> tuple[int, int]:
        if self.rank is not None and self.num_ranks is not None:
            return self.rank, self.num_ranks
        return distributed.rank(), distributed.num_ranks()


def _name(shard: Any) -> str:
    """Name of a shard: the last part of its path, so that a folder of shards can be moved."""
    return str(shard).replace("\\", "/").rsplit("/", 1)[-1]


def read_tar(path: str | Path) -> Iterator[dict[str, Any]]:
    """Read the samples of a tar file in the layout of WebDataset, in one pass.

    Consecutive files with the same name up to the first dot form one sample: ``7/000123.jpg`` and ``7/000123.cls``
    become ``{"__key__": "7/000123", "jpg": b"...", "cls": b"..."}``, with extensions in lower case. Folders, files
    without a dot and hidden files are skipped. The archive may be compressed with gzip, bzip2 or xz.

    Args:
        path: the archive.

    Yields:
        Samples as dicts of bytes, one in memory at a time.

    Raises:
        ValueError: if the file is truncated, damaged, not a tar file or without samples, or if a sample has two files
            with the same extension.

    Example:
        >>> import io, tempfile
        >>> path = Path(tempfile.mkdtemp(), "0.tar")
        >>> with tarfile.open(path, "w") as archive:
        ...     member = tarfile.TarInfo("000.cls")
        ...     member.size = 1
        ...     archive.addfile(member, io.BytesIO(b"3"))
        >>> list(read_tar(path))
        [{'__key__': '000', 'cls': b'3'}]

    Source: https://github.com/webdataset/webdataset, "The WebDataset Format".
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
            raise ValueError(
                f"{path} has two files {key}.{extension} in one sample. Each extension may occur once per sample."
            )
        sample |= {"__key__": key, extension: content}
        is_empty = False
    if sample:
        yield sample
    if is_empty:
        raise ValueError(
            f"{path} has no samples: none of its files is named KEY.EXTENSION, such as 000123.jpg and 000123.cls."
        )


def _files(path: Path) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file in an archive."""
    try:
        # Decompress here: tarfile's own decompression does not notice a truncated file.
        with _open(path) as content, tarfile.open(fileobj=content, mode="r|", tarinfo=_Header) as archive:
            while (member := archive.next()) is not None:
                archive.members = []  # type: ignore[attr-defined]  # tarfile would keep every header
                if member.issparse():  # a few bytes may stand for terabytes of zeros
                    raise tarfile.ReadError(f"{member.name} is a sparse file")
                file = archive.extractfile(member) if member.isfile() else None
                if file is not None:
                    yield member.name, file.read()
            while content.read(_CHUNK):  # read up to the checksum of a compressed file
                pass
    except (tarfile.TarError, zlib.error, lzma.LZMAError, gzip.BadGzipFile, EOFError, RecursionError) as error:
        raise ValueError(
            f"{path} is truncated, damaged or not a tar file ({error}). Download or copy the file again."
        ) from error


def _open(path: Path) -> Any:
    """Open the file, decompressing it on the fly if it starts with the magic bytes of a compression format."""
    with open_regular(path) as file:
        start = file.read(max(map(len, _DECOMPRESSORS)))
    for magic, open_compressed in _DECOMPRESSORS.items():
        if start.startswith(magic):
            return open_compressed(path)
    return path.open("rb")


class _Header(tarfile.TarInfo):
    """A header that raises an error if it is damaged; tarfile takes a damaged header for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _Header:
        try:
            return super().frombuf(buf, encoding, errors)
        except tarfile.HeaderError as error:
            if len(buf) == tarfile.BLOCKSIZE and not any(buf):
                raise  # end-of-archive marker
            raise tarfile.ReadError(str(error)) from error
