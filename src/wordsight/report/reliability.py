"""Reliability: how sure a run was beside how often it was right, before and after its temperature."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from wordsight.metrics import Curve, calibration_curve
from wordsight.report.values import counts, mapping, number, numbers, whole

if TYPE_CHECKING:
    from wordsight.report.reading import Prediction

UNSAID = "this run was evaluated before temperatures were fitted; `wordsight eval RUN` fits one"


@dataclass(frozen=True)
class Reliability:
    before: Curve
    after: Curve | None = None  # with the temperature
    temperature: float | None = None
    images: int = 0  # validation images that it was fitted to
    reason: str = UNSAID  # why there is none

    @property
    def told(self) -> str:
        """What was done, in a sentence."""
        before = f"Expected calibration error {self.before.error:.1f}"
        if self.after is None or self.temperature is None:
            return f"{before}. No temperature was fitted: {self.reason}."
        return (
            f"{before}; {self.after.error:.1f} with the temperature {self.temperature:.3g}, fitted to "
            f"{self.images:,} validation image{'s' * (self.images != 1)}, no test image among them."
        )


def reliability(event: Mapping[str, Any]) -> Reliability | None:
    """What an evaluation kept of it; None where it kept nothing that can be read."""
    kept = mapping(event.get("calibration"))
    before, after = curve(kept.get("curve")), curve(kept.get("curve_after"))
    temperature, images = number(kept.get("temperature")), whole(kept.get("validation"))
    if before is None:
        return None
    if after is None or not temperature:
        reason = kept.get("reason")
        return Reliability(before, reason=reason if isinstance(reason, str) else "none is kept")
    return Reliability(before, after, temperature, images or 0, "")


def curve(value: Any) -> Curve | None:
    images = counts(mapping(value).get("images"))
    if images is None or not len(images) or not images.sum():
        return None
    filled = images > 0
    means = [_means(mapping(value).get(name), filled) for name in ("confidence", "accuracy")]
    known = [one for one in means if one is not None]
    return Curve(images, *known) if len(known) == len(means) else None


def _means(value: Any, filled: np.ndarray) -> np.ndarray | None:
    """One for each bin; an empty bin has none."""
    given = value if isinstance(value, list) and len(value) == len(filled) else []
    known = numbers(
        [one for one, is_filled in zip(given, filled) if is_filled], int(filled.sum()), most=100.001
    )
    if known is None:
        return None
    found = np.full(len(filled), np.nan)
    found[filled] = known
    return found


def from_predictions(predictions: Sequence[Prediction]) -> Reliability | None:
    """Of a folder that keeps predictions alone; None where it keeps none."""
    if not predictions:
        return None
    sure = np.array([one.probability for one in predictions])
    right = np.array([one.label == one.predicted for one in predictions])
    return Reliability(calibration_curve(sure, right))
