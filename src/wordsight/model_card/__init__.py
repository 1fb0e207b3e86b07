"""Model card: what a folder that is passed on says of itself, in README.md: how to use it, its figures, the
data it was fitted to, its classes, what it is for and not for, and the licence of each part.

results    figures of a run, in one form for tables, for the picture and for the hub's metadata
metadata   the YAML in front, as huggingface_hub reads it
picture    figures.png: the figures with their intervals, and how far confidences can be trusted; no image
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from wordsight.backbones.hub import HERE
from wordsight.files import read_text
from wordsight.methods import Captioner, Embedder
from wordsight.model_card.metadata import front, kind_of
from wordsight.model_card.names import last_part, public
from wordsight.model_card.picture import FILE, draw
from wordsight.model_card.results import Figure, figures
from wordsight.runs import Run

__all__ = ["CARD", "Part", "last_part", "public", "write_card"]

CARD = "README.md"
LISTED = 50  # classes that a card names
NOT_STATED = "not stated beside the weights; ask whoever published them before you pass them on"
LIMITS = """It was fitted to and measured on the data above and nothing else. Images of another kind (another
camera, place, time or style) may be answered worse, with the same confidence; `wordsight eval` on images of
your own, labelled by you, says how much. What the image tower and the words have learned from the web,
prejudice included, is in its answers. It is not meant for decisions about people, nor where a wrong answer
can do harm that nobody looks at.
"""


class Part(NamedTuple):
    """Something that a folder was made of."""

    name: str
    source: str  # a hub name, or the last part of a path
    licence: str  # as it is stated, with the files that say so; empty where nothing is known
    identifier: str = ""  # the hub's name of the licence, where one is stated


def write_card(
    run: Run,
    folder: Path,
    name: str,
    parts: Sequence[Part],
    licence: str | None = None,
    body: str | None = None,
    classes: Sequence[str] | None = None,
) -> str:
    """The card of what lies in `folder`, called `name`; its picture is written beside it. `licence` is the
    identifier under which the whole is passed on; by default what all parts state. `body` says how to use
    what is no run folder, and `classes` which it chooses among, where no others can be: the run's figures
    are not those of other classes."""
    found = figures(run) if classes is None or set(classes) == set(run.facts.classes) else []
    drawn = draw(run, found, folder / FILE)
    if body is None:
        body = _embedder_body(folder, name) if kind_of(run) is Embedder else _body(run, name)
    sections = [
        body.rstrip(),
        _figures(found, FILE if drawn else ""),
        _data(run),
        f"## Intended use and limits\n\n{_use(run, classes is not None)} {LIMITS}",
        _licences(parts),
    ]
    return (
        front(run, name, parts, found, licence) + "\n\n".join(one.strip() for one in sections if one) + "\n"
    )


def _embedder_body(folder: Path, name: str) -> str:
    """What a two_tower, which is a backbone, has written of itself, under the name of what holds it."""
    body = read_text(folder / CARD, "model card").split("\n---\n", 1)[1].lstrip()
    return f"# {name}\n" + body.partition("\n")[2].replace(HERE, f'"{name}"')


def _body(run: Run, name: str) -> str:
    settings, captioner = run.settings, kind_of(run) is Captioner
    if captioner:
        own = settings.settings
        what = (
            f"Says what images show: the language model `{last_part(own.text)}` over a frozen image tower, "
            f"through a linear map learned from captions of `{last_part(settings.data)}` (LiMBeR; h: "
            f"{own.h})."
        )
        return f"# {name}\n\n{what}\n\n```\npip install wordsight\nwordsight caption {name} image.jpg\n```\n"
    images = f"{settings.shots} labelled images a class" if settings.shots else "all labelled images"
    kinds = [one.partition("@")[0] for one in (settings.method, settings.backbone)]
    own = " and ".join(f"`{kind}`" for kind in kinds if ":" in kind)
    needs = f"It needs the packages of {own}.\n" if own else ""
    return (
        f"# {name}\n\n"
        f"An image classifier taught by words: method `{settings.method}`, fitted to {images} of "
        f"`{last_part(settings.data)}`, over a frozen backbone.\n{needs}\n"
        f"```\npip install wordsight\nwordsight predict {name} image.jpg\n```\n\n"
        f'```python\nimport wordsight\n\nclf = wordsight.load("{name}")\nclf.predict(["image.jpg"])\n```\n'
    )


def _figures(found: Sequence[Figure], picture: str) -> str:
    if not found:
        return ""
    rows = "".join(
        f"| {one.data} | {one.part} | {one.images} | {one.name} | {one.value:.1f} | {one.between} |"
        f" {one.beside('zero_shot')} | {one.beside('linear_probe')} |\n"
        for one in found
    )
    shown = (
        f"\n![Figures of this model]({picture})\n\nThe picture is drawn from the figures; it shows no "
        f"image of the data.\n"
        if picture
        else ""
    )
    return (
        "## Figures\n\n| test images of | classes | images | figure | value | 95% interval | zero-shot | "
        f"linear probe |\n|---|---|---|---|---|---|---|---|\n{rows}{shown}"
    )


def _data(run: Run) -> str:
    account, names = run.account, run.facts.classes
    lines = [f"- Fitted to: `{last_part(run.settings.data)}`, draw {run.settings.seed}"]
    if account:
        lines.append(f"- Held: {account['kept']:,} usable of {account['seen']:,} that were seen")
    for fact, what in (
        (run.facts.images, "labelled images"),
        (run.facts.pairs, "pairs"),
        (run.facts.test, "test"),
    ):
        if fact:
            lines.append(f"- {what[0].upper()}{what[1:]}: {fact.partition(',')[0]}")
    if names:
        more = f" and {len(names) - LISTED} more" if len(names) > LISTED else ""
        lines.append(f"- {len(names)} classes: {', '.join(names[:LISTED])}{more}")
    return "## Data\n\n" + "\n".join(lines) + "\n"


def _use(run: Run, fixed: bool) -> str:
    """What it is for; `fixed`: its classes are."""
    if kind_of(run) is Captioner:
        return "It describes images in sentences like those that it learned from."
    if kind_of(run) is Embedder:
        return "It tells images and texts apart by meaning: classes by name, search, and as a backbone."
    others = "" if fixed else ", or of others by name (`--classes`)"
    return (
        f"It says which of its classes an image shows{others}. It answers with one of them whatever it is "
        f"shown; `--unsure` marks doubtful answers."
    )


def _licences(parts: Sequence[Part]) -> str:
    if not parts:
        return ""
    rows = "".join(
        f"| {one.name} | {one.source or 'in this folder'} | {one.licence or NOT_STATED} |\n" for one in parts
    )
    return f"## Licence\n\n| part | from | licence |\n|---|---|---|\n{rows}"
