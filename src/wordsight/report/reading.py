"""Reading: what a run folder says was measured, read without trust.

Folders come from other versions, other programs and killed processes. A value that is not of its kind is
left out and told; it never ends the report."""

from __future__ import annotations

import logging
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from wordsight.config import AskedSettings, WordsightError
from wordsight.early import WEIGHTS_FILE
from wordsight.files import csv_rows, read_bytes, read_json, read_text
from wordsight.metrics import Confusion
from wordsight.report.reliability import Reliability, reliability
from wordsight.report.values import counts, mapping, number, numbers, parsed, texts, whole
from wordsight.runs import Run, predictions_file

ROLES = ("zero_shot", "linear_probe")  # what every fit is measured beside
PARTS = ("all", "base", "new")  # of the classes
COLUMNS = ("image", "label", "predicted", "probability")
CAPTION_FIGURES = {
    "cider_d": "CIDEr-D",
    "bleu_4": "BLEU-4",
    "clip_score": "CLIPScore",
    "ref_clip_score": "RefCLIPScore",
}
WAYS = {"image_to_text": "i→t", "text_to_image": "t→i"}  # of retrieval
ROUNDED = 1e-3  # percent by which an accuracy, once float32, may differ from its table's
NO_LABELS = 0  # the shots of a method that takes none
ALL_LABELS = 10**9  # shots=null, sorted after every number

log = logging.getLogger("wordsight")


class Reference(NamedTuple):
    """Another method on the same test images, and ours minus it with its interval over these images."""

    accuracy: float
    difference: tuple[float, float, float] | None  # mean, low, high


@dataclass(frozen=True)
class Evaluation:
    """What one evaluation measured, in percent. A figure is None where the folder does not have it."""

    data: str
    part: str
    accuracy: float
    images: int | None = None
    chance: float | None = None
    folds: int | None = None  # of a cross-validation; None where there were test images
    interval: tuple[float, float] | None = None  # of the accuracy, over images
    names: tuple[str, ...] = ()
    counts: Confusion | None = field(default=None, compare=False)
    references: Mapping[str, Reference] = field(default_factory=dict)
    reliability: Reliability | None = field(default=None, compare=False)


@dataclass(frozen=True)
class Account:
    """What a run's data held."""

    seen: int
    kept: int
    left_out: Mapping[str, tuple[int, tuple[str, ...]]]  # by reason: how many, and the names of some
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prediction:
    """A test image and what was said of it."""

    image: str
    label: str
    predicted: str
    probability: float
    sentence: str = ""  # the closest one; empty where the folder has none
    cosine: float | None = None


def by_probability(one: Prediction) -> float:
    return -one.probability


class Measured:
    """A finished run with what was measured of it, read once. What cannot be read is told when it is met.

    `data` is what its own data is called, where another run has the same under another path."""

    def __init__(self, run: Run, data: str | None = None):
        self.run, self._data = run, data or run.kept.data
        # read once, by data and part
        self._right: dict[tuple[str, str], dict[str, bool]] = {}
        self._predictions: dict[tuple[str, str], list[Prediction]] = {}

    @cached_property
    def settings(self) -> AskedSettings:
        kept = self.run.kept
        return kept if kept.data == self._data else replace(kept, data=self._data)

    @property
    def folder(self) -> Path:
        return self.run.folder

    @property
    def shots(self) -> int:
        """Labelled images per class: a number, NO_LABELS or ALL_LABELS."""
        if not self.settings.needs_labels:
            return NO_LABELS
        return ALL_LABELS if self.settings.shots is None else self.settings.shots

    def events(self, kind: str) -> list[dict[str, Any]]:
        """What was measured, by the name that its data has here."""
        own = {"data": self._data}
        found = self.run.events(kind)
        return [event | own if event.get("data") == self.run.kept.data else event for event in found]

    @cached_property
    def evaluations(self) -> list[Evaluation]:
        """In the order in which they were made. Those of a reference method are under its name in
        `references` of the run's own.
        """
        self._tell_lines()
        events = self.events("eval")
        own = [event for event in events if event.get("role") not in ROLES]
        read = [evaluation(event, references(event, events)) for event in own]
        self._tell(read.count(None), len(read), "evaluation")
        return [one for one in read if one is not None]

    @cached_property
    def retrievals(self) -> dict[str, dict[str, float]]:
        """{data: {"i→t @1": recall}}, the last of each data."""
        events = self.events("retrieval")
        read = [(event.get("data"), recalls(event)) for event in events]
        usable = [(data, figures) for data, figures in read if isinstance(data, str) and figures]
        self._tell(len(read) - len(usable), len(read), "retrieval")
        return dict(usable)

    @cached_property
    def captionings(self) -> dict[str, dict[str, float]]:
        """{data: {"CIDEr-D": figure}}, the last of each data, times 100 as papers print them."""
        events = self.events("captions")
        read = [(event.get("data"), caption_figures(event)) for event in events]
        usable = [(data, figures) for data, figures in read if isinstance(data, str) and figures]
        self._tell(len(read) - len(usable), len(read), "captioning")
        return dict(usable)

    @cached_property
    def seconds(self) -> float | None:
        """Of the fit alone."""
        known = number(mapping(self._fit.get("seconds")).get("fit"))
        if self._fit and known is None:
            log.warning(
                "%s: the seconds of its fit are left out: metrics.jsonl does not say them", self.folder
            )
        return known

    @cached_property
    def rate(self) -> tuple[float, bool] | None:
        """The learning rate that was taken of several, and whether validation images chose it."""
        events = self.run.events("rate")
        known = number(events[-1].get("rate")) if events else None
        return None if known is None else (known, bool(events[-1].get("tried")))

    @cached_property
    def parameters(self) -> int | None:
        """Fitted numbers; those of a closed form are counted in its weights."""
        known = whole(self._fit.get("parameters"))
        if known != 0:
            return known
        try:
            with safe_open(self.folder / WEIGHTS_FILE, "numpy") as held:
                names = held.keys()
                return sum(math.prod(held.get_slice(name).get_shape()) for name in names)
        except (SafetensorError, OSError) as error:
            log.warning("%s: the number of parameters is left out: %s", self.folder, error)
            return None

    @cached_property
    def account(self) -> Account | None:
        """None where the folder has none, or none that can be read."""
        path = self.folder / "account.json"
        if not path.exists():
            return None
        try:
            found = account(read_json(path, "account"))
        except WordsightError as error:
            log.warning("%s: the account of the data is left out: %s", self.folder, error)
            return None
        if found is None:
            log.warning("%s: account.json is left out: it holds no account of the data", self.folder)
        return found

    def last(self) -> Evaluation | None:
        """The last evaluation on the run's own data and classes."""
        part = "all" if self.settings.classes == "all" else "base"
        mine = [one for one in self.evaluations if (one.data, one.part) == (self.settings.data, part)]
        return mine[-1] if mine else None

    def predictions(self, data: str | None = None, part: str | None = None) -> list[Prediction]:
        """Of the run's own test images, or of other data. Errors: WordsightError where there is no such
        table.
        """
        part = part or ("all" if self.settings.classes == "all" else "base")
        key = (data or self.settings.data, part)
        if key not in self._predictions:
            self._predictions[key] = self._read_predictions(*key)
        return self._predictions[key]

    def _read_predictions(self, data: str, part: str) -> list[Prediction]:
        path, rows = self._predicted(predictions_file(part, None if data == self.settings.data else data))
        absent = [name for name in COLUMNS if rows and not any(name in row for row in rows)]
        if absent:
            raise WordsightError(
                f"{path} has no column {absent[0]!r}; `wordsight eval {self.folder}` writes it anew"
            )
        read = [prediction(row) for row in rows]
        self._tell(read.count(None), len(read), "prediction")
        return [one for one in read if one is not None]

    def right(self, data: str, part: str, accuracy: float) -> Mapping[str, bool] | None:
        """Whether each test image, by its name, was classified rightly, where the folder keeps the table that
        this accuracy is of; None where it does not.
        """
        if (data, part) not in self._right:
            try:
                _, rows = self._predicted(
                    predictions_file(part, None if data == self.settings.data else data)
                )
            except WordsightError:
                rows = []
            self._right[data, part] = right_by_image(rows)
        found = self._right[data, part]
        fits = found and abs(100 * sum(found.values()) / len(found) - accuracy) < ROUNDED
        return found if fits else None

    def _predicted(self, file: str) -> tuple[Path, list[dict[str, str]]]:
        path = self.folder / file
        if not path.is_file():
            raise WordsightError(f"{path} is not there; `wordsight eval {self.folder}` writes it")
        return path, csv_rows(read_text(path, "predictions"))

    @cached_property
    def _fit(self) -> dict[str, Any]:
        events = self.run.events("fit")
        return events[-1] if events else {}

    def _tell_lines(self) -> None:
        path = self.folder / "metrics.jsonl"
        lines = read_bytes(path, "events").split(b"\n") if path.exists() else []
        filled = sum(bool(line.strip()) for line in lines)
        self._tell(filled - len(self.run.events()), filled, "line")

    def _tell(self, unread: int, of: int, what: str) -> None:
        if unread:
            noun = f"{what}s" if of != 1 else what
            log.warning("%s: %d of %d %s could not be read and are left out", self.folder, unread, of, noun)


# -- events --


def evaluation(event: Mapping[str, Any], others: Mapping[str, Reference]) -> Evaluation | None:
    """None where it lacks its data, its classes or its accuracy."""
    data, part, accuracy = event.get("data"), event.get("classes"), number(event.get("accuracy"), 100)
    if not isinstance(data, str) or part not in PARTS or accuracy is None:
        return None
    names, found = matrix(event)
    interval = numbers(event.get("interval"), 2)
    rest: dict[str, Any] = {
        "images": whole(event.get("images")),
        "chance": number(event.get("chance"), 100),
        "folds": whole(event.get("folds")),
        "interval": interval and (interval[0], interval[1]),
    }
    rest |= {"reliability": reliability(event), "references": others}
    return Evaluation(data, part, accuracy, **rest, names=names, counts=found)


def matrix(event: Mapping[str, Any]) -> tuple[tuple[str, ...], Confusion | None]:
    """Class names and confusion matrix; neither where they do not fit each other."""
    names, found = tuple(mapping(event.get("class_recall"))), mapping(event.get("confusion"))
    classes = [counts(found.get(key), len(names) - 1) for key in ("true", "predicted")]
    columns = [column for column in (*classes, counts(found.get("images"))) if column is not None]
    if len(columns) < 3 or len({len(column) for column in columns}) > 1 or not len(columns[0]):
        return (), None
    return names, Confusion(*columns, classes=len(names))


def references(event: Mapping[str, Any], events: list[dict[str, Any]]) -> dict[str, Reference]:
    """By method: those that the event names, else those of the same data and classes that have a role."""
    own = mapping(event.get("references"))
    beside = {
        other["role"]: other
        for other in events
        if other.get("role") in ROLES and all(other.get(key) == event.get(key) for key in ("data", "classes"))
    }
    found = {}
    for name, entry in (beside | own).items():
        accuracy = number(mapping(entry).get("accuracy"), 100)
        gap = numbers(mapping(entry).get("difference"), 3, 100, -100)
        if accuracy is not None:
            found[name] = Reference(accuracy, None if gap is None else (gap[0], gap[1], gap[2]))
    return found


def caption_figures(event: Mapping[str, Any]) -> dict[str, float]:
    found = {name: number(event.get(key)) for key, name in CAPTION_FIGURES.items()}
    return {name: 100 * value for name, value in found.items() if value is not None}


def recalls(event: Mapping[str, Any]) -> dict[str, float]:
    """{"i→t @1": recall, ...}, both ways."""
    read = {
        f"{arrow} {key.removeprefix('recall')}": number(value, 100)
        for way, arrow in WAYS.items()
        for key, value in mapping(event.get(way)).items()
    }
    return {key: value for key, value in read.items() if value is not None}


def account(loaded: Any) -> Account | None:
    """None for what is no account."""
    seen, kept = (whole(mapping(loaded).get(key)) for key in ("seen", "kept"))
    if seen is None or kept is None:
        return None
    reasons = {
        reason: (whole(mapping(entry).get("count")), texts(mapping(entry).get("names")))
        for reason, entry in mapping(loaded.get("left_out")).items()
    }
    left_out = {reason: (count, names) for reason, (count, names) in reasons.items() if count is not None}
    return Account(seen, kept, left_out, texts(loaded.get("remarks")))


def prediction(row: Mapping[str, str]) -> Prediction | None:
    """None for a row that lacks a cell, or whose probability is none."""
    chance = number(parsed(row.get("probability", "")), 1)
    if chance is None or any(name not in row for name in COLUMNS):
        return None
    cosine = number(parsed(row.get("cosine", "")), 1.01, -1.01)  # rounded
    image, label, predicted = (row[name] for name in COLUMNS[:3])
    return Prediction(image, label, predicted, chance, row.get("sentence", ""), cosine)


def right_by_image(rows: Sequence[Mapping[str, str]]) -> dict[str, bool]:
    """Whether each was classified rightly; of one name, the second image is another. Nothing where a row
    lacks a cell. Equal names are one text in memory, whatever the number of runs."""
    if not all(name in row for row in rows for name in COLUMNS):
        return {}
    times: Counter[str] = Counter()
    found: dict[str, bool] = {}
    for row in rows:
        name = row["image"]
        times[name] += 1
        place = name if times[name] == 1 else f"{name}\0{times[name]}"  # no file has such a name
        found[sys.intern(place)] = row["label"] == row["predicted"]
    return found
