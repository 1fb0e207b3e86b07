"""Errors: labels that are probably wrong, by confident learning.

Northcutt, Jiang and Chuang, "Confident Learning: Estimating Uncertainty in Dataset Labels", JAIR 2021. An
image is confidently of a class where the class's probability is above its mean over the images labelled so;
counting the pairs of given and confident class estimates how many labels are wrong, and as many images, of
the lowest probability of their own label, are named. Through cleanlab. Shapes: n images, C classes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from wordsight.extras import needed


class Doubt(NamedTuple):
    """An image whose label is probably wrong."""

    row: int
    label: int
    suggested: int
    score: float  # probability of its own label, by a method that was fitted without the image
    chance: float  # of the suggested one


def wrong_labels(labels: Int[np.ndarray, " n"], chances: Float[np.ndarray, "n C"]) -> list[Doubt]:
    """The images whose label is probably wrong, the likeliest first; `chances` were given by methods that had
    not seen the image. Errors: WordsightError where cleanlab is missing."""
    find = check_installed()
    if len(np.unique(labels)) < 2:
        return []
    rows: Sequence[int] = find(
        labels, chances, filter_by="low_self_confidence", return_indices_ranked_by="self_confidence", n_jobs=1
    ).tolist()
    best = chances.argmax(1)
    return [
        Doubt(
            row, int(labels[row]), int(best[row]), float(chances[row, labels[row]]), float(chances[row].max())
        )
        for row in rows
        if best[row] != labels[row]
    ]


def check_installed() -> Callable[..., Any]:
    """What finds them. Errors: WordsightError where cleanlab is missing."""
    with needed("audit", "audit"):
        from cleanlab.filter import find_label_issues
    return find_label_issues
