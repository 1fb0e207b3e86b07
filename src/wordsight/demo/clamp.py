"""The demo of CLAMP: an LM that has only read about digits becomes a text tower, is trained on letters, and
is asked for digits. A cut of benchmarks/clamp/micro.
"""

from __future__ import annotations

import io
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.console import Console

from wordsight.backbones import load_backbone
from wordsight.backbones.text_tower import TextTower
from wordsight.backbones.verify import verify
from wordsight.config import RunSettings
from wordsight.demo import BACKBONE, bold, fitted_before, print_table, watched, wide_console, wrapped
from wordsight.files import csv_text, write_file
from wordsight.fit import fit
from wordsight.report.layout import Page, Panel, Section, confusion_matrix, render
from wordsight.report.reading import matrix
from wordsight.report.tables import Table
from wordsight.runs import Run
from wordsight.tasks import evaluate
from wordsight.tasks.generate import generate, open_tower

PACKAGE = Path(__file__).parents[1]
# a Llama that has read about all 62 glyphs and seen none (benchmarks/clamp/micro)
MICRO_LM = PACKAGE / "backbones" / "micro_lm"
# rendered: images of 8x8 pixels in 0..16, labels, and the names of the labels
GLYPHS = PACKAGE / "data" / "glyphs.npz"
DIGITS = 10  # the first labels; the letters come after them
ABOUT = ("the digit eight looks like", "a picture shows the digit seven. it has")  # what the LM goes on from
WRITING = {"text": "goes on from", "before": "before training", "off": "adapters off", "on": "adapters on"}
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
FROM_SCRATCH = {
    "random": True,
    "train": "all",
    "prompts": 0,
    "pooling": "last",
    "start": "random",
    "keep_generation": False,
}
TOWERS: dict[str, tuple[str, dict[str, Any]]] = {  # run folder -> what the table calls it, and its settings
    "clamp": ("CLAMP: LM that has read about glyphs", {}),
    "random-lm": ("the same, LM of random weights", {"random": True}),
    "lit": ("LiT: trained whole, from scratch", FROM_SCRATCH),
}


def demo_clamp(
    out: str | Path, show: bool = True, *, towers: Sequence[str] = tuple(TOWERS), **train: Any
) -> dict[str, Any]:
    """Pair rendered letters with their names, no digit among them, and ask for real digits by name. The same
    call resumes.

    Returns {"rows", "runs", "fitted", "seconds", "written", "checks", "passed", "html", "csv"}; with `show`
    it prints them. `train` changes how it trains."""
    began, out = time.monotonic(), Path(out)
    backbone = load_backbone(BACKBONE, device="cpu", text=False)
    pairs = write_letters(out / "letters.parquet")
    folders = [out / tower for tower in towers]
    plan = [tower_settings(pairs, out / tower, TOWERS[tower][1], train) for tower in towers]
    fitted = sum(fit_tower(settings, backbone) for settings in watched(plan))
    runs = [Run.open(folder) for folder in folders]
    events = [run.events("eval")[-1] for run in runs]
    rows = [tower_row(run, TOWERS[name][0], event) for name, run, event in zip(towers, runs, events)]
    tower = open_tower(str(folders[0]), device="cpu")
    written, checks = [writing(tower, text) for text in ABOUT], verify(tower)
    seconds, page = time.monotonic() - began, out / "report.html"
    write_file(page.with_suffix(".csv"), csv_text(list(rows[0]), [list(row.values()) for row in rows]))
    write_file(page, tower_page(rows, events, written, checks))
    same = all(line["before"] == line["off"] for line in written)
    if show:
        done = f"{fitted} of {len(plan)} runs fitted now, in {seconds:.1f} s. Report: {page}"
        kept = "the same, token for token" if same else "NOT THE SAME"
        promises = f"{sum(check.passed for check in checks.values())} of {len(checks)} promises hold."
        print_all(rows, events[0], written, f"{kept}. verify: {promises}", done)
        print(f'\nTry  wordsight generate {plan[0].out} "the digit five looks like" --adapters both')
        print(f"     wordsight verify {plan[0].out}")
    return {
        "rows": rows,
        "runs": [settings.out for settings in plan],
        "fitted": fitted,
        "seconds": round(seconds, 2),
        "written": written,
        "checks": {name: check.passed for name, check in checks.items()},
        "passed": same and all(check.passed for check in checks.values()),
        "html": str(page),
        "csv": str(page.with_suffix(".csv")),
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
    there = fitted_before(settings)
    run = fit(settings, backbone=backbone)
    if not run.events("eval"):
        evaluate(run, data="digits")
    return not there


def tower_row(run: Run, title: str, event: dict[str, Any]) -> dict[str, Any]:
    fit = run.events("fit")[-1]
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
    from wordsight.backbones.lm import load_lm, write_on

    lm, tokenizer = load_lm(Place(MICRO_LM, "LM", "micro_lm"), "decoder")
    ids = tokenizer(text, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        padding = tokenizer.pad_token_id
        whole = write_on(lm, inputs=ids, max_new_tokens=16, do_sample=False, pad_token_id=padding)[0]
    begin = tokenizer.decode(ids[0], skip_special_tokens=True)
    before = tokenizer.decode(whole, skip_special_tokens=True).removeprefix(begin)
    return {"text": text, "before": before, **generate(tower, text, "both", max_new_tokens=16)}


# -- the page --


def tower_page(
    rows: Sequence[dict[str, Any]],
    events: Sequence[dict[str, Any]],
    written: Sequence[dict[str, str]],
    checks: Mapping[str, Any],
) -> str:
    """One HTML file: the figures, the first tower's confusion matrix, what its LM writes, and what was
    verified.
    """
    names, counts = matrix(events[0])
    assert counts is not None  # `figures` gave it
    words = [{title: line[key] for key, title in WRITING.items()} for line in written]
    panels = {
        "Real digits by name": Panel(table=figures_table(rows), after=(meaning(events[0]),)),
        f"Confusion matrix: {rows[0]['tower']}": Panel(matrix=confusion_matrix(names, counts)),
        "What the LM writes": Panel(table=Table.of(words, words=frozenset(WRITING.values()))),
        "What was verified": Panel(table=checks_table(checks)),
    }
    sections = tuple(Section(title, (panel,)) for title, panel in panels.items())
    return render(Page("Digits by name, after letters alone", sections))


def figures_table(rows: Sequence[dict[str, Any]]) -> Table:
    lines = [
        {
            "text tower": row["tower"],
            "accuracy, %": f"{row['accuracy']:.1f}",
            "trained numbers": f"{row['parameters']:,}",
            "seconds": f"{row['seconds']:.1f}",
        }
        for row in rows
    ]
    return Table.of(lines, words=frozenset({"text tower"}))


def checks_table(checks: Mapping[str, Any]) -> Table:
    lines = [
        {"": "passed" if check.passed else "FAILED", "promise": name, "in words": check.says}
        for name, check in checks.items()
    ]
    return Table.of(lines, words=frozenset(lines[0]))


def meaning(event: dict[str, Any]) -> str:
    return (
        f"{event['images']} images, chance {event['chance']:.0f}. No digit was in a pair: what the towers "
        "know of digits they know from text alone. trained: numbers that changed. One seed; what others give "
        "is in benchmarks/clamp/micro."
    )


# -- in a terminal --


def print_all(
    rows: Sequence[dict[str, Any]],
    event: dict[str, Any],
    written: Sequence[dict[str, str]],
    kept: str,
    done: str,
) -> None:
    """The table, what the LM writes, and what holds."""
    console = wide_console()
    print_towers(console, rows)
    print(wrapped(meaning(event), console.width) + "\n")
    print_writing(written)
    for text in (f"With adapters off the LM writes as before it was trained: {kept}", done):
        print(wrapped(text, console.width))


def print_towers(console: Console, rows: Sequence[dict[str, Any]]) -> None:
    best = max(round(row["accuracy"], 1) for row in rows)
    lines = [
        (
            row["tower"],
            bold(f"{row['accuracy']:.1f}", round(row["accuracy"], 1) == best),
            f"{row['parameters']:,}",
            f"{row['seconds']:.1f}",
        )
        for row in rows
    ]
    title = "Real digits by name, after pairs of rendered letters and their names: accuracy, %"
    print_table(console, title, ("text tower", "ten digits", "trained", "seconds"), lines)


def print_writing(written: Sequence[dict[str, str]]) -> None:
    for line in written:
        print(f"{line['text']} ...")
        for key, title in (("before", "before"), ("off", "adapters off"), ("on", "adapters on")):
            print(f"    {title:13} {line[key].strip()}")
