"""Answers: what is said of images, batch by batch, so that as many images as a disk holds need no more memory
than a few hundred; whoever says it. Imports no torch."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float

from wordsight.data import Picture
from wordsight.data.pictures import EachImage
from wordsight.doubts import Doubts, conformal
from wordsight.early import check_marks
from wordsight.files import csv_line

if TYPE_CHECKING:
    from wordsight.fitted import Closest, Decisive


class Answer(NamedTuple):
    """What a run says about one image."""

    image: str
    probabilities: np.ndarray  # [C], in the order of Predictions.class_names
    unsure: bool  # whether it is below the threshold, or its set has not exactly one class
    sentences: Sequence[Closest]  # the closest first, where asked for
    decisive: Decisive | None  # where asked for; None, too, where no sentence raised the class
    among: tuple[str, ...] | None = (
        None  # the classes not ruled out at the wanted error rate, the likeliest first
    )
    unlike: bool | None = None  # whether it is unlike all training images; None where nothing tells


class Answered(NamedTuple):
    """What is said of some pictures of a batch: those that can be read."""

    kept: Sequence[int]  # places of these pictures
    chances: np.ndarray  # [n, C]
    closest: Sequence[Sequence[Closest]]
    decisive: Sequence[Decisive | None]
    skipped: Sequence[tuple[str, str]]  # names of the others, with why
    unlike: Sequence[bool] | None = None  # which are unlike all training images, where something tells


class Predictor(Protocol):
    """Whatever says how likely classes are."""

    @property
    def names(self) -> tuple[str, ...]:
        """The classes, in the order of the probabilities."""
        ...

    @property
    def doubts(self) -> Doubts:
        """What it knows of its doubts among these classes."""
        ...

    def __call__(self, pictures: list[Picture], explain: int, max_pixels: int | None) -> Iterator[Answered]:
        """Of the pictures of one batch, some at a time, with so many sentences each."""
        ...


class Predictions(EachImage[Answer]):
    """Answers in the order of the images (EachImage)."""

    def __init__(
        self,
        predictor: Predictor,
        images: Sequence[Any],
        *,
        max_pixels: int | None = None,
        unsure: float | None = None,
        error: float | None = None,
        explain: int = 0,
        csv: str | Path | None = None,
    ):
        check_marks(unsure, error)
        super().__init__(images, max_pixels=max_pixels, csv=csv)
        self.class_names = predictor.names
        self.unsure = unsure
        # from which probability on a class is in an image's set; None where no sets are wanted
        self.lowest = None if error is None else predictor.doubts.lowest(error)
        self.predictor, self.explain = predictor, explain

    @property
    def marks(self) -> bool:
        """Whether answers that are not certain are marked."""
        return self.unsure is not None or self.lowest is not None

    def best(self, answer: Answer, top: int = 1) -> list[tuple[str, float]]:
        """The likeliest classes of an answer with their probabilities, the likeliest first."""
        order = answer.probabilities.argsort()[::-1][:top]
        return [(self.class_names[place], float(answer.probabilities[place])) for place in order]

    def entry(self, answer: Answer, top: int = 1) -> dict[str, Any]:
        """An answer as JSON holds it."""
        entry: dict[str, Any] = {
            "image": answer.image,
            "classes": [
                {"class": name, "probability": round(chance, 4)} for name, chance in self.best(answer, top)
            ],
        }
        if self.marks:
            entry["unsure"] = answer.unsure
        if answer.among is not None:
            entry["set"] = list(answer.among)
        if answer.unlike is not None:
            entry["unlike"] = answer.unlike
        if self.explain:
            entry["sentences"] = [
                {"class": near.name, "sentence": near.sentence, "cosine": round(near.cosine, 4)}
                for near in answer.sentences
            ]
            entry["decisive"] = _plain(answer.decisive)
        return entry

    def _of(self, batch: Sequence[Picture]) -> Iterator[Answer]:
        for found in self.predictor(list(batch), self.explain, self._max_pixels):
            self._skip(found.skipped)
            yield from self.answers_of(batch, found)

    def answers_of(self, batch: Sequence[Picture], found: Answered) -> Iterator[Answer]:
        """The answers about those pictures of a batch that could be read."""
        strange = found.unlike or [None] * len(found.kept)
        each = zip(found.kept, found.chances, found.closest, found.decisive, strange)
        for place, row, sentences, one, odd in each:
            among = self._among(row)
            low = self.unsure is not None and bool(row.max() < self.unsure)
            unsure = low or (among is not None and len(among) != 1)
            yield Answer(batch[place].name, row, unsure, sentences, one, among, odd)

    def _among(self, chances: Float[np.ndarray, " C"]) -> tuple[str, ...] | None:
        """The classes in the set of an image, the likeliest first."""
        if self.lowest is None:
            return None
        inside = conformal.among(chances, self.lowest)
        return tuple(self.class_names[place] for place in chances.argsort()[::-1] if inside[place])

    def _header(self) -> list[str]:
        marks = ["unsure"] * self.marks + ["set"] * (self.lowest is not None)
        own = ["image", "predicted", *marks, *(["unlike"] * (math.isfinite(self.predictor.doubts.far)))]
        first, *last = (_apart(name, self.class_names) for name in own)
        return [first, *self.class_names, *last]

    def _row(self, answer: Answer) -> list[Any]:
        marked = ["unsure" if answer.unsure else ""] if self.marks else []
        if answer.among is not None:
            marked.append(csv_line(answer.among).decode().rstrip("\r\n"))  # as --classes reads names
        if answer.unlike is not None:
            marked.append("unlike" if answer.unlike else "")
        (predicted, _), *_ = self.best(answer)
        return [answer.image, *(f"{chance:.6g}" for chance in answer.probabilities), predicted, *marked]


def _plain(decisive: Decisive | None) -> dict[str, Any] | None:
    """What JSON holds of it."""
    if decisive is None:
        return None
    then = {"class": decisive.without, "probability": round(decisive.probability, 4)}
    return {
        "class": decisive.name,
        "runner_up": decisive.runner_up,
        "sentence": decisive.sentence,
        "raised": round(decisive.raised, 4),
        "without": then,
    }


def _apart(name: str, class_names: Sequence[str]) -> str:
    """A column's name that no class has."""
    return name if name not in class_names else _apart(name + "_", class_names)
