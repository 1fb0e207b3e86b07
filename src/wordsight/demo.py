"""Demos on real handwritten digits, in under a minute each and without a download: AAPE on the bundled micro
CLIP, CLAMP on the micro LM beside it.
"""

from __future__ import annotations

import csv
import io
import textwrap
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from wordsight.backbones import load_backbone
from wordsight.backbones.text_tower import TextTower
from wordsight.backbones.verify import verify
from wordsight.config import METHODS, RunSettings, WordsightError, nearest, resolve
from wordsight.data import open_dataset
from wordsight.data.images import read_image
from wordsight.files import write_file
from wordsight.report import (
    NO_LABELS,
    STYLE,
    Row,
    best_cells,
    cells,
    confusion_table,
    escape,
    read_rows,
    report,
)
from wordsight.runs import Run
from wordsight.tasks import retrieve
from wordsight.tasks.classify import evaluate, fit
from wordsight.tasks.generate import generate, open_tower

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
    "all: ten digits. base: trained on 0-4, tested on 0-4. new: the same run tested on 5-9, of which it "
    "saw no labelled image. H: harmonic mean "
    "of base and new. ±: standard deviation over {} seeds. seconds: to fit."
)

MICRO_LM = (
    Path(__file__).parent / "backbones" / "micro_lm"
)  # a Llama that has read about all 62 glyphs and seen none (benchmarks/clamp/micro)
GLYPHS = (
    Path(__file__).parent / "data" / "glyphs.npz"
)  # rendered: images of 8x8 pixels in 0..16, labels, and the names of the labels
DIGITS = 10  # the first labels; the letters come after them
ABOUT = ("the digit eight looks like", "a picture shows the digit seven. it has")  # what the LM goes on from
TOWER = {
    "text": str(MICRO_LM),
    "wrapper": "a picture shows {}. it has",
    "prompts": 8,
    "heads": 4,
    "rank": 8,
    "alpha": 8,
    "start": "ridge",
    "centre": True,
}
TRAIN = {
    "epochs": 20,
    "batch_size": 256,
    "lr": 3e-3,
    "weight_decay": 0.1,
    "warmup_steps": 10,
    "min_steps": 0,
}  # settled on rendered digits
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {  # run folder -> what the table calls it, and its settings
    "clamp": ("CLAMP: LM that has read about glyphs", {}),
    "random-lm": ("the same, LM of random weights", {"random": True}),
    "lit": (
        "LiT: trained whole, from scratch",
        {
            "random": True,
            "train": "all",
            "prompts": 0,
            "pooling": "last",
            "start": "random",
            "keep_generation": False,
        },
    ),
}


def demo(which: str = "aape", out: str | Path | None = None, show: bool = True, **cut: Any) -> dict[str, Any]:
    """Run the demo `which` into `out`, by default its own folder under runs/. The same call resumes. Errors:
    WordsightError for a name that is none.
    """
    if which not in DEMOS:
        raise WordsightError(
            f"demo {which!r} is not known{nearest(which, DEMOS)}; the choices are {', '.join(DEMOS)}"
        )
    run, folder = DEMOS[which]
    return run(out or folder, show, **cut)


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
    fitted = sum(fit_one(settings, backbone) for settings in watched(plan, show))
    seconds = time.monotonic() - began
    folders = [settings.out for settings in plan]
    rows = read_rows(folders)
    written = report(folders, Path(out) / "report.html", backbone=backbone)
    image = write_image(Path(out) / "digit.png")
    if show:
        console = wide_console()
        print_table(console, rows)
        print_words(console.width, rows, fitted, len(plan), seconds, written["html"], example(plan), image)
    shown = [{"backbone": row.backbone, "data": row.data, **cells(row)} for row in rows]
    return {
        "rows": shown,
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
    there = (Path(settings.out) / "weights.safetensors").is_file()
    run = fit(settings, backbone=backbone)
    if not run.events("eval"):  # interrupted between its weights and its figures
        evaluate(run, backbone=backbone)
    return not there


def wide_console() -> Console:
    console = Console()
    console.width = WIDTH if not console.is_terminal else min(WIDTH, console.width)
    return console


def watched(plan: Sequence[RunSettings], show: bool) -> Iterator[RunSettings]:
    """The runs in turn, with a bar on standard error where that is a terminal."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description:28}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(
        *columns, console=console, transient=True, disable=not (show and console.is_terminal)
    ) as progress:
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
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column, title in COLUMNS.items():
        table.add_column(title, justify="left" if column == "method" else "right", no_wrap=True)
    best = best_cells(rows)
    for index, row in enumerate(rows):
        shown = {
            column: f"[bold]{text}[/bold]" if (index, column) in best else text
            for column, text in cells(row).items()
        }
        table.add_row(
            *(shown[column] for column in COLUMNS),
            end_section=index + 1 < len(rows) and rows[index + 1].shots != row.shots,
        )
    console.print(table)


def print_words(
    width: int,
    rows: Sequence[Row],
    fitted: int,
    planned: int,
    seconds: float,
    page: str,
    run: RunSettings,
    image: Path,
) -> None:
    """What the table shows, where the report is, and what to try next."""
    for text in (
        MEANING.format(max(row.seeds for row in rows)),
        " ".join(findings(rows)),
        f"{fitted} of {planned} runs fitted now, in {seconds:.1f} s. Report: {page}",
    ):
        if text:
            print(wrapped(text, width))
    print(f"\nTry  wordsight predict {run.out} {image} --explain --top 3")
    print("     wordsight fit data=photos/ shots=16        (your own folder of class folders)")


def wrapped(text: str, width: int) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def findings(rows: Sequence[Row]) -> list[str]:
    """What a reader should take from the table, from its own figures; nothing where a row it speaks of is
    absent.
    """
    most = max(row.shots for row in rows)
    by_method = {row.method: row for row in rows if row.shots in (NO_LABELS, most)}
    lines = []
    if {"zero_shot", "aape"} <= by_method.keys():
        zero, aape = by_method["zero_shot"].figures, by_method["aape"].figures
        lines.append(
            f"Words alone give {zero['all'].mean:.1f}; {most} labelled image{'s' * (most > 1)} of each "
            f"digit take aape to {aape['all'].mean:.1f}."
        )
        lines.append(
            f"On the five digits without labels it scores {aape['new'].mean:.1f} (words alone: "
            f"{zero['new'].mean:.1f})."
        )
        if "linear_probe" in by_method:
            lines[-1] = lines[-1].removesuffix(".") + ", where linear_probe has no answer."
    return lines


# -- CLAMP ---------------------------------------------------------------------------------------------------


def demo_clamp(
    out: str | Path, show: bool = True, *, towers: Sequence[str] = tuple(TOWERS), **train: Any
) -> dict[str, Any]:
    """Pair rendered letters with their names, no digit among them, and ask for real digits by name: a cut of
    benchmarks/clamp/micro. The same call resumes.

    Returns {"rows", "runs", "fitted", "seconds", "written", "checks", "passed", "html", "csv"}; with `show`
    it prints them. `train` changes how it trains."""
    began, out = time.monotonic(), Path(out)
    backbone = load_backbone(BACKBONE, device="cpu", text=False)
    pairs = write_letters(out / "letters.parquet")
    plan = [tower_settings(pairs, out / tower, TOWERS[tower][1], train) for tower in towers]
    fitted = sum(fit_tower(settings, backbone) for settings in watched(plan, show))
    events = [Run.open(settings.out).events("eval")[-1] for settings in plan]
    rows = [
        tower_row(settings, TOWERS[tower][0], event) for tower, settings, event in zip(towers, plan, events)
    ]
    tower = open_tower(plan[0].out, device="cpu")
    written, checks = [writing(tower, text) for text in ABOUT], verify(tower)
    seconds, folders = time.monotonic() - began, [settings.out for settings in plan]
    page, table = out / "report.html", out / "report.csv"
    write_file(table, tower_csv(rows))
    write_file(page, tower_page(rows, events, written, checks))
    if show:
        console = wide_console()
        print_towers(console, rows, events[0])
        kept = (
            "the same, token for token"
            if all(line["before"] == line["off"] for line in written)
            else "NOT THE SAME"
        )
        print_writing(console, written)
        for text in (
            f"With adapters off the LM writes as before it was trained: {kept}. verify: "
            f"{sum(check.passed for check in checks.values())} of {len(checks)} promises hold.",
            f"{fitted} of {len(plan)} runs fitted now, in {seconds:.1f} s. Report: {page}",
        ):
            print(wrapped(text, console.width))
        print(
            f'\nTry  wordsight generate {plan[0].out} "the digit five looks like" --adapters both\n     '
            f"wordsight verify {plan[0].out}"
        )
    passed = all(check.passed for check in checks.values()) and all(
        line["before"] == line["off"] for line in written
    )
    return {
        "rows": rows,
        "runs": folders,
        "fitted": fitted,
        "seconds": round(seconds, 2),
        "written": written,
        "checks": {name: check.passed for name, check in checks.items()},
        "passed": passed,
        "html": str(page),
        "csv": str(table),
    }


def write_letters(path: Path) -> Path:
    """The rendered letters with their names as a table of pairs; written once, so that a resumed run finds
    the same.
    """
    import pyarrow
    import pyarrow.parquet

    if path.is_file():
        return path
    with np.load(GLYPHS) as glyphs:
        images, labels, names = glyphs["images"], glyphs["labels"], glyphs["names"]
    letters = np.flatnonzero(labels >= DIGITS)
    columns = {
        "image": [png(images[row]) for row in letters],
        "caption": [str(names[labels[row]]) for row in letters],
    }
    out = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.table(columns), out)
    write_file(path, out.getvalue())
    return path


def png(levels: np.ndarray) -> bytes:
    """Grey levels 0..16 as a file, in the manner of the real digits."""
    out = io.BytesIO()
    Image.fromarray(np.rint(levels * (255 / 16)).astype(np.uint8)).save(out, "PNG")
    return out.getvalue()


def tower_settings(pairs: Path, out: Path, own: dict[str, Any], train: dict[str, Any]) -> RunSettings:
    return RunSettings(
        data=str(pairs),
        backbone=BACKBONE,
        method="two_tower",
        template="the digit {}",
        device="cpu",
        out=str(out),
        settings=TOWER | own,
        train=TRAIN | train,
    )


def fit_tower(settings: RunSettings, backbone: Any) -> bool:
    """Fit a text tower and test it on real digits, or do nothing where both are done; whether it was fitted
    now.
    """
    there = (Path(settings.out) / "weights.safetensors").is_file()
    run = retrieve.fit(settings, backbone=backbone)
    if not run.events("eval"):
        retrieve.evaluate(run, data="digits")
    return not there


def tower_row(settings: RunSettings, title: str, event: dict[str, Any]) -> dict[str, Any]:
    fit = Run.open(settings.out).events("fit")[-1]
    return {
        "tower": title,
        "accuracy": event["accuracy"],
        "chance": event["chance"],
        "parameters": fit["parameters"],
        "seconds": fit["seconds"]["fit"],
    }


def writing(tower: TextTower, text: str) -> dict[str, str]:
    """What the LM goes on with: before it was a text tower, and as one with its adapters off and on."""
    from wordsight.backbones.checkpoint import Place
    from wordsight.backbones.lm import load_lm

    lm, tokenizer = load_lm(Place(MICRO_LM, "LM", "micro_lm"), "decoder")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        whole = lm.generate(ids, max_new_tokens=16, do_sample=False, pad_token_id=tokenizer.pad_token_id)[0]
    begin = tokenizer.decode(ids[0], skip_special_tokens=True)
    before = tokenizer.decode(whole, skip_special_tokens=True).removeprefix(begin)
    return {"text": text, "before": before, **generate(tower, text, "both", max_new_tokens=16)}


def tower_csv(rows: Sequence[dict[str, Any]]) -> str:
    out = io.StringIO()
    lines = csv.DictWriter(out, list(rows[0]))
    lines.writeheader()
    lines.writerows(rows)
    return out.getvalue()


def tower_page(
    rows: Sequence[dict[str, Any]],
    events: Sequence[dict[str, Any]],
    written: Sequence[dict[str, str]],
    checks: Mapping[str, Any],
) -> str:
    """One HTML file: the figures, what the first tower takes digits for, what its LM writes, and what was
    verified.
    """
    figures = [
        (row["tower"], f"{row['accuracy']:.1f}", f"{row['parameters']:,}", f"{row['seconds']:.1f}")
        for row in rows
    ]
    lines = [tuple(line[key] for key in ("text", "before", "off", "on")) for line in written]
    promises = [("passed" if check.passed else "FAILED", name, check.says) for name, check in checks.items()]
    parts = {
        "Real digits by name": page_table(
            ("text tower", "accuracy, %", "trained numbers", "seconds"), figures
        )
        + f"<p class='note'>{escape(meaning(events[0]))}</p>",
        f"What is taken for what: {rows[0]['tower']}": confusion_table(
            list(events[0]["class_recall"]), events[0]["confusion"]
        ),
        "What the LM writes": page_table(
            ("goes on from", "before training", "adapters off", "adapters on"), lines
        ),
        "What was verified": page_table(("", "promise", "in words"), promises),
    }
    body = "".join(
        f'<h2>{escape(title)}</h2><div class="panel">{part}</div>\n' for title, part in parts.items()
    )
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>Wordsight: CLAMP on '
        f"letters</title><style>{STYLE}</style></head>"
        f"<body><main>\n<h1>Digits by name, after letters alone</h1>\n{body}</main></body></html>\n"
    )


def page_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    head = "".join(f'<th class="m">{escape(title)}</th>' for title in titles)
    body = "".join(
        "<tr>" + "".join(f'<td class="m">{escape(cell)}</td>' for cell in row) + "</tr>" for row in rows
    )
    return f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def meaning(event: dict[str, Any]) -> str:
    return (
        f"{event['images']} images, chance {event['chance']:.0f}. No digit was in a pair: what the towers "
        f"know of digits they know from text alone. trained: "
        "numbers that changed. One seed; what others give is in benchmarks/clamp/micro."
    )


def print_towers(console: Console, rows: Sequence[dict[str, Any]], event: dict[str, Any]) -> None:
    title = "Real digits by name, after pairs of rendered letters and their names: accuracy, %"
    table = Table(
        title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0)
    )
    for column in ("text tower", "ten digits", "trained", "seconds"):
        table.add_column(column, justify="left" if column == "text tower" else "right", no_wrap=True)
    best = max(round(row["accuracy"], 1) for row in rows)
    for row in rows:
        accuracy = f"{row['accuracy']:.1f}"
        shown = f"[bold]{accuracy}[/bold]" if round(row["accuracy"], 1) == best else accuracy
        table.add_row(row["tower"], shown, f"{row['parameters']:,}", f"{row['seconds']:.1f}")
    console.print(table)
    print(wrapped(meaning(event), console.width) + "\n")


def print_writing(console: Console, written: Sequence[dict[str, str]]) -> None:
    for line in written:
        print(f"{line['text']} ...")
        for key, title in (("before", "before"), ("off", "adapters off"), ("on", "adapters on")):
            print(f"    {title:13} {line[key].strip()}")


DEMOS = {"aape": (demo_aape, "runs/demo"), "clamp": (demo_clamp, "runs/demo-clamp")}
