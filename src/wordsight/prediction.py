"""Prediction: the classes of images by a run, batch by batch, so that as many images as a disk holds need no
more memory than a few hundred."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from jaxtyping import Float
from torch import Tensor

from wordsight.backbones.hub import run_folder
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.features import NoneReadable, image_features
from wordsight.data.given import Reading, pictures_in
from wordsight.doubts import NONE, Doubts, conformal
from wordsight.early import check_described, check_marks
from wordsight.files import csv_line, writing
from wordsight.fitted import Closest, Decisive, Fitted, at_once, is_asking, is_embedder, open_by_names
from wordsight.names import class_list
from wordsight.runs import NO_BACKBONE, Run
from wordsight.sentences import TEMPLATE_SETS
from wordsight.workers import progress

if TYPE_CHECKING:
    from wordsight.asked import Asked
    from wordsight.methods.likelihood import Scores

BATCH = 256  # images whose vectors and probabilities are held at once

log = logging.getLogger("wordsight")


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


@dataclass
class ByVectors:
    """A fitted method, by image vectors that are kept."""

    fitted: Fitted
    doubts: Doubts = NONE

    @property
    def names(self) -> tuple[str, ...]:
        return self.fitted.texts.names

    def __call__(self, pictures: list[Picture], explain: int, max_pixels: int | None) -> Iterator[Answered]:
        backbone = self.fitted.backbone
        assert backbone is not None  # `predict` refuses runs without one
        try:
            features = image_features(backbone, pictures, max_pixels=max_pixels)
        except NoneReadable as error:
            yield Answered([], np.empty((0, len(self.names))), [], [], error.skipped)
            return
        some, told = at_once(len(self.names)), features.skipped
        for start in range(0, len(features.kept), some):
            rows = slice(start, start + some)
            yield self.of(features.kept[rows], features.vectors[rows, 0], told, explain)
            told = []

    def of(
        self, kept: list[int], vectors: Float[Tensor, "n D"], told: list[tuple[str, str]], explain: int
    ) -> Answered:
        """Of vectors that are there already."""
        fitted = self.fitted
        chances = fitted.logits(vectors).double().softmax(1).numpy()
        closest = fitted.closest(vectors, explain) if explain else [()] * len(vectors)
        decisive = fitted.decisive(vectors) if explain else [None] * len(vectors)
        strange = self.doubts.unlike(vectors.cpu().numpy())
        return Answered(kept, chances, closest, decisive, told, None if strange is None else strange.tolist())


@dataclass
class ByAsking:
    """A generator that is asked."""

    asked: Asked
    doubts: Doubts = NONE

    @property
    def names(self) -> tuple[str, ...]:
        return self.asked.names

    def __call__(self, pictures: list[Picture], explain: int, max_pixels: int | None) -> Iterator[Answered]:
        for kept, scores, skipped in self.asked.stream(pictures, max_pixels):
            yield self.of(kept, scores, skipped)

    def of(self, kept: list[int], scores: Scores, told: list[tuple[str, str]]) -> Answered:
        """Of scores that are there already."""
        chances = scores.values.double().softmax(1).numpy()
        return Answered(kept, chances, [()] * len(kept), [None] * len(kept), told)


class Predictions:
    """Answers in the order of the images, made as they are asked for: iterate once.

    `skipped` has {"image", "reason"} of each that could not be read, `account` what folders held beside
    images; both are whole at the end. Iterating ends in a WordsightError where there is no image that can be
    read.
    """

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
        self.class_names = predictor.names
        self.unsure = unsure
        # from which probability on a class is in an image's set; None where no sets are wanted
        self.lowest = None if error is None else predictor.doubts.lowest(error)
        self._reading = Reading()
        self.account, self.skipped = self._reading.account, self._reading.skipped
        self.predictor, self.explain, self._images = predictor, explain, images
        self._max_pixels = max_pixels
        self._csv = None if csv is None else Path(csv).expanduser()

    def __iter__(self) -> Iterator[Answer]:
        answers = self._answers()
        if self._csv is None:
            yield from answers
            return
        with writing(self._csv) as file:
            file.write(csv_line(self._header()))
            for answer in answers:
                file.write(csv_line(self._row(answer)))
                yield answer

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

    def _answers(self) -> Iterator[Answer]:
        pictures, kept = pictures_in(self._images, self.account), 0
        with progress("images") as advance:
            while batch := list(itertools.islice(pictures, BATCH)):
                for found in self.predictor(batch, self.explain, self._max_pixels):
                    self._reading.skip(found.skipped)
                    yield from self.answers_of(batch, found)
                    kept += len(found.kept)
                advance(len(batch))
        self._reading.end(kept)

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
        own = ["image", "predicted", *marks, *(["unlike"] * (self.predictor.doubts.means is not None))]
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


def predict(
    run: str | Path,
    images: str | Path | Sequence[Any],
    *,
    classes: str | Sequence[str] | None = None,
    add: str | Sequence[str] = (),
    sentences: str | None = None,
    unsure: float | None = None,
    error: float | None = None,
    explain: int = 0,
    csv: str | Path | None = None,
    backbone: str | None = None,
    max_pixels: int | None = None,
) -> Predictions:
    """What a run says about images: `for answer in predict("runs/photos", ["a.jpg"])`.

    `run` is a run folder or hf:org/name; `images` are paths, PIL images or arrays, folders (all images
    at any depth) or tables with a path column. `classes` chooses among these classes instead of the
    run's own, `add` adds some to them; both as `class_list` reads them, with `sentences` about new ones.
    `unsure` marks answers whose best probability is below it; `error`, in its place, gives each image the
    classes that are not ruled out at that error rate (Answer.among), and marks those with any but one. An
    image unlike all that the run was fitted to is marked (Answer.unlike). `explain` is how many sentences
    stand with each answer, beside the one that raised its class over the runner-up most (Answer.decisive);
    0: none.
    `csv` is a file that gets a line an image with all probabilities, under its name once the last one is
    in; stopped before, nothing is left of it, and the same call goes on from the feature cache.
    `backbone` names the run's backbone where it has moved, `max_pixels` the largest image that is read.
    An image that cannot be read is skipped and named.

    Errors: WordsightError for a run or classes that cannot be."""
    folder = run_folder(run)
    opened = Run.open(folder)
    settings, own = opened.settings, opened.facts.classes
    names = class_list(classes, own) if classes else list(own)
    names += [name for name in (class_list(add, own) if add else []) if name not in names]
    changed = bool(classes or add)
    check_described(changed, sentences)
    if settings.backbone == NO_BACKBONE:
        raise WordsightError(
            f"{run} was fitted on feature matrices without a backbone; `wordsight.load` in Python predicts "
            f"from such matrices"
        )
    given = [images] if isinstance(images, (str, Path)) else images
    wanted = {"max_pixels": max_pixels or settings.max_pixels, "unsure": unsure, "error": error, "csv": csv}
    if error is not None and (set(names) != set(own) or is_asking(opened)):
        raise WordsightError(
            f"error={error} holds among the classes that a run was fitted to and has scores of images for; "
            + ("leave --classes and --add out, or give --unsure" if changed else "give --unsure in its place")
        )
    if is_asking(opened):
        from wordsight.asked import Asked  # with the half of transformers that LMs need

        if explain or sentences:
            raise WordsightError(
                f"{run} asks a model by class names, so no sentence explains what it says; leave "
                f"{'--sentences' if sentences else '--explain'} out"
            )
        asked = Asked.open(opened, backbone).with_classes(names)
        return Predictions(ByAsking(asked), given, **wanted)
    fitted = open_by_names(opened, names) if is_embedder(opened) else Fitted.open(opened, backbone)
    if changed:
        fitted = fitted.with_classes(names, fitted.sentences_of_new(names, sentences))
    elif explain and settings.sentences in TEMPLATE_SETS:
        log.info(
            f"{run} was fitted with the template set {settings.sentences!r} in place of sentences, which "
            f"explains little; give `fit` a sentences=... file"
        )
    by = ByVectors(fitted, Doubts.read(folder).over(own, names))
    return Predictions(by, given, explain=explain, **wanted)


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
