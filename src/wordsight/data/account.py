"""Account: everything a source showed was kept, or is told with the reason why it was not."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

log = logging.getLogger("wordsight")

KEPT_NAMES = 1000  # names that are kept of each reason; all are counted
UNLABELLED = "without a label"  # the reason of images that are kept in Dataset.unlabelled


@dataclass
class LeftOut:
    """How many things one reason left out, and the names of the first."""

    count: int = 0
    names: list[str] = field(default_factory=list)


@dataclass
class Account:
    """What was seen in a source: files of a folder, rows of a table, members of a tar.

    `seen` is counted where things are met, `kept` where a labelled image or a captioned one is made of them,
    and each other one is left out under a reason: seen = kept + left out, or `check` fails. Files that belong
    to a kept image, as key.cls does to key.jpg in a tar, are part of it and not counted by themselves.
    A remark tells what lost nothing: two folders read as one class, a class without test images."""

    unit: str = "file"
    seen: int = 0
    kept: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)

    def leave(self, reason: str, names: str | Sequence[str], count: int = 1) -> None:
        """Count what was seen and is not kept. `reason` follows a plural noun, as "without a label" does."""
        entry = self.left_out.setdefault(reason, LeftOut())
        entry.count += count
        new = [names] if isinstance(names, str) else names
        entry.names += new[: KEPT_NAMES - len(entry.names)]

    def remark(self, sentence: str) -> None:
        if sentence not in self.remarks:
            self.remarks.append(sentence)

    def add(self, other: Account) -> None:
        """Count another source's things here too."""
        self.seen += other.seen
        self.kept += other.kept
        for reason, entry in other.left_out.items():
            own = self.left_out.setdefault(reason, LeftOut())
            own.count += entry.count
            own.names += entry.names[: KEPT_NAMES - len(own.names)]
        for sentence in other.remarks:
            self.remark(sentence)

    def check(self) -> None:
        """Fail where something was seen and is neither kept nor told: a mistake of ours, not the user's."""
        told = sum(entry.count for entry in self.left_out.values())
        assert self.seen == self.kept + told, f"{self.seen} {self.unit}s seen, {self.kept} kept, {told} told"

    def notes(self) -> tuple[str, ...]:
        """The account in sentences for the user; empty where all was kept and nothing is remarkable."""
        out = [
            f"left out {entry.count:,} of {counted(self.seen, self.unit)} {reason}: "
            f"{few(entry.names, total=entry.count)}"
            for reason, entry in self.left_out.items()
        ]
        return (*out, *self.remarks)

    def tell(self) -> None:
        """Say it to the user."""
        for note in self.notes():
            log.info(note)

    def to_dict(self) -> dict[str, Any]:
        """The account as JSON holds it."""
        left_out = {
            reason: {"count": entry.count, "names": entry.names} for reason, entry in self.left_out.items()
        }
        return {"seen": self.seen, "kept": self.kept, "left_out": left_out, "remarks": self.remarks}


def few(names: Iterable[str], joint: str = ", ", most: int = 5, total: int | None = None) -> str:
    """The first names, and how many more there are."""
    names = list(names)
    more = (len(names) if total is None else total) - most
    return joint.join(names[:most]) + (f" and {more:,} more" if more > 0 else "")


def counted(count: int, noun: str) -> str:
    """`1 file`, `1,200 files`."""
    return f"{count:,} {noun}" + "s" * (count != 1)
