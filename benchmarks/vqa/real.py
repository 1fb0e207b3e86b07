"""Answers of finished limber runs to questions about real images: K examples before each, with the images,
without any, and with another photo's.

    python benchmarks/vqa/real.py RUN... --out vqa --flickr ../shared/data/flickr8k --easy EASY_VQA_DATA \\
        [--device cuda --dtype bfloat16 --batch 256] [--shots 0,1,2,4] [--seeds 1]

Each cell (run, data, shots, seed, look) is one line of OUT/cells.jsonl and a table of answers beside it; the
same command does what is missing, and prints OUT/table.md. Without images the LM does not depend on the run,
so it is asked once for all runs over it."""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
import easy_vqa
import questions as flickr

from wordsight.data.questions import Questions, open_questions
from wordsight.files import plain_name
from wordsight.fitted import open_generator
from wordsight.tasks.answer import Asker, Look, constants, figures, measure, table

REMEMBERED = 20_000  # images: all of both sets, about 130 kB each


def tables(options: argparse.Namespace) -> dict[str, Questions]:
    """The questions, their tables written where they are not there yet."""
    out, found = options.out / "questions", {}
    if options.flickr:
        flickr.write(options.flickr, out / "flickr8k.csv")
        found["flickr8k"] = open_questions(str(out / "flickr8k.csv"))
    if options.easy:
        easy_vqa.write(options.easy, out / "easy_vqa.csv")
        found["easy_vqa"] = open_questions(str(out / "easy_vqa.csv"))
    if options.few:  # for a trial
        found = {name: few(data, options.few) for name, data in found.items()}
    return found


def few(data: Questions, count: int) -> Questions:
    """All that may be shown, and some of those measured, of every kind."""
    part, asked = data.measured()
    step = max(1, len(asked) // count)
    return Questions(data.name, [row for row in data.rows if row.part != part] + asked[::step][:count])


def cells(options: argparse.Namespace, data: Questions) -> list[tuple[int, int, Look]]:
    """Shots, seed and look of each cell; without examples no seed is drawn from, so there is one."""
    found: list[tuple[int, int, Look]] = []
    for shots in options.shots:
        for seed in options.seeds if shots else options.seeds[:1]:
            found.append((shots, seed, "own"))
            found.append((shots, seed, "none"))
    return [*found, (options.shots[0], options.seeds[0], "other")]


def done(file: Path) -> dict[str, dict[str, Any]]:
    lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
    return {cell["key"]: cell for cell in map(json.loads, lines)}


def fill(options: argparse.Namespace, run: Path, sets: dict[str, Questions], known: dict[str, Any]) -> None:
    """What is missing of one run. Its LM is loaded where something is."""
    asker, lm = None, lm_of(run)
    for name, data in sets.items():
        for shots, seed, look in cells(options, data):
            who = lm if look == "none" else name_of(run)
            key = f"{who} {name} {shots}shot seed{seed} {look} {len(data.measured()[1])}"
            if key in known:
                continue
            if asker is None:
                place = {"device": options.device, "dtype": options.dtype, "backbone": options.backbone}
                generator = open_generator(str(run), **place)
                asker = Asker(generator, at_once=options.batch, remembered=REMEMBERED)
            began = time.monotonic()
            answers = measure(asker, data, shots=shots, seed=seed, look=look)
            known[key] = {"key": key, "run": who, "data": name, "shots": shots, "seed": seed, "look": look}
            known[key] |= {"seconds": round(time.monotonic() - began, 1), "device": options.device}
            known[key] |= {"dtype": options.dtype, **figures(answers, None, constants(data))}
            write(options.out / "answers" / f"{plain_name(key)}.csv", table(answers))
            with open(options.out / "cells.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(known[key]) + "\n")
            print(key, f"{known[key]['accuracy']:.1f}%", f"{known[key]['seconds']} s", flush=True)


def lm_of(run: Path) -> str:
    """The LM that a run writes with, by what its config.yaml says."""
    from wordsight.reader import load_yaml

    content = load_yaml(run / "config.yaml")
    return f"{plain_name(content['settings']['settings']['text'])} {content['facts']['lm'][:8]}"


def name_of(run: Path) -> str:
    """A run by its folder and the one around it."""
    return "/".join(run.resolve().parts[-2:])


def write(file: Path, text: str) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    part = file.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(file)


# -- the table --


def summary(known: dict[str, dict[str, Any]]) -> str:
    """A row a run, data and K: mean over the seeds of the examples, and their standard deviation."""
    groups: dict[tuple, list[dict[str, Any]]] = defaultdict(list)
    for cell in known.values():
        groups[cell["data"], cell["run"], cell["look"], cell["shots"]].append(cell)
    names = {"own": "its image", "none": "no image", "other": "another image"}
    lines = ["| data | run | sees | K | accuracy | by kind | up to the line's end | constant |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for (data, run, look, shots), some in sorted(groups.items()):
        kinds = {kind: [cell["kinds"][kind]["accuracy"] for cell in some] for kind in some[0]["kinds"]}
        by_kind = ", ".join(f"{kind} {statistics.mean(values):.1f}" for kind, values in kinds.items())
        whole, constant = (
            statistics.mean(cell.get(name, 0) for cell in some) for name in ("whole", "constant")
        )
        lines.append(
            f"| {data} | {run} | {names[look]} | {shots} | {spread([cell['accuracy'] for cell in some])} | "
            f"{by_kind} | {whole:.1f} | {constant:.1f} |"
        )
    return "\n".join(lines) + "\n"


def spread(values: list[float]) -> str:
    deviation = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{deviation}"


def listed(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("runs", nargs="*", type=Path, help="finished runs of method=limber")
    parser.add_argument("--out", type=Path, required=True, help="the folder of all results")
    parser.add_argument("--flickr", type=Path, help="the folder of Flickr8k: captions.csv, images/")
    parser.add_argument("--easy", type=Path, help="the folder of easy-vqa's data: train/, test/")
    parser.add_argument("--backbone", help="where the runs' backbone lies here, if elsewhere")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="float32", choices=("float32", "bfloat16"))
    parser.add_argument("--batch", type=int, default=16, help="questions at once")
    parser.add_argument("--shots", type=listed, default=[0, 1, 2, 4])
    parser.add_argument("--seeds", type=listed, default=[1], help="what examples are drawn from")
    parser.add_argument("--few", type=int, default=0, help="so many questions of each set alone: a trial")
    options = parser.parse_args()
    sets, known = tables(options), done(options.out / "cells.jsonl")
    for run in options.runs:
        fill(options, run, sets, known)
    write(options.out / "table.md", summary(known))
    print(summary(known))
