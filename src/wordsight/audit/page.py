"""Page: what an audit found as one HTML file, in the report's layout."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from wordsight import __version__
from wordsight.audit.errors import Doubt
from wordsight.audit.found import Found, Proposal
from wordsight.audit.outliers import Outlier
from wordsight.audit.tables import LABELS, STUDIO
from wordsight.config import is_vectors
from wordsight.data.account import counted
from wordsight.data.images import MAX_PIXELS
from wordsight.report.images import SMALL, Card, Group, Said, Shown, shown
from wordsight.report.layout import Page, Panel, Section, render
from wordsight.report.tables import Table

T = TypeVar("T")
MOST = 48  # images of a kind that the page shows; all are in audit.json and the CSV
GROUPS = 24  # of copies

ERRORS = (
    "Each image was scored by the run's method fitted without it. A label is doubted where that method gives "
    "it less than it gives others of the same label, as many as confident learning estimates to be wrong. "
    "The percentages are its probabilities of the label and of the class that it would give; look before "
    "you change anything."
)
COPIES = (
    "The same file, or one that is resized, re-encoded, cropped or mirrored. An image that stands among "
    "training and test images makes test figures too good; one under two labels is wrong once."
)
OUTLIERS = (
    "Far from the mean of every class, or from the nearest images of its own class, in standard deviations "
    "beyond what is usual: another kind of picture, a rare kind of the class, or a wrong label."
)
WORDS = (
    "The pairs of classes that zero-shot by the run's words confuses most, with two sentences that say "
    "nearly the same. Cosine: of the text vectors; in brackets, deviations above the mean of all pairs."
)
NEXT = (
    "Images that stand for many others which no labelled image stands for and of which the run is unsure, "
    "the most useful first. predicted: by the run as it is."
)


def as_html(found: Found, folder: Path, pool: str | None) -> str:
    """The page that will lie in `folder`; links to images below it are relative."""
    pictures = Pictures(found, folder, pool)
    sections = [
        Section("What was found", (_overview(found),)),
        Section("Labels in doubt", (_doubts(found, pictures),), lead=ERRORS),
        Section("Copies", (_copies(found, pictures),), lead=COPIES),
        Section("Outliers", (_outliers(found, pictures),), lead=OUTLIERS),
    ]
    if found.confusing:
        sections.append(Section("Classes that words confuse", (_words(found),), lead=WORDS))
    if pool is not None:
        sections.append(Section("What to label next", (_next(found, pictures),), lead=NEXT))
    run = found.checked.run
    lead = f"{run.folder}, fitted to {run.settings.data}; wordsight {__version__}."
    return render(Page("Wordsight audit", tuple(sections), lead))


class Pictures:
    """Images of an audit as the page shows them."""

    def __init__(self, found: Found, folder: Path, pool: str | None):
        self.found, self.folder, self.pool = found, folder, pool or ""
        settings = found.checked.run.settings
        self.data, self.max_pixels = settings.data, settings.max_pixels or MAX_PIXELS

    def show(self, row: int, side: int = SMALL, note: str = "") -> Shown:
        images = self.found.checked.images
        if row < len(images):
            return shown(images[row].picture, self.data, self.folder, self.max_pixels, side, note)
        return self.of_pool(row - len(images), side, note)

    def of_pool(self, place: int, side: int = SMALL, note: str = "") -> Shown:
        picture = self.found.pool[place]
        return shown(picture, self.pool, self.folder, self.max_pixels, side, note)


def _overview(found: Found) -> Panel:
    checked = found.checked
    parts = [image.part for image in checked.images]
    images = ", ".join(f"{parts.count(part):,} {part}" for part in dict.fromkeys(parts))
    across = sum(map(found.across, found.groups))
    lines = [
        {"what": "labels in doubt", "found": len(found.doubts), "of": f"{len(checked.judged):,} images"},
        {"what": "groups of copies", "found": len(found.groups), "of": f"{across:,} across train and test"},
        {"what": "outliers", "found": len(found.outliers), "of": f"{len(checked.images):,} images"},
    ]
    notes = [f"Labelled images: {images}; classes: {len(checked.names):,}."]
    unjudged = len(checked.images) - len(checked.judged)
    if unjudged:
        notes.append(f"{counted(unjudged, 'image')} the only one of its class, so its label is not judged.")
    if is_vectors(checked.run.settings.data):
        notes.append("The data holds vectors alone: no image is shown, and only equal vectors are copies.")
    else:
        notes.append(f"Beside this page: audit.json has all of it; {LABELS} is for `wordsight fit` once")
        notes[-1] += f" labels are corrected, {STUDIO} for Label Studio."
    table = Table.of(lines, words=frozenset(("what", "of")))
    return Panel(table=table, after=tuple(notes))


def _shown_of(count: int, most: int) -> tuple[str, ...]:
    return (f"{most} of {count:,} are shown; audit.json has all.",) if count > most else ()


def _cards(found: Sequence[T], card: Callable[[T], Card], none: str = "") -> Panel:
    """The first of what was found; where there is none, a note of it."""
    if not found and none:
        return Panel(notes=(none,))
    return Panel(notes=_shown_of(len(found), MOST), cards=tuple(map(card, found[:MOST])))


def _doubts(found: Found, pictures: Pictures) -> Panel:
    return _cards(found.doubts, lambda one: _doubt(found, one, pictures), "No label is in doubt.")


def _doubt(found: Found, one: Doubt, pictures: Pictures) -> Card:
    names, image = found.checked.names, found.checked.images[one.row]
    said = Said(f"label ({image.part})", names[one.label], one.score)
    return Card(pictures.show(one.row), (said, Said("rather", names[one.suggested], one.chance)))


def _copies(found: Found, pictures: Pictures) -> Panel:
    if not found.groups:
        return Panel(notes=("No image stands twice.",))
    order = sorted(found.groups, key=lambda group: (not found.disagree(group), not found.across(group)))
    groups = tuple(_group(found, group, pictures) for group in order[:GROUPS])
    return Panel(notes=_shown_of(len(order), GROUPS), groups=groups)


def _group(found: Found, group: Sequence[int], pictures: Pictures) -> Group:
    images = [found.image(row) for row in group]
    labels = list(dict.fromkeys(image["label"] for image in images if image["label"] is not None))
    marks = ["several labels"] * found.disagree(group) + ["across train and test"] * found.across(group)
    notes = [f"{image['part']} {image['label'] if len(labels) > 1 else ''}".strip() for image in images]
    small = tuple(pictures.show(row, SMALL, note) for row, note in zip(group, notes))
    return Group(" / ".join(labels) or "of the pool", ", ".join(marks), images=small)


def _outliers(found: Found, pictures: Pictures) -> Panel:
    return _cards(
        found.outliers, lambda one: _outlier(found, one, pictures), "No image is unlike the others."
    )


def _outlier(found: Found, one: Outlier, pictures: Pictures) -> Card:
    image = found.checked.images[one.row]
    said = Said(f"label ({image.part})", found.checked.names[image.label])
    return Card(pictures.show(one.row), (said, Said(f"unlike its {one.of}", f"{one.score:.1f} deviations")))


def _words(found: Found) -> Panel:
    lines = [
        {
            "classes": f"{one.first} and {one.second}",
            "confused": f"{one.images:,} of {one.of:,}",
            "cosine": f"{one.cosine:.2f} ({one.beyond:+.1f})",
            "sentences": " / ".join(one.sentences),
        }
        for one in found.confusing
    ]
    command = f"wordsight sentences --contrast {found.checked.run.folder} model=MODEL out=sentences.json"
    after = f"Sentences that tell them apart, kept where they raise accuracy: {command}"
    return Panel(table=Table.of(lines, words=frozenset(("classes", "sentences"))), after=(after,))


def _next(found: Found, pictures: Pictures) -> Panel:
    return _cards(found.proposals, lambda one: _proposal(one, pictures))


def _proposal(one: Proposal, pictures: Pictures) -> Card:
    said = Said("predicted", one.predicted, one.chance)
    return Card(
        pictures.of_pool(one.pick.row), (said, Said("stands for", counted(one.pick.stands_for, "image")))
    )
