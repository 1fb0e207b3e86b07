"""Folds: labelled images that are left out in turn, where none are kept back: figures of a fit that used
every one, and what a run says of images that it was not fitted to."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from wordsight import metrics
from wordsight.backbones import Backbone
from wordsight.config import WordsightError
from wordsight.data import Split
from wordsight.data.features import Features
from wordsight.doubts.found import right_chances
from wordsight.fitted import Fitted
from wordsight.fitting import REFERENCES, fit_method, fit_reference
from wordsight.methods import Classifier, FitData
from wordsight.metrics import Best
from wordsight.runs import Run, predictions_file
from wordsight.tasks import classify
from wordsight.tasks.calibrate import ALL_FITTED, Temperature

MOST = 5  # folds, where every labelled image is used

log = logging.getLogger("wordsight")
Fit = Callable[[FitData], Classifier]


class LeftOut(NamedTuple):
    """Some of the labelled images, and a method that was fitted without them."""

    rows: list[int]
    images: Float[Tensor, "n D"]
    labels: Tensor
    fitted: Fitted


def left_out(run: Run, data: FitData, backbone: Backbone, folds: int, fit: Fit) -> Iterator[LeftOut]:
    """Each of `folds` parts of the labelled images, stratified by the run's seed; `fit` gets the others. An
    image that is the only one of its class is never left out."""
    from sklearn.model_selection import StratifiedKFold

    labels = data.labels.numpy()
    several = np.flatnonzero(np.bincount(labels)[labels] > 1)
    parts = StratifiedKFold(folds, shuffle=True, random_state=run.settings.seed)
    for _, places in parts.split(several, labels[several]):
        test = several[places]
        train = np.setdiff1d(np.arange(len(labels)), test)
        method = fit(data._replace(images=data.images[train], labels=data.labels[train]))
        fitted = Fitted(method, backbone, run.facts, run.sentences, data.texts)
        yield LeftOut(test.tolist(), data.centre[test], data.labels[test], fitted)


def possible(data: FitData, folds: int) -> int:
    """So many folds, or as many as the smallest class has images."""
    return min(folds, int(data.labels.bincount(minlength=len(data.texts.names)).min()))


def left_out_chances(run: Run, data: FitData, backbone: Backbone, folds: int) -> Float[np.ndarray, " n"]:
    """The probability of each labelled image's class by the run's method, fitted without it. Errors:
    WordsightError where a class has one image only."""
    count = possible(data, folds)
    if count < 2:
        raise WordsightError(
            f"folds={folds} leaves labelled images out in turn, in parts that each hold every class; give "
            f"folds=2 or more and as many images of each class, or folds=0"
        )
    parts = left_out(run, data, backbone, count, own_fit(run, backbone))
    return np.concatenate([right_chances(part.fitted, part.images, part.labels) for part in parts])


def own_fit(run: Run, backbone: Backbone) -> Fit:
    """How the run's own method is fitted."""
    return lambda data: fit_method(run.settings, run.facts, data, backbone)


def cross_validate(
    run: Run, data: FitData, backbone: Backbone, split: Split, references: bool
) -> Float[np.ndarray, " n"] | None:
    """Figures where no labelled image is kept back: each is scored by a method that was fitted without it.
    Gives the probabilities of their classes.

    As many folds as the smallest class has images and MOST at most; with one image of a class nothing can be
    measured, which is said. The methods are as good as ones of fewer labels are."""
    folds = possible(data, MOST)
    if folds < 2:
        log.info("every labelled image was fitted to, and a class has only one: nothing was measured")
        return None
    own = run.settings.method
    ways: dict[str, Fit] = {own: own_fit(run, backbone)}
    for name in REFERENCES if references else ():
        ways.setdefault(name, lambda some, name=name: fit_reference(run, name, some, backbone))
    found: dict[str, Best] = {}
    chances: list[np.ndarray] = []
    for name, way in ways.items():
        parts = list(left_out(run, data, backbone, folds, way))
        order = torch.tensor([row for part in parts for row in part.rows]).argsort()
        found[name] = Best.joined([part.fitted.best(part.images) for part in parts]).take(order)
        if name == own:
            chances = [right_chances(part.fitted, part.images, part.labels) for part in parts]
    _keep(run, folds, found, data, split)
    return np.concatenate(chances)


def _keep(run: Run, folds: int, best: Mapping[str, Best], data: FitData, split: Split) -> None:
    settings, classes = run.settings, run.facts.classes
    own, *others = best
    result = {"event": "eval", "data": settings.data, "classes": settings.classes, "folds": folds}
    result |= classify.figures(best[own], data.labels, classes, Temperature(reason=ALL_FITTED))
    right = {name: (rows.predicted == data.labels).numpy() for name, rows in best.items()}
    if others:
        result["references"] = {
            name: {
                "accuracy": 100 * float(right[name].mean()),
                "difference": metrics.paired_difference(right[own], right[name]),
            }
            for name in others
        }
    features = Features(data.images, list(range(len(split))), [])
    tested = classify.Tested(data.centre, data.labels, features, split)
    classify.write_predictions(run, predictions_file(settings.classes), tested, best[own], classes, None)
    run.log(result | {"skipped": []})
    log.info(
        "every labelled image was fitted to; figures are of %d-fold cross-validation, each image scored by "
        "a method that was fitted without it",
        folds,
    )
