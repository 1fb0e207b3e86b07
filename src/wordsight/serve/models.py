"""Models: each RUN of the command line, opened by what it is, and what it is asked, in batches.

All that touches a model's tensors runs in one of its three threads (worker.py): for its image tower, for its
text tower, which has a thousand new names to read now and then, and for its LM, which writes for seconds."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from torch import Tensor

from wordsight.answers import Answer, Predictions
from wordsight.backbones import Backbone
from wordsight.backbones.generator import Generator
from wordsight.backbones.hub import run_folder
from wordsight.config import RunSettings, WordsightError
from wordsight.data import Picture
from wordsight.data.images import read_image
from wordsight.data.passing import Cores
from wordsight.data.store import is_unit
from wordsight.doubts import NONE, Doubts
from wordsight.early import is_run
from wordsight.files import plain_name
from wordsight.fitted import (
    NO_BACKBONE,
    Fitted,
    is_asking,
    is_captioner,
    is_embedder,
    open_backbone,
    open_embedder,
    open_generator,
)
from wordsight.prediction import ByAsking, ByVectors
from wordsight.runs import Run
from wordsight.serve.settings import Limits
from wordsight.serve.worker import Worker
from wordsight.serve.written import Shown, Writer, guarded

if TYPE_CHECKING:  # with the half of transformers that LMs need, and the extra lm
    from wordsight.asked import Asked
    from wordsight.assistant import Assistant

REMEMBERED = 8  # sets of classes whose words stay encoded

Sentences = tuple[tuple[str, tuple[str, ...]], ...]  # of each class, in a form that can be looked up


class Over(NamedTuple):
    """Among which classes an image is classified, with how many sentences, and what counts as not certain: a
    probability below `unsure`, or all that cannot be ruled out at the rate `error`.
    """

    names: tuple[str, ...]
    sentences: Sentences
    explain: int = 0
    unsure: float | None = None
    error: float | None = None

    @property
    def words(self) -> tuple[tuple[str, ...], Sentences]:
        """What is encoded."""
        return self.names, self.sentences


class Recent(OrderedDict[Any, Any]):
    """The `most` values that were asked for last, each made once."""

    def __init__(self, most: int):
        super().__init__()
        self.most, self._lock = most, threading.Lock()

    def find(self, key: Any) -> Any | None:
        """The value of a key that is known."""
        with self._lock:
            if key in self:
                self.move_to_end(key)
            return super().get(key)

    def keep(self, key: Any, value: Any) -> Any:
        with self._lock:
            self[key] = value
            while len(self) > self.most:
                self.popitem(last=False)
        return value


class Encoded(NamedTuple):
    """A set of classes whose words are encoded, and how they were asked about."""

    predictor: ByVectors | ByAsking
    asked: Recent  # Predictions by Over


class Look(NamedTuple):
    """An image for the image tower; for its vector alone, or for an answer."""

    pixels: Tensor  # [3, H, W], as the tower reads it
    predictions: Predictions | None = None


@dataclass
class Parts:
    """What a model is made of; each part but the method's name may be missing."""

    method: str
    fitted: Fitted | None = None  # of classes of its own
    backbone: Backbone | None = None  # that encodes images, and texts for classes of a request
    asked: Asked | None = None
    generator: Generator | None = None
    template: str = RunSettings.template
    doubts: Doubts = NONE  # about images and its own classes


class Model:
    """A run that is open, with what it can."""

    def __init__(self, name: str, parts: Parts, limits: Limits, told: Callable[[int], None]):
        self.id, self.parts, self.limits = name, parts, limits
        self.search = False  # whether it is what images are searched with
        self._cores = None if parts.backbone is None else Cores(parts.backbone)
        room = {"wait": limits.wait_ms / 1000, "told": told}
        self.tower = Worker(f"{name} tower", most=limits.max_batch, room=limits.max_queue, **room)
        self.words = Worker(f"{name} words", most=limits.max_batch, room=limits.max_queue, **room)
        self.writer = Worker(f"{name} LM", most=16, room=max(1, limits.max_queue // 4), **room)
        self.written = None if parts.generator is None else Writer(parts.generator)
        self._encoded = Recent(REMEMBERED)  # by names and sentences

    @property
    def class_names(self) -> tuple[str, ...]:
        """Its own; none where a request names them."""
        parts = self.parts
        return parts.fitted.texts.names if parts.fitted else parts.asked.names if parts.asked else ()

    @property
    def abilities(self) -> list[str]:
        """What it can be asked for."""
        parts, generator = self.parts, self.parts.generator
        sees = generator is not None and generator.sees
        words = parts.backbone is not None and parts.backbone.has_text
        can = {
            "classify": bool(parts.fitted or parts.asked or words),
            "embed": parts.backbone is not None,
            "search": self.search,
            "caption": sees,
            "answer": sees,
            "chat": generator is not None,
        }
        return [name for name, able in can.items() if able]

    @property
    def waiting(self) -> int:
        return sum(worker.waiting for worker in self._workers)

    def close(self) -> None:
        """End once what waits is done."""
        for worker in self._workers:
            worker.close()
        if self._cores is not None:
            self._cores.close()

    @property
    def _workers(self) -> tuple[Worker, ...]:
        return self.tower, self.words, self.writer

    # -- in the thread of its text tower --

    def known(self, over: Over) -> Predictions | None:
        """What answers over these classes, where they are encoded."""
        encoded = self._encoded.find(over.words)
        return None if encoded is None else encoded.asked.find(over)

    def encode(self, wanted: list[Over]) -> list[Predictions | Exception]:
        """The same, encoded now where they are not."""
        return [guarded(self._encode, over) for over in wanted]

    def texts(self, texts: list[str]) -> list[np.ndarray]:
        """Each text's vector [D]."""
        assert self.parts.backbone is not None
        return list(self.parts.backbone.encode_text(texts).float().cpu().numpy())

    # -- in the thread of its image tower --

    def look(self, items: list[Look]) -> list[Any]:
        """Each image's vector [D], or its Answer: all pass through the image tower together."""
        assert self._cores is not None  # else nobody is asked to look
        vectors = self._cores.vectors([item.pixels for item in items])
        sound = [is_unit(vector.numpy()[None]) for vector in vectors]
        wrong = WordsightError("the image tower gives a vector that is not finite")
        found: list[Any] = [vector if good else wrong for vector, good in zip(vectors, sound)]
        for one in {id(item.predictions): item.predictions for item in items}.values():
            rows = [row for row, item in enumerate(items) if item.predictions is one and sound[row]]
            if one is not None and rows:
                found = _with(found, rows, self._answers(one, vectors[rows]))
        return found

    # -- in the thread of its LM --

    def ask(self, items: list[tuple[Shown, Predictions]]) -> list[Any]:
        """Each image's Answer, of a generator that is asked for the class."""
        return [guarded(self._ask, *item) for item in items]

    # -- inside --

    def _answers(self, predictions: Predictions, vectors: Tensor) -> list[Answer]:
        pictures = [_passing(str(row)) for row in range(len(vectors))]
        predictor = predictions.predictor
        assert isinstance(predictor, ByVectors)  # of whatever looks
        found = predictor.of(list(range(len(vectors))), vectors, [], predictions.explain)
        return list(predictions.answers_of(pictures, found))

    def _ask(self, shown: Shown, predictions: Predictions) -> Answer:
        predictor = predictions.predictor
        assert isinstance(predictor, ByAsking)
        method = predictor.asked.method
        seen = method.generator.see([read_image(shown.load(), shown.max_pixels)])
        (answer,) = predictions.answers_of([_passing("0")], predictor.of([0], method.scores(seen), []))
        return answer

    def _encode(self, over: Over) -> Predictions:
        encoded = self._encoded.find(over.words)
        if encoded is None:
            encoded = self._encoded.keep(over.words, Encoded(self._predictor(over), Recent(REMEMBERED)))
        if (known := encoded.asked.find(over)) is not None:
            return known
        wanted = {"explain": over.explain, "unsure": over.unsure, "error": over.error}
        return encoded.asked.keep(over, Predictions(encoded.predictor, [], **wanted))

    def _predictor(self, over: Over) -> ByVectors | ByAsking:
        parts, names, told = self.parts, over.names, dict(over.sentences)
        if parts.asked is not None:
            return ByAsking(parts.asked if names == parts.asked.names else parts.asked.with_classes(names))
        fitted = parts.fitted
        if fitted is None:
            assert parts.backbone is not None  # of what classifies by a request's classes
            fitted = Fitted.by_names(parts.backbone, names, parts.template)
        elif told or names != fitted.texts.names:
            fitted = fitted.with_classes(names, told)
        doubts = parts.doubts.over(self.class_names, names)
        return ByVectors(fitted, replace(doubts, chances=None) if told else doubts)


def _passing(name: str) -> Picture:
    """A picture whose content has been read already."""
    return Picture(name, bytes)


def _with(found: list[Any], rows: Sequence[int], values: Sequence[Any]) -> list[Any]:
    changed = dict(zip(rows, values, strict=True))
    return [changed.get(row, value) for row, value in enumerate(found)]


# -- opening ---------------------------------------------------------------------------------------------


def open_parts(name: str, device: str | None = None) -> Parts:
    """What the command line's RUN is. Errors: WordsightError for what is none, and what cannot be asked over
    a network.
    """
    path = run_folder(name)
    if not is_run(path):
        from wordsight.assistant import Assistant

        return _of_assistant(Assistant.open(name, device=device))
    run = Run.open(path)
    method = run.settings.method
    if is_captioner(run):
        return Parts(method, generator=open_generator(path, device=device))
    if is_embedder(run):
        return _of_embedder(run, device)
    if is_asking(run):
        from wordsight.asked import Asked

        asked = Asked.open(run)
        return Parts(method, asked=asked, generator=asked.generator)
    if run.settings.backbone == NO_BACKBONE:
        raise WordsightError(
            f"{name} was fitted on feature matrices without a backbone, and cannot be asked about images"
        )
    fitted = Fitted.open(run, open_backbone(run, device=device))
    doubts = Doubts.read(run.folder)
    return Parts(method, fitted, fitted.backbone, template=fitted.facts.template, doubts=doubts)


def _of_embedder(run: Run, device: str | None) -> Parts:
    """A two_tower: its classes come with each request. Where its LM writes as it came, it chats, too."""
    settings, found = run.settings, open_embedder(run, device=device)
    parts = Parts(settings.method, backbone=found, template=settings.template)
    from wordsight.assistant import Assistant
    from wordsight.backbones.llm import LLM

    if isinstance(found, LLM) and found.text.writes_as_before:
        parts.generator = Assistant.of_embedder(found).generator
    return parts


def _of_assistant(assistant: Assistant) -> Parts:
    return Parts("assistant", backbone=assistant.embedder, generator=assistant.generator)


def names_of(runs: Sequence[str]) -> Mapping[str, str]:
    """An id for each RUN: its folder's name, made unique. Errors: WordsightError for one given twice."""
    found: dict[str, str] = {}
    for run in runs:
        if run in found.values():
            raise WordsightError(f"{run} is given twice; each run is served once")
        own = plain_name(Path(run.removeprefix("hf:")).name or run)
        others = (own, *(f"{own}-{number}" for number in range(2, len(runs) + 2)))
        found[next(name for name in others if name not in found)] = run
    return found
