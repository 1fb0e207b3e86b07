"""ONNX: a run as one graph, from pixels to probabilities, that predicts without torch.

model.onnx      image tower and head; what reads it needs (Facts) lies in its metadata, too
wordsight.json  the same facts, for whoever does not read metadata, and a digest of the graph
README.md       a model card        licences/  as `export` copies them

Here what is read; exporting.py writes. Imports no torch. Shapes: B images, C classes, D width.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from wordsight.digests import check_digests
from wordsight.doubts import Doubts
from wordsight.early import GRAPH
from wordsight.extras import needed
from wordsight.files import WordsightError, parse_json, read_json
from wordsight.reader import build

FACTS = "wordsight.json"
KEY = "wordsight"  # of the facts in the graph's metadata
DIGEST = "digest"  # of the whole graph, in FACTS
FORMAT = 1


@dataclass(frozen=True)
class Facts:
    """What a graph's numbers mean."""

    class_names: tuple[str, ...]  # in the order of its probabilities
    pixels: dict[str, Any]  # how an image becomes its input: pixels.py
    method: str = ""
    backbone: str = ""
    template: str = ""
    opset: int = 0
    far: float | None = None  # the output `distance` from which on an image is unlike all training images
    # what `error=` needs (doubts.Doubts.chances), and of which images they are
    chances: tuple[float, ...] = ()
    chances_of: str = ""
    max_pixels: int | None = None  # the largest image that is read, as of the run
    # against torch: images, and the largest difference between probabilities; as 8 bits: those of both
    checked: dict[str, Any] = field(default_factory=dict)
    eight_bits: dict[str, Any] = field(default_factory=dict)
    format: int = FORMAT

    @property
    def doubts(self) -> Doubts:
        """What the run knew of its doubts."""
        chances = np.array(self.chances) if self.chances else None
        return Doubts(chances, self.chances_of, distances=None if self.far is None else np.array([self.far]))

    def to_json(self, **beside: str) -> str:
        return json.dumps(asdict(self) | beside, ensure_ascii=False, indent=1)


class Graph:
    """A graph that is open in onnxruntime."""

    def __init__(self, path: str | Path):
        """Errors: WordsightError for no graph of `wordsight export --onnx`, or one that onnxruntime cannot
        run."""
        path = Path(path).expanduser()
        self.path = path / GRAPH if path.is_dir() else path
        if not self.path.is_file():
            raise WordsightError(
                f"{str(self.path)!r} does not exist; `wordsight export RUN OUT --onnx` writes one"
            )
        check_content(self.path)
        self.session = opened(self.path)
        self.facts = self._facts()
        outputs = {output.name: output.shape for output in self.session.get_outputs()}
        self.outputs = list(outputs)
        self.sides = self._sides()
        classes, scored = len(self.facts.class_names), outputs.get("logits", [0])[-1]
        if scored != classes or ("distance" in outputs) != (self.facts.far is not None):
            raise WordsightError(
                f"{self.path} does not fit its own metadata: it scores {scored} classes and names {classes}, "
                f"and its outputs are {', '.join(outputs)}; export the run again"
            )

    def __call__(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """Its outputs for uint8 pixels [B, 3, H, W]: `probabilities` and `logits` [B, C], `embedding` [B, D]
        and, where the run learned from images, `distance` [B]."""
        if list(pixels.shape[1:]) != self.sides:
            raise WordsightError(
                f"{self.path} takes pixels of {self.sides}, but its metadata make {list(pixels.shape[1:])}"
            )
        return dict(zip(self.outputs, self.session.run(self.outputs, {"pixels": pixels})))

    def _sides(self) -> list[int]:
        """3, H and W of its pixels."""
        inputs = {one.name: (one.type, one.shape) for one in self.session.get_inputs()}
        kind, shape = inputs.get("pixels", ("", []))
        if len(inputs) != 1 or kind != "tensor(uint8)":
            raise WordsightError(
                f"{self.path} is no graph of `wordsight export --onnx`: it takes {', '.join(inputs)}, and "
                "not pixels of uint8"
            )
        return list(shape[1:])

    def _facts(self) -> Facts:
        text = self.session.get_modelmeta().custom_metadata_map.get(KEY)
        if text is None:
            raise WordsightError(f"{self.path} is no graph of `wordsight export --onnx`: it says no classes")
        return facts_of(parse_json(text, f"metadata of {self.path}"), self.path)


def check_content(path: Path) -> None:
    """Refuse a graph that is not the one that was written; one that lies without its FACTS is not known.

    A number that changed in it would be a weight as good as any to onnxruntime."""
    beside = path.parent / FACTS
    if path.name != GRAPH or not beside.is_file():
        return
    known = read_json(beside, "facts of a graph")
    if isinstance(known, Mapping) and known.get(DIGEST):
        check_digests(path.parent, {path.name: known[DIGEST]}, "export the run again")


def facts_of(found: Any, path: Path) -> Facts:
    """Errors: WordsightError where they are no facts, or of another version."""
    number = found.get("format") if isinstance(found, Mapping) else None
    if number != FORMAT:
        raise WordsightError(
            f"{path} was written in format {number}; this version of wordsight reads {FORMAT}"
        )
    try:
        facts = build(Facts, found)
    except WordsightError as error:
        raise WordsightError(f"what {path} says of itself is damaged: {error}") from error
    if len(facts.class_names) < 2:
        raise WordsightError(f"{path} names {len(facts.class_names)} classes; at least 2 are chosen among")
    return facts


def opened(path: str | Path, threads: int = 0) -> Any:
    """An onnxruntime session. Errors: WordsightError where the package is not there, or cannot run the file,
    as where it is of a later opset."""
    with needed("onnx", "an ONNX graph"):
        import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime has many kinds of its own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        why = (
            "it is of a later opset than that knows; a later onnxruntime does, or export the run again"
            if "opset" in first.lower()
            else first[:300]
        )
        version = onnxruntime.__version__
        raise WordsightError(f"{path} cannot be opened by onnxruntime {version}: {why}") from error


def refuse(**given: Any) -> None:
    """Errors: WordsightError for an option that a graph, whose classes are fixed, cannot take."""
    for name, value in given.items():
        if value:
            why = "shows no sentences" if name == "explain" else "has its classes and its tower in it"
            raise WordsightError(
                f"--{name.replace('_', '-')} is not possible: an ONNX graph {why}; give the run in its place"
            )
