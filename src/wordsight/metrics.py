"""Metrics: pure functions of scores and labels, in percent unless they say otherwise. B images, C classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

LEVEL = 95  # percent of every interval
ROUNDING = 1e-18  # a variance, in squared points, that equal figures have where sums round


def top_k(logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"], k: int = 1) -> float | None:
    """Share of images whose label is among the k highest scores; None where there are fewer than k + 1
    classes and it would say nothing.
    """
    if logits.shape[1] <= k and k > 1:
        return None
    if k == 1:
        return 100 * (logits.argmax(1) == labels).float().mean().item()
    return 100 * (logits.topk(k, dim=1).indices == labels[:, None]).any(1).float().mean().item()


def confusion(logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> Int[Tensor, "C C"]:
    """Counts; row = true class, column = predicted class."""
    classes = logits.shape[1]
    return torch.bincount(labels * classes + logits.argmax(1), minlength=classes * classes).view(
        classes, classes
    )


def class_recall(counts: Int[Tensor, "C C"]) -> list[float | None]:
    """Recall of each class, None for a class with no image (never NaN: JSON has none)."""
    return [
        100 * counts[i, i].item() / total if (total := counts[i].sum().item()) else None
        for i in range(len(counts))
    ]


def mean_class_recall(counts: Int[Tensor, "C C"]) -> float:
    """Mean over the classes that have images: scikit-learn's balanced accuracy."""
    known = [recall for recall in class_recall(counts) if recall is not None]
    return sum(known) / len(known)


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 B N / (B + N). Over several datasets or seeds the field takes H of the averaged B and N, not the
    average of H (protocol).
    """
    return 2 * base * new / (base + new) if base + new > 0 else 0.0


def calibration_error(logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"], bins: int = 15) -> float:
    """Expected calibration error (Guo et al. 2017): mean gap between confidence and accuracy over equal-width
    bins, weighted by their share.
    """
    confidence, predicted = logits.softmax(1).max(1)
    right = (predicted == labels).float()
    place = (confidence * bins).long().clamp_max(bins - 1)
    gaps = torch.zeros(bins).index_add_(0, place, confidence - right)
    return 100 * gaps.abs().sum().item() / len(labels)


def recall_at(similarity: Float[Tensor, "Q N"], relevant: Bool[Tensor, "Q N"], k: int) -> float:
    """Recall@k of retrieval: the share of queries with something relevant among the k most similar. Queries
    without anything relevant do not count.
    """
    asked = relevant.any(1)
    best = similarity[asked].topk(min(k, similarity.shape[1]), dim=1).indices
    return 100 * relevant[asked].gather(1, best).any(1).float().mean().item()


def margin(groups: Sequence[Float[np.ndarray, " _"]]) -> float:
    """Half the width of the 95% interval of a sum of means, each of independent rows of its own: Student's t
    at Welch's and Satterthwaite's degrees of freedom. A group of one row has no spread and adds nothing.
    """
    from scipy.stats import t  # a second to import, which most commands do not need

    spread = [(float(np.var(rows, ddof=1)) / len(rows), len(rows) - 1) for rows in groups if len(rows) > 1]
    total = sum(variance for variance, _ in spread)
    if total < ROUNDING:
        return 0.0
    free = total**2 / sum(variance**2 / degrees for variance, degrees in spread)
    return float(t.ppf(0.5 + LEVEL / 200, free)) * total**0.5


def crossed_margin(gaps: Sequence[Sequence[Float[np.ndarray, "_ _"]]]) -> float:
    """Half the width of the interval of a paired difference over S seeds and n test images together.

    `gaps` has for each dataset one matrix, or several of the same seeds whose means are added (base and new
    classes): what each seed and image adds to the difference, NaN where a seed was not tested on an image.
    The difference is the mean over datasets, which are taken as they are.

    Seeds and images are crossed: the same images are tested at every seed, and a hard one is hard at each,
    so an image is one observation, however many seeds there are. The two parts have a `margin` each,
    joined as the root of the sum of their squares, which covers at least 95% of normal parts (Banerjee
    1960). A resample of images anew for each seed would take them for S n images.

    Coverage, measured: docs/protocol.md, and a test. With one seed the interval is of these seeds: what other
    seeds would give is not in it."""
    datasets = len(gaps)
    by_seed = [np.sum([np.nanmean(part, 1) for part in parts], 0) / datasets for parts in gaps]
    by_image = [of_images(part) / datasets for parts in gaps for part in parts]
    return float(np.hypot(margin(by_seed), margin(by_image)))


def of_images(gaps: Float[np.ndarray, "S n"]) -> Float[np.ndarray, " n"]:
    """What each image adds to the mean over seeds, so that the mean over images is zero and its spread that
    of the difference. Where all seeds have all images, it is the image's mean over seeds, centred.
    """
    tested = np.isfinite(gaps)
    centred = np.where(tested, gaps - np.nanmean(gaps, 1, keepdims=True), 0)
    return gaps.shape[1] * (centred / tested.sum(1, keepdims=True)).mean(0)


def ranks(values: Mapping[str, float]) -> dict[str, float]:
    """1 for the highest; equal ones share the mean of their places."""
    from scipy.stats import rankdata

    rounded = [-round(value, 6) for value in values.values()]  # means of equal counts differ in a bit
    return dict(zip(values, map(float, rankdata(rounded))))


def accuracy_interval(right: int, images: int) -> list[float]:
    """Wilson's 95% interval of an accuracy over images, in percent."""
    from scipy.stats import binomtest

    found = binomtest(right, images).proportion_ci(method="wilson")
    return [100 * float(found.low), 100 * float(found.high)]


def paired_difference(
    ours: Bool[np.ndarray, " B"] | Float[np.ndarray, " B"],
    theirs: Bool[np.ndarray, " B"] | Float[np.ndarray, " B"],
) -> list[float]:
    """[mean, low, high] of ours minus theirs on the same images, in points, with its interval over these
    images: of one seed each. What an image has is whether it is right, or how right it is. One image says
    nothing: its interval is all that is possible.
    """
    gaps = 100.0 * (ours.astype(float) - theirs.astype(float))
    mean, error = float(gaps.mean()), margin([gaps]) if len(gaps) > 1 else 200.0
    return [mean, max(-100.0, mean - error), min(100.0, mean + error)]
