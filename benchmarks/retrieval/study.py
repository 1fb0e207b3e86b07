"""AAPE's h(x) as the query of retrieval, beside plain image vectors: `python
benchmarks/retrieval/study.py JOINED ../shared/data [out=runs/retrieval]`.

JOINED is the folder that benchmarks/joined/build.py writes. Each seed draws 2,500 of Flickr8k's 3,000
training photos, which h is learned from; its validation photos choose; tested on its 1,000 test photos and,
zero-shot, on ucm_captions and on the class names of Caltech101. Runs go to OUT and are not repeated."""

import csv
import logging
import random
import statistics
import sys
from pathlib import Path

import torch

import wordsight
from wordsight.runs import Run
from wordsight.tasks import evaluate
from wordsight.tasks.retrieve import RANKS, WAYS

SEEDS, DRAWN = (1, 2, 3), 2500
PLAIN = "plain image vectors"
ROWS: dict[str, dict] = {
    "distillation, solved": {"form": "solved", "contrast": 0.0},
    "both losses, solved": {"form": "solved"},
    "**both solved, then contrast trained** (default)": {"form": "tuned"},
    "distillation solved, then contrast trained": {"form": "tuned", "contrast": 0.0},
    "both trained from random weights (paper)": {"form": "paper"},
    "contrast trained from random weights": {"form": "paper", "distill": 0.0},
}
TESTS = ("flickr8k", "ucm_captions", "caltech101")


def drawn(data: str, seed: int, out: Path) -> str:
    """A table of Flickr8k in which so many training photos are left."""
    path = out / f"flickr8k-seed{seed}.csv"
    folder = Path(data, "flickr8k").resolve()
    with open(folder / "captions.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    train = [row for row in rows if row["split"] == "train"]
    kept = {row["path"] for row in random.Random(seed).sample(train, DRAWN)}
    rows = [row for row in rows if row["split"] != "train" or row["path"] in kept]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows({**row, "path": str(folder / row["path"])} for row in rows)
    return str(path)


def measured(run: Run, data: str) -> dict[str, dict]:
    """The event of each test; what was measured already stands in the run folder."""
    found = {"flickr8k": run.events("retrieval")[0]}
    for name in TESTS[1:]:
        place = str(Path(data, name).resolve())
        known = [one for one in run.events() if one.get("data") == place]
        found[name] = known[-1] if known else evaluate(run, data=place)[-1]
    return found


def spread(values: list[float]) -> str:
    return f"{statistics.mean(values):.1f} ± {statistics.pstdev(values):.1f}"


def recall_row(row: str, events: list[dict], key: str | None = None) -> str:
    """Recall@1, 5, 10 both ways and their mean, over seeds."""
    found = [one[key] if key else one for one in events]
    cells = [[one[way][f"recall@{k}"] for one in found] for way in WAYS for k in RANKS]
    means = [statistics.mean(column) for column in zip(*cells)]
    return f"| {row} | {' | '.join(map(spread, [*cells, means]))} |"


def main(joined: str, data: str, *words: str) -> None:
    torch.set_num_threads(1)
    logging.getLogger("wordsight").setLevel(logging.ERROR)
    out = Path(dict(word.partition("=")[::2] for word in words).get("out", "runs/retrieval"))
    tables = {seed: drawn(data, seed, out) for seed in SEEDS}
    events: dict[str, list[dict[str, dict]]] = {}
    for row, own in ROWS.items():
        for seed in SEEDS:
            folder = out / f"{''.join(c if c.isalnum() else '-' for c in row)}-seed{seed}"
            given = {"data": tables[seed], "backbone": joined, "seed": seed, "out": str(folder)}
            run = wordsight.fit(method="aape_captions", settings=own, **given)
            events.setdefault(row, []).append(measured(run, data))
            print(row, seed, file=sys.stderr, flush=True)
    for test in TESTS[:2]:
        heads = [f"{way} R@{k}" for way in ("i→t", "t→i") for k in RANKS]
        print("", f"| {test} | {' | '.join([*heads, 'mean'])} |", "|---" * 8 + "|", sep="\n")
        print(recall_row(PLAIN, [one[test] for one in events[next(iter(ROWS))]][:1], "plain"))
        for row in ROWS:
            print(recall_row(row, [one[test] for one in events[row]]))
    print("", "| class names | caltech101 |", "|---|---|", sep="\n")
    for row in ROWS:
        print(f"| {row} | {spread([one['caltech101']['accuracy'] for one in events[row]])} |")


if __name__ == "__main__":
    main(*sys.argv[1:])
