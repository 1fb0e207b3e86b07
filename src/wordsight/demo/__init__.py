"""Demos on real handwritten digits, in under a minute each and without a download: AAPE on the bundled micro
CLIP, CLAMP on the micro LM beside it.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from wordsight.config import RunSettings, WordsightError
from wordsight.reader import nearest

BACKBONE = "micro"
WIDTH = 100  # of the text, where the terminal is not narrower
FOLDERS = {"aape": "runs/demo", "clamp": "runs/demo-clamp"}


def demo(which: str = "aape", out: str | Path | None = None, show: bool = True, **cut: Any) -> dict[str, Any]:
    """Run the demo `which` into `out`, by default its own folder under runs/; the same call resumes. With
    `show` it prints what came of it, and what to try next.

    Errors: WordsightError for a name that is none.
    """
    if which not in FOLDERS:
        raise WordsightError(
            f"demo {which!r} is not known{nearest(which, FOLDERS)}; the choices are {', '.join(FOLDERS)}"
        )
    from wordsight.demo.aape import demo_aape
    from wordsight.demo.clamp import demo_clamp

    demos = {"aape": demo_aape, "clamp": demo_clamp}
    return demos[which](out or FOLDERS[which], show, **cut)


def watched(plan: Sequence[RunSettings]) -> Iterator[RunSettings]:
    """The runs in turn, with the progress of all."""
    from wordsight.workers import progress

    with progress("runs", len(plan)) as advance:
        for settings in plan:
            yield settings
            advance()


def fitted_before(settings: RunSettings) -> bool:
    return (Path(settings.out or "", "finished.json")).is_file()


# -- in a terminal --


def wide_console() -> Console:
    console = Console()
    console.width = WIDTH if not console.is_terminal else min(WIDTH, console.width)
    return console


def print_table(
    console: Console,
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    ends: Sequence[int] = (),
) -> None:
    """One line a row, the first column set to the left; a rule below the rows `ends`. Narrow enough for a
    terminal of 80 columns.
    """
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for place, column in enumerate(columns):
        table.add_column(column, justify="right" if place else "left", no_wrap=True)
    for place, row in enumerate(rows):
        table.add_row(*row, end_section=place in ends)
    console.print(table)


def bold(text: str, best: bool) -> str:
    return f"[bold]{text}[/bold]" if best else text


def wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)
