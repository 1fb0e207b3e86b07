"""Metrics: pure functions of scores and labels, in percent unless they say otherwise. B images, C classes."""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


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
