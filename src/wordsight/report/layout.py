"""Layout: what a page is made of, and the HTML file that page.html.j2 makes of it. It needs nothing beside
it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wordsight.files import printable
from wordsight.metrics import Confusion
from wordsight.report import plots
from wordsight.report.images import Card, Group
from wordsight.report.reading import Account
from wordsight.report.tables import Table

NAMED_CLASSES = 20  # a confusion matrix of more classes is drawn, without names


class Cell(NamedTuple):
    """Of a confusion matrix."""

    count: int
    fill: str
    ink: str


@dataclass(frozen=True)
class Matrix:
    """A confusion matrix as a table of named classes, or as a picture."""

    names: tuple[str, ...]
    lines: tuple[tuple[Cell, ...], ...] = ()
    plot: Markup | None = None


@dataclass(frozen=True)
class Folded:
    """A table that is folded away below what it says."""

    title: str
    table: Table


@dataclass(frozen=True)
class Panel:
    """One box of the page; what it lacks is not shown."""

    title: str = ""
    notes: tuple[str, ...] = ()
    table: Table | None = None
    after: tuple[str, ...] = ()  # notes below the table
    plots: tuple[Markup, ...] = ()
    legend: tuple[plots.Key, ...] = ()
    matrix: Matrix | None = None
    groups: tuple[Group, ...] = ()
    cards: tuple[Card, ...] = ()
    folded: Folded | None = None
    account: Account | None = None


@dataclass(frozen=True)
class Section:
    title: str
    panels: tuple[Panel, ...]
    note: str = ""
    lead: str = ""


@dataclass(frozen=True)
class Page:
    title: str
    sections: tuple[Section, ...]
    lead: str = ""
    lists: Mapping[str, Sequence[str]] = field(default_factory=dict)  # folded away at the end, by title


def render(page: Page) -> str:
    """The page as one HTML file: no script, no font, no picture from elsewhere."""
    return environment().get_template("page.html.j2").render(page=page).lstrip()


@cache
def environment() -> Environment:
    """Every text is escaped, and shown without control characters."""
    return Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def visible(value: Any) -> Any:
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


# -- the confusion matrix --


def confusion_matrix(names: Sequence[str], counts: Confusion) -> Matrix | None:
    """None for one that would have to be drawn where nothing can be."""
    if len(names) > NAMED_CLASSES and plots.why_none():
        return None
    if len(names) > NAMED_CLASSES:
        return Matrix(tuple(names), plot=Markup(plots.svg(plots.confusion_plot(counts))))
    lines = tuple(
        tuple(confusion_cell(count, sum(line), right=row == column) for column, count in enumerate(line))
        for row, line in enumerate(counts.lines().tolist())
    )
    return Matrix(tuple(names), lines)


def confusion_cell(count: int, total: int, right: bool) -> Cell:
    """Blue where right, red where wrong; a small share of mistakes is still seen."""
    share = count / total if total else 0.0
    blue, red = f"rgba(0,114,178,{0.12 + 0.68 * share:.2f})", f"rgba(213,94,0,{0.15 + 0.85 * share**0.5:.2f})"
    fill = (blue if right else red) if count else "#f3f5f7"
    return Cell(count, fill, "#fff" if right and share > 0.6 else "#1d2430")
