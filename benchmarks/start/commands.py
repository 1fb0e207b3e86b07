"""Seconds until `wordsight` answers, beside Python alone and beside transformers that loads and runs the same
model: python benchmarks/start/commands.py RUN IMAGE BACKBONE [ROUNDS]. Interleaved; medians."""

import resource
import statistics
import subprocess
import sys
import time

BARE = """
import sys, torch
from PIL import Image
from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel
name, image = sys.argv[1:]
model, pixels = CLIPModel.from_pretrained(name), CLIPImageProcessorPil.from_pretrained(name)
with torch.inference_mode():
    model.get_image_features(**pixels(images=Image.open(image).convert("RGB"), return_tensors="pt"))
"""
WRONG = (
    "fit data=gone/",
    "fit data=digits shot=16",
    "fit data=digits method=aap",
    "fit data=digits sentences=gone.json",
    "fit data=digits backbone=./gone",
    "predict gone one.jpg",
    "predict {run} gone.jpg",
    "predict {run} {image} --unsure 2",
    "predict {run} {image} --classes @gone.txt",
    "predict {run} {image} --topp 3",
    "eval {run} data=gone/",
    "search gone/ dog",
    "suite few-shots data=digits",
    "report gone",
    "export gone out",
    "serve gone",
)


def seconds(words: list[str]) -> tuple[float, float, int]:
    """Of the clock and of the processor, and the exit code."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    code = subprocess.run(words, capture_output=True).returncode
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return time.perf_counter() - start, used, code


def main(run: str, image: str, backbone: str, rounds: int = 5) -> None:
    own = [sys.executable, "-m", "wordsight"]
    asked = {"python -c pass": [sys.executable, "-c", "pass"]}
    asked |= {f"wordsight {one}": [*own, *one.format(run=run, image=image).split()] for one in WRONG}
    asked["transformers alone"] = [sys.executable, "-c", BARE, backbone, image]
    asked["wordsight predict RUN IMAGE"] = [*own, "predict", run, image]
    taken = {name: [] for name in asked}
    for _ in range(rounds + 1):
        for name, words in asked.items():
            taken[name].append(seconds(words))
    for name, found in taken.items():
        clock, used, codes = zip(*found[1:])  # the first fills the disk's cache
        spread = f"{min(clock):.2f} to {max(clock):.2f}"
        print(f"| `{name}` | {set(codes)} | {statistics.median(clock):.2f} | {spread} | {min(used):.2f} |")


if __name__ == "__main__":
    main(*sys.argv[1:4], *map(int, sys.argv[4:]))
