"""Learner: a method fitted again and again to the labels so far, and how right it is.

Shapes: N images of the folder, n labelled ones, C classes, D shared width."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.backbones import Backbone
from wordsight.config import RunSettings, WordsightError
from wordsight.fit import DEFAULT_SENTENCES
from wordsight.fitted import Fitted, encode_classes, facts_of
from wordsight.fitting import fit_method
from wordsight.methods import FitData, Pool
from wordsight.metrics import accuracy_interval
from wordsight.runs import RunFacts
from wordsight.sentences import TEMPLATE_SETS, ClassTexts, fill

FOLDS = 5  # of cross-validation at most
LEAST = 2  # labels of a class, from which its images can be left out


@dataclass(frozen=True)
class Accuracy:
    """What cross-validation on the labels so far says."""

    mean: float  # percent
    low: float  # of its 95 % interval over these images
    high: float
    images: int
    folds: int


@dataclass(frozen=True)
class Learned:
    """What is known after so many labels."""

    fitted: Fitted | None  # None: there are no labels, and words alone speak
    chances: Float[Tensor, "N C"]  # of every image of the folder
    labels: int


class Learner:
    """Fits `settings.method` to labelled images of a folder, whose other images count without labels.

    A class without a label borrows the image that words name so most surely, until it has one of its own:
    without it, methods that were fitted to some of the classes would score the others by words alone, far
    below these."""

    def __init__(
        self,
        settings: RunSettings,
        backbone: Backbone,
        names: Sequence[str],
        sentences: Mapping[str, tuple[str, ...]],
        vectors: Float[Tensor, "N D"],
        more: Float[Tensor, "M D"] | None = None,  # of further images without labels
    ):
        self.settings, self.backbone, self.names = settings, backbone, tuple(names)
        self.sentences, self.vectors = sentences, vectors
        self.more = vectors[:0] if more is None else more
        facts = facts_of(backbone, self.names, settings.template)
        self.facts: RunFacts = replace(facts, pool_classes=self.names)
        self.texts: ClassTexts = encode_classes(backbone, facts, self.names, sentences)
        self.words = self._by_words()

    def with_class(self, name: str) -> Learner:
        """The same over one class more, whose sentences are its name in the template set that stands for all,
        if one does.
        """
        templates = TEMPLATE_SETS.get(self.settings.sentences or DEFAULT_SENTENCES, ())
        told = {**self.sentences, name: tuple(fill(template, name) for template in templates)}
        if not self.settings.needs_sentences:
            told = dict(self.sentences)
        return Learner(self.settings, self.backbone, (*self.names, name), told, self.vectors, self.more)

    def _by_words(self) -> Float[Tensor, "N C"]:
        """What words alone say of every image, with what images without labels add."""
        plain = replace(self.settings, method="zero_shot", settings={}, train={}, words="auto")
        none = torch.zeros(0, dtype=torch.int64)
        data = FitData(self.vectors[:0, None], none, self.texts, self.settings.seed)
        return self.fit_to(plain, data, self.vectors).logits(self.vectors).softmax(1)

    def fit_to(self, settings: RunSettings, data: FitData, others: Float[Tensor, "m D"]) -> Fitted:
        """A method fitted to labelled images, and to `others` without labels beside the further ones."""
        pool = torch.cat([others, self.more])
        data = data._replace(pool=Pool(pool, self.texts) if len(pool) else None)
        facts = self.facts if len(pool) else replace(self.facts, pool_classes=())
        method = fit_method(settings, facts, data, self.backbone)
        return Fitted(method, self.backbone, facts, self.sentences, self.texts)

    def fit(self, labels: Mapping[int, int]) -> Learned:
        """Fitted to labels of images, each a class, by their rows."""
        if not labels:
            return Learned(None, self.words, 0)
        fitted = self._fitted(labels)
        return Learned(fitted, fitted.logits(self.vectors).softmax(1), len(labels))

    def _fitted(self, labels: Mapping[int, int], hidden: Sequence[int] = ()) -> Fitted:
        """Without the images that are `hidden`, labels and all."""
        own = {row: label for row, label in labels.items() if row not in set(hidden)}
        given = own | self.borrowed(own, hidden)
        rows = torch.tensor(list(given))
        data = FitData(
            self.vectors[rows][:, None], torch.tensor(list(given.values())), self.texts, self.settings.seed
        )
        rest = torch.ones(len(self.vectors), dtype=torch.bool)
        rest[torch.tensor([*given, *hidden], dtype=torch.int64)] = False
        return self.fit_to(self.settings, data, self.vectors[rest])

    def borrowed(self, labels: Mapping[int, int], hidden: Sequence[int] = ()) -> dict[int, int]:
        """For each class without a label the image that words name so most surely."""
        found: dict[int, int] = {}
        words = self.words.clone()
        words[torch.tensor([*labels, *hidden], dtype=torch.int64)] = -1
        for label in sorted(set(range(len(self.names))) - set(labels.values())):
            row = int(words[:, label].argmax())
            if float(words[row, label]) < 0:
                raise WordsightError(
                    f"{len(words)} images are too few for {len(self.names)} classes: class "
                    f"{self.names[label]!r} has no label, and no image is left that could stand in for one"
                )
            found[row] = label
            words[row] = -1
        return found

    def accuracy(self, labels: Mapping[int, int]) -> Accuracy | None:
        """In cross-validation over the labels so far; None where no class has LEAST."""
        from sklearn.model_selection import StratifiedKFold

        rows, own = np.array(list(labels), np.int64), np.array(list(labels.values()), np.int64)
        counts: Int[np.ndarray, " C"] = np.bincount(own, minlength=len(self.names))
        several = np.flatnonzero(counts[own] >= LEAST)
        if not len(several):
            return None
        folds = min(FOLDS, int(counts[counts >= LEAST].min()))
        parts = StratifiedKFold(folds, shuffle=True, random_state=self.settings.seed)
        right = 0
        for _, places in parts.split(several, own[several]):
            out = several[places]
            fitted = self._fitted(labels, rows[out].tolist())
            predicted = fitted.logits(self.vectors[rows[out]]).argmax(1).numpy()
            right += int((predicted == own[out]).sum())
        low, high = accuracy_interval(right, len(several))
        return Accuracy(100 * right / len(several), low, high, len(several), folds)
