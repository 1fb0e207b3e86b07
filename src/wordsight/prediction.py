"""Prediction: the classes of images by a run: by the vectors of its backbone, or by asking a generator."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float
from torch import Tensor

from wordsight.answers import Answered, Predictions
from wordsight.backbones.hub import run_folder
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.features import image_features
from wordsight.data.pictures import NoneReadable
from wordsight.doubts import NONE, Doubts
from wordsight.early import check_described, is_graph
from wordsight.fitted import Fitted, at_once, is_asking, is_embedder, open_by_names
from wordsight.names import class_list
from wordsight.onnx.predicting import predict as by_graph
from wordsight.runs import NO_BACKBONE, Run
from wordsight.sentences import TEMPLATE_SETS

if TYPE_CHECKING:
    from wordsight.asked import Asked
    from wordsight.methods.likelihood import Scores

log = logging.getLogger("wordsight")


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

    `run` is a run folder, hf:org/name or a graph of `export --onnx`; `images` are paths, PIL images or
    arrays, folders (all images at any depth) or tables with a path column. `classes` chooses among these
    classes instead of the run's own, `add` adds some to them; both as `class_list` reads them, with
    `sentences` about new ones. `unsure` marks answers whose best probability is below it; `error`, in its
    place, gives each image the classes that are not ruled out at that error rate (Answer.among), and
    marks those with any but one. An image unlike all that the run was fitted to is marked
    (Answer.unlike). `explain` is how many sentences stand with each answer, beside the one that raised
    its class over the runner-up most (Answer.decisive); 0: none. `csv` is a file that gets a line an
    image with all probabilities, under its name once the last one is in; stopped before, nothing is left
    of it, and the same call goes on from the feature cache. `backbone` names the run's backbone where it
    has moved, `max_pixels` the largest image that is read. An image that cannot be read is skipped and
    named.

    Errors: WordsightError for a run or classes that cannot be."""
    if is_graph(run):
        others = {"classes": classes, "add": add, "sentences": sentences, "backbone": backbone}
        wanted = {"unsure": unsure, "error": error, "csv": csv, "max_pixels": max_pixels}
        return by_graph(run, images, explain=explain, **others, **wanted)
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
    most = settings.max_pixels if max_pixels is None else max_pixels
    wanted = {"max_pixels": most, "unsure": unsure, "error": error, "csv": csv}
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
    fitted = open_by_names(opened, names, backbone) if is_embedder(opened) else Fitted.open(opened, backbone)
    if changed:
        fitted = fitted.with_classes(names, fitted.sentences_of_new(names, sentences))
    elif explain and settings.sentences in TEMPLATE_SETS:
        log.info(
            f"{run} was fitted with the template set {settings.sentences!r} in place of sentences, which "
            f"explains little; give `fit` a sentences=... file"
        )
    by = ByVectors(fitted, Doubts.read(folder).over(own, names))
    return Predictions(by, given, explain=explain, **wanted)
