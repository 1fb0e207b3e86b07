"""Zero-shot: what was measured by words alone on datasets as they are tested, beside what is printed of the
24 of CLAMP's tables. A row of one template and one of an ensemble stay apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from statistics import fmean
from typing import Any

from wordsight.data.zeroshot24 import Entry, entries, key_of, table
from wordsight.files import plain_name
from wordsight.report.reading import mapping, number, whole
from wordsight.report.rows import ABSENT, Row, short_names, split_by
from wordsight.report.tables import Table

HASHES = {"names": "class_names", "templates": "templates"}  # columns, and what of an event they are
SHORT = 5  # signs of a hash that are shown
PRINTED = "published"  # what stands as the backbone of rows that others have printed
TITLE = "Zero-shot"
LEGEND = (
    "Top-1 in percent on the test part, by words alone; mAP where images show several classes. mean: over "
    "the datasets that all our rows have, of every row. One template and an ensemble are different rows: on "
    "the 24 they are 4.5 points apart for the same weights."
)
EACH = (
    "top-1: mAP where images show several classes. chance: equal guessing. largest: the share of the most "
    "frequent prediction; where it is as high as the accuracy, the answer is constant. main: what DataComp "
    "reports of the dataset, mean recall per class or else top-1. hashes: of the class names and of the "
    "templates, equal where these are."
)


@dataclass(frozen=True)
class Judged:
    """One run that learned from no image, on one dataset; figures in percent, None where there is none."""

    row: Row
    event: Mapping[str, Any]
    name: str  # the dataset's key, or its folder's name, and that too where two folders have one key

    @property
    def entry(self) -> Entry | None:
        return entries().get(self.name)

    @property
    def title(self) -> str:
        return self.entry.title if self.entry else self.name

    @property
    def classes(self) -> int:
        return len(mapping(self.event.get("class_recall")) or mapping(self.event.get("average_precision")))

    def figure(self, name: str) -> float | None:
        return number(self.event.get(name), 100)

    @property
    def several(self) -> bool:
        """Whether its images show several classes each."""
        return self.event["event"] == "multilabel"

    @property
    def top1(self) -> float | None:
        return self.figure("mean_average_precision" if self.several else "accuracy")

    @property
    def top5(self) -> float | None:
        """None below five classes, as there is no fifth; 100 of five."""
        return 100.0 if self.classes == 5 and not self.several else self.figure("top5")

    @property
    def main(self) -> float | None:
        """What DataComp reports of the dataset."""
        by_class = self.entry is not None and self.entry.metric == "mean_per_class_recall"
        return self.figure("mean_class_recall") if by_class else self.top1


def judged(rows: Sequence[Row]) -> list[Judged]:
    """Of rows that nothing was drawn for, what was measured last on all classes of their own data."""
    found, names = [], names_of({row.data for row in rows})
    for row in rows:
        run = row.runs[0]
        events = [event for kind in ("eval", "multilabel") for event in run.events(kind)]
        place = (run.settings.data, "all")  # figures of some of the classes are of another task
        own = [event for event in events if (event.get("data"), event.get("classes")) == place]
        if run.settings.shots is None and not run.settings.needs_labels and row.trained == row.tested and own:
            found.append(Judged(row, own[-1], names[row.data]))
    return [one for one in found if one.top1 is not None]


def names_of(places: Iterable[str]) -> dict[str, str]:
    """How datasets are called, by data=."""
    keys = {place: key_of(place) or plain_name(place) for place in places}
    twice = {key for key, count in Counter(keys.values()).items() if count > 1}
    return {place: plain_name(place) if key in twice else key for place, key in keys.items()}


@dataclass(frozen=True)
class ZeroShot:
    """All of them: rows of a backbone and a method, datasets as columns."""

    all: tuple[Judged, ...]

    @cached_property
    def lines(self) -> dict[tuple[str, str], dict[str, Judged]]:
        """{(backbone, method): {dataset: what was measured}}."""
        groups = split_by(self.all, lambda one: (one.row.backbone, one.row.label))
        return {
            (group[0].row.backbone, group[0].row.label): {one.name: one for one in group} for group in groups
        }

    @cached_property
    def datasets(self) -> list[str]:
        """In the order of the paper, others behind."""
        names = {one.name for one in self.all}
        return [key for key in entries() if key in names] + sorted(names - entries().keys())

    @cached_property
    def shared(self) -> list[str]:
        """The datasets that every row has; the means are over these alone."""
        return [name for name in self.datasets if all(name in line for line in self.lines.values())]

    @property
    def table(self) -> Table:
        """Ours, then what is printed of the same datasets."""
        titles = {one.name: one.title for one in self.all}
        short = short_names(backbone for backbone, _ in self.lines)
        heads = [(short[backbone], label) for backbone, label in self.lines]
        figures = [{name: one.top1 for name, one in line.items()} for line in self.lines.values()]
        ours = len(figures)
        for row in table()["rows"] if set(self.datasets) & entries().keys() else ():
            heads.append((PRINTED, row))
            figures.append({key: entry.published.get(row) for key, entry in entries().items()})
        cells = [(*map(figure.get, self.datasets), self.mean(figure)) for figure in figures]
        columns = ("backbone", "method", *(titles[name] for name in self.datasets), self.averaged)
        rows = tuple((*head, *map(shown, line)) for head, line in zip(heads, cells))
        best = {
            (index, columns[place + 2])
            for place in range(len(columns) - 2)
            for index in highest([line[place] for line in cells[:ours]])
        }
        return Table(
            columns, rows, best=frozenset(best), begins=frozenset({ours} if len(rows) > ours else ())
        )

    @property
    def averaged(self) -> str:
        return f"mean of {len(self.shared)}"

    def mean(self, figures: Mapping[str, float | None]) -> float | None:
        values = [value for name in self.shared if (value := figures.get(name)) is not None]
        return fmean(values) if values and len(values) == len(self.shared) else None

    @property
    def records(self) -> Table:
        """A line for every row and dataset, in full precision; None where there is no figure."""
        short = short_names(backbone for backbone, _ in self.lines)
        place = {name: at for at, name in enumerate(self.datasets)}
        ordered = sorted(self.all, key=lambda one: place[one.name])
        return Table.of([record_of(one, short[one.row.backbone]) for one in ordered])

    @property
    def each(self) -> Table:
        """The same as it is shown: without the backbone where there is one, the beginnings of both hashes in
        one column."""
        records = self.records
        left = {"backbone"} if len({backbone for backbone, _ in self.lines}) == 1 else set()
        kept = [at for at, column in enumerate(records.columns) if column not in {*left, *HASHES}]
        places = [records.columns.index(name) for name in HASHES]
        rows = [
            (*(shown(row[at]) for at in kept), " ".join(shown(row[at])[:SHORT] for at in places))
            for row in records.rows
        ]
        return Table((*(records.columns[at] for at in kept), "hashes"), tuple(rows))

    @property
    def notes(self) -> tuple[str, ...]:
        """Below the table: the legend, whose test part is another than the paper's, and sources."""
        sizes = {one.name: other_size(one) for one in self.all}
        other = "; ".join(text for text in sizes.values() if text)
        printed = {row: f"{row}: {said['says']} ({said['source']})" for row, said in table()["rows"].items()}
        known = bool(set(self.datasets) & entries().keys())
        sources = "Published, for orientation, other towers and images: " + "; ".join(printed.values()) + "."
        said = f"Not the test part of the paper: {other}. Figures do not compare." if other else ""
        return tuple(filter(None, (LEGEND, said, sources if known else "")))


def zero_shot(rows: Sequence[Row]) -> ZeroShot | None:
    """None where nothing was measured so."""
    found = judged(rows)
    return ZeroShot(tuple(found)) if found else None


def record_of(one: Judged, backbone: str) -> dict[str, Any]:
    hashes = {name: str(one.event.get(f"{key}_hash", "")) for name, key in HASHES.items()}
    return {
        "data": one.title,
        "backbone": backbone,
        "method": one.row.label,
        "images": whole(one.event.get("images")),
        "classes": one.classes,
        "chance": one.figure("chance"),
        "top-1": one.top1,
        "top-5": one.top5,
        "recall": one.figure("mean_class_recall"),
        "main": one.main,
        "largest": one.figure("largest_predicted_share"),
        **hashes,
    }


def other_size(one: Judged) -> str:
    """'CIFAR-10 2,000 of 10,000 images, ...'; nothing where it is of the paper's size."""
    entry, images = one.entry, whole(one.event.get("images"))
    if entry is None or (images, one.classes) == (entry.images, entry.classes):
        return ""
    ours = f"{images or 0:,} images of {one.classes} classes"
    return f"{entry.title} {ours} for {entry.images:,} of {entry.classes}"


def highest(values: Sequence[float | None]) -> list[int]:
    """Where the highest stand, as shown; nowhere, where nothing is compared."""
    known = {place: round(value, 1) for place, value in enumerate(values) if value is not None}
    return [place for place, value in known.items() if value == max(known.values())] if len(known) > 1 else []


def shown(value: Any) -> str:
    if value is None:
        return ABSENT
    return (
        f"{value:.1f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else str(value)
    )
