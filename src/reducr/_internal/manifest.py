"""``manifest.jsonl`` of a run folder: the checksums of all files that decide a result.

A line is the CRC-32 of its JSON, a space and the JSON:

- ``{"file": ..., "sha256": ..., "size": ...}``: a finished file. With ``replaces``, the checksum of its earlier
  content, which is accepted as well: the process may have been killed between this line and the replacement.
- the same with ``step``: a checkpoint of a training that had reached this step. A later one may have replaced it.
- ``{"file": ..., "step": ..., "lines": ...}``: the lines of a ``metrics.csv`` up to this step, which is still written.
- ``{"withdrawn": ...}``: nothing is known any more of the files below this folder, which are made again.

Later lines replace earlier ones on the same file. A line is appended in one call, so a killed process leaves whole
lines. What is replaced is listed before it happens, and what is new before the file that refers to it is written; so at
any moment the folder agrees with its manifest.
"""

from __future__ import annotations

import csv
import errno
import hashlib
import json
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from reducr._internal.files import file_checksum, naming_file, write_text_atomically
from reducr._internal.reading import DamagedFileError, read_checkpoint

NAME = "manifest.jsonl"
_TRAINING = "csv/metrics.csv|selected.npz|test_accuracy.csv|test_predictions.npz|point_loss.npy|results.csv"
_DECIDING = re.compile(
    r"config\.yaml|command\.txt|run\.json|results\.csv|inputs\.npz|seed_\d+/data\.npz"
    r"|seed_\d+/irreducible/(stage\.json|[^/]+/model\.ckpt|table_[^/]+/(values\.npy|manifest\.json))"
    rf"|seed_\d+/(?!irreducible/)[^/]+/({_TRAINING.replace('.', chr(92) + '.')}|checkpoints/[^/]+\.ckpt)"
)
"""Files that decide a result. Others are written from them, or by loggers, and no command reads them."""
_LONGEST_LINE = 2**16


@dataclass(frozen=True)
class Change:
    """A file that is not as the run wrote it.

    Args:
        file: its path in the run folder.
        fault: what is wrong, such as "differs from what the run wrote".
    """

    file: str
    fault: str


@dataclass
class Manifest:
    """The manifest of a run folder.

    Args:
        folder: the run folder.
        entries: the last line of each file, by path in the folder.
        faults: damaged lines, in words.
    """

    folder: Path
    entries: dict[str, dict[str, Any]] = field(default_factory=dict)
    faults: list[str] = field(default_factory=list)

    @classmethod
    def read(cls, folder: Path) -> Manifest | None:
        """The manifest of ``folder``; None if there is none. A last line that was cut off is left out."""
        path = folder / NAME
        if not path.is_file():
            return None
        manifest = cls(folder)
        *lines, rest = path.read_bytes().split(b"\n")
        for number, line in enumerate([*lines, *([rest] if rest else [])], start=1):
            content = _content(line)
            if content is not None:
                manifest._apply(content)
            elif number <= len(lines):
                manifest.faults.append(f"line {number} is damaged")
        return manifest

    def changes(self, is_checked: Callable[[str], bool] = lambda file: True) -> list[Change]:
        """The files that are there and are not as their entries say, and damage to the manifest itself.

        Args:
            is_checked: which files, by path in the folder.
        """
        changes = [Change(NAME, fault) for fault in self.faults]
        for file, entry in self.entries.items():
            path = self.folder / file
            if not is_checked(file) or not path.exists():
                continue
            if not path.is_file():
                changes.append(Change(file, "is not a file"))
            elif not _is_as_written(path, entry):
                changes.append(Change(file, "differs from what the run wrote"))
        return changes

    def _apply(self, content: dict[str, Any]) -> None:
        if "withdrawn" in content:
            prefix = content["withdrawn"]
            self.entries = {
                file: entry
                for file, entry in self.entries.items()
                if file != prefix and not file.startswith(f"{prefix}/")
            }
        else:
            self.entries[content["file"]] = content


def has_manifest(folder: Path) -> bool:
    """Whether the run wrote a manifest; earlier versions did not."""
    return (folder / NAME).is_file()


def start_manifest(folder: Path) -> None:
    """Begin the manifest of a new run folder."""
    (folder / NAME).touch()


def record_files(folder: Path, *paths: Path, withdrawn: Iterable[Path] = ()) -> None:
    """Add finished files, or those below folders, to the manifest of the run ``folder``; nothing without one.

    Args:
        folder: the run folder.
        paths: in the folder.
        withdrawn: folders whose entries are removed first.
    """
    if not has_manifest(folder):
        return
    files = deciding_files(*paths, folder=folder) if paths else []
    _append(folder, [*_withdrawals(folder, withdrawn), *(_entry(folder, folder / file) for file in files)])


def withdraw(folder: Path, *paths: Path) -> None:
    """Remove the entries below ``paths``, which are about to be made again."""
    record_files(folder, withdrawn=paths)


def write_recorded(folder: Path, path: Path, text: str) -> None:
    """Write ``text`` to a file of the run ``folder``, atomically, and its entry before it."""
    announce_text(folder, path, text)
    write_text_atomically(path, text)


def announce_text(folder: Path, path: Path, text: str) -> None:
    """Add the entry of a file that is about to hold ``text``."""
    if not has_manifest(folder):
        return
    content = text.encode(errors="surrogateescape")
    entry = {
        "file": _name(folder, path),
        "sha256": hashlib.sha256(content).hexdigest(),
        "size": len(content),
    }
    if path.is_file() and path.stat().st_size:
        entry["replaces"] = file_checksum(path)
    _append(folder, [entry], is_synced=path.parent == folder)


def rewrite_manifest(folder: Path, entries: Mapping[str, Mapping[str, Any]]) -> None:
    """Replace the manifest by one with these ``entries``."""
    lines = b"".join(map(_line, entries.values()))
    write_text_atomically(folder / NAME, lines.decode())


def entry_of(folder: Path, path: Path) -> dict[str, Any]:
    """The entry of a finished file as it is now."""
    return _entry(folder, path)


def deciding_files(*paths: Path, folder: Path) -> list[str]:
    """The files among or below ``paths`` that can decide a result, by path in the run folder.

    Args:
        paths: files and folders in the run folder; all of it by default.
        folder: the run folder.
    """
    below = [file for path in paths or _top(folder) for file in (_files_below(path) if path.is_dir() else [path])]
    return [name for name in (_name(folder, path) for path in below) if _DECIDING.fullmatch(name)]


class TrainingProgress:
    """Keeps the manifest in step with a training that can be resumed.

    Args:
        folder: the run folder.
        training: folder of the training.
        checkpoints: of the training, other than those to resume from; they may be missing.
    """

    def __init__(self, folder: Path, training: Path, checkpoints: Iterable[Path]) -> None:
        self.folder = folder
        self.training = training
        self.checkpoints = list(checkpoints)
        self._log = LogDigest(training / "csv" / "metrics.csv")

    def begin(self, step: int) -> None:
        """Record the state from which the training is about to go on: its log is cut off there."""
        self.record(step)
        self._log = LogDigest(self._log.path)

    def record(self, step: int) -> None:
        """Replace the entries of the training by those of its state at ``step``, from which it can be resumed."""
        if not has_manifest(self.folder):
            return
        lines = _withdrawals(self.folder, [self.training])
        lines += [_entry(self.folder, path) | {"step": step} for path in self.checkpoints if path.is_file()]
        digest = self._log.up_to(step)
        if digest is not None:
            lines.append({"file": _name(self.folder, self._log.path), "step": step, "lines": digest})
        _append(self.folder, lines)


class LogDigest:
    """Checksums of the lines of a ``metrics.csv`` up to some step. What was read before is not read again.

    A checksum is the sum of those of the lines, each over its filled cells by the names of their columns, because
    the logger writes the whole file again, with more columns, when a metric occurs for the first time.

    Args:
        path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._header = b""
        self._offset = 0
        self._sums: list[tuple[int, int]] = []
        """Step and checksum of each line up to the offset."""

    def up_to(self, step: int) -> str | None:
        """The checksum of all lines up to ``step``; None if there is no file."""
        if not self.path.is_file():
            return None
        with self.path.open("rb") as file:
            header = file.readline()
            if header != self._header or self.path.stat().st_size < self._offset:
                self._header, self._offset, self._sums = header, file.tell(), []
            file.seek(self._offset)
            new = file.read()
        end = new.rfind(b"\n") + 1
        self._offset += end
        self._sums += _line_sums(header.decode(), new[:end].decode())
        total = sum(line for at_step, line in self._sums if at_step <= step) % 2**64
        return f"{total:016x}"


def _line_sums(header: str, text: str) -> Iterator[tuple[int, int]]:
    names = next(csv.reader([header]), [])
    step_column = names.index("step") if "step" in names else None
    for cells in csv.reader(text.splitlines()):
        if step_column is None or len(cells) != len(names):
            continue
        filled = sorted(f"{name}={cell}" for name, cell in zip(names, cells, strict=True) if cell)
        digest = hashlib.blake2b("\x1f".join(filled).encode(), digest_size=8).digest()
        yield int(cells[step_column]), int.from_bytes(digest, "little")


def _is_as_written(path: Path, entry: Mapping[str, Any]) -> bool:
    """Whether a file is what its entry says, or the one just before or after it."""
    if "lines" in entry:
        try:
            return bool(LogDigest(path).up_to(entry["step"]) == entry["lines"])
        except (ValueError, csv.Error):
            return False
    checksum = file_checksum(path)
    if checksum in (entry["sha256"], entry.get("replaces")):
        return True
    if "step" not in entry:
        return False
    try:
        return bool(int(read_checkpoint(path)["global_step"]) > entry["step"])
    except (DamagedFileError, KeyError, TypeError, ValueError):
        return False


def _entry(folder: Path, path: Path) -> dict[str, Any]:
    return {"file": _name(folder, path), "sha256": file_checksum(path), "size": path.stat().st_size}


def _withdrawals(folder: Path, paths: Iterable[Path]) -> list[dict[str, Any]]:
    return [{"withdrawn": _name(folder, path)} for path in paths]


def _name(folder: Path, path: Path) -> str:
    return path.relative_to(folder).as_posix()


def _top(folder: Path) -> list[Path]:
    """The files of a run folder itself, and the folders of its seeds."""
    return sorted(path for path in folder.iterdir() if not path.is_dir() or path.name.startswith("seed_"))


def _files_below(path: Path) -> list[Path]:
    return sorted(Path(parent, name) for parent, _, names in os.walk(path) for name in names)


def _append(folder: Path, contents: Iterable[Mapping[str, Any]], *, is_synced: bool = False) -> None:
    """Append lines in one call, and wait until they are on the disk if ``is_synced``."""
    lines = b"".join(map(_line, contents))
    if not lines:
        return
    path = folder / NAME
    _end_last_line(path)
    with naming_file(path), path.open("ab", buffering=0) as file:
        if file.write(lines) < len(lines):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if is_synced:
            os.fsync(file.fileno())


def _end_last_line(path: Path) -> None:
    """Remove the beginning of a line that a full disk has left."""
    with path.open("r+b") as file:
        size = file.seek(0, os.SEEK_END)
        file.seek(max(0, size - _LONGEST_LINE))
        tail = file.read()
        rest = len(tail) - (tail.rfind(b"\n") + 1)
        if rest:
            file.truncate(size - rest)


def _line(content: Mapping[str, Any]) -> bytes:
    text = json.dumps(content).encode()
    return b"%08x %s\n" % (zlib.crc32(text), text)


def _content(line: bytes) -> dict[str, Any] | None:
    """The content of a line; None if it is damaged."""
    checksum, _, text = line.partition(b" ")
    try:
        if len(checksum) != 8 or int(checksum, 16) != zlib.crc32(text):
            return None
        content = json.loads(text)
    except ValueError:
        return None
    return content if isinstance(content, dict) and ("file" in content or "withdrawn" in content) else None
