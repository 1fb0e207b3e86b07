"""Outliers: images unlike the whole set, by the distance to the nearest class mean as in `predict` (doubts),
or unlike their class, by the distance to its nearest images.

Shapes: n images, C classes, D shared width."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.doubts import unlike

NEIGHBOURS = 5  # whose mean distance says how far an image lies
FAR_FROM_SET, FAR_FROM_CLASS = 2.0, 3.5  # deviations beyond the usual distance
LEAST = 3  # other images of a class, below which nothing is said
QUARTILES = 1.349  # standard deviations between the quartiles, where values are normal
AT_ONCE = 4096  # images whose distances are held at a time


class Outlier(NamedTuple):
    """An image that is unlike the others."""

    row: int
    of: str  # "class" or "set"
    score: float  # standard deviations beyond the usual distance


def find_outliers(vectors: Float[Tensor, "n D"], labels: Int[np.ndarray, " n"]) -> list[Outlier]:
    """The images that are unlike all others, or else unlike those of their class, the most unlike first."""
    whole, within = beyond(from_classes(vectors, labels)), np.full(len(labels), np.nan)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if len(own) > LEAST:
            within[own] = beyond(distances(vectors[own]))
    of_set = np.flatnonzero(whole >= FAR_FROM_SET)
    of_class = np.setdiff1d(np.flatnonzero(np.nan_to_num(within) >= FAR_FROM_CLASS), of_set)
    found = [Outlier(row, "set", float(whole[row])) for row in of_set.tolist()]
    found += [Outlier(row, "class", float(within[row])) for row in of_class.tolist()]
    return sorted(found, key=by_score)


def from_classes(vectors: Float[Tensor, "n D"], labels: Int[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """The squared distance of each image to the nearest class mean, without its own part in it."""
    _, own = np.unique(labels, return_inverse=True)  # parts may lack a class
    images = vectors.float().numpy()
    means = unlike.class_means(images, own, int(own.max()) + 1)
    return unlike.each_left_out(images, own, means)


def by_score(one: Outlier) -> tuple[float, int]:
    return -one.score, one.row


def distances(vectors: Float[Tensor, "n D"]) -> Float[np.ndarray, " n"]:
    """The mean cosine distance of each image to its nearest others."""
    count = min(NEIGHBOURS, len(vectors) - 1)
    if count < 1:
        return np.zeros(len(vectors))
    found = []
    for start in range(0, len(vectors), AT_ONCE):
        cosines = vectors[start : start + AT_ONCE] @ vectors.T
        rows = torch.arange(len(cosines))
        cosines[rows, rows + start] = -torch.inf  # itself
        found.append(1 - cosines.topk(count).values.mean(1))
    return torch.cat(found).double().numpy()


def beyond(values: Float[np.ndarray, " n"]) -> Float[np.ndarray, " n"]:
    """How far each lies above the median, in standard deviations as the quartiles tell them."""
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return (values - middle) / max(float(high - low) / QUARTILES, 1e-9)
