"""Differences: two methods at the same data and seeds, over seeds and test images together, and in words what
such a difference shows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from wordsight.metrics import LEVEL, crossed_margin, margin

ANY_SEED = None  # of a figure that no seed decides
LEAST_FREE = 4  # degrees of freedom of the seeds (five seeds of one dataset) from which a level is named


class Figure(NamedTuple):
    """An accuracy, and where the folder keeps it, whether each test image was classified rightly."""

    accuracy: float
    right: Mapping[str, bool] | None = None


# {(dataset, seed): {all, base, new: figure}} of one method
Scores = Mapping[tuple[str, int | None], Mapping[str, Figure]]
Pair = tuple[Mapping[str, Figure], Mapping[str, Figure]]


@dataclass(frozen=True)
class Difference:
    """A method minus the reference, in points, with its interval over what it was tested on; without one
    where there is one seed and what was predicted of each image is not kept.
    """

    mean: float
    low: float | None
    high: float | None
    seeds: tuple[int, ...]  # how many of each dataset; 0 where no seed decides either figure
    images: int  # tested by both, over all datasets; 0 where what was predicted of them is not kept

    @classmethod
    def around(cls, mean: float, margin: float | None, seeds: tuple[int, ...], images: int) -> Difference:
        """With an interval of this half width, as far as differences go."""
        low, high = (
            (None, None) if margin is None else (max(-100.0, mean - margin), min(100.0, mean + margin))
        )
        return cls(mean, low, high, seeds, images)

    @property
    def pairs(self) -> int:
        return sum(max(1, seeds) for seeds in self.seeds)

    @property
    def level(self) -> int | None:
        """The percent that the interval is called by; None where it has too few seeds to be called so."""
        free = sum(seeds - 1 for seeds in self.seeds if seeds)
        named = free >= LEAST_FREE and 1 not in self.seeds if free else self.images > 0
        return LEVEL if self.low is not None and named else None

    @property
    def verdict(self) -> str:
        """`higher`, `lower`, `open` where the interval holds 0, or `untested` without one."""
        if self.low is None or self.high is None:
            return "untested"
        return "higher" if self.low > 0 else "lower" if self.high < 0 else "open"

    @property
    def over(self) -> str:
        """What the interval is over, in words: a sentence."""
        if self.low is None:
            return "Not tested: no two seeds differ, and what was predicted of each image is not kept."
        known = [seeds for seeds in self.seeds if seeds]
        fewest, most = min(known, default=0), max(known, default=0)
        seeds = f"{fewest} to {most} seeds" if fewest < most else f"{most} seeds"
        name = f"{LEVEL} % intervals" if self.level else "Intervals"
        few = "" if self.level else ", too few seeds to name a level"
        if not self.images:
            return f"{name} over {seeds} alone{few}: what was predicted of each image is not kept."
        images = f"{self.images:,} test images"
        if most < 2:
            alone = " alone: one seed, and another may differ by more" if most else ", and no seed decides"
            return f"{name} over {images}{alone}."
        return f"{name} over {images} and {seeds} together{few}."

    def __str__(self) -> str:
        interval = "" if self.low is None else f" [{self.low:+.1f}, {self.high:+.1f}]"
        return f"{self.mean:+.1f}{interval}"


def in_words(differences: Mapping[str, Difference], reference: str) -> list[str]:
    """Which of these differences hold, {method: difference}, a sentence or two for all that are over the
    same.
    """
    by_kind: dict[str, dict[str, list[str]]] = {}
    for label, one in differences.items():
        by_kind.setdefault(one.over, {}).setdefault(one.verdict, []).append(label)
    says = {
        "higher": f"higher than {reference}",
        "lower": f"lower than {reference}",
        "open": f"not shown to differ from {reference}",
        "untested": f"not tested against {reference}",
    }
    return [
        "; ".join(
            f"{listed(found[verdict])} {'is' if len(found[verdict]) == 1 else 'are'} {text}"
            for verdict, text in says.items()
            if verdict in found
        )
        + f". {over}"
        for over, found in by_kind.items()
    ]


def listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))


# -- two methods --


def paired_difference(ours: Scores, theirs: Scores, part: str) -> Difference | None:
    """Ours minus theirs over the datasets and seeds that both have: the mean over datasets of that over
    seeds, on the test images that both were tested on. H is of the mean base and mean new, and its interval
    that of its first-order change with them.

    A figure that no seed decides stands beside each seed of its dataset. Seeds that all give the same are
    one. Where what was predicted of each image is not kept of all of them, the reported accuracies are
    compared, over seeds alone. None without a common pair."""
    halves = ("base", "new") if part == "H" else (part,)
    pairs = {data: distinct(found, halves) for data, found in common(ours, theirs, halves).items()}
    if not pairs:
        return None
    seeds = tuple(len(found) if seeded(ours, theirs, data) else 0 for data, found in pairs.items())
    hits = hits_of(list(pairs.values()), halves)
    if hits is None:
        figures = [reported(found, halves) for found in pairs.values()]
    else:
        figures = [np.stack([np.nanmean(half, -1) for half in parts], -1) for parts in hits]
    mean, slopes = gap(np.mean([one.mean(1) for one in figures], 0))
    if hits is None:
        by_seed = [np.tensordot(one, slopes, ([0, 2], [0, 1])) / len(figures) for one in figures]
        known = None if 1 in seeds else margin(by_seed) or None
        return Difference.around(mean, known, seeds, images=0)
    gaps = [[np.tensordot(slopes[:, at], half, 1) for at, half in enumerate(parts)] for parts in hits]
    images = sum(half.shape[-1] for parts in hits for half in parts)
    return Difference.around(mean, crossed_margin(gaps), seeds, images)


def gap(means: Float[np.ndarray, "2 P"]) -> tuple[float, Float[np.ndarray, "2 P"]]:
    """Ours minus theirs, of one figure or of the harmonic mean of two, and its slope along each."""
    if means.shape[1] == 1:
        return float(means[0, 0] - means[1, 0]), np.array([[1.0], [-1.0]])
    total = means.sum(1, keepdims=True)
    share = means / np.where(total > 0, total, 1)
    value = 2 * means[:, 0] * share[:, 1]
    return float(value[0] - value[1]), np.array([[1.0], [-1.0]]) * 2 * share[:, ::-1] ** 2


def reported(pairs: Sequence[Pair], halves: Sequence[str]) -> Float[np.ndarray, "2 S P"]:
    """The accuracies of ours and theirs at each seed, as the runs reported them."""
    return np.array([[[pair[side][half].accuracy for half in halves] for pair in pairs] for side in (0, 1)])


def hits_of(
    datasets: Sequence[Sequence[Pair]], halves: Sequence[str]
) -> list[list[Float[np.ndarray, "2 _ _"]]] | None:
    """For each dataset and half `right_of`; None where one of them has none."""
    found = [[right_of(pairs, half) for half in halves] for pairs in datasets]
    kept = [[one for one in parts if one is not None] for parts in found]
    return kept if all(len(parts) == len(halves) for parts in kept) else None


def right_of(pairs: Sequence[Pair], half: str) -> Float[np.ndarray, "2 S n"] | None:
    """100 where ours, theirs classified an image rightly at a seed, else 0; NaN where not both were tested on
    it. None where this is not kept of a seed, or there are no two images for each.
    """
    known = [(mine[half].right, other[half].right) for mine, other in pairs]
    sides = [(mine, other) for mine, other in known if mine and other]
    tested = [mine.keys() & other.keys() for mine, other in sides]
    if len(sides) < len(pairs) or min(map(len, tested)) < 2:
        return None
    images = sorted(set().union(*tested))
    return np.array(
        [
            [
                [100.0 * pair[side][image] if image in here else np.nan for image in images]
                for pair, here in zip(sides, tested)
            ]
            for side in (0, 1)
        ]
    )


def distinct(pairs: list[Pair], halves: Sequence[str]) -> list[Pair]:
    """One pair where all are equal: the seed decided nothing, and more of them say no more."""
    measured = [[side[half] for side in pair for half in halves] for pair in pairs]
    return pairs[:1] if all(one == measured[0] for one in measured) else pairs


def common(ours: Scores, theirs: Scores, halves: Sequence[str]) -> dict[str, list[Pair]]:
    """What both measured of all these, by dataset, pair by pair."""
    keys = sorted(ours.keys() | theirs.keys(), key=repr)
    met = {key: pair for key in keys if (pair := beside(ours, theirs, key, halves))}
    with_seed = {data for data, seed in met if seed is not ANY_SEED}
    found: dict[str, list[Pair]] = {}
    for (data, seed), pair in met.items():
        if seed is not ANY_SEED or data not in with_seed:
            found.setdefault(data, []).append(pair)
    return found


def beside(ours: Scores, theirs: Scores, key: tuple[str, int | None], halves: Sequence[str]) -> Pair | None:
    mine, other = (scores.get(key, scores.get((key[0], ANY_SEED), {})) for scores in (ours, theirs))
    return (mine, other) if all(half in mine and half in other for half in halves) else None


def seeded(ours: Scores, theirs: Scores, data: str) -> bool:
    """Whether a seed decides one of the two figures of a dataset."""
    return any((data, ANY_SEED) not in side for side in (ours, theirs))
