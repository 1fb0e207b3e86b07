"""Page: the sections of a report, and what each of them holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from markupsafe import Markup

from wordsight import __version__
from wordsight.report import plots
from wordsight.report.by_data import BY_DATA, by_data
from wordsight.report.captions import caption_panels
from wordsight.report.comparison import Comparison
from wordsight.report.covered import Split
from wordsight.report.images import Galleries
from wordsight.report.layout import Page, Panel, Section, render
from wordsight.report.panels import (
    beside_section,
    calibration_panel,
    classes_panel,
    confused_panel,
    confusion_panel,
    errors_panel,
    predicted,
)
from wordsight.report.reading import NO_LABELS, Account, Measured
from wordsight.report.rows import Row, short_data, short_names, split_by
from wordsight.report.tables import (
    BESIDE,
    COMPARED,
    LEGEND,
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
from wordsight.report.two_runs import TwoRuns
from wordsight.report.zero_shot import EACH, TITLE, zero_shot
from wordsight.tables import method_entry


def as_html(
    rows: Sequence[Row],
    compared: Sequence[Comparison] = (),
    *,
    split: Split | None = None,
    two: TwoRuns | None = None,
    folder: Path | None = None,  # that the page will lie in: links to images below it are relative
    left_out: Mapping[Path, str] | None = None,
) -> str:
    groups = split_by(rows, same_place)
    places = sorted({str(run.folder) for row in rows for run in row.runs})
    lists = {"The run folders": places}
    if left_out:
        lists["Left out"] = [f"{place}: {reason}" for place, reason in left_out.items()]
    title = f"{len(places)} run{'s' * (len(places) != 1)}, wordsight {__version__}. {LEGEND}"
    if why := plots.why_none():
        title = f"{title} Without plots: {why}"
    galleries = Galleries(folder or Path.cwd())
    overall = [beside_section(two, galleries)] if two else []
    overall += [
        *zero_shot_sections(rows),
        *by_data_sections(rows),
        *comparison_sections(compared),
        *retrieval_sections(rows, galleries.folder),
    ]
    overall += coverage_sections(split)
    each = [data_section(group, rows, galleries) for group in groups]
    sections = [*overall, *each] if len(each) > 1 else [*each, *overall]
    return render(Page("Wordsight report", tuple(sections), title, lists))


def same_place(row: Row) -> tuple[str, str]:
    return row.data, row.backbone


def zero_shot_sections(rows: Sequence[Row]) -> list[Section]:
    """Words alone: datasets as columns, beside what is printed; then a line for each of them."""
    found = zero_shot(rows)
    if found is None:
        return []
    panels = (Panel("Top-1", table=found.table, after=found.notes), Panel("Each", (EACH,), table=found.each))
    return [Section(TITLE, panels)]


def by_data_sections(rows: Sequence[Row]) -> list[Section]:
    """The field's layout, each part of the classes a panel."""
    panels = tuple(Panel(one.title, table=one.table) for one in by_data(rows))
    return [Section("All datasets", panels, lead=BY_DATA)] if panels else []


def comparison_sections(compared: Sequence[Comparison]) -> list[Section]:
    """How methods stand against one another, each comparison a panel."""
    panels = tuple(Panel(one.title, table=standings_table(one), after=tuple(one.words)) for one in compared)
    return [Section("Against one another", panels, lead=COMPARED)] if panels else []


def retrieval_sections(rows: Sequence[Row], folder: Path) -> list[Section]:
    table = retrieval_table(rows)
    title = "Recall@k, image to text and text to image"
    found = [Section("Retrieval", (Panel(title, table=table),))] if table else []
    captions = captions_table(rows)
    title = "Against people's captions and the images, times 100"
    if captions is None:
        return found
    return [*found, Section("Captions", (Panel(title, table=captions), *caption_panels(rows, folder)))]


def coverage_sections(split: Split | None) -> list[Section]:
    title = "Covered and uncovered classes"
    return [Section(title, (Panel(table=split.table, after=(split.note,)),))] if split else []


def data_section(rows: Sequence[Row], every: Sequence[Row], galleries: Galleries) -> Section:
    """All there is to say of one dataset on one backbone."""
    data, backbone = rows[0].data, rows[0].backbone
    short = short_data(every)[data]
    full = f" ({data})" if short != data else ""
    panels = [figures_panel(rows), references_panel(rows), plot_panel(rows)]
    run = best_run(rows)
    if run is not None:
        panels += run_panels(rows, run, galleries)
    panels += account_panels(rows)
    name = short_names(row.backbone for row in every)[backbone]
    return Section(short, tuple(panel for panel in panels if panel), f"on backbone {name}{full}")


def run_panels(rows: Sequence[Row], run: Measured, galleries: Galleries) -> list[Panel | None]:
    """The run in detail; confident errors of the best one that has sentences, which explain them."""
    worded = best_run([row for row in rows if method_entry(row.method).sentences]) or run
    predictions, _ = predicted(run)
    return [
        calibration_panel(rows, run, predictions),
        classes_panel(run),
        confusion_panel(run),
        confused_panel(run, predictions, galleries.of(run)),
        errors_panel(worded, galleries.of(worded)),
    ]


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
    if len(measured) < 2 or all(row.shots == NO_LABELS for row in measured) or plots.why_none():
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


# -- what the data held --


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
