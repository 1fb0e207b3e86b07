"""Found: all that an audit says, by rows of the checked images, and the same as plain values for JSON."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from wordsight.audit.checked import Checked
from wordsight.audit.confusing import Alike
from wordsight.audit.copies import Copy
from wordsight.audit.errors import Doubt
from wordsight.audit.next_labels import Pick
from wordsight.audit.outliers import Outlier
from wordsight.data import Picture

DIGITS = 4  # of a score in JSON and CSV


class Proposal(NamedTuple):
    """An image of the pool to label, with what the run says it shows."""

    picture: Picture
    pick: Pick
    predicted: str
    chance: float


@dataclass(frozen=True)
class Found:
    """What an audit found."""

    checked: Checked
    doubts: Sequence[Doubt]
    groups: Sequence[
        Sequence[int]
    ]  # rows of images that are one; those beyond the checked ones are the pool's
    copies: Sequence[Copy]
    pool: Sequence[Picture]  # images without labels, in the order of the rows behind the checked ones
    outliers: Sequence[Outlier]
    confusing: Sequence[Alike]
    proposals: Sequence[Proposal]

    def image(self, row: int) -> dict[str, Any]:
        """A row as JSON names it."""
        if row >= len(self.checked.images):
            return {"image": self.pool[row - len(self.checked.images)].name, "part": "pool", "label": None}
        image = self.checked.images[row]
        return {
            "image": image.picture.name,
            "part": image.part,
            "label": self.checked.names[image.label],
        }

    def across(self, group: Sequence[int]) -> bool:
        """Whether images that are one stand both among those that are learned from and those tested on."""
        parts = {self.image(row)["part"] for row in group}
        return "test" in parts and len(parts) > 1

    def disagree(self, group: Sequence[int]) -> bool:
        """Whether images that are one have several labels."""
        return len({label for row in group if (label := self.image(row)["label"]) is not None}) > 1

    def reasons(self) -> dict[int, list[str]]:
        """What was found of each labelled image, in words."""
        said: dict[int, list[str]] = {}
        for doubt in self.doubts:
            said.setdefault(doubt.row, []).append("label")
        for group in self.groups:
            for row in group:
                others = [self.image(other)["image"] for other in group if other != row]
                said.setdefault(row, []).append(f"copy of {', '.join(others)}")
        for one in self.outliers:
            said.setdefault(one.row, []).append(f"unlike its {one.of}")
        return said

    def to_dict(self, out: Path) -> dict[str, Any]:
        checked = self.checked
        parts = [image.part for image in checked.images]
        return {
            "run": str(checked.run.folder),
            "out": str(out),
            "images": {part: parts.count(part) for part in dict.fromkeys(parts)},
            "judged": len(checked.judged),
            "label_errors": [self._doubt(one) for one in self.doubts],
            "copies": [self._group(group) for group in self.groups],
            "outliers": [
                {**self.image(one.row), "unlike": one.of, "score": round(one.score, DIGITS)}
                for one in self.outliers
            ],
            "confusing": [_alike(one) for one in self.confusing],
            "next": [_proposal(one) for one in self.proposals],
        }

    def _doubt(self, one: Doubt) -> dict[str, Any]:
        return {
            **self.image(one.row),
            "suggested": self.checked.names[one.suggested],
            "score": round(one.score, DIGITS),
            "probability": round(one.chance, DIGITS),
        }

    def _group(self, group: Sequence[int]) -> dict[str, Any]:
        rows = set(group)
        pairs = [one for one in self.copies if {one.first, one.second} <= rows]
        return {
            "images": [self.image(row) for row in group],
            "same": all(one.same for one in pairs),
            "mirrored": any(one.mirrored for one in pairs),
            "likeness": round(min(one.likeness for one in pairs), DIGITS),
            "across": self.across(group),
            "labels_differ": self.disagree(group),
        }


def _alike(one: Alike) -> dict[str, Any]:
    return {
        "classes": [one.first, one.second],
        "cosine": round(one.cosine, DIGITS),
        "beyond": round(one.beyond, DIGITS),
        "images": one.images,
        "of": one.of,
        "sentences": list(one.sentences),
    }


def _proposal(one: Proposal) -> dict[str, Any]:
    return {
        "image": one.picture.name,
        "predicted": one.predicted,
        "probability": round(one.chance, DIGITS),
        "gain": round(one.pick.gain, DIGITS),
        "stands_for": one.pick.stands_for,
    }


def grouped(copies: Sequence[Copy]) -> list[list[int]]:
    """Rows that are one image, by pairs of them, in the order of the first."""
    group_of: dict[int, list[int]] = {}
    for one in copies:
        first, second = (group_of.setdefault(row, [row]) for row in (one.first, one.second))
        if first is not second:
            first += second
            group_of |= dict.fromkeys(second, first)
    return sorted({id(group): sorted(group) for group in group_of.values()}.values())
