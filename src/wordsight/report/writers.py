"""Writers: a table as Markdown, CSV and LaTeX, each safe for what reads it. page.html.j2 is the fourth."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wordsight.files import csv_text, printable
from wordsight.report.by_data import BY_DATA, by_data, data_records
from wordsight.report.classes import class_records
from wordsight.report.comparison import Comparison
from wordsight.report.covered import Split
from wordsight.report.rows import Row
from wordsight.report.tables import (
    BESIDE,
    COMPARED,
    LEGEND,
    Table,
    captions_table,
    figures_records,
    figures_table,
    notes,
    references_table,
    retrieval_table,
    sources,
    standings_records,
    standings_table,
    varying,
)
from wordsight.report.two_runs import TwoRuns, beside_records, beside_table
from wordsight.report.zero_shot import EACH, TITLE, zero_shot

OURS = {"±": r"$\pm$", "–": "--", "−": "$-$", "→": r"$\rightarrow$"}  # in LaTeX
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: "\\" + sign for sign in "&%$#_{}"
}


# -- the whole report --


def as_markdown(
    rows: Sequence[Row],
    compared: Sequence[Comparison] = (),
    split: Split | None = None,
    two: TwoRuns | None = None,
) -> str:
    """The figures, data and backbone columns where they vary; then the references, retrieval, two runs image
    by image, the datasets beside one another, and how methods stand against one another.
    """
    varied = varying(rows)
    parts = [markdown_table(figures_table(rows, varied)), notes(rows), line_of(sources(rows))]
    words = zero_shot(rows)
    if words is not None:
        parts += [f"**{TITLE}**", markdown_table(words.table), *map(line_of, words.notes)]
        parts += [markdown_table(words.each), EACH]
    for title, table, legend in (
        ("**Beside zero-shot and a linear probe**", references_table(rows, varied), BESIDE),
        ("**Retrieval**, recall@k", retrieval_table(rows), ""),
        ("**Captions**, times 100", captions_table(rows), ""),
        ("**Covered and uncovered classes**", split.table if split else None, split.note if split else ""),
    ):
        parts += [title, markdown_table(table), legend] if table else []
    if two is not None:
        parts += ["**Image by image**", *([markdown_table(beside_table(two.parts))] if two.parts else [])]
        parts.append("\n".join(f"- {markdown(sentence)}" for sentence in two.words))
    tables = by_data(rows)
    for each in tables:
        parts += [f"**{markdown(each.title)}**", markdown_table(each.table)]
    parts += [BY_DATA] if tables else []
    for one in compared:
        parts.append(f"**Against {markdown(one.reference)}** ({markdown(one.title)})")
        parts.append(markdown_table(standings_table(one)))
        parts.append("\n".join(f"- {markdown(sentence)}" for sentence in one.words))
    return "\n\n".join(filter(None, [*parts, COMPARED if compared else ""]))


def as_latex(rows: Sequence[Row], compared: Sequence[Comparison] = (), two: TwoRuns | None = None) -> str:
    """The same tables for a paper; they need \\usepackage{booktabs}."""
    caption = " ".join(filter(None, (LEGEND, notes(rows), sources(rows))))
    parts = [latex_table(figures_table(rows, varying(rows)), caption)]
    if two is not None and two.parts:
        parts.append(latex_table(beside_table(two.parts), f"Image by image. {' '.join(two.words)}"))
    words = zero_shot(rows)
    parts += [latex_table(words.table, " ".join((f"{TITLE}.", *words.notes)))] if words is not None else []
    parts += [latex_table(one.table, f"{one.title}. {BY_DATA}") for one in by_data(rows)]
    for one in compared:
        words = " ".join([COMPARED, *one.words])
        parts.append(latex_table(standings_table(one), f"Against {one.reference} ({one.title}). {words}"))
    return "% \\usepackage{booktabs}\n" + "\n".join(parts)


def as_csv(rows: Sequence[Row]) -> str:
    """Every figure with its spread, in full precision; an empty cell where there is none."""
    return csv_table(figures_records(rows))


def other_csv(rows: Sequence[Row], compared: Sequence[Comparison], two: TwoRuns | None) -> dict[str, str]:
    """The further tables in full precision, by what their files end in; an empty cell where there is none."""
    words = zero_shot(rows)
    tables = {
        "classes": class_records(rows),
        "datasets": data_records(by_data(rows)),
        "zero-shot": words.records if words is not None else None,
        "comparison": standings_records(compared) if compared else None,
        "images": beside_records(two.parts) if two is not None and two.parts else None,
    }
    return {name: csv_table(table) for name, table in tables.items() if table is not None and table.rows}


# -- one table --


def markdown_table(table: Table) -> str:
    """Aligned, so that it is read in a terminal too."""
    columns = [line_of(column) for column in table.columns]
    left = [column in table.words for column in table.columns]
    rows = [
        [
            f"**{text}**"
            if (index, column) in table.best
            else markdown(text)
            if column in table.words
            else text
            for column, text in zip(table.columns, map(line_of, row))
        ]
        for index, row in enumerate(table.rows)
    ]
    head = [markdown(column) for column in columns]
    widths = [max(3, *map(len, texts)) for texts in zip(head, *rows)]
    dashes = ["-" * (size - 1) for size in widths]
    rule = [f":{dash}" if is_left else f"{dash}:" for dash, is_left in zip(dashes, left)]
    lines = [
        [text.ljust(size) if is_left else text.rjust(size) for text, size, is_left in zip(line, widths, left)]
        for line in (head, *rows)
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], rule, *lines[1:]))


def csv_table(table: Table) -> str:
    rows = [[printable(cell) if isinstance(cell, str) else cell for cell in row] for row in table.rows]
    return csv_text(table.columns, rows)


def latex_table(table: Table, caption: str) -> str:
    """A table environment with booktabs' rules."""
    kinds = "".join("l" if column in table.words else "r" for column in table.columns)
    body = [
        [
            f"\\textbf{{{latex(text)}}}" if (index, column) in table.best else latex(text)
            for column, text in zip(table.columns, row)
        ]
        for index, row in enumerate(table.rows)
    ]
    lines = [" & ".join(cells) + r" \\" for cells in (map(latex, table.columns), *body)]
    rules = (r"\toprule", lines[0], r"\midrule", *lines[1:], r"\bottomrule")
    opened = (
        r"\begin{table}",
        r"\centering",
        rf"\caption{{{latex(caption)}}}",
        rf"\begin{{tabular}}{{{kinds}}}",
    )
    return "\n".join((*opened, *rules, r"\end{tabular}", r"\end{table}", ""))


# -- one text --


def line_of(text: str) -> str:
    """On one line, without control characters."""
    return printable(" ".join(str(text).split()))


def markdown(text: str) -> str:
    """A text that Markdown shows as it is; `_` within a word means nothing there."""
    return re.sub(r"([\\`*<>\[\]|])", r"\\\1", line_of(text))


def latex(text: str) -> str:
    """A text that LaTeX sets as it is; at the start of a row, `[` and `*` would belong to the row before."""
    signs = "".join((SPECIAL | OURS).get(sign, sign) for sign in line_of(text))
    return "{}" + signs if signs.startswith(("[", "*")) else signs
