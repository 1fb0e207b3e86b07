"""Report: many finished runs as Markdown, CSV, LaTeX, and one HTML file that needs nothing beside it.

reading     what a run folder says was measured       rows        runs that differ in their seed are one row
comparison  methods against one another, in pairs     tables      one structure, and what the tables hold
by_data     datasets as columns, the average last     classes     precision, recall, F1; what is confused
reliability how sure beside how right
two_runs    two runs, image by image                  covered     classes that captions name, and others
captions    the best and the worst that runs wrote        page        the HTML file: panels, images, layout
writers     Markdown, CSV, LaTeX                           plots       SVG

Nothing is computed by a model here: sentences that explain a prediction are read from the run folder."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wordsight.config import WordsightError
from wordsight.early import check_output
from wordsight.files import write_file
from wordsight.report.comparison import comparisons
from wordsight.report.covered import coverage_split, read_coverage
from wordsight.report.reading import NO_LABELS
from wordsight.report.rows import ABSENT, Row, Value, make_rows, open_runs, read_rows, run_folders
from wordsight.report.tables import best_cells, cells
from wordsight.report.two_runs import two_runs
from wordsight.report.writers import as_csv, as_latex, as_markdown, other_csv

__all__ = [
    "ABSENT",
    "NO_LABELS",
    "Row",
    "Value",
    "as_csv",
    "as_latex",
    "as_markdown",
    "best_cells",
    "cells",
    "comparisons",
    "read_rows",
    "report",
]

log = logging.getLogger("wordsight")


def report(
    folders: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    csv_file: str | Path | None = None,  # by default beside the page
    latex_file: str | Path | None = None,
    reference: str | None = None,  # whom the others are compared with; by default aape, or the first
    coverage_file: str | Path | None = None,  # of `wordsight coverage --json`: covered and uncovered classes
) -> dict[str, Any]:
    """Compare finished runs; returns {"html", "csv": paths, "files": all that were written, "markdown": text,
    "skipped", "left_out"}, where asked for "latex", and of two runs "image_by_image".

    A folder that is no run stands for all runs below it. A run that is not finished or cannot be read is
    told, and is in `skipped` where it was given itself, else in `left_out`, as {"run", "reason"}. Beside the
    CSV lie others in full precision: *-classes.csv; *-datasets.csv where there are several;
    *-comparison.csv where methods can be compared; of two runs *-images.csv.
    Errors: WordsightError where no run is left, for a reference that is not there, or where a file cannot be
    written."""
    from wordsight.report.page import as_html  # it draws, which a table needs not

    page = Path(out).expanduser()
    table = Path(csv_file or page.parent / f"{page.stem}.csv").expanduser()
    latex = Path(latex_file).expanduser() if latex_file else None
    check_names(page, table, latex, coverage_file)
    coverage = read_coverage(coverage_file) if coverage_file else None
    asked = run_folders(folders)
    runs, left_out = open_runs(asked)
    if left_out and not runs:
        raise WordsightError(next(iter(left_out.values())))
    for folder, reason in left_out.items():
        log.warning("left out %s: %s", folder, reason)
    rows = make_rows(runs)
    compared = comparisons(rows, reference)
    split = coverage_split(rows, coverage) if coverage else None
    two = two_runs(runs)
    html = as_html(rows, compared, split=split, two=two, folder=page.parent, left_out=left_out)
    files = {table: as_csv(rows), page: html}
    for name, content in other_csv(rows, compared, two).items():
        files[table.parent / f"{table.stem}-{name}.csv"] = content
    files |= {latex: as_latex(rows, compared, two)} if latex else {}
    for path, content in files.items():
        write_file(path, content)
    written: dict[str, Any] = {
        "html": str(page),
        "csv": str(table),
        "markdown": as_markdown(rows, compared, split, two),
        "files": [str(path) for path in files],
        **dict.fromkeys(("latex",) if latex else (), str(latex)),
    }
    if two is not None:
        written["image_by_image"] = two.to_dict()
    for name, given in (("skipped", True), ("left_out", False)):
        written[name] = [
            {"run": str(folder), "reason": reason}
            for folder, reason in left_out.items()
            if asked[folder] == given
        ]
    return written


def check_names(page: Path, table: Path, latex: Path | None, read: str | Path | None) -> None:
    """Errors: WordsightError where the page would be a folder or a table, two files would be one, or one is
    what is read."""
    if page.is_dir() or page.suffix.lower() == ".csv":
        better = page / "report.html" if page.is_dir() else page.with_suffix(".html")
        raise WordsightError(f"out={str(page)!r} must name the HTML file, such as {str(better)!r}")
    for name, path in (("out", page), ("csv", table), ("latex", latex)):
        if path is not None:
            check_output(path, name, (read,))
    names = [path.absolute() for path in (page, table, latex) if path]
    if len(set(names)) < len(names):
        raise WordsightError(
            f"the page ({page}), the CSV ({table}) and LaTeX ({latex}) must be different files"
        )
