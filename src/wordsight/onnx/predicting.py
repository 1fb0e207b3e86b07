"""Predicting: the classes of images by a graph, with the answers and the options of a run's. Imports no
torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from wordsight.answers import Answered, Predictions
from wordsight.data import Picture
from wordsight.data.pictures import readable
from wordsight.files import WordsightError
from wordsight.onnx import Graph, refuse
from wordsight.onnx.pixels import pixels_of

AT_ONCE = 16  # images that are decoded and pass through the graph together


class ByGraph:
    """A graph in onnxruntime."""

    def __init__(self, graph: Graph):
        self.graph, self.doubts = graph, graph.facts.doubts

    @property
    def names(self) -> tuple[str, ...]:
        return self.graph.facts.class_names

    def __call__(self, pictures: list[Picture], explain: int, max_pixels: int | None) -> Iterator[Answered]:
        for start in range(0, len(pictures), AT_ONCE):
            yield self._of(pictures[start : start + AT_ONCE], start, max_pixels)

    def _of(self, pictures: list[Picture], start: int, max_pixels: int | None) -> Answered:
        images, skipped = readable(pictures, max_pixels)
        if not images:
            return Answered([], np.empty((0, len(self.names))), [], [], skipped)
        pixels = np.stack([pixels_of(image, self.graph.facts.pixels) for image in images.values()])
        found, count = self.graph(pixels), len(images)
        far = self.doubts.far
        strange = (found["distance"] > far).tolist() if "distance" in found else None
        chances = softmax(found["logits"].astype(np.float64))
        return Answered(
            [start + place for place in images], chances, [()] * count, [None] * count, skipped, strange
        )


def softmax(scores: np.ndarray) -> np.ndarray:
    """Probabilities [B, C], in double precision as a run's are."""
    raised = np.exp(scores - scores.max(1, keepdims=True))
    return raised / raised.sum(1, keepdims=True)


def predict(
    graph: str | Path,
    images: str | Path | Sequence[Any],
    *,
    unsure: float | None = None,
    error: float | None = None,
    csv: str | Path | None = None,
    max_pixels: int | None = None,
    **others: Any,
) -> Predictions:
    """What a graph of `export --onnx` says about images, as `wordsight.predict` of the run does. `others` are
    options that need the run. Errors: WordsightError for these, and for no such graph."""
    refuse(**others)
    opened = ByGraph(Graph(graph))
    if error is not None and opened.graph.facts.eight_bits.get("kind") == "all":
        raise WordsightError(
            f"error={error} would not hold: the run's doubts were measured in float32, and this graph "
            "computes in 8 bits (--int8 all); export with --int8 weights, or without"
        )
    given = [images] if isinstance(images, (str, Path)) else images
    most = opened.graph.facts.max_pixels if max_pixels is None else max_pixels
    return Predictions(opened, given, unsure=unsure, error=error, csv=csv, max_pixels=most)
