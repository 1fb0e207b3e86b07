"""Writers: a table as Markdown, CSV and LaTeX, each safe for what reads it. page.html.j2 is the fourth."""

from __future__ import annotations

import re
from collections.abc import Sequence

from wordsight.files import csv_text, printable
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

OURS = {"±": r"$\pm$", "–": "--", "−": "$-$", "→": r"$\rightarrow$"}  # in LaTeX
SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: "\\" + sign for sign in "&%$#_{}"
}


# -- the whole report --


def as_markdown(rows: Sequence[Row], compared: Sequence[Comparison] = (), split: Split | None = None) -> str:
    """The figures, data and backbone columns where they vary; then the references, retrieval, and how methods
    stand against one another.
    """
    varied = varying(rows)
    parts = [markdown_table(figures_table(rows, varied)), notes(rows), line_of(sources(rows))]
    for title, table, legend in (
        ("**Beside zero-shot and a linear probe**", references_table(rows, varied), BESIDE),
        ("**Retrieval**, recall@k", retrieval_table(rows), ""),
        ("**Captions**, times 100", captions_table(rows), ""),
        ("**Covered and uncovered classes**", split.table if split else None, split.note if split else ""),
    ):
        parts += [title, markdown_table(table), legend] if table else []
    for one in compared:
        parts.append(f"**Against {markdown(one.reference)}** ({markdown(one.title)})")
        parts.append(markdown_table(standings_table(one)))
        parts.append("\n".join(f"- {markdown(sentence)}" for sentence in one.words))
    return "\n\n".join(filter(None, [*parts, COMPARED if compared else ""]))


def as_latex(rows: Sequence[Row], compared: Sequence[Comparison] = ()) -> str:
    """The same tables for a paper; they need \\usepackage{booktabs}."""
    caption = " ".join(filter(None, (LEGEND, notes(rows), sources(rows))))
    parts = [latex_table(figures_table(rows, varying(rows)), caption)]
    for one in compared:
        words = " ".join([COMPARED, *one.words])
        parts.append(latex_table(standings_table(one), f"Against {one.reference} ({one.title}). {words}"))
    return "% \\usepackage{booktabs}\n" + "\n".join(parts)


def as_csv(rows: Sequence[Row]) -> str:
    """Every figure with its spread, in full precision; an empty cell where there is none."""
    return csv_table(figures_records(rows))


def comparison_csv(compared: Sequence[Comparison]) -> str:
    """Every mean, rank and difference in full precision; an empty cell where there is none."""
    return csv_table(standings_records(compared))


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
    from pandas import DataFrame  # half a second to import, which nothing else of a report needs

    rows = [
        [
            f"\\textbf{{{latex(text)}}}" if (index, column) in table.best else latex(text)
            for column, text in zip(table.columns, row)
        ]
        for index, row in enumerate(table.rows)
    ]
    frame = DataFrame(rows, columns=[latex(column) for column in table.columns])
    kinds = "".join("l" if column in table.words else "r" for column in table.columns)
    styled = frame.style.hide(axis="index")
    return styled.to_latex(
        hrules=True, column_format=kinds, position_float="centering", caption=latex(caption)
    )


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
