"""Results: the figures of a run, the last of each kind, in one form."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from wordsight.model_card.names import last_part
from wordsight.runs import Run

WAYS = {"image_to_text": "image to text", "text_to_image": "text to image"}


@dataclass(frozen=True)
class Figure:
    """One number that was measured, in percent where it is a share."""

    data: str
    part: str  # which classes; empty for captions
    images: int
    name: str  # for people
    metric: str  # the hub's name of what was measured
    value: float
    interval: tuple[float, float] | None = None
    references: Mapping[str, float] = field(
        default_factory=dict
    )  # zero_shot, linear_probe: the same of these

    @property
    def between(self) -> str:
        return "" if self.interval is None else f"{self.interval[0]:.1f} to {self.interval[1]:.1f}"

    def beside(self, kind: str) -> str:
        return f"{self.references[kind]:.1f}" if kind in self.references else ""


def figures(run: Run) -> list[Figure]:
    """Of each kind, data and part of the classes the last that was measured."""
    last = {
        (one["event"], one["data"], one.get("classes")): one
        for kind in ("eval", "retrieval", "captions")
        for one in run.events(kind)
    }
    return [figure for event in last.values() for figure in _of(event)]


def _of(event: Mapping[str, Any]) -> Iterator[Figure]:
    data, images = last_part(str(event["data"])), int(event["images"])
    if event["event"] == "eval":
        low_high: Sequence[float] | None = event.get("interval")
        interval = (low_high[0], low_high[1]) if low_high else None
        beside = {kind: one["accuracy"] for kind, one in (event.get("references") or {}).items()}
        part = event.get("classes", "all")
        yield Figure(data, part, images, "accuracy", "accuracy", event["accuracy"], interval, beside)
    elif event["event"] == "retrieval":
        for way, shown in WAYS.items():
            for name, value in event.get(way, {}).items():
                yield Figure(data, "", images, f"{shown}: {name}", "recall", value)
    else:
        yield Figure(data, "", images, "CIDEr-D, times 100", "cider", 100 * event["cider_d"])
        yield Figure(data, "", images, "BLEU-4, times 100", "bleu", 100 * event["bleu_4"])
