"""Comparison: how methods stand against one another over datasets and seeds: means, ranks and paired
differences.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from wordsight.config import WordsightError
from wordsight.metrics import harmonic_mean, ranks
from wordsight.reader import nearest
from wordsight.report.differences import ANY_SEED, Difference, Figure, Scores, in_words, paired_difference
from wordsight.report.reading import ALL_LABELS, NO_LABELS
from wordsight.report.rows import FIGURES, Row, accuracies_of

REFERENCE = "aape"  # whom others are compared with where nobody is named and it is there


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
    given: Mapping[str, str]  # the words of each method that shares them, by its label

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

    @property
    def words(self) -> list[str]:
        """Which differences hold: sentences, of each part that is compared."""
        said = []
        for part in self.parts:
            found = {one.label: one.differences[part] for one in self.standings if part in one.differences}
            said += [f"{part}: {sentence}" for sentence in in_words(found, self.reference)]
        return said


def comparisons(rows: Sequence[Row], reference: str | None = None) -> list[Comparison]:
    """One for each backbone, shots and kind of data where there are two methods or more; what takes no labels
    stands beside all shots.

    Errors: WordsightError where a reference is given and is in none of them."""
    made = []
    for backbone, elsewhere in dict.fromkeys((row.backbone, row.trained != row.tested) for row in rows):
        mine = [row for row in rows if row.figures and row.backbone == backbone]
        mine = [row for row in mine if (row.trained != row.tested) == elsewhere]
        for shots in sorted({row.shots for row in mine} - {NO_LABELS}) or [NO_LABELS]:
            compared = beside(mine, shots)
            if len({row.label for row in compared}) > 1:
                methods = scores_by_method(compared, shots)
                first = next(iter(methods))
                wanted = (REFERENCE,) if reference is None else (reference, REFERENCE)
                chosen = next((name for name in wanted if name in methods), first)
                given = {row.label: row.words for row in compared if row.shares_words}
                standings = tuple(compare(methods, chosen))
                made.append(Comparison(backbone, shots, elsewhere, chosen, standings, given))
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
    found: dict[str, dict[tuple[str, int | None], dict[str, Figure]]] = {}
    for row in sorted(rows, key=by_place):
        # of label-free runs that were made for several shots, those of these shots
        exact = [run for run in row.runs if (run.settings.shots or ALL_LABELS) == shots] or row.runs
        seedless = row.shots == NO_LABELS and row.seeds == 1
        for run in exact:
            key = (row.data, ANY_SEED if seedless else run.settings.seed)
            figures = {
                part: Figure(accuracy, run.right(row.tested, part, accuracy))
                for part, accuracy in accuracies_of(run)[row.data].items()
            }
            found.setdefault(row.label, {}).setdefault(key, {}).update(figures)
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
    """The mean over datasets of the means over seeds; H is that of the averaged base and new (protocol), over
    what has both. None where nothing was measured.
    """
    if part == "H":
        whole = {key: found for key, found in scores.items() if {"base", "new"} <= found.keys()}
        base, new = (mean_over(whole or scores, half) for half in ("base", "new"))
        return None if base is None or new is None else harmonic_mean(base, new)
    by_data: dict[str, list[float]] = {}
    for (data, _), figures in scores.items():
        if part in figures:
            by_data.setdefault(data, []).append(figures[part].accuracy)
    return fmean(map(fmean, by_data.values())) if by_data else None


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
