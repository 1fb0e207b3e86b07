"""Case: a run's labelled images, and how its method is fitted to some of them and judged on the others.

Shapes: n images, C classes, D shared width."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.backbones.vectors import Vectors
from wordsight.config import METHODS, RunSettings, WordsightError, resolve
from wordsight.data import Dataset, Split
from wordsight.data.splits import fingerprint
from wordsight.estimator import FROM_PYTHON
from wordsight.fit import Drawn, draw, featurise, pool_of, validation
from wordsight.fitted import (
    encode_classes,
    is_asking,
    is_captioner,
    is_embedder,
    open_backbone,
    predict_logits,
)
from wordsight.fitting import fit_method
from wordsight.methods import Classifier, FitData, Labelled
from wordsight.runs import NO_BACKBONE, Run
from wordsight.sentences import ClassTexts

FOLDS = 4  # in which labelled images are left out, at most
LEAST = 3  # labelled images of a class: one is judged, one is left out to choose by, and one is fitted to


class Candidate(NamedTuple):
    """A sentence that may join those of its class."""

    name: str
    other: str  # the class that it is to be told from
    question: str
    seed: int
    text: str
    vector: Float[Tensor, " D"]


# fitted methods, and the images that each was fitted without
Parts = Sequence[tuple[Classifier, Labelled]]


@dataclass(frozen=True)
class Case:
    """A run's labelled images, and how its method is fitted to them."""

    run: Run
    backbone: Backbone
    data: FitData
    apart: Labelled | None  # validation images; None: the labelled images are left out in turn

    def fit(self) -> Classifier:
        return fit_method(self.run.settings, self.run.facts, self.data, self.backbone)

    def saying(self, chosen: Sequence[Candidate]) -> Case:
        """The same with more sentences."""
        data = self.data._replace(texts=with_sentences(self.data.texts, chosen))
        if data.pool is not None:
            data = data._replace(pool=data.pool._replace(texts=with_sentences(data.pool.texts, chosen)))
        return replace(self, data=data)

    def parted(self) -> list[tuple[Case, Labelled]]:
        """In folds: the case without one, and the images of that one."""
        return [(self._of(rows), self._held(held)) for rows, held in self._folds()]

    def _folds(self) -> list[tuple[Int[np.ndarray, " _"], Int[np.ndarray, " _"]]]:
        from sklearn.model_selection import KFold, StratifiedKFold

        how = {"shuffle": True, "random_state": self.run.settings.seed}
        if self.apart is not None:
            labels = self.apart.labels.numpy()
            return list(KFold(min(FOLDS, len(labels)), **how).split(labels))
        labels = self.data.labels.numpy()
        return list(StratifiedKFold(min(FOLDS, np.bincount(labels).min()), **how).split(labels, labels))

    def _of(self, rows: Int[np.ndarray, " _"]) -> Case:
        if self.apart is not None:
            return replace(self, apart=Labelled(self.apart.images[rows], self.apart.labels[rows]))
        fewer = self.data._replace(images=self.data.images[rows], labels=self.data.labels[rows])
        return replace(self, data=fewer)

    def _held(self, rows: Int[np.ndarray, " _"]) -> Labelled:
        images, labels = self.apart or (self.data.centre, self.data.labels)
        return Labelled(images[rows], labels[rows])

    def left_out(self) -> Parts:
        """Fitted methods, and the images that each was fitted without."""
        if self.apart is not None:
            return [(self.fit(), self.apart)]
        return [(case.fit(), held) for case, held in self.parted()]

    def scores(self, method: Classifier, images: Float[Tensor, "n D"], texts: ClassTexts) -> Tensor:
        """Of a fitted method that is given these words, [n, C]."""
        method.choose(texts)
        method.to(self.backbone.device)
        return predict_logits(method, images.to(self.backbone.device))


def with_sentences(texts: ClassTexts, chosen: Sequence[Candidate]) -> ClassTexts:
    """The same with these behind the sentences of their classes."""
    sentences, vectors = list(texts.sentences), list(texts.sentence_vectors)
    place = {name: row for row, name in enumerate(texts.names)}
    for one in chosen:
        row = place[one.name]
        sentences[row] = (*sentences[row], one.text)
        vectors[row] = torch.cat([vectors[row], one.vector[None].to(vectors[row])])
    return replace(texts, sentences=tuple(sentences), sentence_vectors=tuple(vectors))


def open_case(run: Run, data: str | None, backbone: str | Backbone | None) -> Case:
    """The labelled images of a run, and what it knows of their classes; `data` and `backbone` where they have
    moved.

    Errors: WordsightError where it holds no labelled images that can be left out, or no words."""
    found = open_labelled(run, data, backbone)
    if isinstance(found.backbone, Vectors):
        raise WordsightError(
            f"{run.folder} stands on a file of vectors, which encodes no new sentences; fit to images, with "
            f"the backbone that made these vectors"
        )
    settings, labels = found.run.settings, found.data.labels
    apart = _apart(found.backbone, found.drawn.dataset, settings, len(labels))
    if apart is None:
        _demand_enough(run, labels)
    return Case(found.run, found.backbone, found.data, apart)


class Opened(NamedTuple):
    """A run over classes with the labelled images that it was fitted to."""

    run: Run
    backbone: Backbone
    drawn: Drawn
    train: Split  # those that could be read
    data: FitData  # of them


def open_labelled(run: Run, data: str | None, backbone: str | Backbone | None) -> Opened:
    """What a run was fitted to; `data` and `backbone` where they have moved.

    Errors: WordsightError where it has no classes, or no labelled images, or they are others by now."""
    _demand_classes(run, data)
    run = Run(run.folder, replace(run.settings, data=data or run.settings.data), run.facts)
    settings, backbone = run.settings, open_backbone(run, backbone)
    drawn = draw(settings)
    dataset = drawn.dataset
    _demand_same(run, dataset.train)
    features = featurise(backbone, dataset.train, settings)
    labels = torch.from_numpy(dataset.train.labels)[features.kept]
    words = resolve(METHODS, settings.method, "method").needs_words
    texts = encode_classes(backbone, run.facts, dataset.class_names, run.sentences, words=words)
    pool, val = pool_of(run, drawn, backbone, run.sentences), validation(backbone, dataset, settings)
    fitted_to = FitData(features.vectors, labels, texts, settings.seed, val, pool)
    return Opened(run, backbone, drawn, dataset.train.take(features.kept), fitted_to)


def _demand_classes(run: Run, data: str | None) -> None:
    settings = run.settings
    if is_embedder(run) or is_captioner(run) or is_asking(run):
        raise WordsightError(
            f"{run.folder} is a {settings.method}, which has no classes to confuse; give a run over classes"
        )
    if settings.backbone == NO_BACKBONE:
        raise WordsightError(
            f"{run.folder} was fitted on feature matrices, and knows neither their images nor words"
        )
    if data is None and settings.data == FROM_PYTHON:
        raise WordsightError(f"{run.folder} was fitted from Python; name its labelled images: data=...")


def _demand_same(run: Run, train: Split) -> None:
    if not len(train):
        raise WordsightError(f"{run.folder} has no labelled images but those that it is tested on")
    if run.facts.images and fingerprint(train) != run.facts.images:
        raise WordsightError(
            f"the labelled images of {run.settings.data} are not those that {run.folder} was fitted to; give "
            f"data=... where they have moved, or fit again"
        )


def _demand_enough(run: Run, labels: Int[Tensor, " n"]) -> None:
    counts = labels.bincount(minlength=len(run.facts.classes)).tolist()
    few = [f"{name} {count}" for name, count in zip(run.facts.classes, counts) if count < LEAST]
    if few:
        raise WordsightError(
            f"sentences are judged on labelled images that were left out, which takes {LEAST} of each class, "
            f"or as many validation images as labelled ones; {run.folder} has {', '.join(few[:10])}"
        )


def _apart(backbone: Backbone, dataset: Dataset, settings: RunSettings, labelled: int) -> Labelled | None:
    """The validation images, where they are as many as the labelled ones and nothing else is chosen by
    them."""
    if settings.needs_val or dataset.val is None or len(dataset.val) < labelled:
        return None
    found = featurise(backbone, dataset.val, settings, views=1)
    return Labelled(found.vectors[:, 0], torch.from_numpy(dataset.val.labels)[found.kept])
