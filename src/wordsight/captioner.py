"""Captioner: what a generator says of images, batch by batch, so that as many images as a disk holds
need no more memory than a few hundred.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from wordsight.backbones.generator import Generator, Seen, Writing
from wordsight.backbones.hub import run_folder
from wordsight.config import WordsightError
from wordsight.data import Picture
from wordsight.data.features import image_features
from wordsight.data.grids import grid_features
from wordsight.data.pictures import EachImage, NoneReadable, readable
from wordsight.fitted import open_generator

if TYPE_CHECKING:
    from wordsight.methods.limber_generator import LimberGenerator

BATCH, LARGE_BATCH = 16, 128  # captions that are written together, on a CPU and on an accelerator


class Caption(NamedTuple):
    """What was said of one image."""

    picture: Picture
    text: str


class Captions(EachImage[Caption]):
    """Captions in the order of the images (EachImage).

    Where tokens are drawn, each image draws from `seed` and its own content, so its caption depends neither
    on its place nor on the others."""

    counted = "captions"

    def __init__(
        self,
        generator: Generator,
        images: Sequence[Any],
        how: Writing | None = None,
        *,
        seed: int = 1,
        batch: int | None = None,  # captions written together; null: by the device
        max_pixels: int | None = None,
        csv: str | Path | None = None,
    ):
        super().__init__(images, max_pixels=max_pixels, csv=csv)
        if batch is not None and batch < 1:
            raise WordsightError(f"batch={batch} writes nothing; give 1 or more")
        self.generator, self.how, self.seed = generator, how or Writing(), seed
        self.batch = batch or (BATCH if generator.device.type == "cpu" else LARGE_BATCH)

    def _of(self, batch: Sequence[Picture]) -> Iterator[Caption]:
        seen, reasons = seen_by(self.generator, batch, self._max_pixels)
        self._skip(reasons)
        for rows in _parts(list(seen), self.batch):
            texts = self._write([batch[row] for row in rows], [seen[row] for row in rows])
            yield from (Caption(batch[row], text) for row, text in zip(rows, texts))

    def _header(self) -> list[str]:
        return ["image", "caption"]

    def _row(self, said: Caption) -> list[str]:
        return [said.picture.name, said.text]

    def _write(self, pictures: Sequence[Picture], seen: Sequence[Seen]) -> list[str]:
        prompts = [self.generator.captioning(one) for one in seen]
        seeds = [_seed(self.seed, picture) for picture in pictures] if self.how.temperature else None
        return [" ".join(text.split()) for text in self.generator.write(prompts, self.how, seeds)]


def caption(
    run: str | Path,
    images: str | Path | Sequence[Any],
    *,
    beams: int = 1,
    temperature: float = 0.0,
    top_p: float = 1.0,
    max_new_tokens: int = 32,
    seed: int = 1,
    batch: int | None = None,
    csv: str | Path | None = None,
    backbone: str | None = None,
    lm: str | None = None,
    device: str | None = None,
    max_pixels: int | None = None,
) -> Captions:
    """What a run of limber, or an image-text-to-text model, says of images:
    `for one in caption("runs/limber", ["a.jpg"]): one.text`.

    `images` are as `predict` takes them. `beams` looks for the likeliest text among so many,
    `temperature` above 0 draws tokens, among the likeliest that have `top_p` of the probability. `csv`
    is a file that gets a line an image, `batch` how many are written together (16 on a CPU, 128 on a GPU),
    `max_pixels` the largest image that is read. `backbone` and `lm` name the run's backbone and LM where they
    have moved.

    Errors: WordsightError for a run that says nothing about images, or whose backbone or LM is another
    now."""
    how = Writing(max_new_tokens=max_new_tokens, temperature=temperature, beams=beams, top_p=top_p)
    given = [images] if isinstance(images, (str, Path)) else images
    generator = open_generator(run_folder(run), backbone=backbone, lm=lm, device=device)
    return Captions(generator, given, how, seed=seed, batch=batch, csv=csv, max_pixels=max_pixels)


def seen_by(
    generator: Generator, pictures: Sequence[Picture], max_pixels: int | None = None
) -> tuple[dict[int, Seen], list[tuple[str, str]]]:
    """What a generator makes of each picture that can be read, by its place, and why the others cannot."""
    from wordsight.methods.limber_generator import LimberGenerator  # an LM's, which serving does without

    if isinstance(generator, LimberGenerator):
        return _from_cache(generator, pictures, max_pixels)
    return _read_now(generator, pictures, max_pixels)


def _from_cache(
    generator: LimberGenerator, pictures: Sequence[Picture], max_pixels: int | None
) -> tuple[dict[int, Seen], list[tuple[str, str]]]:
    """Soft tokens of grids and vectors that are made once and kept, and why the other pictures have none."""
    backbone, tokens = generator.backbone, generator.method.settings.tokens
    try:
        grids = grid_features(backbone, pictures, tokens, max_pixels=max_pixels)
    except NoneReadable as error:
        return {}, error.skipped
    features = image_features(backbone, [pictures[index] for index in grids.kept], max_pixels=max_pixels)
    rows = features.kept  # of the grids
    seen = generator.of_features(grids.centre(rows), features.vectors[:, 0])
    return {grids.kept[row]: one for row, one in zip(rows, seen)}, grids.skipped + features.skipped


def _read_now(
    generator: Generator, pictures: Sequence[Picture], max_pixels: int | None
) -> tuple[dict[int, Seen], list[tuple[str, str]]]:
    images, reasons = readable(pictures, max_pixels)
    refused = {place: why for place, image in images.items() if (why := generator.why_not(image))}
    reasons += [(pictures[place].name, why) for place, why in refused.items()]
    seen = {place: image for place, image in images.items() if place not in refused}
    return dict(zip(seen, generator.see(list(seen.values())) if seen else [])), reasons


def _seed(seed: int, picture: Picture) -> int:
    """What an image draws from."""
    return int.from_bytes(hashlib.blake2b(b"%d " % seed + picture.digest, digest_size=7).digest())


def _parts(rows: Sequence[int], size: int) -> Iterable[Sequence[int]]:
    return (rows[start : start + size] for start in range(0, len(rows), size))
