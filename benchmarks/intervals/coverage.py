"""How often the interval of a difference holds the truth, over simulated pairs of methods.

python benchmarks/intervals/coverage.py [WORLDS]

A method is right on an image where easiness + its own taste for the image + its seed + noise is above zero,
all normal; a fresh world has other images and other seeds. A line has cells for 1, 2, 3, 5 and 10 seeds."""

import sys
from collections.abc import Callable
from functools import partial

import numpy as np
from jaxtyping import Float
from scipy.stats import norm

from wordsight.metrics import crossed_margin, margin
from wordsight.report.differences import gap

SEEDS, SPREADS, IMAGES, RESAMPLES = (1, 2, 3, 5, 10), (0.0, 0.1, 0.4), 200, 300
MEAN, TASTE, NOISE = 0.8, 0.7, 0.3  # of the score, whose easiness has spread 1
# name: datasets, how much better ours is on each half of the classes, share of images that a seed leaves out
CASES = {
    "accuracy": (1, (0.1,), 0.0),
    "H": (1, (0.3, -0.1), 0.0),
    "H, three datasets": (3, (0.3, -0.1), 0.0),
    "accuracy, four datasets": (4, (0.1,), 0.0),
    "accuracy, other images each seed": (1, (0.1,), 0.3),
}
rng = np.random.default_rng(7)


def world(seeds: int, spread: float, better: float, left_out: float) -> Float[np.ndarray, "2 S n"]:
    """Right (100) or wrong, of both methods; NaN where a seed was not tested on an image."""
    score = MEAN + rng.normal(0, 1, IMAGES) + rng.normal(0, TASTE, (2, 1, IMAGES))
    score = score + rng.normal(0, spread, (2, seeds, 1)) + rng.normal(0, NOISE, (2, seeds, IMAGES))
    score[0] += better
    tested = rng.random((seeds, IMAGES)) >= left_out
    return np.where(tested, 100.0 * (score > 0), np.nan)


def truth(spread: float, better: float) -> tuple[float, float]:
    """The accuracy of each of the two methods."""
    size = (1 + TASTE**2 + spread**2 + NOISE**2) ** 0.5
    ours, theirs = (100 * float(norm.cdf((MEAN + shift) / size)) for shift in (better, 0.0))
    return ours, theirs


def shipped(case: str, seeds: int, spread: float) -> tuple[bool, float]:
    """Whether the report's interval holds the truth, and its half width."""
    datasets, halves, left_out = CASES[case]
    right, _ = gap(np.array([truth(spread, better) for better in halves]).T)
    hits = [[world(seeds, spread, better, left_out) for better in halves] for _ in range(datasets)]
    means = np.mean([[np.nanmean(half, (1, 2)) for half in parts] for parts in hits], 0).T
    found, slopes = gap(means)
    half = crossed_margin(
        [[np.tensordot(slopes[:, at], one, 1) for at, one in enumerate(parts)] for parts in hits]
    )
    return abs(found - right) <= half, half


def bootstrap(kind: str, seeds: int, spread: float) -> tuple[bool, float]:
    """The same of a percentile bootstrap: of the seeds' figures, or of images drawn anew for each seed."""
    ours, theirs = world(seeds, spread, 0.1, 0.0)
    gaps, right = ours - theirs, np.subtract(*truth(spread, 0.1))
    drawn = rng.integers(seeds, size=(RESAMPLES, seeds))
    if kind == "seeds":
        means = gaps.mean(1)[drawn].mean(1)
    else:
        counts = rng.multinomial(IMAGES, np.full(IMAGES, 1 / IMAGES), (RESAMPLES, seeds)) / IMAGES
        means = np.einsum("rsn,rsn->r", counts, gaps[drawn]) / seeds
    low, high = np.percentile(means, [2.5, 97.5])
    return bool(low <= right <= high), (high - low) / 2


def rare(images: int, better: float, worse: float) -> tuple[bool, float]:
    """The interval over images, of which so many shares are right with one method alone."""
    gaps = 100.0 * rng.choice([1, -1, 0], images, p=[better, worse, 1 - better - worse])
    half = margin([gaps])
    return abs(float(gaps.mean()) - 100 * (better - worse)) <= half, half


def cell(once: Callable[[], tuple[bool, float]], worlds: int) -> str:
    found = np.array([once() for _ in range(worlds)], float)
    return f"{100 * found[:, 0].mean():.1f} (± {found[:, 1].mean():.1f})"


def main(worlds: int) -> None:
    for case in CASES:
        for spread in SPREADS:
            cells = [cell(partial(shipped, case, seeds, spread), worlds) for seeds in SEEDS]
            print(f"| {case}, seeds of {spread} | {' | '.join(cells)} |", flush=True)
    for kind in ("seeds", "images anew"):
        for spread in SPREADS:
            few = worlds // 3
            cells = [cell(partial(bootstrap, kind, seeds, spread), few) for seeds in SEEDS[1:]]
            print(f"| bootstrap, {kind}, seeds of {spread} | – | {' | '.join(cells)} |", flush=True)
    for images, better, worse in ((30, 0.1, 0.1), (100, 0.03, 0.03), (100, 0.1, 0.05), (500, 0.01, 0.01)):
        shown = cell(partial(rare, images, better, worse), worlds)
        print(f"| {images} images, {better} and {worse} of them right with one method | {shown} |")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000)
