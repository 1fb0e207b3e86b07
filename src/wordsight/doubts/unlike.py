"""Images unlike all training images: far from the mean vector of every class.

The squared distance to the nearest class mean has no setting and was the best or within half a point of it
among distances to neighbours, Mahalanobis distances, densities and scores of the classifier, over 27 pairs of
real sets (benchmarks/unsure).
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float, Int

SHARE = 0.01  # of images like the training images that are called unlike them


def class_means(
    images: Float[np.ndarray, "n D"], labels: Int[np.ndarray, " n"], count: int
) -> Float[np.ndarray, "C D"]:
    """The mean vector of each of `count` classes, none of which is empty."""
    sums = np.zeros((count, images.shape[1]))
    np.add.at(sums, labels, images)
    return (sums / np.bincount(labels, minlength=count)[:, None]).astype(np.float32)


def distances(images: Float[np.ndarray, "B D"], means: Float[np.ndarray, "C D"]) -> Float[np.ndarray, " B"]:
    """Squared distance of each image to the nearest mean."""
    return _to_all(images, means).min(1)


def left_out(
    images: Float[np.ndarray, "n D"], labels: Int[np.ndarray, " n"], means: Float[np.ndarray, "C D"]
) -> Float[np.ndarray, " n"]:
    """The same of training images, each as far from its own class as an image is that had no part in the
    mean, rising."""
    return np.sort(each_left_out(images, labels, means))


def each_left_out(
    images: Float[np.ndarray, "n D"], labels: Int[np.ndarray, " n"], means: Float[np.ndarray, "C D"]
) -> Float[np.ndarray, " n"]:
    """The same in the images' order.

    Of k images with variance v, one lies v (k - 1) / k from their mean in the square and a new one
    v (k + 1) / k. A class of one image says nothing of itself, so others' means stand in."""
    far, k = _to_all(images, means), np.bincount(labels, minlength=len(means))[labels]
    rows = np.arange(len(images))
    far[rows, labels] = np.where(k > 1, far[rows, labels] * (k + 1) / np.maximum(k - 1, 1), np.inf)
    return far.min(1)


def far(distances: Float[np.ndarray, " n"]) -> float:
    """The distance that a share SHARE of new images like these goes beyond; of a few, the largest."""
    place = math.ceil((len(distances) + 1) * (1 - SHARE))
    return float(distances[min(place, len(distances)) - 1])


def _to_all(images: Float[np.ndarray, "B D"], means: Float[np.ndarray, "C D"]) -> Float[np.ndarray, "B C"]:
    images, means = images.astype(np.float64), means.astype(np.float64)
    squares = (images**2).sum(1)[:, None] + (means**2).sum(1)
    return (squares - 2 * images @ means.T).clip(0)
