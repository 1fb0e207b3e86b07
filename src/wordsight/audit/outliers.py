"""Outliers: images unlike the others of their class, or of the whole set, by the distance to their nearest.

Shapes: n images, D shared width."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

NEIGHBOURS = 5  # whose mean distance says how far an image lies
FAR = 3.5  # robust standard deviations beyond the usual distance, from which it is an outlier
LEAST = 3  # other images of a class, below which nothing is said
ROBUST = 1.4826  # by which the median of absolute deviations is a standard deviation, where values are normal
AT_ONCE = 4096  # images whose distances are held at a time


class Outlier(NamedTuple):
    """An image that is unlike the others."""

    row: int
    of: str  # "class" or "set"
    score: float  # how many robust standard deviations it lies beyond the usual distance


def find_outliers(vectors: Float[Tensor, "n D"], labels: Int[np.ndarray, " n"]) -> list[Outlier]:
    """The images that are unlike all others, or else unlike those of their class, the most unlike first."""
    of_set = np.flatnonzero(beyond(distances(vectors)) >= FAR)
    within = np.full(len(labels), np.nan)
    for label in np.unique(labels):
        own = np.flatnonzero(labels == label)
        if len(own) > LEAST:
            within[own] = distances(vectors[own])
    whole, classes = beyond(distances(vectors)), beyond(within)
    found = [Outlier(row, "set", float(whole[row])) for row in of_set.tolist()]
    taken = set(of_set.tolist())
    rest = np.flatnonzero(np.nan_to_num(classes, nan=0.0) >= FAR).tolist()
    found += [Outlier(row, "class", float(classes[row])) for row in rest if row not in taken]
    return sorted(found, key=by_score)


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
    """How far each lies above the median, in robust standard deviations; NaN stays."""
    middle = np.nanmedian(values) if np.isfinite(values).any() else 0.0
    spread = ROBUST * np.nanmedian(np.abs(values - middle)) if np.isfinite(values).any() else 0.0
    return (values - middle) / max(spread, 1e-9)
