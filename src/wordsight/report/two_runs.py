"""Two runs image by image: which images only one of them has right, which neither has, and whether they
differ by more than chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from wordsight.config import WordsightError, model_of
from wordsight.metrics import paired_difference
from wordsight.report.differences import Difference, in_words
from wordsight.report.reading import PARTS, Measured, Prediction
from wordsight.report.rows import ABSENT, differences, short_names
from wordsight.report.tables import Table

CLASSES = 10  # that changed most
NAMES = ("A", "B")
KINDS = ("both right", "only A right", "only B right", "both wrong")
WORDS = frozenset(("data", "classes", "class"))
NOTHING = (
    "There is no test image of which both folders keep a prediction; `wordsight eval RUN data=...` tests a "
    "run on other data."
)


class Both(NamedTuple):
    """What both said of one image."""

    image: str
    label: str
    said: tuple[Prediction, Prediction]

    @property
    def right(self) -> tuple[bool, bool]:
        first, second = self.said
        return first.predicted == self.label, second.predicted == self.label

    @property
    def kind(self) -> str:
        first, second = self.right
        return KINDS[2 * (not first) + (not second)]

    @property
    def sureness(self) -> float:
        """The highest probability of a wrong answer."""
        return max((one.probability for one, right in zip(self.said, self.right) if not right), default=0.0)


@dataclass(frozen=True)
class Beside:
    """What two runs said of the test images of one source and part of its classes."""

    runs: tuple[Measured, Measured]
    data: str  # as the first of them names it
    part: str
    answers: tuple[Both, ...]
    left_out: int = 0  # images of the same name whose true class is not the same in both

    @property
    def counts(self) -> dict[str, int]:
        found = [one.kind for one in self.answers]
        return {kind: found.count(kind) for kind in KINDS}

    @property
    def difference(self) -> Difference:
        """A minus B."""
        first, second = np.array([one.right for one in self.answers]).T
        seeds = (int(any(run.settings.needs_labels for run in self.runs)),)
        return Difference(*paired_difference(first, second), seeds=seeds, images=len(self.answers))


@dataclass(frozen=True)
class TwoRuns:
    """Two runs, A and B, on all that both were tested on, which may be nothing."""

    labels: tuple[str, str]
    parts: tuple[Beside, ...]

    @property
    def words(self) -> list[str]:
        """Who A and B are, and which differences hold: sentences."""
        said = [f"A: {self.labels[0]}. B: {self.labels[1]}."]
        for one in self.parts:
            said += [f"{one.part}: {text}" for text in in_words({"A": one.difference}, "B")]
            if one.left_out:
                said.append(
                    f"{one.part}: {one.left_out:,} images are left out, as their true class is not the same "
                    f"in both runs."
                )
        return said if self.parts else [*said, NOTHING]

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        parts = []
        for one in self.parts:
            gap = one.difference
            counts = {kind.replace(" ", "_"): count for kind, count in one.counts.items()}
            interval = {"difference": gap.mean, "low": gap.low, "high": gap.high, "verdict": gap.verdict}
            known = {"data": one.data, "classes": one.part, "images": len(one.answers)}
            parts.append(known | counts | interval)
        return {"A": self.labels[0], "B": self.labels[1], "parts": parts}


def two_runs(runs: Sequence[Measured]) -> TwoRuns | None:
    """None where there are not two."""
    if len(runs) != 2:
        return None
    first, second = runs
    found = []
    for data, there in shared_data(first, second).items():
        for part in PARTS:
            answers, left_out = answers_of(table_of(first, data, part), table_of(second, there, part))
            if answers:
                found.append(Beside((first, second), data, part, answers, left_out))
    return TwoRuns(labels_of(first, second), tuple(found))


def shared_data(first: Measured, second: Measured) -> dict[str, str]:
    """{data as the first names it: as the second does}: of equal names, or of equal test images."""
    tested = [[run.settings.data, *(one.data for one in run.evaluations)] for run in (first, second)]
    shared = {data: data for data in tested[0] if data in tested[1]}
    content = first.run.facts.test
    if content and content == second.run.facts.test:
        shared[first.settings.data] = second.settings.data
    return shared


def table_of(run: Measured, data: str, part: str) -> Mapping[str, Prediction]:
    """Predictions by image; of one name, the second is another image. Nothing where there is no table."""
    try:
        predictions = run.predictions(data, part)
    except (WordsightError, OSError):
        return {}
    found: dict[str, Prediction] = {}
    times: dict[str, int] = {}
    for one in predictions:
        times[one.image] = times.get(one.image, 0) + 1
        found[f"{one.image}\0{times[one.image]}"] = one  # no file has such a name
    return found


def answers_of(
    first: Mapping[str, Prediction], second: Mapping[str, Prediction]
) -> tuple[tuple[Both, ...], int]:
    """What both said of each image that both have, and how many were left out, as their labels differ."""
    both = [(one, second[key]) for key, one in first.items() if key in second]
    same = [Both(one.image, one.label, (one, other)) for one, other in both if one.label == other.label]
    return tuple(same), len(both) - len(same)


def labels_of(first: Measured, second: Measured) -> tuple[str, str]:
    """What tells the two apart: the name, and the settings that differ."""
    runs = (first, second)
    names = [run.settings.name or run.settings.method for run in runs]
    own = differences([run.settings for run in runs])
    backbones, data = (
        short_names(getattr(run.settings, key) for run in runs) for key in ("backbone", "data")
    )
    also = [
        {
            "backbone": backbones[model_of(run.settings)],
            "data": data[run.settings.data],
            "shots": run.settings.shots if run.settings.needs_labels else None,
            "seed": run.settings.seed,
            "classes": run.settings.classes,
        }
        for run in runs
    ]
    differ = [
        key for key in also[0] if also[0][key] != also[1][key] and None not in (also[0][key], also[1][key])
    ]
    labels = [
        " ".join(filter(None, (name, text, *(f"{key}={values[key]}" for key in differ))))
        for name, text, values in zip(names, own, also)
    ]
    if labels[0] == labels[1]:
        labels = [f"{label} ({run.folder})" for label, run in zip(labels, runs)]
    return labels[0], labels[1]


# -- what is shown --


def beside_table(found: Sequence[Beside]) -> Table:
    short = short_names(one.data for one in found)
    lines = []
    for one in found:
        line = {"data": short[one.data], "classes": one.part, "images": f"{len(one.answers):,}"}
        line |= {kind: f"{count:,}" for kind, count in one.counts.items()}
        lines.append(line | {"A − B": str(one.difference)})
    return Table.of(lines, words=WORDS)


def beside_records(found: Sequence[Beside]) -> Table:
    """What both said of every image, one line each."""
    lines = [
        {
            "data": one.data,
            "classes": one.part,
            "image": each.image,
            "label": each.label,
            "kind": each.kind,
            **{f"predicted_{name}": said.predicted for name, said in zip(NAMES, each.said)},
            **{f"probability_{name}": said.probability for name, said in zip(NAMES, each.said)},
        }
        for one in found
        for each in one.answers
    ]
    return Table.of(lines)


def changed_classes(one: Beside) -> Table | None:
    """The classes whose recall differs most; None where none does."""
    totals: dict[str, list[tuple[bool, bool]]] = {}
    for each in one.answers:
        totals.setdefault(each.label, []).append(each.right)
    recalls = {name: 100 * np.mean(np.array(rights), 0) for name, rights in totals.items()}
    gaps = {name: float(first - second) for name, (first, second) in recalls.items()}
    order = sorted((name for name in gaps if gaps[name]), key=lambda name: -abs(gaps[name]))[:CLASSES]
    lines = [
        {"class": name, "images": f"{len(totals[name]):,}"}
        | {f"recall {who}": f"{value:.1f}" for who, value in zip(NAMES, recalls[name])}
        | {"A − B": f"{gaps[name]:+.1f}" if gaps[name] else ABSENT}
        for name in order
    ]
    return Table.of(lines, words=WORDS, dense=True) if lines else None
