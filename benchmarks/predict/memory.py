"""Peak memory of `wordsight predict RUN FOLDER --csv out.csv` by how many images the folder holds.

`python benchmarks/predict/memory.py 1000 10000` writes tiny PNGs, each of its own content, fits a zero-shot
run of the bundled micro CLIP, and prints the peak resident memory of each prediction, with an empty feature
cache and with a full one.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

COMMAND = [sys.executable, "-m", "wordsight"]


def write_images(folder: Path, count: int) -> None:
    folder.mkdir(parents=True)
    for index in range(count):
        pixels = np.random.default_rng(index).integers(0, 256, (16, 16), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / f"{index:06d}.png")


def measure(words: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Peak MB and seconds of a command in a process of its own."""
    began = time.monotonic()
    process = subprocess.Popen([*COMMAND, *words], env=environment, stdout=subprocess.DEVNULL)
    _, status, used = os.wait4(process.pid, 0)
    if os.waitstatus_to_exitcode(status):
        sys.exit(f"{words} failed")
    return used.ru_maxrss / (1 if sys.platform == "darwin" else 1024), time.monotonic() - began


def main() -> None:
    counts = list(map(int, sys.argv[1:])) or [1_000, 10_000]
    with tempfile.TemporaryDirectory() as home:
        place, environment = Path(home), os.environ | {"WORDSIGHT_CACHE": str(Path(home) / "cache")}
        run = ["data=digits", "backbone=micro", "method=zero_shot", "shots=1", f"out={place / 'run'}"]
        measure(["fit", *run], environment)
        print("| images | cache | peak MB | seconds |\n|---|---|---|---|")
        for count in counts:
            write_images(place / str(count), count)
            words = ["predict", str(place / "run"), str(place / str(count)), "--csv", str(place / "out.csv")]
            for cache in ("empty", "full"):
                peak, seconds = measure(words, environment)
                lines = (place / "out.csv").read_bytes().count(b"\n")
                assert lines == count + 1, lines
                print(f"| {count:,} | {cache} | {peak:.0f} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    sys.exit(main())
