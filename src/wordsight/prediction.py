"""Prediction: the classes of images by a run, batch by batch, so that as many images as a disk holds need no
more memory than a few hundred."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wordsight.backbones.hub import run_folder
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.features import Features, NoneReadable, image_features
from wordsight.data.given import Reading, pictures_in
from wordsight.estimator import load
from wordsight.files import csv_line, writing
from wordsight.fitted import NO_BACKBONE, Closest, Decisive, Fitted, at_once
from wordsight.names import class_list
from wordsight.runs import Run
from wordsight.sentences import TEMPLATE_SETS
from wordsight.workers import progress

BATCH = 256  # images whose vectors and probabilities are held at once

log = logging.getLogger("wordsight")


class Answer(NamedTuple):
    """What a run says about one image."""

    image: str
    probabilities: np.ndarray  # [C], in the order of Predictions.class_names
    unsure: bool  # whether even the likeliest class is below the threshold
    sentences: Sequence[Closest]  # the closest first, where asked for
    decisive: Decisive | None  # where asked for; None, too, where no sentence raised the class


class Predictions:
    """Answers in the order of the images, made as they are asked for: iterate once.

    `skipped` has {"image", "reason"} of each that could not be read, `account` what folders held beside
    images; both are whole at the end. Iterating ends in a WordsightError where there is no image that can be
    read.
    """

    def __init__(
        self,
        fitted: Fitted,
        images: Sequence[Any],
        *,
        max_pixels: int | None = None,
        unsure: float | None = None,
        explain: int = 0,
        csv: str | Path | None = None,
    ):
        if unsure is not None and not 0 < unsure <= 1:
            raise WordsightError(f"unsure={unsure} is no probability; give one above 0 and up to 1, as 0.5")
        self.class_names = fitted.texts.names
        self.unsure = unsure
        self._reading = Reading()
        self.account, self.skipped = self._reading.account, self._reading.skipped
        self._fitted, self._images, self._explain = fitted, images, explain
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
        if self.unsure is not None:
            entry["unsure"] = answer.unsure
        if self._explain:
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
                features = self._features(batch)
                self._reading.skip(features.skipped)
                yield from self._batch(batch, features)
                kept += len(features.kept)
                advance(len(batch))
        self._reading.end(kept)

    def _features(self, batch: list[Picture]) -> Features:
        backbone = self._fitted.backbone
        assert backbone is not None  # `predict` refuses runs without one
        try:
            return image_features(backbone, batch, max_pixels=self._max_pixels)
        except NoneReadable as error:
            return Features(torch.empty(0, 1, backbone.dim), [], error.skipped)

    def _batch(self, batch: list[Picture], features: Features) -> Iterator[Answer]:
        if not features.kept:
            return
        some = at_once(len(self.class_names))
        names = [batch[place].name for place in features.kept]
        for start, vectors in zip(range(0, len(names), some), features.vectors[:, 0].split(some)):
            yield from self._scored(names[start:], vectors)

    def _scored(self, names: Sequence[str], vectors: Float[Tensor, "n D"]) -> list[Answer]:
        chances = self._fitted.logits(vectors).double().softmax(1).numpy()
        closest = self._fitted.closest(vectors, self._explain) if self._explain else [()] * len(vectors)
        decisive = self._fitted.decisive(vectors) if self._explain else [None] * len(vectors)
        unsure = [self.unsure is not None and bool(row.max() < self.unsure) for row in chances]
        return [Answer(*columns) for columns in zip(names, chances, unsure, closest, decisive)]

    def _header(self) -> list[str]:
        own = ["image", "predicted", *(["unsure"] * (self.unsure is not None))]
        first, *last = (_apart(name, self.class_names) for name in own)
        return [first, *self.class_names, *last]

    def _row(self, answer: Answer) -> list[Any]:
        marked = [] if self.unsure is None else ["unsure" if answer.unsure else ""]
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
    explain: int = 0,
    csv: str | Path | None = None,
    backbone: str | None = None,
    max_pixels: int | None = None,
) -> Predictions:
    """What a run says about images: `for answer in predict("runs/photos", ["a.jpg"])`.

    `run` is a run folder or hf:org/name; `images` are paths, PIL images or arrays, folders (all images
    at any depth) or tables with a path column. `classes` chooses among these classes instead of the
    run's own, `add` adds some to them; both as `class_list` reads them, with `sentences` about new ones.
    `unsure` marks answers whose best probability is below it. `explain` is how many sentences stand with
    each answer, beside the one that raised its class over the runner-up most (Answer.decisive); 0: none.
    `csv` is a file that gets a line an image with all probabilities, under its name once the last one is
    in; stopped before, nothing is left of it, and the same call goes on from the feature cache.
    `backbone` names the run's backbone where it has moved, `max_pixels` the largest image that is read.
    An image that cannot be read is skipped and named.

    Errors: WordsightError for a run or classes that cannot be."""
    folder = run_folder(run)
    settings, own = Run.open(folder).settings, Run.open(folder).facts.classes
    names = class_list(classes, own) if classes else list(own)
    names += [name for name in (class_list(add, own) if add else []) if name not in names]
    changed = bool(classes or add)
    if sentences and not changed:
        raise WordsightError("--sentences describes the classes of --classes and --add; give one of them too")
    if settings.backbone == NO_BACKBONE:
        raise WordsightError(
            f"{run} was fitted on feature matrices without a backbone; `wordsight.load` in Python predicts "
            f"from such matrices"
        )
    classifier = load(folder, backbone=backbone, class_names=names if changed else ())
    if sentences:
        classifier = classifier.with_classes(names, sentences)
    elif explain and settings.sentences in TEMPLATE_SETS:
        log.info(
            f"{run} was fitted with the template set {settings.sentences!r} in place of sentences, which "
            f"explains little; give `fit` a sentences=... file"
        )
    given = [images] if isinstance(images, (str, Path)) else images
    largest = max_pixels or settings.max_pixels
    return Predictions(classifier.fitted_, given, max_pixels=largest, unsure=unsure, explain=explain, csv=csv)


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
