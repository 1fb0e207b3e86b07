"""Predicting from features: AAPE's forms against plain zero-shot. `python benchmarks/speed/predict.py`

1,000 classes, 512 wide, random unit vectors (speed does not depend on them), interleaved repeats, medians.
Peak memory above the start: the largest resident set of a process
that runs one of the two."""

import resource
import statistics
import subprocess
import sys
import time

import torch

from wordsight.backbones import unit
from wordsight.methods import Classifier, Space
from wordsight.methods.aape import AAPE
from wordsight.methods.zero_shot import ZeroShot
from wordsight.sentences import ClassTexts
from wordsight.settings import AAPESettings

CLASSES, WIDTH, IMAGES, REPEATS = 1000, 512, 2048, 15
FORMS = ("solved", "skip", "literal")


def methods(form: str = "solved") -> dict[str, Classifier]:
    """Zero-shot from names, and AAPE in a form, with the words that are that form's own."""
    torch.manual_seed(0)
    names = tuple(f"class {index}" for index in range(CLASSES))
    vectors = unit(torch.randn(CLASSES, WIDTH))
    texts = ClassTexts(names, vectors, ((),) * CLASSES, (vectors[:0],) * CLASSES)
    own, space = AAPESettings(form=form), Space(WIDTH, 100.0)
    aape = AAPE.formed(own)(names, space, own).give(AAPE.own_words(own))
    built: dict[str, Classifier] = {"zero-shot": ZeroShot(names, space, None), "aape": aape}
    for method in built.values():
        for tensor in [*method.parameters(), *(b for b in method.buffers() if b.ndim)]:
            torch.nn.init.normal_(tensor, std=0.05)
        method.choose(texts)
    return built


@torch.inference_mode()
def seconds(method: Classifier, images: torch.Tensor) -> float:
    began = time.perf_counter()
    method.score(images)
    return time.perf_counter() - began


def compare(threads: int, form: str) -> None:
    torch.set_num_threads(threads)
    images, built = unit(torch.randn(IMAGES, WIDTH)), methods(form)
    taken = {name: [] for name in built}
    for _ in range(REPEATS + 2):
        for name, method in built.items():
            taken[name].append(seconds(method, images))
    median = {name: statistics.median(values[2:]) for name, values in taken.items()}
    rates = " ".join(f"{name} {IMAGES / value:,.0f} images/s" for name, value in median.items())
    print(f"{form}, {threads} thread(s): {rates}; ratio {median['aape'] / median['zero-shot']:.2f}")


def peak(name: str, images: int) -> float:
    """MiB above what was resident before, in a process of its own."""
    code = f"import predict, resource, torch; predict.grow({name!r}, {images})"
    return float(
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=sys.path[0]
        ).stdout
    )


def grow(name: str, images: int) -> None:
    method, features = methods()[name], unit(torch.randn(images, WIDTH))
    seconds(method, features[:32])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    seconds(method, features)
    print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)


if __name__ == "__main__":
    for threads in (1, 2):
        for form in FORMS:
            compare(threads, form)
    for images in (1024, 4096):
        print(
            f"{images} images: scores alone {images * CLASSES * 4 / 2**20:.0f} MiB; peak "
            + ", ".join(f"{n} {peak(n, images):.0f} MiB" for n in methods())
        )
