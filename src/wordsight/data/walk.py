"""Walk: every image file below a folder, in an order of its own, and every other file told.

Hidden files are left out, links are followed once, pipes and devices are not touched."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from wordsight.data import Picture
from wordsight.data.account import Account
from wordsight.data.rows import is_file, is_hidden, read_file, shown, why_not
from wordsight.files import UNDER_WAY, nfc

HIDDEN = "that are hidden or lie in a hidden folder"
READ_ITSELF = "behind a link to what is read already"
BROKEN = "behind a broken link"
LOOP = "behind a link that leads back to a folder above it"
NO_FILE = "that are a pipe, a socket or a device"


@dataclass
class Walker:
    """Files below a source's root, sorted by name at each level: few-shot draws must not depend on the file
    system's order, nor on the Unicode form of names.

    Links are followed, each target once: what lies in `read_anyway` (real paths of folders that are walked
    without a link) is not read a second time through one. Hidden files are counted and left out."""

    root: Path
    account: Account
    read_anyway: Sequence[str] = ()
    reached: set[str] = field(default_factory=set)  # real paths of what links have led to

    def __post_init__(self) -> None:
        self.real, self.cut = os.path.realpath(self.root), len(str(self.root)) + 1

    def entries(self, folder: str | Path) -> list[tuple[str, str]]:
        """(path, kind) of what a folder holds, sorted; kind is file, folder, link or other. What we are about
        to write there, as a table of answers, is not of it yet."""
        try:
            with os.scandir(folder) as found:
                held = (entry for entry in found if not UNDER_WAY.search(entry.name))
                return sorted(((entry.path, _kind(entry)) for entry in held), key=_by_name)
        except OSError as error:
            why = error.strerror or error
            self.account.remark(
                f"{self.name(folder)} cannot be opened, so what it holds is not known ({why})"
            )
            return []

    def images(self, folder: str | Path) -> Iterator[tuple[str, str]]:
        """(path, name inside the root) of each image file below a folder; other files are told."""
        real = os.path.realpath(folder)
        if real == self._unlinked(folder):
            yield from self._walk(str(folder))
        else:
            yield from self._linked_folder(str(folder), real)

    def at(
        self, path: str, kind: str, real: str | None = None, hidden: bool = False
    ) -> Iterator[tuple[str, str]]:
        """The images of one entry: a file's own, or those below a folder. `real` is its real path where a
        link has led to it.
        """
        hidden = hidden or is_hidden(os.path.basename(path))
        if kind == "folder" and (real is None or hidden):
            yield from self._walk(path, hidden=hidden)
        elif kind == "folder" and real is not None:
            yield from self._linked_folder(path, real)
        elif hidden:
            self.leave(HIDDEN, path)
        elif kind == "link":
            yield from self._link(path)
        elif kind == "other":
            self.leave(NO_FILE, path)
        else:
            yield from self._file(path, real)

    def is_unlinked(self, folder: Path) -> bool:
        return os.path.realpath(folder) == self._unlinked(folder)

    def name(self, path: str | Path) -> str:
        """The path inside the root; the root's own is a dot."""
        return shown(str(path)[self.cut :]) or "."

    def leave(self, reason: str, path: str) -> None:
        self.account.seen += 1
        self.account.leave(reason, self.name(path))

    def _unlinked(self, folder: str | Path) -> str:
        """The real path that a folder has if no link lies between the root and it."""
        return os.path.normpath(os.path.join(self.real, os.path.relpath(folder, self.root)))

    def _walk(self, folder: str, real: str | None = None, hidden: bool = False) -> Iterator[tuple[str, str]]:
        for path, kind in self.entries(folder):
            if kind == "file" and real is None and not hidden and self._is_plain(path):
                self.account.seen += 1
                yield path, self.name(path)
            else:
                target = None if real is None else os.path.join(real, os.path.basename(path))
                yield from self.at(path, kind, target, hidden)

    def _is_plain(self, path: str) -> bool:
        """Whether a file is an image and not hidden: nearly all are, and this spares them the questions."""
        return why_not(path) is None and "/." not in path[self.cut - 1 :]

    def _link(self, path: str) -> Iterator[tuple[str, str]]:
        try:
            target = os.path.realpath(path, strict=True)
        except OSError:
            return self.leave(BROKEN, path)
        if os.path.isdir(target):
            yield from self._linked_folder(path, target)
        elif is_file(target):
            yield from self._file(path, target)
        else:
            self.leave(NO_FILE, path)

    def _linked_folder(self, path: str, target: str) -> Iterator[tuple[str, str]]:
        if _below(self.real, target) or _below(os.path.realpath(os.path.dirname(path)), target):
            return self.leave(LOOP, path)
        if self._is_read(target):
            return self.leave(READ_ITSELF, path)
        yield from self._walk(path, target)

    def _file(self, path: str, target: str | None) -> Iterator[tuple[str, str]]:
        reason = why_not(path)
        if reason is not None:
            self.leave(reason, path)
        elif target is not None and self._is_read(target):
            self.leave(READ_ITSELF, path)
        else:
            self.account.seen += 1
            yield path, self.name(path)

    def _is_read(self, target: str) -> bool:
        """Whether a real path is read without this link. What is not counts as read from now on."""
        for top in self.read_anyway:
            if _below(target, top) and not _hidden_below(target, top):
                return os.path.isdir(target) or why_not(target) is None
        if target in self.reached:
            return True
        self.reached.add(target)
        return False


def _kind(entry: os.DirEntry) -> str:
    if entry.is_symlink():
        return "link"
    return "folder" if entry.is_dir() else "file" if entry.is_file() else "other"


def _by_name(entry: tuple[str, str]) -> tuple[str, str]:
    name = os.path.basename(entry[0])
    return nfc(name), name


def _below(path: str, folder: str) -> bool:
    return path == folder or path.startswith(folder.rstrip(os.sep) + os.sep)


def _hidden_below(path: str, folder: str) -> bool:
    return any(map(is_hidden, path[len(folder) + 1 :].split(os.sep)))


def subfolders(folder: Path) -> list[Path]:
    """Folders, and links to folders, that are not hidden, sorted; none in one that cannot be opened."""
    try:
        with os.scandir(folder) as entries:
            found = [(entry.path, "") for entry in entries if entry.is_dir() and not is_hidden(entry.name)]
    except OSError:  # the walker tells of it
        return []
    return [Path(path) for path, _ in sorted(found, key=_by_name)]


def read_pictures(folder: Path, account: Account) -> Iterator[Picture]:
    """The images of a folder at any depth, whatever its folders mean, one after another: memory does not grow
    with their number. Their names begin at the folder.
    """
    walker = Walker(folder, account, read_anyway=[os.path.realpath(folder)])
    for path, name in walker.images(folder):
        account.kept += 1
        yield Picture(name, partial(read_file, path))
