"""Asked: a generator that is asked which class each image shows (methods/likelihood.py): pictures in, scores
out, a few hundred at a time.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from wordsight.backbones import Backbone, device_or_cpu
from wordsight.backbones.generator import Generator
from wordsight.backbones.sentence_encoder import load_texts
from wordsight.captioner import seen_by
from wordsight.config import RunSettings, WordsightError
from wordsight.data import Picture, Split
from wordsight.data.labels import check_choice
from wordsight.data.pictures import readable
from wordsight.early import WEIGHTS_FILE
from wordsight.files import read_tensors
from wordsight.fitted import Closest, open_generator
from wordsight.methods.likelihood import Likelihood, Scores
from wordsight.runs import Run
from wordsight.workers import progress

AT_ONCE = 64  # pictures that are read and seen together


class Found(NamedTuple):
    """Scores of the pictures that can be read."""

    kept: list[int]  # places of these pictures
    scores: Scores
    skipped: list[tuple[str, str]]  # names of the others, with why


@dataclass(frozen=True)
class Asked:
    """A generator over the classes of `names`. `shown` are labelled pictures that it is shown before each
    question, with their classes."""

    generator: Generator
    settings: RunSettings  # of a run of likelihood
    names: tuple[str, ...]
    shown: tuple[tuple[Picture, str], ...] = ()

    @classmethod
    def open(cls, run: Run, model: Backbone | Generator | str | None = None) -> Asked:
        """What a run asks, its model named anew where that has moved, or open already. Errors: WordsightError
        where the model or the pictures it is shown are not what they were."""
        settings, name = run.settings, model if isinstance(model, str) else None
        generator = model if isinstance(model, Generator) else model_of(settings, name)
        if generator.fingerprint != run.facts.lm:
            raise WordsightError(
                f"{generator.name!r} is not the model that {run.folder} was made with, or has changed since; "
                f"give backbone=... where it has moved, or make the run again"
            )
        tensors, _ = read_tensors(run.folder / WEIGHTS_FILE, sealed=True)
        labels = tensors.get("labels", torch.empty(0, dtype=torch.long)).tolist()
        pictures = [_picture(row, tensors[f"image.{row}"].numpy()) for row in range(len(labels))]
        names = (run.facts.classes[label] for label in labels)
        return cls(generator, settings, run.facts.classes, tuple(zip(pictures, names)))

    @classmethod
    def showing(
        cls, generator: Generator, settings: RunSettings, names: Sequence[str], shown: Split
    ) -> Asked:
        """With these examples, read now. Errors: WordsightError for one that cannot be read."""
        images, reasons = readable(shown.pictures, settings.max_pixels)
        if reasons:
            name, reason = reasons[0]
            raise WordsightError(f"{name}, which is to be shown as an example, cannot be read: {reason}")
        pictures = [_picture(row, np.array(image)) for row, image in images.items()]
        chosen = [tuple(names)[label] for label in shown.labels.tolist()]
        return cls(generator, settings, tuple(names), tuple(zip(pictures, chosen)))

    def weights(self) -> dict[str, Tensor]:
        """What a run keeps: the examples, so that it needs nothing else."""
        pixels = [torch.from_numpy(np.array(picture.load())) for picture, _ in self.shown]
        labels = torch.tensor([self.names.index(name) for _, name in self.shown], dtype=torch.long)
        return {"labels": labels, **{f"image.{row}": one for row, one in enumerate(pixels)}}

    def knowing(self, data: str) -> Asked:
        """The same: it knows no words but class names."""
        return self

    def with_classes(self, names: Sequence[str]) -> Asked:
        """The same over other classes. Errors: WordsightError for fewer than two, or one twice."""
        check_choice(names)
        return replace(self, names=tuple(names))

    def reasons(self, scores: Scores) -> list[list[Closest]] | None:
        """What was written of each image, with the class nearest to it; None where nothing was."""
        if scores.said is None:
            return None
        nearest = [self.names[row] for row in scores.values.argmax(1).tolist()]
        return [[Closest(*one)] for one in zip(nearest, scores.said, scores.cosines())]

    @cached_property
    def method(self) -> Likelihood:
        """What scores."""
        seen, _ = seen_by(self.generator, [picture for picture, _ in self.shown])
        examples = [(seen[place], name) for place, (_, name) in enumerate(self.shown)]
        own = self.settings.settings
        mapper = load_texts(own.mapper, device=device_or_cpu(self.settings.device)) if own.mapper else None
        return Likelihood(self.generator, own, self.names, examples, mapper)

    def ask(self, pictures: Sequence[Picture]) -> Found:
        """Scores of pictures, all held at once."""
        parts = []
        with progress("images", len(pictures)) as advance:
            for found in self.stream(pictures, self.settings.max_pixels):
                parts.append(found)
                advance(len(found.kept) + len(found.skipped))
        kept = [place for found in parts for place in found.kept]
        values = torch.cat([found.scores.values for found in parts])
        said = [text for found in parts for text in found.scores.said or ()]
        listed = [one for found in parts for one in found.scores.listed or ()]
        free = self.settings.settings.by == "free"
        scores = Scores(values, said if free else None, listed if free else None)
        return Found(kept, scores, [one for found in parts for one in found.skipped])

    def stream(self, pictures: Sequence[Picture], max_pixels: int | None) -> Iterator[Found]:
        """The same, some at a time, of images of so many pixels at most."""
        empty = torch.empty(0, len(self.names))
        for start in range(0, len(pictures), AT_ONCE):
            some = pictures[start : start + AT_ONCE]
            seen, reasons = seen_by(self.generator, some, max_pixels)
            scores = self.method.scores([*seen.values()]) if seen else Scores(empty, [], [])
            yield Found([start + place for place in seen], scores, reasons)


def _picture(row: int, pixels: np.ndarray) -> Picture:
    return Picture(f"example {row + 1}", lambda: pixels)


def model_of(settings: RunSettings, name: str | None = None) -> Generator:
    """The generator that a run of likelihood asks. Errors: WordsightError for what is none."""
    given = name or Likelihood.model_name(settings)
    return open_generator(given, device=device_or_cpu(settings.device), dtype=settings.dtype)
