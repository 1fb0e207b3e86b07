"""Kept: labels in a CSV that `fit data=` reads, written whole after each one, and merged with what others
wrote there meanwhile. No label is lost: what two people said differently is kept beside it."""

from __future__ import annotations

import contextlib
import csv
import io
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wordsight.config import WordsightError
from wordsight.data.images import hash_of
from wordsight.files import as_it_was, csv_text, nfc, read_text, write_file
from wordsight.serve.corrections import alone

HEADER = ("path", "label")
OTHERS = ".others.csv"  # ends the name of the file of labels that stood against ours, or could not be read


class Conflict(NamedTuple):
    """An image that was labelled here and elsewhere, differently."""

    path: str
    ours: str | None  # which is kept; None: the label was taken back
    theirs: str | None


class Kept:
    """The labels of a folder's images by path, as they stand in a CSV. Columns and rows of others stay."""

    def __init__(self, path: Path):
        self.path = path
        self.labels: dict[str, str] = {}
        self.conflicts: list[Conflict] = []
        self.notes: list[str] = []
        self._header: tuple[str, ...] = HEADER
        self._more: dict[str, dict[str, str]] = {}  # other cells of each row
        self._stamp: tuple[int, ...] | None = None  # of the file as we know it
        self._digest: bytes | None = None
        self._known: dict[str, str] = {}  # what stood there when we last looked
        self.refresh()

    @property
    def paths(self) -> list[str]:
        """Of all rows, those without a label, too."""
        return list(self._more)

    def set(self, path: str, label: str | None) -> str | None:
        """Keep a label, as the last one, or take it back; gives what it was before. Errors: WordsightError
        where the file cannot be written; then nothing has changed."""
        with self._alone():
            self._take_over()
            labels = dict(self.labels)
            before = labels.pop(path, None)
            if label is not None:
                labels[path] = label
            self._write(labels)
        return before

    def refresh(self) -> bool:
        """Take over what another process wrote, and say whether it did. Errors: WordsightError where the file
        cannot be read: it stays as it is, and nothing is written over it."""
        stamp = _stamp(self.path)
        if stamp == self._stamp and (stamp is not None or not self.labels):
            return False
        with self._alone():
            return self._take_over()

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise WordsightError(f"{self.path} cannot be written: {error.strerror or error}") from error
        with alone(self.path.parent):
            yield

    def _take_over(self) -> bool:
        stamp = _stamp(self.path)
        if stamp is None:
            return self._gone()
        text = read_text(self.path, "file of labels")
        digest = hash_of(text.encode())
        if digest == self._digest:
            self._stamp = stamp
            return False
        if self._known and not text.strip():  # another program may be about to write it
            raise WordsightError(
                f"{str(self.path)!r} is empty, and {len(self._known)} labels stood there; put them back, or "
                f"delete the file: then it is written anew"
            )
        header, rows, more = _rows(text, self.path)
        first = self._digest is None
        self._header, self._more = header, more
        merged = rows if first else self._merged(rows)
        self._stamp, self._digest, self._known = stamp, digest, rows
        self.labels = merged
        if merged != rows:
            self._write(merged)
        if not first:
            self.notes.append(f"{self.path.name} was changed by another program; its labels were taken over")
        return True

    def _gone(self) -> bool:
        """The file is not there: all labels are written anew, if there were some."""
        if not self.labels:
            return False
        self.notes.append(f"{self.path.name} was deleted by another program; it was written anew")
        self._digest = None
        self._write(self.labels)
        return True

    def _merged(self, theirs: Mapping[str, str]) -> dict[str, str]:
        """Of what stood there, what we have and what stands there now: whoever changed a label is right;
        where both did, we are, and theirs is kept beside it."""
        merged = dict(theirs)
        for path in dict.fromkeys([*self.labels, *self._known]):
            base, ours, other = self._known.get(path), self.labels.get(path), theirs.get(path)
            if ours in (base, other):
                continue
            if other != base:
                self._conflict(Conflict(path, ours, other))
            if ours is None:
                merged.pop(path, None)
            else:
                merged[path] = ours
        return merged

    def _conflict(self, one: Conflict) -> None:
        beside = self.path.with_name(self.path.stem + OTHERS)
        before = read_text(beside, "file of labels") if beside.exists() else _line(HEADER)
        write_file(beside, before + _line((one.path, one.theirs or "")))
        self.conflicts.append(one)

    def _write(self, labels: Mapping[str, str]) -> None:
        others = [name for name in self._header if name not in HEADER]
        # rows that somebody wrote stay: in their order where they say more, and where they have no label
        stay = self._more if others else [path for path in self._more if path not in labels]
        paths = dict.fromkeys([*stay, *labels])
        lines = [_line(self._header)]
        for path in paths:
            cells = {"path": path, "label": labels.get(path, ""), **self._more.get(path, {})}
            lines.append(_line([cells.get(name, "") for name in self._header]))
        text = "".join(lines)
        write_file(self.path, text)
        # looked at once more: another program may have written since
        self._stamp, self._digest = None, hash_of(text.encode())
        self.labels = dict(labels)
        self._known = dict(labels)


def _stamp(path: Path) -> tuple[int, ...] | None:
    """When a file was changed, how large it is, and which; None where there is none."""
    with contextlib.suppress(OSError):
        found = os.stat(path)
        return found.st_mtime_ns, found.st_size, found.st_ino
    return None


def _line(cells: Sequence[str]) -> str:
    return csv_text(cells, [])


def _rows(text: str, path: Path) -> tuple[tuple[str, ...], dict[str, str], dict[str, dict[str, str]]]:
    """The header, labels by path, and the other cells by path. Errors: WordsightError for what is no table of
    path and label, or gives one image two labels."""
    try:
        rows = [list(map(as_it_was, row)) for row in csv.reader(io.StringIO(text, newline="")) if row]
    except csv.Error as error:
        raise WordsightError(f"{str(path)!r} cannot be read as CSV: {error}") from error
    header = tuple(name.strip() for name in rows[0]) if rows else HEADER
    if twice := [name for name, count in Counter(header).items() if count > 1]:
        raise WordsightError(f"{str(path)!r} has two columns {twice[0]!r}; give each a name of its own")
    if not set(HEADER) <= set(header):
        raise WordsightError(
            f"{str(path)!r} has the columns {', '.join(header)}; labels are kept in columns path and label. "
            f"Give another file: out=labels.csv"
        )
    labels: dict[str, str] = {}
    more: dict[str, dict[str, str]] = {}
    for row in rows[1:]:
        if len(row) != len(header):
            raise WordsightError(
                f"a row of {str(path)!r} has {len(row)} cells, the header has {len(header)}: {row[0]!r:.60}"
            )
        cells = dict(zip(header, row))
        name, label = cells.pop("path"), nfc(cells.pop("label").strip())
        if label and labels.setdefault(name, label) != label:
            raise WordsightError(
                f"{str(path)!r} gives {name!r} two labels, {labels[name]!r} and {label!r}; delete one row"
            )
        more[name] = cells
    return header, labels, more
