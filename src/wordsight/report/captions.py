"""Captions: what runs wrote of test images, the best and the worst of it by CIDEr-D, with the pictures and
what people said of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from wordsight.config import WordsightError
from wordsight.data.images import MAX_PIXELS
from wordsight.data.rows import Row as Image
from wordsight.data.sources import read
from wordsight.early import captions_file
from wordsight.files import csv_rows, read_text
from wordsight.report.images import Card, Said, Shown, shown
from wordsight.report.layout import Panel
from wordsight.report.reading import Measured
from wordsight.report.rows import Row

EXAMPLES = 6  # of the best, and of the worst
FIRST = "Of the first seed. CIDEr-D is of words alone: a caption may be right and share none with people's."


class Written(NamedTuple):
    """A caption of one image."""

    image: str
    text: str
    score: float  # CIDEr-D


def caption_panels(rows: Sequence[Row], folder: Path) -> list[Panel]:
    """Two for each row and data whose captions were kept, for a page in `folder`."""
    found = [(row, data) for row in rows for data in row.runs[0].captionings]
    sources = {data: _images(data) for _, data in found}
    return [panel for row, data in found for panel in _panels(row, data, *sources[data], folder)]


def _panels(row: Row, data: str, images: Mapping[str, Image], gone: str, folder: Path) -> list[Panel]:
    run, named = row.runs[0], f"captions: {row.label} on {Path(data).name}"
    try:
        written = sorted(_written(run, data), key=lambda one: -one.score)
    except (WordsightError, OSError) as error:
        return [Panel(f"The {named}", (f"Left out: {error}",))]
    count = min(EXAMPLES, len(written) // 2)
    if not count:
        return []
    limit = run.settings.max_pixels or MAX_PIXELS
    panels = []
    for name, some in (("Best", written[:count]), ("Worst", written[: -count - 1 : -1])):
        cards = tuple(_card(one, images.get(one.image), data, folder, limit) for one in some)
        notes = (f"{count} of {len(written):,} by CIDEr-D. {FIRST}", gone)
        panels.append(Panel(f"{name} {named}", tuple(filter(None, notes)), cards=cards))
    return panels


def _card(one: Written, image: Image | None, data: str, folder: Path, limit: int) -> Card:
    people = image.captions[:1] if image else ()
    said = Said("wrote", one.text or "nothing"), *(Said("people", text) for text in people)
    picture = shown(image.picture, data, folder, limit) if image else Shown(one.image, "", "")
    return Card(picture, (*said, Said("CIDEr-D", f"{one.score:.2f}")))


def _written(run: Measured, data: str) -> list[Written]:
    """Errors: WordsightError where the table is gone or damaged."""
    table = csv_rows(read_text(run.folder / captions_file(data), "captions"))
    try:
        return [Written(line["image"], line["caption"], float(line["cider_d"])) for line in table]
    except (KeyError, ValueError) as error:
        raise WordsightError(f"{captions_file(data)} of {run.folder} is not what was written") from error


def _images(data: str) -> tuple[Mapping[str, Image], str]:
    """The images of a source with people's captions, by name; and why there are none."""
    try:
        return {row.picture.name: row for row in read(data, "captions").rows}, ""
    except (WordsightError, OSError) as error:
        return {}, f"The images themselves are not shown: {str(error).partition(';')[0].rstrip('.')}."
