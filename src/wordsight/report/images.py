"""Images of a report: the predictions that were wrong and sure, each with its picture, file and sentence."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from wordsight.config import WordsightError
from wordsight.data import Dataset, Picture, open_dataset
from wordsight.data.images import MAX_PIXELS, Unreadable, read_image
from wordsight.report.plots import data_address
from wordsight.report.reading import Measured, Prediction

SHOWN = 12
SIDE = 224  # pixels of a thumbnail, of which a page shows half as many points


@dataclass(frozen=True)
class Card:
    """A wrong prediction as it is shown."""

    name: str
    picture: str  # the address of the thumbnail, in the page itself; empty where it cannot be read
    link: str  # to the file; empty where it is none, as in a tar or a table
    label: str
    predicted: str
    probability: float
    sentence: str = ""
    cosine: float | None = None


def cards(run: Measured, folder: Path) -> list[Card]:
    """The wrong predictions of the highest probability, for a page in `folder`.

    Errors: WordsightError where the predictions are not there, or none of their images is any more."""
    mistakes = confident_errors(run)
    if not mistakes:
        return []
    settings = run.settings
    by_name = {picture.name: picture for picture in pictures(open_dataset(settings.data, settings.label))}
    found = [(one, by_name[one.image]) for one in mistakes if one.image in by_name]
    if not found:
        raise WordsightError(f"the images named in {run.folder} are no longer in {settings.data!r}")
    return [card(one, picture, run, folder) for one, picture in found]


def confident_errors(run: Measured) -> list[Prediction]:
    wrong = [one for one in run.predictions() if one.label != one.predicted]
    return sorted(wrong, key=by_probability)[:SHOWN]


def by_probability(one: Prediction) -> float:
    return -one.probability


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


def card(one: Prediction, picture: Picture, run: Measured, folder: Path) -> Card:
    file = file_of(run.settings.data, picture)
    link = link_to(file, folder) if file else ""
    rest = (one.label, one.predicted, one.probability, one.sentence, one.cosine)
    return Card(one.image, thumbnail(picture, run.settings.max_pixels or MAX_PIXELS), link, *rest)


def link_to(file: Path, folder: Path) -> str:
    """From a page in `folder`: relative where the file lies below it, so that both can move; else whole."""
    here = folder.absolute()
    if file.is_relative_to(here):
        return "./" + quote(os.fsencode(file.relative_to(here)))
    return file.as_uri()


def thumbnail(picture: Picture, max_pixels: int) -> str:
    """The image in the page; a tiny one is enlarged in whole pixels, so that it is not a blur. Empty where it
    cannot be read.
    """
    try:
        image = read_image(picture.load(), max_pixels)
    except (Unreadable, OSError, ValueError, LookupError):
        return ""
    larger = SIDE // max(image.size)
    out = io.BytesIO()
    if larger > 1:
        size = image.width * larger, image.height * larger
        image.resize(size, Image.Resampling.NEAREST).save(out, "PNG")
        return data_address(out.getvalue(), "png")
    image.thumbnail((SIDE, SIDE))
    image.save(out, "JPEG", quality=85)
    return data_address(out.getvalue(), "jpeg")
