"""Images of a report: the pictures of a run's data, found by name, each small in the page and with a link to
its file; and what is shown of them."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

from PIL import Image

from wordsight.config import WordsightError, is_vectors
from wordsight.data import Dataset, Picture, open_dataset
from wordsight.data.images import MAX_PIXELS, Unreadable, read_image
from wordsight.report.reading import Measured, Prediction, by_probability

SHOWN = 12  # confident errors
SIDE = 224  # pixels of a thumbnail, of which a page shows half as many points
SMALL = 144  # of one among many
QUALITY = 80


class Shown(NamedTuple):
    """An image as it is shown."""

    name: str
    picture: str  # the address of the thumbnail, in the page itself; empty where it cannot be read
    link: str  # to the file; empty where it is none, as in a tar or a table
    note: str = ""  # below it


class Said(NamedTuple):
    """A line of a card: the true class, or what a run predicted."""

    who: str
    name: str
    probability: float | None = None


@dataclass(frozen=True)
class Card:
    """An image with what was said of it."""

    image: Shown
    lines: tuple[Said, ...]
    sentence: str = ""
    cosine: float | None = None


@dataclass(frozen=True)
class Group:
    """Images that belong together."""

    title: str
    note: str = ""
    cards: tuple[Card, ...] = ()
    images: tuple[Shown, ...] = ()  # in place of cards, where all were said the same of


class Gallery:
    """The pictures of one source, for a page in `folder`: opened when the first is asked for."""

    def __init__(self, data: str, label: str | None, max_pixels: int | None, folder: Path):
        self.data, self.label, self.folder = data, label, folder
        self.max_pixels = max_pixels or MAX_PIXELS
        self.gone = ""  # why there are none, once they were asked for

    @cached_property
    def by_name(self) -> Mapping[str, Picture]:
        if is_vectors(self.data):  # nothing to show, and seconds to open where it is large
            self.gone = f"{self.data!r} holds their vectors alone"
            return {}
        try:
            return {picture.name: picture for picture in pictures(open_dataset(self.data, self.label))}
        except (WordsightError, OSError) as error:
            self.gone = str(error)
            return {}

    def show(self, name: str, side: int = SIDE, note: str = "") -> Shown:
        picture = self.by_name.get(name)
        if picture is None:
            return Shown(name, "", "", note)
        return shown(picture, self.data, self.folder, self.max_pixels, side, note)

    def why_missing(self, names: Sequence[str]) -> str:
        """A sentence where the images of these names are not there; nothing where some are."""
        if not names or any(name in self.by_name for name in names):
            return ""
        gone = self.gone or f"the images named are no longer in {self.data!r}"
        return f"The images themselves are not shown: {gone.partition(';')[0].rstrip('.')}."


class Galleries:
    """One for each source, so that each is opened once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._known: dict[tuple[str, str | None], Gallery] = {}

    def of(self, run: Measured, data: str | None = None) -> Gallery:
        """Of a run's own data, or of other data that it was tested on."""
        settings = run.settings
        label = settings.label if data in (None, settings.data) else None
        key = (data or settings.data, label)
        return self._known.setdefault(key, Gallery(*key, settings.max_pixels, self.folder))


# -- what is shown --


def confident_errors(predictions: Sequence[Prediction], gallery: Gallery) -> list[Card]:
    """The wrong predictions of the highest probability."""
    wrong = [one for one in predictions if one.label != one.predicted]
    return [error_card(one, gallery) for one in sorted(wrong, key=by_probability)[:SHOWN]]


def error_card(one: Prediction, gallery: Gallery) -> Card:
    lines = Said("true class", one.label), Said("predicted", one.predicted, one.probability)
    return Card(gallery.show(one.image), lines, one.sentence, one.cosine)


def shown(
    picture: Picture, data: str, folder: Path, max_pixels: int, side: int = SIDE, note: str = ""
) -> Shown:
    """A picture of the source `data` on a page in `folder`."""
    file = file_of(data, picture)
    link = link_to(file, folder) if file else ""
    return Shown(picture.name, thumbnail(picture, max_pixels, side), link, note)


def pictures(dataset: Dataset) -> Iterator[Picture]:
    """Every picture; the test images last, so that they count where a name stands in two parts."""
    for part in (dataset.train, dataset.val, dataset.test):
        yield from part.pictures if part is not None else ()


def file_of(data: str, picture: Picture) -> Path | None:
    """The file that a picture is, by its name inside the source; None for what lies in a tar or a table."""
    source = Path(data).expanduser()
    for root in (source, source.parent):
        if (path := root / picture.name).is_file():
            return path.absolute()
    return None


def link_to(file: Path, folder: Path) -> str:
    """From a page in `folder`: relative where the file lies below it, so that both can move; else whole."""
    here = folder.absolute()
    if file.is_relative_to(here):
        return "./" + quote(os.fsencode(file.relative_to(here)))
    return file.as_uri()


def thumbnail(picture: Picture, max_pixels: int, side: int = SIDE) -> str:
    """The image in the page; a tiny one is enlarged in whole pixels, so that it is not a blur. Empty where it
    cannot be read.
    """
    try:
        image = read_image(picture.load(), max_pixels)
    except (Unreadable, OSError, ValueError, LookupError):
        return ""
    larger = side // max(image.size)
    out = io.BytesIO()
    if larger > 1:
        size = image.width * larger, image.height * larger
        image.resize(size, Image.Resampling.NEAREST).save(out, "PNG")
        return data_address(out.getvalue(), "png")
    image.thumbnail((side, side))
    image.save(out, "JPEG", quality=QUALITY)
    return data_address(out.getvalue(), "jpeg")


def data_address(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
