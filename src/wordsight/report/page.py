"""Page: sections of panels, and the HTML file that page.html.j2 makes of them. It needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from wordsight import __version__
from wordsight.config import METHODS, WordsightError, resolve
from wordsight.files import printable
from wordsight.metrics import Confusion
from wordsight.report import plots
from wordsight.report.comparison import Comparison
from wordsight.report.covered import Split
from wordsight.report.images import Card, cards
from wordsight.report.reading import ALL_LABELS, NO_LABELS, Account, Measured
from wordsight.report.rows import Row, short_data, short_names, split_by
from wordsight.report.tables import (
    BESIDE,
    COMPARED,
    LEGEND,
    Table,
    captions_table,
    facts,
    figures_table,
    notes,
    references_table,
    retrieval_table,
    sources,
    standings_table,
    varying,
)

NAMED_CLASSES = 20  # a confusion matrix of more classes is drawn, without names
CONFUSED_PAIRS = 8
ERRORS = "The wrong predictions of the highest probability."
LINKED = "A name leads to the image file."
EXPLAINED = "The sentence is the one closest to the prompt of this image, with its cosine."


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
    picture: str = ""


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
    cards: tuple[Card, ...] = ()
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


# -- the report --


def as_html(
    rows: Sequence[Row],
    compared: Sequence[Comparison] = (),
    *,
    split: Split | None = None,
    folder: Path | None = None,  # that the page will lie in: links to images below it are relative
    left_out: Mapping[Path, str] | None = None,
) -> str:
    groups = split_by(rows, same_place)
    places = sorted({str(run.folder) for row in rows for run in row.runs})
    lists = {"The run folders": places}
    if left_out:
        lists["Left out"] = [f"{place}: {reason}" for place, reason in left_out.items()]
    title = f"{len(places)} run{'s' * (len(places) != 1)}, wordsight {__version__}. {LEGEND}"
    overall = [*comparison_sections(compared), *retrieval_sections(rows), *coverage_sections(split)]
    each = [data_section(group, rows, folder or Path.cwd()) for group in groups]
    sections = [*overall, *each] if len(each) > 1 else [*each, *overall]
    return render(Page("Wordsight report", tuple(sections), title, lists))


def same_place(row: Row) -> tuple[str, str]:
    return row.data, row.backbone


def comparison_sections(compared: Sequence[Comparison]) -> list[Section]:
    """How methods stand against one another, each comparison a panel."""
    panels = tuple(Panel(one.title, table=standings_table(one), after=tuple(one.words)) for one in compared)
    return [Section("Against one another", panels, lead=COMPARED)] if panels else []


def retrieval_sections(rows: Sequence[Row]) -> list[Section]:
    table = retrieval_table(rows)
    title = "Recall@k, image to text and text to image"
    found = [Section("Retrieval", (Panel(title, table=table),))] if table else []
    captions = captions_table(rows)
    title = "Against people's captions and the images, times 100"
    return [*found, Section("Captions", (Panel(title, table=captions),))] if captions else found


def coverage_sections(split: Split | None) -> list[Section]:
    title = "Covered and uncovered classes"
    return [Section(title, (Panel(table=split.table, after=(split.note,)),))] if split else []


def data_section(rows: Sequence[Row], every: Sequence[Row], folder: Path) -> Section:
    """All there is to say of one dataset on one backbone."""
    data, backbone = rows[0].data, rows[0].backbone
    short = short_data(every)[data]
    full = f" ({data})" if short != data else ""
    panels = [figures_panel(rows), references_panel(rows), plot_panel(rows)]
    run = best_run(rows)
    if run is not None:
        worded = best_run([row for row in rows if resolve(METHODS, row.method, "method").needs_sentences])
        panels += [confusion_panel(run), errors_panel(worded or run, folder)]
    panels += account_panels(rows)
    name = short_names(row.backbone for row in every)[backbone]
    return Section(short, tuple(panel for panel in panels if panel), f"on backbone {name}{full}")


def figures_panel(rows: Sequence[Row]) -> Panel:
    after = facts(rows), notes(rows), sources(rows)
    words = [name for name in varying(rows) if name == "words"]
    return Panel(table=figures_table(rows, words), after=tuple(filter(None, after)))


def references_panel(rows: Sequence[Row]) -> Panel | None:
    table = references_table(rows)
    return Panel("Beside zero-shot and a linear probe", (BESIDE,), table) if table else None


def plot_panel(rows: Sequence[Row]) -> Panel | None:
    """None where there are no two figures to be told apart."""
    measured = [row for row in rows if row.figures]
    if len(measured) < 2 or all(row.shots == NO_LABELS for row in measured):
        return None
    figures, legend = plots.accuracy_plots(rows)
    drawn = tuple(Markup(plots.svg(figure)) for figure in figures)
    return Panel(plots.title_of(rows), plots=drawn, legend=tuple(legend))


def best_run(rows: Sequence[Row]) -> Measured | None:
    """The most accurate run of the largest shots, trained on all classes where there is one."""
    found: list[tuple[tuple[bool, int, float], Measured]] = []
    for row in rows:
        for run in row.runs:
            last = run.last()
            if last is not None and last.data == row.data:
                found.append(((last.part == "all", row.shots, last.accuracy), run))
    best = max((rank for rank, _ in found), default=None)
    return next((run for rank, run in found if rank == best), None)


def caption(run: Measured) -> str:
    settings = run.settings
    known = {NO_LABELS: "no labels", ALL_LABELS: "all labelled images"}
    shots = known.get(run.shots, f"{run.shots} shot{'s' * (run.shots != 1)}")
    return f"{settings.method}, {shots}, {settings.classes} classes, seed {settings.seed}"


# -- the confusion matrix --


def confusion_panel(run: Measured) -> Panel | None:
    last = run.last()
    if last is None or last.counts is None:
        return None
    images = "" if last.images is None else f" of {last.images:,} images"
    note = f"{caption(run)}: {last.accuracy:.1f} %{images}. A row is a true class, a column a predicted one."
    pairs = confused_pairs(last.names, last.counts)
    after = () if pairs else ("No image is wrong.",)
    drawn = confusion_matrix(last.names, last.counts)
    return Panel("Confusion matrix", (note,), table=pairs, after=after, matrix=drawn)


def confusion_matrix(names: Sequence[str], counts: Confusion) -> Matrix:
    if len(names) > NAMED_CLASSES:
        return Matrix(tuple(names), picture=plots.png(plots.confusion_plot(counts)))
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


def confused_pairs(names: Sequence[str], counts: Confusion) -> Table | None:
    """The pairs of classes that were confused most often; None where no image is wrong."""
    pairs = zip(counts.images.tolist(), counts.true.tolist(), counts.predicted.tolist())
    wrong = [(-count, row, column) for count, row, column in pairs if row != column and count]
    lines = [
        {"true class": names[row], "predicted": names[column], "images": f"{-count:,}"}
        for count, row, column in sorted(wrong)[:CONFUSED_PAIRS]
    ]
    return Table.of(lines) if lines else None


# -- confident errors, and what the data held --


def errors_panel(run: Measured, folder: Path) -> Panel:
    """The mistakes a run was surest of. Where they or their data are gone, a line says so."""
    title, who = "Confident errors", caption(run)
    try:
        shown = cards(run, folder)
    except (WordsightError, OSError) as error:
        return Panel(title, (f"Left out: {error}",))
    if not shown:
        return Panel(title, (f"{who}: no image is wrong.",))
    notes = [f"{who}. {ERRORS}"]
    notes += [LINKED] if any(card.link for card in shown) else []
    notes += [EXPLAINED] if any(card.sentence for card in shown) else []
    return Panel(title, (" ".join(notes),), cards=tuple(shown))


def account_panels(rows: Sequence[Row]) -> list[Panel]:
    """What the data held, by the runs' own accounts: one, unless the data changed between runs."""
    runs = {run.folder: run for row in rows for run in row.runs if row.data == run.settings.data}
    found = [(run, run.account) for run in runs.values() if run.account is not None]
    groups = split_by(found, account_of)
    panels = []
    for group in groups:
        run, account = group[0]
        which = (f"Of {len(group)} of {len(found)} runs, such as {run.folder}.",)
        panels.append(Panel("Data", which if len(groups) > 1 else (), account=account))
    return panels


def account_of(found: tuple[Measured, Account]) -> str:
    return repr(found[1])
