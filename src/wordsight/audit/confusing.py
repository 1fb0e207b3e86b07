"""Confusing: classes that their words hardly tell apart, by the text vectors and by what words alone make of
the labelled images.

Shapes: n images, C classes, D shared width."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.backbones import unit
from wordsight.sentences import ClassTexts, fill

MOST = 10  # pairs that are named


class Alike(NamedTuple):
    """Two classes whose words are near."""

    first: str
    second: str
    cosine: float  # of their text vectors
    beyond: float  # standard deviations above the mean cosine of all pairs
    images: int  # labelled images of either that words alone call the other
    of: int  # labelled images of both
    sentences: tuple[str, str]  # one of each that are nearest to each other


def confusing_pairs(
    texts: ClassTexts, images: Float[Tensor, "n D"], labels: Int[np.ndarray, " n"], template: str
) -> list[Alike]:
    """The pairs of classes that words confuse most often, or, where that is equal, whose text vectors are
    nearest, relative to all pairs."""
    words = unit(texts.means())  # the name's vector where a class has no sentences
    cosines = words @ words.T
    first, second = np.triu_indices(len(words), 1)
    values = cosines[first, second].numpy()
    beyond = (values - values.mean()) / max(float(values.std()), 1e-9)
    counts = _confused(words, images, labels)
    confused = counts[first, second] + counts[second, first]
    sizes = np.bincount(labels, minlength=len(words))
    order = np.lexsort((-values, -confused))[:MOST]
    return [
        Alike(
            texts.names[one],
            texts.names[other],
            float(values[at]),
            float(beyond[at]),
            int(confused[at]),
            int(sizes[one] + sizes[other]),
            nearest_sentences(texts, one, other, template),
        )
        for at, one, other in zip(order.tolist(), first[order].tolist(), second[order].tolist())
    ]


def _confused(
    words: Float[Tensor, "C D"], images: Float[Tensor, "n D"], labels: Int[np.ndarray, " n"]
) -> Int[np.ndarray, "C C"]:
    """Images by their class and by the class whose words are nearest."""
    predicted = (images @ words.T).argmax(1).numpy()
    counts = np.zeros((len(words), len(words)), np.int64)
    np.add.at(counts, (labels, predicted), 1)
    return counts


def nearest_sentences(texts: ClassTexts, one: int, other: int, template: str) -> tuple[str, str]:
    """A sentence of each class that say nearly the same; names in the template where there are none."""
    lines, vectors = zip(*(_lines(texts, row, template) for row in (one, other)))
    place = int((vectors[0] @ vectors[1].T).argmax())
    return lines[0][place // len(lines[1])], lines[1][place % len(lines[1])]


def _lines(texts: ClassTexts, row: int, template: str) -> tuple[Sequence[str], Float[Tensor, "N D"]]:
    if texts.sentences[row]:
        return texts.sentences[row], texts.sentence_vectors[row].to(torch.float32)
    return [fill(template, texts.names[row])], texts.name_vectors[row][None]
