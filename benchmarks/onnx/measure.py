"""Parity, speed and size of graphs: `python benchmarks/onnx/measure.py RUN ...`.

Each RUN is fitted on images that have a test part. It is exported as a graph of float32 numbers, with 8-bit
weights, and in 8 bits, each compared with torch on all test images. Speed is of the tower and its head alone,
pixels in memory, one thread; torch and the graphs take turns, and the ratio to torch is the median of the
rounds."""

import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import torch

from wordsight.data import open_dataset
from wordsight.data.pictures import readable
from wordsight.onnx import Graph, opened
from wordsight.onnx.exporting import Traced, export_graph, fitted_of
from wordsight.onnx.pixels import pixels_of
from wordsight.runs import Run

KINDS, BATCHES, ROUNDS = (None, "weights", "all"), (1, 16), 9


def main(runs: list[str]) -> None:
    torch.set_num_threads(1)
    print(
        "| run | graph | MB | accuracy % | same class % | largest difference | mean | batch 1 | batch 16 |\n"
        f"|{'---|' * 9}"
    )
    for name in runs:
        run = Run.open(name)
        traced = Traced(*fitted_of(run, None, None)).eval()
        split = open_dataset(run.settings.data).test
        with tempfile.TemporaryDirectory() as folder:
            paths = {kind: export_graph(name, f"{folder}/{kind}", int8=kind) for kind in KINDS}
            graphs = {kind: Graph(path) for kind, path in paths.items()}
            read, _ = readable(split.pictures)
            recipe = graphs[None].facts.pixels
            pixels = np.stack([pixels_of(image, recipe) for image in read.values()])
            labels = split.labels[list(read)]
            sessions = {kind: opened(graph.path, threads=1) for kind, graph in graphs.items()}
            rates = speeds(traced, sessions, pixels)
            with torch.no_grad():
                said = np.concatenate([traced(torch.from_numpy(some))[0].numpy() for some in parts(pixels)])
            cells = [f"{rates['torch', batch]:.1f} images/s" for batch in BATCHES]
            row(name, "torch", "", said, said, labels, cells)
            for kind, session in sessions.items():
                found = np.concatenate(
                    [session.run(["probabilities"], {"pixels": some})[0] for some in parts(pixels)]
                )
                cells = [f"x {rates[kind, batch]:.2f}" for batch in BATCHES]
                size = f"{graphs[kind].path.stat().st_size / 1e6:.1f}"
                row(name, kind or "float32", size, found, said, labels, cells)


def parts(pixels: np.ndarray) -> list[np.ndarray]:
    return [pixels[start : start + 16] for start in range(0, len(pixels), 16)]


def row(name, kind, size, found, said, labels, cells) -> None:
    apart = np.abs(found - said).max(1)
    print(
        f"| {Path(name).name} | {kind} | {size} | {100 * (found.argmax(1) == labels).mean():.1f} | "
        f"{100 * (found.argmax(1) == said.argmax(1)).mean():.1f} | {apart.max():.1e} | {apart.mean():.1e} | "
        f"{' | '.join(cells)} |",
        flush=True,
    )


def speeds(traced, sessions, pixels) -> dict:
    """Images a second of torch, and how many times that the graphs reach."""
    found = {}
    for batch in BATCHES:
        some = pixels[:batch]
        ways = {"torch": lambda some=some: traced(torch.from_numpy(some))}
        for kind, session in sessions.items():
            ways[kind] = lambda some=some, session=session: session.run(None, {"pixels": some})
        rates = {kind: [] for kind in ways}
        with torch.no_grad():
            for turn in range(ROUNDS + 1):
                for kind, way in ways.items():
                    began = time.perf_counter()
                    way()
                    if turn:
                        rates[kind].append(batch / (time.perf_counter() - began))
        found["torch", batch] = median(rates["torch"])
        for kind in sessions:
            found[kind, batch] = median(one / two for one, two in zip(rates[kind], rates["torch"]))
    return found


if __name__ == "__main__":
    main(sys.argv[1:])
