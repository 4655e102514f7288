"""Find the files of a data set of folders, whatever its symbolic links do."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path, PurePosixPath

from reducr._internal.names import unknown_name

LINKS = ("error", "skip", "follow")


def check_links(links: str) -> None:
    """Raise ValueError unless ``links`` is one of ``LINKS``."""
    if links not in LINKS:
        raise unknown_name("datamodule.links", links, LINKS)


def check_inside(names: Iterable[str], *, owner: str) -> None:
    """Raise ValueError for a file name of a published list that leads out of the folder of the list."""
    for name in names:
        path = PurePosixPath(name)
        if path.is_absolute() or ".." in path.parts:
            raise ValueError(f"{owner} names {name!r}, which is outside of the data set. Get the file again.")


class FolderWalk:
    """A walk over a data set of folders that reads no folder twice, and leaves the data set only where it may.

    The data set may be a link itself, and so may a folder in the place of a part or a class, as its place says what its
    files are; a note names where it leads. Further down, a link that leads out of the data set is what ``links`` says.
    A link to a folder of the data set is never followed: its files would be read again, perhaps under another class.
    If it leads to a folder around it, they would be read again and again.

    Args:
        root: the folder that the user named.
        links: ``error``; ``skip``, which leaves these links out with a note; or ``follow``, which follows the links
            that lead out of the data set and leaves out the others.
    """

    def __init__(self, root: Path, *, links: str = "error") -> None:
        check_links(links)
        self._links = links
        self._roots = [_real(root)]
        self._skipped: dict[Path, None] = {}
        self._target_of_class: dict[Path, Path] = {}

    def folders_in(self, folder: Path) -> list[str]:
        """Names of the folders in ``folder``, which stand for parts or classes, in order and without hidden ones."""
        return [
            entry.name
            for entry in _entries(folder)
            if _is_folder(entry) and (not entry.is_symlink() or self._follows_class(Path(entry.path)))
        ]

    def files_below(self, folder: Path, is_wanted: Callable[[str], bool]) -> Iterator[Path]:
        """The files in ``folder`` and its subfolders whose name ``is_wanted``, without hidden files and folders.

        Links that lead nowhere, pipes, sockets and devices count as files, so that reading them is an error that names
        them.
        """
        waiting = [folder]
        while waiting:
            for entry in _entries(waiting.pop()):
                path = Path(entry.path)
                if _is_folder(entry):
                    if not entry.is_symlink() or self._follows_folder(path):
                        waiting.append(path)
                elif is_wanted(entry.name) and (not entry.is_symlink() or self._follows_file(path)):
                    yield path

    def notes(self) -> tuple[str, ...]:
        """What the user should know about the links."""
        notes = [
            f"The images of {link} are those of {target}, its target." for link, target in self._target_of_class.items()
        ]
        if self._skipped:
            notes.append(f"Left out {len(self._skipped)} symbolic links; the first is {next(iter(self._skipped))}.")
        return tuple(notes)

    def _follows_class(self, link: Path) -> bool:
        target = _real(link)
        if self._target_of_class.get(link) != target:
            if self._overlaps(target):
                return self._left_out(link, target, self._harm(link, target), leads_out=False)
            self._target_of_class[link] = target
            self._roots.append(target)
        return True

    def _follows_folder(self, link: Path) -> bool:
        target = _real(link)
        if self._overlaps(target):
            return self._left_out(link, target, self._harm(link, target), leads_out=False)
        if self._links != "follow":
            return self._left_out(link, target, "which is outside of the data set", leads_out=True)
        self._roots.append(target)
        return True

    def _follows_file(self, link: Path) -> bool:
        if self._links == "follow" or any(_real(link).is_relative_to(root) for root in self._roots):
            return True
        return self._left_out(link, _real(link), "which is outside of the data set", leads_out=True)

    def _left_out(self, link: Path, target: Path, reason: str, *, leads_out: bool) -> bool:
        """Return False.

        Raises:
            ValueError: unless such a link is left out.
        """
        if self._links == "error":
            follow = "`datamodule.links=follow` to follow such links, or " if leads_out else ""
            raise ValueError(
                f"The symbolic link {link} leads to {target}, {reason}. Set {follow}`datamodule.links=skip` to leave "
                "them out, or remove it."
            )
        self._skipped[link] = None
        return False

    def _overlaps(self, target: Path) -> bool:
        """Whether the folder is part of what is read anyway, or contains it."""
        return any(target.is_relative_to(root) or root.is_relative_to(target) for root in self._roots)

    def _harm(self, link: Path, target: Path) -> str:
        if _real(link.parent).is_relative_to(target):
            return "which contains the link itself, so images would be read again and again"
        return "which belongs to the data set already, so images would be read twice"


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    with os.scandir(folder) as entries:
        return sorted((entry for entry in entries if not entry.name.startswith(".")), key=lambda entry: entry.name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return Path(entry.path).is_dir() if entry.is_symlink() else entry.is_dir()


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))
