"""Metrics: pure functions of scores and labels, in percent unless they say otherwise. B images, C classes.
Imports no torch at the top, as a report needs none."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

if TYPE_CHECKING:
    from torch import Tensor

TOP = 5  # classes of the highest scores that are kept of each image
BINS = 15  # of a reliability diagram
COLDEST, HOTTEST = 1e-3, 1e3  # what a temperature is looked for between
LEVEL = 95  # percent of every interval
ROUNDING = 1e-18  # a variance, in squared points, that equal figures have where sums round


class Best(NamedTuple):
    """What figures need of each image's scores, which themselves need not be kept."""

    predicted: Int[Tensor, " B"]
    confidence: Float[Tensor, " B"]  # of the predicted class: its softmax
    top: Int[Tensor, "B K"]  # the classes of the highest scores, the highest first
    calibrated: Float[Tensor, " B"]  # the confidence of scores that were divided by a temperature

    def take(self, rows: Int[Tensor, " n"]) -> Best:
        return Best(*(column[rows] for column in self))

    @classmethod
    def joined(cls, parts: Sequence[Best]) -> Best:
        """Those of all parts, in their order."""
        import torch

        return cls(*(torch.cat(columns) for columns in zip(*parts)))


def best(logits: Float[Tensor, "B C"], k: int = TOP, temperature: float = 1.0) -> Best:
    highest, predicted = logits.max(1)
    confidence = (highest - logits.logsumexp(1)).exp()
    calibrated = confidence
    if temperature != 1.0:
        calibrated = (highest / temperature - (logits / temperature).logsumexp(1)).exp()
    return Best(predicted, confidence, logits.topk(min(k, logits.shape[1]), dim=1).indices, calibrated)


def accuracy(found: Best, labels: Int[Tensor, " B"]) -> float:
    return 100 * (found.predicted == labels).float().mean().item()


def top_k(found: Best, labels: Int[Tensor, " B"], classes: int, k: int = TOP) -> float | None:
    """Share of images whose label is among the k highest scores; None where there are fewer than k + 1
    classes and it would say nothing.
    """
    if classes <= k:
        return None
    return 100 * (found.top[:, :k] == labels[:, None]).any(1).float().mean().item()


@dataclass(frozen=True)
class Confusion:
    """The confusion matrix, of which only pairs that occur are kept, by true and then by predicted class: it
    grows with the images and not with the square of the classes.
    """

    true: Int[np.ndarray, " n"]
    predicted: Int[np.ndarray, " n"]
    images: Int[np.ndarray, " n"]
    classes: int

    @property
    def totals(self) -> Int[np.ndarray, " C"]:
        """Images of each true class."""
        return self._summed(self.true, slice(None))

    @property
    def right(self) -> Int[np.ndarray, " C"]:
        """Images of each class that were predicted so."""
        return self._summed(self.true, self.true == self.predicted)

    @property
    def guessed(self) -> Int[np.ndarray, " C"]:
        """Images that were predicted as each class."""
        return self._summed(self.predicted, slice(None))

    def _summed(self, places: Int[np.ndarray, " n"], rows: Any) -> Int[np.ndarray, " C"]:
        found = np.bincount(places[rows], weights=self.images[rows], minlength=self.classes)
        return found.astype(np.int64)  # exact: weights are summed as float64

    def lines(self, bins: int | None = None) -> Int[np.ndarray, "R R"]:
        """The whole matrix; with `bins`, of so many groups of neighbouring classes at most."""
        size = self.classes if bins is None else min(bins, self.classes)
        counts = np.zeros((size, size), np.int64)
        rows, columns = (side * size // self.classes for side in (self.true, self.predicted))
        np.add.at(counts, (rows, columns), self.images)
        return counts

    def to_dict(self) -> dict[str, list[int]]:
        """As JSON holds it: three lists of equal length."""
        return {name: getattr(self, name).tolist() for name in ("true", "predicted", "images")}


def confusion(predicted: Int[Tensor, " B"], labels: Int[Tensor, " B"], classes: int) -> Confusion:
    pairs, images = (labels * classes + predicted).unique(return_counts=True)
    pairs = pairs.numpy()
    return Confusion(pairs // classes, pairs % classes, images.numpy(), classes)


def class_recall(counts: Confusion) -> list[float | None]:
    """Recall of each class, None for a class with no image (never NaN: JSON has none)."""
    pairs = zip(counts.right.tolist(), counts.totals.tolist())
    return [100 * right / total if total else None for right, total in pairs]


def mean_class_recall(counts: Confusion) -> float:
    """Mean over the classes that have images: scikit-learn's balanced accuracy."""
    known = [recall for recall in class_recall(counts) if recall is not None]
    return sum(known) / len(known)


def average_precision(scores: Float[Tensor, "B C"], shown: Bool[Tensor, "B C"]) -> list[float | None]:
    """Of each class, with the images from its highest score to its lowest: the mean, over the images that
    show it, of the share of such images up to there (VOC 2010 and later, CLIP_benchmark). None for a class
    that no image shows.
    """
    order = scores.sort(dim=0, descending=True, stable=True).indices
    hits = shown.gather(0, order).double()
    share = hits.cumsum(0) / hits.new_ones(len(hits), 1).cumsum(0)
    totals = hits.sum(0)
    found = (share * hits).sum(0) / totals
    return [100 * value if total else None for value, total in zip(found.tolist(), totals.tolist())]


class ClassScores(NamedTuple):
    """Of each class, in percent: NaN where there is nothing to take a share of."""

    precision: Float[np.ndarray, " C"]  # of the images that were predicted so
    recall: Float[np.ndarray, " C"]  # of the images that are so
    f1: Float[np.ndarray, " C"]  # their harmonic mean; 0 where images were missed and none was found


def class_scores(counts: Confusion) -> ClassScores:
    """Precision, recall and F1 of each class: scikit-learn's, but for its 0 where a share is of nothing."""
    right = 100.0 * counts.right
    sizes = (counts.guessed, counts.totals, (counts.guessed + counts.totals) / 2)
    nothing = np.full(counts.classes, np.nan)
    return ClassScores(*(np.divide(right, size, out=nothing.copy(), where=size > 0) for size in sizes))


def harmonic_mean(base: float, new: float) -> float:
    """H = 2 B N / (B + N). Over several datasets or seeds the field takes H of the averaged B and N, not the
    average of H (protocol).
    """
    return 2 * base * new / (base + new) if base + new > 0 else 0.0


class Curve(NamedTuple):
    """A reliability diagram: what bins of equal width in confidence hold. NaN where a bin is empty."""

    images: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]  # mean, in percent
    accuracy: Float[np.ndarray, " bins"]  # in percent

    @property
    def error(self) -> float:
        """Expected calibration error (Guo et al. 2017): mean gap between confidence and accuracy, weighted by
        each bin's share of the images."""
        gaps = np.nan_to_num(np.abs(self.confidence - self.accuracy))
        return float((gaps * self.images).sum() / max(1, self.images.sum()))


def calibration_curve(
    confidence: Float[np.ndarray, " B"], right: Bool[np.ndarray, " B"], bins: int = BINS
) -> Curve:
    """How often an answer is right, by how sure it is."""
    place = np.clip((confidence * bins).astype(np.int64), 0, bins - 1)
    images = np.bincount(place, minlength=bins)
    sums = [np.bincount(place, weights=one, minlength=bins) for one in (confidence, right)]
    means = [np.divide(100 * one, images, out=np.full(bins, np.nan), where=images > 0) for one in sums]
    return Curve(images, means[0], means[1])


def temperature(logits: Float[Tensor, "B C"], labels: Int[Tensor, " B"]) -> float | None:
    """What scores are to be divided by, so that the labels are likeliest (Guo et al. 2017, section 4.2):
    where the mean score of the labels is that which the softmax expects.

    None where no number between COLDEST and HOTTEST is best: where every image is right, the smaller the
    better, which says nothing of other images; where scores are no better than a guess, the larger."""
    from scipy.optimize import brentq

    scores = logits.double()
    told = scores.gather(1, labels[:, None]).mean()

    def slope(log_temperature: float) -> float:
        shares = (scores / math.exp(log_temperature)).softmax(1)
        return float((shares * scores).sum(1).mean() - told)

    ends = math.log(COLDEST), math.log(HOTTEST)
    if not len(logits) or slope(ends[0]) <= 0 or slope(ends[1]) >= 0:
        return None
    found: Any = brentq(slope, *ends, xtol=1e-4)
    return math.exp(found)


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
    from scipy.special import stdtrit  # in place of scipy.stats, a second to import

    spread = [(float(np.var(rows, ddof=1)) / len(rows), len(rows) - 1) for rows in groups if len(rows) > 1]
    total = sum(variance for variance, _ in spread)
    if total < ROUNDING:
        return 0.0
    free = total**2 / sum(variance**2 / degrees for variance, degrees in spread)
    return float(stdtrit(free, 0.5 + LEVEL / 200)) * total**0.5


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
    rounded = [-round(value, 6) for value in values.values()]  # means of equal counts differ in a bit
    _, place, equal = np.unique(rounded, return_inverse=True, return_counts=True)
    shared = equal.cumsum() - (equal - 1) / 2
    return dict(zip(values, shared[place].tolist()))


def accuracy_interval(right: int, images: int) -> list[float]:
    """Wilson's 95% interval of an accuracy over images, in percent."""
    from scipy.special import ndtri  # the normal quantile

    z, share = float(ndtri(0.5 + LEVEL / 200)), right / images
    centre, whole = share + z**2 / (2 * images), 1 + z**2 / images
    half = z * (share * (1 - share) / images + z**2 / (4 * images**2)) ** 0.5
    return [100 * max(0.0, (centre - half) / whole), 100 * min(1.0, (centre + half) / whole)]


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
