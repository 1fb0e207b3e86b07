"""Calibrate: how sure a method is beside how often it is right, and the temperature that makes both agree on
validation images. No test image has a part in it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from wordsight import metrics
from wordsight.config import RunSettings, WordsightError
from wordsight.data import Dataset
from wordsight.data.features import image_features
from wordsight.data.splits import Which, digests, few_shot, of_other_content, select_classes
from wordsight.fitted import Fitted
from wordsight.metrics import Best, Curve

MOST_IMAGES = 2000  # that one number is fitted to
MOST_SCORES = 2**22  # of images times classes, for the same: 32 MB
NO_PART = "the data has no validation images"
NO_BEST = "no temperature is best for them: every one is right, or they are no better than a guess"
ALL_FITTED = "every labelled image was fitted to, and none was kept back"


class Temperature(NamedTuple):
    """What scores are divided by, or why there is nothing."""

    value: float | None = None
    images: int = 0  # validation images that it was fitted to
    reason: str = ""


UNFITTED = Temperature(reason="none was fitted")


def fit_temperature(
    fitted: Fitted, whole: Dataset, settings: RunSettings, which: Which, seen: set[bytes] | None = None
) -> Temperature:
    """By the validation images that `validation_scores` takes."""
    try:
        logits, labels = validation_scores(fitted, whole, settings, which, seen)
    except WordsightError as error:
        return Temperature(reason=str(error))
    value = metrics.temperature(logits, labels)
    return Temperature(value, len(labels), "" if value else NO_BEST)


def validation_scores(
    fitted: Fitted, whole: Dataset, settings: RunSettings, which: Which, seen: set[bytes] | None = None
) -> tuple[Float[Tensor, "n C"], Int[Tensor, " n"]]:
    """Scores and labels of the validation images of these classes: those of the few-shot draw, or, of other
    data than the run's (`seen` are then the images that it was fitted to), those of its validation part. An
    image that is tested on too is left out.

    Errors: WordsightError where there are none, or none that can be scored."""
    drawn = few_shot(whole, settings.shots, settings.seed)[1] if whole.val and seen is None else whole.val
    if drawn is None or not len(drawn) or drawn.shown is not None:  # several classes have no softmax
        raise WordsightError(NO_PART)
    tested = {*digests(whole.test.pictures if whole.test else ()), *(seen or ())}
    val = drawn.take(of_other_content(drawn.pictures, tested))
    chosen = select_classes(replace(whole, val=val), which)
    val, fitted = chosen.val, fitted.with_classes(chosen.class_names)
    assert val is not None and fitted.backbone is not None  # or other classes would have been refused
    val = val.take(spread(len(val), min(MOST_IMAGES, MOST_SCORES // len(chosen.class_names) or 1)))
    if not len(val):
        raise WordsightError(NO_PART)
    found = image_features(fitted.backbone, val.pictures, max_pixels=settings.max_pixels)
    return fitted.logits(found.vectors[:, 0]), torch.from_numpy(val.labels)[found.kept]


def spread(count: int, most: int) -> list[int]:
    """So many places at most, evenly over all."""
    return list(range(count)) if count <= most else np.linspace(0, count - 1, most).astype(int).tolist()


def calibration(found: Best, labels: Int[Tensor, " B"], temperature: Temperature) -> dict[str, Any]:
    """What an evaluation keeps of it: the reliability diagram, the temperature, and the diagram after it."""
    right = (found.predicted == labels).numpy()
    curve = metrics.calibration_curve(found.confidence.numpy(), right)
    kept = {"curve": as_json(curve), "temperature": temperature.value, "validation": temperature.images}
    if temperature.value is None:
        return {**kept, "reason": temperature.reason}
    after = metrics.calibration_curve(found.calibrated.numpy(), right)
    return {**kept, "error_after": after.error, "curve_after": as_json(after)}


def as_json(curve: Curve) -> dict[str, list[Any]]:
    """None for what an empty bin has not."""
    images = curve.images.tolist()
    means = {name: getattr(curve, name).tolist() for name in ("confidence", "accuracy")}
    return {"images": images} | {
        name: [value if count else None for value, count in zip(values, images)]
        for name, values in means.items()
    }
