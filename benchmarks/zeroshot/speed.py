"""How long judging takes, and how much memory: 10,000 images x 1,000 classes from kept vectors, 200,000
classes, a report of 2,000 classes, and images through a tower beside the tower alone.

python benchmarks/zeroshot/speed.py --backbone JOINED --images ../shared/data/caltech101

Each figure is the median of several rounds, in seconds of the clock and of this process's processor time,
which other work on the machine changes less."""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch

from wordsight.backbones import load_backbone
from wordsight.config import RunSettings
from wordsight.data import Picture
from wordsight.data.features import image_features
from wordsight.data.images import read_image
from wordsight.data.rows import IMAGES, read_file
from wordsight.files import csv_text
from wordsight.fit import fit
from wordsight.fitted import Fitted
from wordsight.meter import peak_mib
from wordsight.methods import Space
from wordsight.methods.zero_shot import ZeroShot
from wordsight.runs import RunFacts, predictions_file
from wordsight.sentences import ClassTexts
from wordsight.settings import NoSettings
from wordsight.tasks import evaluate

SPREAD = 2.0  # of an image vector around that of its class
HEADER = ("image", "label", "predicted", "probability")


def timed(work, rounds):
    """Medians: seconds of the clock, and of processor time."""
    found = []
    for _ in range(rounds):
        began = time.perf_counter(), time.process_time()
        work()
        found.append((time.perf_counter() - began[0], time.process_time() - began[1]))
    return [statistics.median(column) for column in zip(*found)]


def told(name, seconds, more=""):
    print(f"{name}: {seconds[0]:.2f} s, {seconds[1]:.2f} s of processor time{more}", flush=True)


def unit(rows):
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def vectors(file, images, classes, width=512):
    """Images around their class's text vector, with a training and two validation images a class."""
    rng = np.random.default_rng(0)
    text = unit(rng.normal(size=(classes, width)))
    parts = {"classes": np.array([f"class {row}" for row in range(classes)]), "text": text.astype(np.float16)}
    for part, count in (("train", classes), ("val", 2 * classes), ("test", images)):
        labels = np.arange(count) % classes
        rows = unit(text[labels] + SPREAD * unit(rng.normal(size=(count, width))))
        parts |= {part: rows.astype(np.float16), f"{part}_label": labels}
    np.savez(file, **parts)


def kept_vectors(folder, rounds):
    file = str(folder / "vectors.npz")
    vectors(file, 10_000, 1000)
    settings = RunSettings(data=file, backbone=file, method="zero_shot", shots=1, out=str(folder / "run"))
    run = fit(settings, references=False)
    told(
        "10,000 images x 1,000 classes, opened, scored, measured, written",
        timed(partial(evaluate, run), rounds),
    )
    return run


def many_classes(rounds):
    rows = torch.from_numpy(unit(np.random.default_rng(0).normal(size=(200_000, 64))))
    names = tuple(map(str, range(len(rows))))
    texts = ClassTexts(names, rows, ((),) * len(rows), (rows[:0],) * len(rows))
    method = ZeroShot(names, Space(64, 100.0), NoSettings())
    fitted = Fitted(method, None, RunFacts(names, 64, 100.0, "{}"), {}, texts)
    for images in (100, 400):
        peak = peak_mib(partial(fitted.best, rows[:images]), torch.device("cpu"))
        told(
            f"{images} images x 200,000 classes",
            timed(partial(fitted.best, rows[:images]), rounds),
            f", {peak:.0f} MiB",
        )


def large_report(folder, rounds):
    """The command itself, start and imports included: a run of 2,000 classes and 20,000 predictions."""
    file = str(folder / "many.npz")
    vectors(file, 20_000, 2000, 64)
    out = folder / "many"
    run = fit(
        RunSettings(data=file, backbone=file, method="zero_shot", shots=1, out=str(out)), references=False
    )
    lines = (out / predictions_file("all")).read_text().splitlines()
    assert len(lines) == 20_001 and lines[0] == csv_text(HEADER, []).strip()
    command = [sys.executable, "-m", "wordsight", "report", str(run.folder), "--out", str(folder / "r.html")]
    before, walls = os.times(), []
    for _ in range(rounds):
        began = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        walls.append(time.perf_counter() - began)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    told("report of 2,000 classes", (statistics.median(walls), spent / rounds))


def from_pixels(name, source, rounds, count=96, batch=32):
    """The tower alone on ready tensors, and files to vectors: read, decoded, resized, encoded, kept."""
    backbone = load_backbone(name)
    files = sorted(path for path in Path(source).rglob("*") if path.suffix.lower() in IMAGES)
    random.Random(0).shuffle(files)
    ratios = []
    for start in range(rounds):
        part = files[start * count : (start + 1) * count]
        pixels = torch.stack([backbone.preprocess(read_image(read_file(path))) for path in part])
        pictures = [Picture(str(path), partial(read_file, path)) for path in part]

        def bare(ready=pixels):
            for some in ready.split(batch):
                backbone.encode_image(some)

        def whole(given=pictures):
            with tempfile.TemporaryDirectory() as cache:
                image_features(backbone, given, folder=cache)

        bare()
        turns = [bare, whole] if start % 2 else [whole, bare]
        seconds = {turn: timed(turn, 1) for turn in turns}
        ratios.append([one / other for one, other in zip(seconds[bare], seconds[whole])])
        told("tower alone", seconds[bare])
        told("whole path", seconds[whole], f"; ratios {ratios[-1][0]:.3f} and {ratios[-1][1]:.3f}")
    wall, processor = (statistics.median(column) for column in zip(*ratios))
    threads = f"{torch.get_num_threads()} threads"
    print(f"pixels, {threads}: {wall:.3f} of the tower's rate, {processor:.3f} in processor time")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--backbone", help="whose tower images pass through; left out, that part is")
    parser.add_argument("--images", help="a folder of at least rounds x 96 images")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, {torch.get_num_threads()} threads", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        kept_vectors(Path(folder), given.rounds)
        many_classes(given.rounds)
        large_report(Path(folder), given.rounds)
    if given.backbone and given.images:
        from_pixels(given.backbone, given.images, given.rounds)
    print(f"load {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    main()
