"""How time grows with size, part by part, on one machine: what docs/scale.md reckons with.

    python benchmarks/scale/measure.py features IMAGES --backbone JOINED
    python benchmarks/scale/measure.py coverage CAPTIONS... --classes FILE
    python benchmarks/scale/measure.py search
    python benchmarks/scale/measure.py sentences --model LM
    python benchmarks/scale/measure.py engine

Processor time stands beside the clock, since a busy machine hardly changes it; both are medians over
--times."""

import argparse
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import torch

import wordsight
from wordsight.backbones import load_backbone
from wordsight.cluster import engine
from wordsight.coverage import coverage
from wordsight.data.features import image_features
from wordsight.data.images import read_image
from wordsight.data.pictures import pictures_of
from wordsight.data.store import Store
from wordsight.data.texts import captions_in
from wordsight.search import closest
from wordsight.sentences.writers import write_sentences
from wordsight.settings import WriterSettings
from wordsight.workers import each


def timed(label, size, work, times=1):
    """One row: the size, seconds by the clock and of the processor, and how many of it a second of each."""
    rows = []
    for _ in range(times):
        clock, processor = time.perf_counter(), time.process_time()
        work()
        rows.append((time.perf_counter() - clock, time.process_time() - processor))
    clock, processor = (statistics.median(column) for column in zip(*rows))
    load = os.getloadavg()[0]
    print(
        f"{label:18s} {size:>9,} | {clock:9.3f} s clock {size / clock:12,.1f}/s | {processor:9.3f} s "
        f"processor {size / processor:12,.1f}/s | load {load:.1f}",
        flush=True,
    )


def features(given):
    """From JPEG files to the cache; the parts of it alone for the smallest size."""
    backbone = load_backbone(given.backbone)
    files = sorted(str(path) for path in Path(given.source[0]).rglob("*.jpg"))
    image_features(backbone, pictures_of(files[-64:]), folder=tempfile.mkdtemp())  # all is imported and warm
    few = pictures_of(files[: given.sizes[0]])
    timed("read and hash", len(few), lambda: [one.read() for one in few])
    timed("decode and resize", len(few), lambda: [backbone.preprocess(read_image(one.load())) for one in few])
    for size in given.sizes:
        folder = tempfile.mkdtemp()
        work = partial(image_features, backbone, pictures_of(files[:size]), folder=folder)
        timed("encode", size, work)
        timed("find again", size, work)


def captions(given):
    lines = [line for source in given.source for line in captions_in(source)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "captions.txt"
        file.write_text("a dog")
        coverage(file, given.classes, jobs=1)  # packages, and the forms of the names, once
        for size in given.sizes:
            file.write_text("\n".join((lines * (1 + size // len(lines)))[:size]))
            timed("coverage", size, lambda: coverage(file, given.classes, jobs=1), given.times)


def search(given):
    torch.manual_seed(0)
    query = torch.nn.functional.normalize(torch.randn(1, 512), dim=1)
    for size in given.sizes:
        vectors = torch.nn.functional.normalize(torch.randn(size, 512), dim=1)
        closest(query, vectors, 10)
        timed("search, one query", size, partial(closest, query, vectors, 10), given.times)


def sentences(given):
    for size in given.sizes:
        names = [f"animal number {number}" for number in range(size // 4)]
        options = {"questions": ("What does a {} look like?",), "per_question": 4, "max_tokens": 40}
        settings = WriterSettings(given.model, local=True, **options)
        with tempfile.TemporaryDirectory() as folder:
            timed("sentences", size, partial(write_sentences, names, settings, Path(folder) / "s.json"))


def part_of_rows(number, rows, dim):
    return number, np.full((rows, dim), number, np.float32)


def engine_alone(given):
    """What the machine that asks can take in: empty items, and parts of 512 vectors 512 wide into a store."""
    with engine("ray", given.address):
        items_over(20)
        for size in given.sizes:
            timed("items over Ray", size, partial(items_over, size))
        for size in given.sizes:
            timed("vectors over Ray", size * 512, partial(vectors_over, size))


def items_over(count):
    assert sum(each(abs, range(count), jobs=1, processes=True)) == sum(range(count))


def vectors_over(parts):
    with tempfile.TemporaryDirectory() as folder:
        store = Store(folder, (1, 512), "scale")
        for number, rows in each(part_of_rows, range(parts), jobs=1, given=(512, 512), processes=True):
            for place, row in enumerate(rows):
                store.add(number.to_bytes(8, "little") + place.to_bytes(8, "little"), row[None])
            store.flush_if_due()
        store.flush()


WHAT = {
    "features": (features, (500, 1000, 2000, 4000)),
    "coverage": (captions, (100_000, 200_000, 400_000, 800_000)),
    "search": (search, (10_000, 100_000, 300_000, 1_000_000)),
    "sentences": (sentences, (32, 64, 128, 256)),
    "engine": (engine_alone, (100, 200, 400, 800)),
}


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=WHAT)
    parser.add_argument("source", nargs="*")
    parser.add_argument("--sizes", type=int, nargs="+")
    parser.add_argument("--times", type=int, default=3)
    parser.add_argument("--backbone", default="micro")
    parser.add_argument("--classes")
    parser.add_argument("--model")
    parser.add_argument("--address", default="local", help="of a Ray cluster; local starts one here")
    given = parser.parse_args()
    work, sizes = WHAT[given.what]
    given.sizes = given.sizes or sizes
    print(f"wordsight {wordsight.__version__}, {os.cpu_count()} cores, {torch.get_num_threads()} threads")
    work(given)
    print(f"{psutil.Process().memory_info().rss / 2**20:.0f} MB of memory at the end")


if __name__ == "__main__":
    main()
