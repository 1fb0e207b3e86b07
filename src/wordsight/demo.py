"""Demo: adapt the bundled micro CLIP to real handwritten digits, in under a minute and without a download."""

from __future__ import annotations

import io
import textwrap
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from wordsight.backbones import load_backbone
from wordsight.config import METHODS, RunSettings, resolve, write_file
from wordsight.data import open_dataset
from wordsight.data.features import read_image
from wordsight.report import NO_LABELS, Row, best_cells, cells, read_rows, report
from wordsight.tasks.classify import evaluate, fit

BACKBONE = "micro"
WIDTH = 100  # of the text, where the terminal is not narrower
COLUMNS = {
    "method": "method",
    "shots": "shots",
    "all": "all",
    "base": "base",
    "new": "new",
    "H": "H",
    "fit s": "seconds",
}  # of a report's, and their titles
MEANING = (
    "all: ten digits. base: trained on 0-4, tested on 0-4. new: the same run tested on 5-9, of which it saw no labelled image. H: harmonic mean "
    "of base and new. ±: standard deviation over {} seeds. seconds: to fit."
)


def demo(
    out: str | Path = "runs/demo",
    show: bool = True,
    *,
    methods: Sequence[str] = ("zero_shot", "sentence_mean", "linear_probe", "aape"),
    shots: Sequence[int] = (1, 4, 16),
    seeds: Sequence[int] = (1, 2, 3),
) -> dict[str, Any]:
    """Fit `methods` for each of `shots` and `seeds`, on all digits and on the base half, and compare them. The same call resumes.

    Returns {"rows", "runs", "fitted", "seconds", "html", "csv"} (seconds: all there was to do before the report); with `show` it prints the table and what to try next.
    """
    began = time.monotonic()
    backbone = load_backbone(BACKBONE)
    plan = list(runs_of(Path(out), methods, shots, seeds))
    fitted = sum(fit_one(settings, backbone) for settings in watched(plan, show))
    seconds = time.monotonic() - began
    folders = [settings.out for settings in plan]
    rows = read_rows(folders)
    written = report(folders, Path(out) / "report.html", backbone=backbone)
    image = write_image(Path(out) / "digit.png")
    if show:
        console = Console()
        console.width = WIDTH if not console.is_terminal else min(WIDTH, console.width)
        print_table(console, rows)
        print_words(console.width, rows, fitted, len(plan), seconds, written["html"], example(plan), image)
    shown = [{"backbone": row.backbone, "data": row.data, **cells(row)} for row in rows]
    return {"rows": shown, "runs": folders, "fitted": fitted, "seconds": round(seconds, 2), "html": written["html"], "csv": written["csv"]}


def runs_of(out: Path, methods: Sequence[str], shots: Sequence[int], seeds: Sequence[int]) -> Iterator[RunSettings]:
    """The settings of every run. A method that takes no labels is the same for all shots and seeds, and is there once."""
    for method in methods:
        labelled = resolve(METHODS, method, "method").needs_labels
        draws = [(number, seed) for number in shots for seed in seeds] if labelled else [(shots[0], seeds[0])]
        for number, seed in draws:
            for classes in ("all", "base"):
                name = f"{method}-{number}shot-{classes}-seed{seed}" if labelled else f"{method}-{classes}"
                yield RunSettings(
                    data="digits",
                    backbone=BACKBONE,
                    method=method,
                    shots=number,
                    classes=classes,
                    sentences="digits",
                    seed=seed,
                    flip=False,
                    out=str(out / name),
                )


def fit_one(settings: RunSettings, backbone: Any) -> bool:
    """Fit a run, or do nothing where it is finished; whether it was fitted now."""
    there = (Path(settings.out) / "weights.safetensors").is_file()
    run = fit(settings, backbone=backbone)
    if not run.events("eval"):  # interrupted between its weights and its figures
        evaluate(run, backbone=backbone)
    return not there


def watched(plan: Sequence[RunSettings], show: bool) -> Iterator[RunSettings]:
    """The runs in turn, with a bar on standard error where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True, disable=not (show and console.is_terminal)) as progress:
        bar = progress.add_task("", total=len(plan))
        for settings in plan:
            progress.update(bar, description=Path(settings.out).name)
            yield settings
            progress.advance(bar)


def example(plan: Sequence[RunSettings]) -> RunSettings:
    """The run that the closing words recommend: the last method's, of the most labels, on all classes."""
    last = [settings for settings in plan if settings.method == plan[-1].method and settings.classes == "all"]
    return max(last, key=lambda settings: (settings.shots, -settings.seed))


def write_image(path: Path) -> Path:
    """A test image as a file, so that the command recommended can be typed as it stands."""
    image, out = read_image(open_dataset("digits").test.pictures[0].load()), io.BytesIO()
    image.save(out, "PNG")
    write_file(path, out.getvalue())
    return path


def print_table(console: Console, rows: Sequence[Row]) -> None:
    """One line a row; narrow enough for a terminal of 80 columns."""
    title = "The bundled micro CLIP on real handwritten digits: test accuracy, %"
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column, title in COLUMNS.items():
        table.add_column(title, justify="left" if column == "method" else "right", no_wrap=True)
    best = best_cells(rows)
    for index, row in enumerate(rows):
        shown = {column: f"[bold]{text}[/bold]" if (index, column) in best else text for column, text in cells(row).items()}
        table.add_row(*(shown[column] for column in COLUMNS), end_section=index + 1 < len(rows) and rows[index + 1].shots != row.shots)
    console.print(table)


def print_words(width: int, rows: Sequence[Row], fitted: int, planned: int, seconds: float, page: str, run: RunSettings, image: Path) -> None:
    """What the table shows, where the report is, and what to try next."""
    for text in (
        MEANING.format(max(row.seeds for row in rows)),
        " ".join(findings(rows)),
        f"{fitted} of {planned} runs fitted now, in {seconds:.1f} s. Report: {page}",
    ):
        if text:
            print(textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False))
    print(f"\nTry  wordsight predict {run.out} {image} --explain --top 3")
    print("     wordsight fit data=photos/ shots=16        (your own folder of class folders)")


def findings(rows: Sequence[Row]) -> list[str]:
    """What a reader should take from the table, from its own figures; nothing where a row it speaks of is absent."""
    most = max(row.shots for row in rows)
    by_method = {row.method: row for row in rows if row.shots in (NO_LABELS, most)}
    lines = []
    if {"zero_shot", "aape"} <= by_method.keys():
        zero, aape = by_method["zero_shot"].figures, by_method["aape"].figures
        lines.append(
            f"Words alone give {zero['all'].mean:.1f}; {most} labelled image{'s' * (most > 1)} of each digit take aape to {aape['all'].mean:.1f}."
        )
        lines.append(f"On the five digits without labels it scores {aape['new'].mean:.1f} (words alone: {zero['new'].mean:.1f}).")
        if "linear_probe" in by_method:
            lines[-1] = lines[-1].removesuffix(".") + ", where linear_probe has no answer."
    return lines
