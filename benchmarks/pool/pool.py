"""What images without labels add: `python benchmarks/pool/pool.py FILE.npz ...`.

Each FILE is a file of vectors (docs/data.md) with a test part. The pool is the training part, less what is
labelled; no test image is in it, but in the rows marked transductive. Then pools of odd kinds, for zero-shot:
three images and one a class, half of the classes absent, and half of the classes not named (tested on the
named half). Accuracy in percent on all classes, mean over seeds 1, 2, 3; `base` rows are of 16 labelled
images of the first half of the classes: labelled / unlabelled half."""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch

import wordsight

SEEDS = (1, 2, 3)
ROWS = (
    ("zero-shot", {"method": "zero_shot"}),
    ("zero-shot, pool", {"method": "zero_shot", "unlabelled": "train"}),
    ("TransCLIP, pool", {"method": "transclip", "unlabelled": "train"}),
    ("TransCLIP (transductive)", {"method": "transclip", "unlabelled": "test"}),
    ("zero-shot, pool (transductive)", {"method": "zero_shot", "unlabelled": "test"}),
    ("linear probe, 1 shot", {"method": "linear_probe"}),
    ("linear probe, 1 shot, pool", {"method": "linear_probe", "unlabelled": "train"}),
    ("AAPE, 1 shot", {"method": "aape"}),
    ("AAPE, 1 shot, pool", {"method": "aape", "unlabelled": "train"}),
    ("AAPE, 4 shots", {"method": "aape", "shots": 4}),
    ("AAPE, 4 shots, pool", {"method": "aape", "shots": 4, "unlabelled": "train"}),
    ("AAPE, base, 16 shots", {"method": "aape", "shots": 16, "classes": "base"}),
    ("AAPE, base, 16 shots, pool", {"method": "aape", "shots": 16, "classes": "base", "unlabelled": "train"}),
)


def figures(file: str, seeds=SEEDS, **given) -> str:
    """Means over seeds of each part that is tested."""
    found = []
    for seed in seeds:
        with tempfile.TemporaryDirectory() as out:
            given = {"shots": 1, **given}
            run = wordsight.fit(data=file, seed=seed, out=f"{out}/run", references=False, **given)
            found.append([event["accuracy"] for event in run.events("eval")])
    return " / ".join(f"{value:.1f}" for value in np.mean(found, 0))


def odd(file: str, folder: Path) -> dict[str, str]:
    """Zero-shot without and with pools of odd kinds."""
    whole = dict(np.load(file))
    train, labels, count = whole["train"], whole["train_label"], len(whole["classes"])
    first = np.concatenate([np.flatnonzero(labels == c) for c in range(count)])
    place = np.concatenate([np.arange((labels == c).sum()) for c in range(count)])
    half = np.arange(count) < (count + 1) // 2
    cells = {}
    pools = {
        "three images a class": first[place < 3],
        "one image a class": first[place < 1],
        "half of the classes absent": np.flatnonzero(half[labels]),
    }
    for name, rows in pools.items():
        path = folder / "odd.npz"
        np.savez(path, **whole, unlabelled=train[rows])
        cells[name] = figures(str(path), SEEDS[:1], method="zero_shot", unlabelled="unlabelled")
    kept = {key: value for key, value in whole.items() if not key.startswith(("val", "sentence"))}
    for part in ("train", "test"):
        rows = half[whole[f"{part}_label"]]
        kept |= {part: whole[part][rows], f"{part}_label": whole[f"{part}_label"][rows]}
        kept.pop(f"{part}_path", None)
    kept |= {"classes": whole["classes"][half], "text": whole["text"][half], "unlabelled": train}
    path = folder / "half.npz"
    np.savez(path, **kept)
    plain = figures(str(path), SEEDS[:1], method="zero_shot")
    with_pool = figures(str(path), SEEDS[:1], method="zero_shot", unlabelled="unlabelled")
    cells["half of the classes not named: without, with"] = f"{plain}, {with_pool}"
    return cells


def main(files: list[str]) -> None:
    torch.set_num_threads(1)
    table: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for file in files:
            for name, given in ROWS:
                alone = given["method"] in ("zero_shot", "transclip")  # no draw, or hardly any
                table.setdefault(name, []).append(figures(file, SEEDS[:1] if alone else SEEDS, **given))
            for name, cell in odd(file, Path(folder)).items():
                table.setdefault(f"zero-shot, pool: {name}", []).append(cell)
            print(Path(file).stem, [row[-1] for row in table.values()], file=sys.stderr, flush=True)
    print("| | " + " | ".join(Path(file).stem for file in files) + " |\n|---|" + "---|" * len(files))
    for name, cells in table.items():
        print(f"| {name} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main(sys.argv[1:])
