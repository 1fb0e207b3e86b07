"""Metrics: pure functions of scores and labels, in percent unless they say otherwise. B images, C classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

RESAMPLES, LEVEL, STREAM = 2_000, 95, 0  # of the bootstrap: how many, percent of the interval, random seed
AT_ONCE = 2**22  # drawn rows that are held in memory at a time


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


def interval(
    figures: Float[np.ndarray, "n ..."],
    of_mean: Callable[[Float[np.ndarray, "R ..."]], Float[np.ndarray, " R"]] | None = None,
) -> tuple[float, float]:
    """The bootstrap's percentile interval of the mean of n rows, or of a function of that mean; the same
    rows give the same interval.

    A row is what could have been another one: a test image (right or wrong, in percent), or a pair of runs.
    For two methods on the same images, give the difference of each image, and it is a paired interval.
    Errors: ValueError for fewer than two rows."""
    from scipy.stats import bootstrap  # a second to import, which most commands do not need

    def means(rows: Int[np.ndarray, "R n"], axis: int = -1) -> Float[np.ndarray, " R"]:
        drawn = figures[rows].mean(axis=rows.ndim - 1)
        return drawn if of_mean is None else of_mean(drawn)

    found = bootstrap(
        (np.arange(len(figures)),),
        means,
        n_resamples=RESAMPLES,
        batch=max(1, AT_ONCE // max(1, len(figures))),
        vectorized=True,
        confidence_level=LEVEL / 100,
        method="percentile",
        rng=np.random.default_rng(STREAM),
    ).confidence_interval
    return float(found.low), float(found.high)


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


def paired_difference(ours: Bool[np.ndarray, " B"], theirs: Bool[np.ndarray, " B"]) -> list[float]:
    """[mean, low, high] of ours minus theirs on the same images, in points, with its paired interval."""
    gaps = 100.0 * (ours.astype(float) - theirs.astype(float))
    return [float(gaps.mean()), *interval(gaps)] if len(gaps) > 1 else [float(gaps.mean())] * 3
