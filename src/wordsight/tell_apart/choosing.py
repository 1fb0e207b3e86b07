"""Choosing: which classes are confused, which sentences help to tell them apart, and by how much."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn import functional as F

from wordsight import metrics
from wordsight.methods import Labelled
from wordsight.sentences import ClassTexts
from wordsight.tell_apart.case import Candidate, Case, Parts, with_sentences
from wordsight.workers import progress


class Pair(NamedTuple):
    """Two classes, in label order, and how many images of one were taken for the other."""

    first: str
    second: str
    images: int


class Kept(NamedTuple):
    """A sentence that was kept, and the points of accuracy that it added to those before it."""

    candidate: Candidate
    points: float


class Merit(NamedTuple):
    """What words do on left-out images: how likely their labels are, and how many are classified rightly."""

    likelihood: float  # its logarithm, summed over the images
    right: int

    def better(self, other: Merit) -> bool:
        """Accuracy is counted in whole images, and most sentences change none: likelier labels decide, where
        no fewer are right."""
        return self.likelihood > other.likelihood and self.right >= other.right


class Gain(NamedTuple):
    """Whether each left-out image is classified rightly without and with what was chosen."""

    before: Bool[np.ndarray, " n"]
    after: Bool[np.ndarray, " n"]

    @property
    def difference(self) -> list[float]:
        """[mean, low, high] in points, with its 95% interval over these images."""
        return metrics.paired_difference(self.after, self.before)


def confused(case: Case, parts: Parts) -> list[Pair]:
    """Pairs of classes by how many left-out images of one are taken for the other, most first."""
    names = case.data.texts.names
    both: Counter[tuple[int, int]] = Counter()
    for method, held in parts:
        predicted = case.scores(method, held.images, case.data.texts).argmax(1)
        wrong = zip(held.labels.tolist(), predicted.tolist())
        both.update((min(pair), max(pair)) for pair in wrong if pair[0] != pair[1])
    most = sorted(both.items(), key=lambda entry: (-entry[1], entry[0]))
    return [Pair(names[first], names[second], images) for (first, second), images in most]


def chosen(case: Case, parts: Parts, candidates: Sequence[Candidate]) -> list[Kept]:
    """Those that help by themselves, the best first, each where it helps beside those before it."""
    texts, count = case.data.texts, sum(len(held.labels) for _, held in parts)
    best = merit(case, parts, texts)
    alone: list[tuple[Merit, Candidate]] = []
    with progress("sentences", len(candidates)) as advance:
        for one in candidates:
            alone.append((merit(case, parts, with_sentences(texts, [one])), one))
            advance()
    helpful = [entry for entry in alone if entry[0].better(best)]
    kept: list[Kept] = []
    for _, one in sorted(helpful, key=lambda entry: entry[0], reverse=True):
        found = merit(case, parts, with_sentences(texts, [*(k.candidate for k in kept), one]))
        if found.better(best):
            kept.append(Kept(one, 100 * (found.right - best.right) / count))
            best = found
    return kept


def merit(case: Case, parts: Parts, texts: ClassTexts) -> Merit:
    """Of these words, by methods that were fitted to others: nothing is fitted anew."""
    logs, right = 0.0, 0
    for method, held in parts:
        logits = case.scores(method, held.images, texts)
        right += int((logits.argmax(1) == held.labels).sum())
        logs -= float(F.cross_entropy(logits, held.labels, reduction="sum"))
    return Merit(logs, right)


def gain(case: Case, candidates: Sequence[Candidate], pairs: int) -> Gain:
    """Each fold classified by methods that were fitted without it, with the run's sentences and with those
    that are chosen without it, of the pairs that are confused without it."""
    found = []
    for inner, held in case.parted():
        parts = inner.left_out()
        seen = {frozenset(pair[:2]) for pair in confused(inner, parts)[:pairs]}
        own = [one for one in candidates if frozenset((one.name, one.other)) in seen]
        told = inner.saying([kept.candidate for kept in chosen(inner, parts, own)])
        found.append((_right(inner, held), _right(told, held)))
    before, after = (torch.cat(rows).numpy() for rows in zip(*found))
    return Gain(before, after)


def _right(case: Case, held: Labelled) -> Bool[Tensor, " n"]:
    return case.scores(case.fit(), held.images, case.data.texts).argmax(1) == held.labels
