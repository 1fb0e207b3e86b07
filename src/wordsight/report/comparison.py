"""Comparison: how methods stand against one another over datasets and seeds: means, ranks and paired
differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from wordsight.config import WordsightError
from wordsight.metrics import harmonic_mean, interval, ranks
from wordsight.reader import nearest
from wordsight.report.reading import ALL_LABELS, NO_LABELS
from wordsight.report.rows import FIGURES, Row, accuracies_of

LEAST_PAIRS = 3  # of which an interval is drawn: two say nothing of a spread
ANY_SEED = None  # of a figure that no seed decides
REFERENCE = "aape"  # whom others are compared with where nobody is named and it is there

# {(dataset, seed): {all, base, new: accuracy}} of one method
Scores = Mapping[tuple[str, int | None], Mapping[str, float]]


class Difference(NamedTuple):
    """A method minus the reference, with the bootstrap's percentile interval; without one where there are
    fewer than LEAST_PAIRS.
    """

    mean: float
    low: float | None
    high: float | None
    pairs: int

    def __str__(self) -> str:
        return f"{self.mean:+.1f}" + (f" [{self.low:+.1f}, {self.high:+.1f}]" if self.low is not None else "")


@dataclass(frozen=True)
class Standing:
    """One method over the datasets that it was measured on."""

    label: str
    datasets: int
    means: dict[str, float]  # by part: over datasets, of the mean over seeds; H is of these means
    # by part: mean rank over the datasets, 1 is best; absent where it lacks a dataset that others have
    ranks: dict[str, float]
    differences: dict[str, Difference]  # by part; empty for the reference


@dataclass(frozen=True)
class Comparison:
    """Methods on the same backbone, shots and kind of data, each against the reference."""

    backbone: str
    shots: int
    elsewhere: bool  # tested on other data than it was trained on
    reference: str
    standings: tuple[Standing, ...]

    @property
    def title(self) -> str:
        known = {NO_LABELS: "no labels", ALL_LABELS: "all labelled images"}
        shots = known.get(self.shots, f"{self.shots} shot{'s' * (self.shots != 1)}")
        return f"{shots}{', tested on other data' if self.elsewhere else ''}, backbone {self.backbone}"

    @property
    def parts(self) -> list[str]:
        """The parts that are compared: all and H, or base where there is neither."""
        measured = {part for standing in self.standings for part in standing.means}
        return [part for part in ("all", "H") if part in measured] or ["base"]


def comparisons(rows: Sequence[Row], reference: str | None = None) -> list[Comparison]:
    """One for each backbone, shots and kind of data where there are two methods or more; what takes no labels
    stands beside all shots.

    Errors: WordsightError where a reference is given and is in none of them."""
    made = []
    for backbone, elsewhere in dict.fromkeys((row.backbone, row.trained != row.tested) for row in rows):
        mine = [row for row in rows if row.figures and row.backbone == backbone]
        mine = [row for row in mine if (row.trained != row.tested) == elsewhere]
        for shots in sorted({row.shots for row in mine} - {NO_LABELS}) or [NO_LABELS]:
            methods = scores_by_method(beside(mine, shots), shots)
            if len(methods) > 1:
                first = next(iter(methods))
                wanted = (REFERENCE,) if reference is None else (reference, REFERENCE)
                chosen = next((name for name in wanted if name in methods), first)
                made.append(Comparison(backbone, shots, elsewhere, chosen, tuple(compare(methods, chosen))))
    if reference is not None and all(one.reference != reference for one in made):
        labels = list(dict.fromkeys(row.label for row in rows))
        raise WordsightError(
            f"reference {reference!r} is not among what can be compared{nearest(reference, labels)}: "
            f"{', '.join(labels)}"
        )
    return made


def beside(rows: Sequence[Row], shots: int) -> list[Row]:
    """The rows of these shots, and on the same data those that take no labels."""
    data = {row.data for row in rows if row.shots == shots}
    return [row for row in rows if row.shots == shots or (row.shots == NO_LABELS and row.data in data)]


def scores_by_method(rows: Sequence[Row], shots: int) -> Mapping[str, Scores]:
    """{method: {(data, seed): figures}}, in the order of `wordsight list`."""
    found: dict[str, dict[tuple[str, int | None], dict[str, float]]] = {}
    for row in sorted(rows, key=by_place):
        # of label-free runs that were made for several shots, those of these shots
        exact = [run for run in row.runs if (run.settings.shots or ALL_LABELS) == shots] or row.runs
        seedless = row.shots == NO_LABELS and row.seeds == 1
        for run in exact:
            key = (row.data, ANY_SEED if seedless else run.settings.seed)
            found.setdefault(row.label, {}).setdefault(key, {}).update(accuracies_of(run)[row.data])
    return found


def by_place(row: Row) -> tuple[int, str, str]:
    return row.place


def compare(methods: Mapping[str, Scores], reference: str) -> list[Standing]:
    """Every method against the reference, in the order given. Errors: WordsightError where the reference is
    not among them.
    """
    if reference not in methods:
        raise WordsightError(
            f"reference {reference!r} is not among what is compared{nearest(reference, methods)}: "
            f"{', '.join(methods)}"
        )
    ranked = {part: mean_ranks(methods, part) for part in FIGURES}
    return [
        Standing(
            label,
            len({data for data, _ in scores}),
            {part: mean for part in FIGURES if (mean := mean_over(scores, part)) is not None},
            {part: ranked[part][label] for part in FIGURES if label in ranked[part]},
            {
                part: found
                for part in FIGURES
                if label != reference and (found := paired_difference(scores, methods[reference], part))
            },
        )
        for label, scores in methods.items()
    ]


def mean_over(scores: Scores, part: str) -> float | None:
    """The mean over datasets of the means over seeds; H is that of the averaged base and new (protocol). None
    where nothing was measured.
    """
    if part == "H":
        both = [mean_over(scores, half) for half in ("base", "new")]
        base, new = both
        return None if base is None or new is None else harmonic_mean(base, new)
    by_data: dict[str, list[float]] = {}
    for (data, _), figures in scores.items():
        if part in figures:
            by_data.setdefault(data, []).append(figures[part])
    return fmean(map(fmean, by_data.values())) if by_data else None


def paired_difference(ours: Scores, theirs: Scores, part: str) -> Difference | None:
    """Ours minus theirs over the (dataset, seed) pairs that both have, which the bootstrap draws again. A
    figure that no seed decides stands beside each seed of its dataset. H is taken of each draw's mean base
    and mean new. None without a common pair."""
    halves = ("base", "new") if part == "H" else (part,)
    pairs = [
        (mine, other)
        for mine, other in common(ours, theirs)
        if all(half in mine and half in other for half in halves)
    ]
    if not pairs:
        return None
    figures = np.array(
        [[[side[half] for half in halves] for side in pair] for pair in pairs]
    )  # [pairs, 2, halves]
    mean = float(gap(figures.mean(0)))
    if len(pairs) < LEAST_PAIRS:
        return Difference(mean, None, None, len(pairs))
    return Difference(mean, *interval(figures, gap), len(pairs))


def gap(means: Float[np.ndarray, "*R 2 P"]) -> Float[np.ndarray, "*R"]:
    """Ours minus theirs: of one figure, or of the harmonic mean of two."""
    total = means.sum(-1)
    value = total if means.shape[-1] == 1 else 2 * means.prod(-1) / np.where(total > 0, total, 1)
    return np.asarray(value[..., 0] - value[..., 1])  # an array without axes, too


def common(ours: Scores, theirs: Scores) -> list[tuple[Mapping[str, float], Mapping[str, float]]]:
    """What both measured, pair by pair."""
    keys = sorted(ours.keys() | theirs.keys(), key=repr)
    seeded = {
        data
        for data, seed in keys
        if seed is not ANY_SEED and all(find(side, (data, seed)) for side in (ours, theirs))
    }
    asked = [key for key in keys if key[1] is not ANY_SEED or key[0] not in seeded]
    found = [(find(ours, key), find(theirs, key)) for key in asked]
    return [(mine, other) for mine, other in found if mine is not None and other is not None]


def find(scores: Scores, key: tuple[str, int | None]) -> Mapping[str, float] | None:
    return scores.get(key, scores.get((key[0], ANY_SEED)))


def mean_ranks(methods: Mapping[str, Scores], part: str) -> dict[str, float]:
    """Each method's rank, averaged over the datasets; among those methods alone that have the figure on every
    dataset.
    """
    datasets = sorted(
        {data for scores in methods.values() for (data, _), figures in scores.items() if figures}
    )
    tables = {
        label: [
            mean_over({key: value for key, value in scores.items() if key[0] == data}, part)
            for data in datasets
        ]
        for label, scores in methods.items()
    }
    known = {label: [value for value in values if value is not None] for label, values in tables.items()}
    whole = {label: values for label, values in known.items() if values and len(values) == len(datasets)}
    by_data = [
        ranks({label: values[place] for label, values in whole.items()}) for place in range(len(datasets))
    ]
    return {label: fmean(ranked[label] for ranked in by_data) for label in whole}
