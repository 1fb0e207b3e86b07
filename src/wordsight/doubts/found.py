"""Found: what a fit learns of its own doubts: from validation images that it did not choose by, and from its
training images."""

from __future__ import annotations

import numpy as np
from jaxtyping import Float, Int
from torch import Tensor

from wordsight.config import RunSettings, WordsightError
from wordsight.data import Dataset
from wordsight.doubts import Doubts
from wordsight.doubts.unlike import class_means, left_out
from wordsight.fitted import Fitted, at_once
from wordsight.tasks.calibrate import validation_scores


def of_training(images: Float[Tensor, "n D"], labels: Int[Tensor, " n"], classes: int) -> Doubts:
    """What marks images unlike all training images."""
    vectors, known = images.cpu().numpy(), labels.cpu().numpy()
    means = class_means(vectors, known, classes)
    return Doubts(means=means, distances=left_out(vectors, known, means))


def of_validation(fitted: Fitted, whole: Dataset, settings: RunSettings) -> Float[np.ndarray, " m"] | None:
    """The probabilities of the right classes of the run's validation images; None where there are none, or
    where it chose by them, so that they are no images like any other."""
    if settings.needs_val:
        return None
    try:
        logits, labels = validation_scores(fitted, whole, settings, settings.classes)
    except WordsightError:
        return None
    return _of_right(logits, labels)


def right_chances(
    fitted: Fitted, images: Float[Tensor, "n D"], labels: Int[Tensor, " n"]
) -> Float[np.ndarray, " n"]:
    """The probability of each image's class."""
    some = at_once(len(fitted.texts.names))
    parts = zip(images.split(some), labels.split(some))
    return np.concatenate([_of_right(fitted.logits(rows), own) for rows, own in parts])


def _of_right(logits: Float[Tensor, "n C"], labels: Int[Tensor, " n"]) -> Float[np.ndarray, " n"]:
    return logits.double().softmax(1).gather(1, labels[:, None].cpu())[:, 0].numpy()
