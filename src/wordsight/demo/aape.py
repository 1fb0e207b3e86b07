"""The demo of AAPE beside its baselines: the bundled micro CLIP, adapted to handwritten digits."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from wordsight.backbones import load_backbone
from wordsight.config import METHODS, RunSettings, resolve
from wordsight.data import open_dataset
from wordsight.data.images import read_image
from wordsight.demo import BACKBONE, bold, fitted_before, print_table, watched, wide_console, wrapped
from wordsight.files import write_file
from wordsight.fit import fit
from wordsight.report import NO_LABELS, Row, best_cells, cells, read_rows, report

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
    "all: ten digits. base: trained on 0-4, tested on 0-4. new: the same run tested on 5-9, of which it saw "
    "no labelled image. H: harmonic mean of base and new. ±: standard deviation over {} seeds. seconds: to "
    "fit."
)


def demo_aape(
    out: str | Path,
    show: bool = True,
    *,
    methods: Sequence[str] = ("zero_shot", "sentence_mean", "linear_probe", "aape"),
    shots: Sequence[int] = (1, 4, 16),
    seeds: Sequence[int] = (1, 2, 3),
) -> dict[str, Any]:
    """Fit `methods` for each of `shots` and `seeds`, on all digits and on the base half, and compare them.
    The same call resumes.

    Returns {"rows", "runs", "fitted", "seconds", "html", "csv"} (seconds: all there was to do before the
    report); with `show` it prints the table and what to try next."""
    began = time.monotonic()
    backbone = load_backbone(BACKBONE)
    plan = list(runs_of(Path(out), methods, shots, seeds))
    fitted = sum(fit_one(settings, backbone) for settings in watched(plan))
    seconds = time.monotonic() - began
    folders = [settings.out for settings in plan if settings.out is not None]
    rows = read_rows(folders)
    written = report(folders, Path(out) / "report.html")
    image = write_image(Path(out) / "digit.png")
    if show:
        console = wide_console()
        print_rows(console, rows)
        done = f"{fitted} of {len(plan)} runs fitted now, in {seconds:.1f} s. Report: {written['html']}"
        print_words(console.width, rows, done)
        print(f"\nTry  wordsight predict {example(plan).out} {image} --explain --top 3")
        print("     wordsight fit data=photos/ shots=16        (your own folder of class folders)")
    return {
        "rows": [{"backbone": row.backbone, "data": row.data, **cells(row)} for row in rows],
        "runs": folders,
        "fitted": fitted,
        "seconds": round(seconds, 2),
        "html": written["html"],
        "csv": written["csv"],
    }


def runs_of(
    out: Path, methods: Sequence[str], shots: Sequence[int], seeds: Sequence[int]
) -> Iterator[RunSettings]:
    """The settings of every run. A method that takes no labels is the same for all shots and seeds, and is
    there once.
    """
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
    there = fitted_before(settings)
    fit(settings, backbone=backbone, references=False)
    return not there


def example(plan: Sequence[RunSettings]) -> RunSettings:
    """The run that the closing words recommend: the last method's, of the most labels, on all classes."""
    last = [settings for settings in plan if settings.method == plan[-1].method and settings.classes == "all"]
    return max(last, key=by_labels)


def by_labels(settings: RunSettings) -> tuple[int, int]:
    return settings.shots or 0, -settings.seed


def write_image(path: Path) -> Path:
    """A test image as a file, so that the command recommended can be typed as it stands."""
    test = open_dataset("digits").test
    assert test is not None  # the digits have one
    image, out = read_image(test.pictures[0].load()), io.BytesIO()
    image.save(out, "PNG")
    write_file(path, out.getvalue())
    return path


def print_rows(console: Console, rows: Sequence[Row]) -> None:
    best, shown = best_cells(rows), list(enumerate(map(cells, rows)))
    lines = [[bold(line[column], (index, column) in best) for column in COLUMNS] for index, line in shown]
    ends = [index for index in range(len(rows) - 1) if rows[index + 1].shots != rows[index].shots]
    title = "The bundled micro CLIP on real handwritten digits: test accuracy, %"
    print_table(console, title, list(COLUMNS.values()), lines, ends)


def print_words(width: int, rows: Sequence[Row], done: str) -> None:
    """What the table shows, and where the report is."""
    for text in (MEANING.format(max(row.seeds for row in rows)), " ".join(findings(rows)), done):
        if text:
            print(wrapped(text, width))


def findings(rows: Sequence[Row]) -> list[str]:
    """What a reader should take from the table, from its own figures; nothing where a row it speaks of is
    absent.
    """
    most = max(row.shots for row in rows)
    by_method = {row.method: row for row in rows if row.shots in (NO_LABELS, most)}
    zero, aape = (by_method[name].figures if name in by_method else {} for name in ("zero_shot", "aape"))
    if not {"all", "new"} <= zero.keys() & aape.keys():
        return []
    labels = f"{most} labelled image{'s' * (most > 1)} of each digit"
    probe = ", where linear_probe has no answer" if "linear_probe" in by_method else ""
    return [
        f"Words alone give {zero['all'].mean:.1f}; {labels} take aape to {aape['all'].mean:.1f}.",
        f"On the five digits without labels it scores {aape['new'].mean:.1f} (words alone: "
        f"{zero['new'].mean:.1f}){probe}.",
    ]
