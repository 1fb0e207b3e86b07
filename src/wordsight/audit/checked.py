"""Checked: the labelled images of a run, part by part, each with what the run's method says of it when it has
not seen it.

Shapes: n images, C classes, D shared width."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight import folds
from wordsight.backbones import Backbone
from wordsight.data import Picture, Split
from wordsight.data.account import counted
from wordsight.data.splits import select_classes
from wordsight.fit import featurise
from wordsight.fitted import Fitted
from wordsight.runs import Run
from wordsight.tell_apart.case import Opened, open_labelled
from wordsight.workers import progress

log = logging.getLogger("wordsight")


class Image(NamedTuple):
    """A labelled image by its place: what is found is said of it."""

    picture: Picture
    part: str  # train, val or test
    label: int


@dataclass(frozen=True)
class Checked:
    """The labelled images of all parts that could be read, training images first."""

    run: Run
    backbone: Backbone
    fitted: Fitted  # to the training images
    names: tuple[str, ...]
    images: Sequence[Image]
    vectors: Float[Tensor, "n D"]
    labels: Int[np.ndarray, " n"]
    # by a method that was fitted without the image; NaN where none could be, as it is its class's only one
    chances: Float[np.ndarray, "n C"]

    @property
    def judged(self) -> Int[np.ndarray, " _"]:
        """The rows that have probabilities."""
        return np.flatnonzero(np.isfinite(self.chances).all(1))

    def rows_of(self, part: str) -> Int[np.ndarray, " _"]:
        return np.array([row for row, image in enumerate(self.images) if image.part == part], np.int64)


def open_checked(run: Run, data: str | None, backbone: str | Backbone | None) -> Checked:
    """All labelled images of a run. Those that it was fitted to are scored in cross-validation by its own
    method, the others by the method as it was fitted.

    Labelled images that it did not draw are counted and not read. Errors: WordsightError where it has no
    classes or no labelled images, or they are others by now."""
    found = open_labelled(run, data, backbone)
    if undrawn := undrawn_images(found):
        log.info(
            "shots=%s left %s of %s undrawn, which are not looked at; a run with shots=null has all",
            run.settings.shots,
            counted(undrawn, "labelled image"),
            found.run.settings.data,
        )
    fitted = Fitted(
        found.run.method(found.backbone), found.backbone, run.facts, found.run.sentences, found.data.texts
    )
    parts = [(found.train, "train", found.data.centre, left_out_chances(found))]
    for name, split in (("val", found.drawn.dataset.val), ("test", found.drawn.dataset.test)):
        if split is not None and len(split) and split.shown is None:
            features = featurise(found.backbone, split, found.run.settings, views=1)
            chances = fitted.logits(features.vectors[:, 0]).double().softmax(1).numpy()
            parts.append((split.take(features.kept), name, features.vectors[:, 0], chances))
    return Checked(
        found.run,
        found.backbone,
        fitted,
        found.data.texts.names,
        [image for split, name, _, _ in parts for image in _images(split, name)],
        torch.cat([vectors for _, _, vectors, _ in parts]),
        np.concatenate([split.labels for split, *_ in parts]),
        np.concatenate([chances for *_, chances in parts]),
    )


def undrawn_images(found: Opened) -> int:
    """Labelled images of the run's data and classes that it was neither fitted to nor is tested on."""
    whole = select_classes(found.drawn.whole, found.run.settings.classes)
    there, drawn = (
        sum(len(part) for part in (one.train, one.val, one.test) if part is not None)
        for one in (whole, found.drawn.dataset)
    )
    return there - drawn


def _images(split: Split, part: str) -> list[Image]:
    return [Image(picture, part, label) for picture, label in zip(split.pictures, split.labels.tolist())]


def left_out_chances(found: Opened) -> Float[np.ndarray, "n C"]:
    """Probabilities of each training image by the run's method fitted without it, in stratified folds; NaN
    where it is the only one of its class."""
    run, data, backbone = found.run, found.data, found.backbone
    labels = data.labels.numpy()
    counts = np.bincount(labels, minlength=len(data.texts.names))
    chances = np.full((len(labels), len(counts)), np.nan)
    if not (counts > 1).any():
        return chances
    count = min(folds.MOST, int(counts[counts > 1].min()))
    with progress("folds", count) as advance:
        for part in folds.left_out(run, data, backbone, count, folds.own_fit(run, backbone)):
            chances[part.rows] = part.fitted.logits(part.images).double().softmax(1).numpy()
            advance()
    return chances
