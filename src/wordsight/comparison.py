"""Comparison: how methods stand against one another over datasets and seeds. Pure: figures in; means, ranks
and paired differences out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from wordsight.config import WordsightError, nearest
from wordsight.metrics import harmonic_mean, interval, ranks

LEAST_PAIRS = 3  # of which an interval is drawn: two say nothing of a spread
PARTS = ("all", "base", "new", "H")
PUBLISHED = Path(__file__).parent / "data" / "published.json"
ANY_SEED = None  # of a figure that no seed decides

Scores = Mapping[
    tuple[str, int | None], Mapping[str, float]
]  # {(dataset, seed): {all, base, new: accuracy}} of one method


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
    ranks: dict[
        str, float
        # by part: mean rank over the datasets, 1 is best; absent where the method lacks a dataset that others
        # have
    ]
    differences: dict[str, Difference]  # by part; empty for the reference


def compare(methods: Mapping[str, Scores], reference: str) -> list[Standing]:
    """Every method against the reference, in the order given. Errors: WordsightError where the reference is
    not among them.
    """
    if reference not in methods:
        raise WordsightError(
            f"reference {reference!r} is not among what is compared{nearest(reference, methods)}: "
            f"{', '.join(methods)}"
        )
    ranks = {part: mean_ranks(methods, part) for part in PARTS}
    return [
        Standing(
            label,
            len({data for data, _ in scores}),
            {part: mean for part in PARTS if (mean := mean_over(scores, part)) is not None},
            {part: ranks[part][label] for part in PARTS if label in ranks[part]},
            {
                part: found
                for part in PARTS
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
        return None if None in both else harmonic_mean(*both)
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
    return value[..., 0] - value[..., 1]


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
    whole = {label: values for label, values in tables.items() if values and None not in values}
    by_data = [
        ranks({label: values[place] for label, values in whole.items()}) for place in range(len(datasets))
    ]
    return {label: fmean(ranked[label] for ranked in by_data) for label in whole}


# -- published numbers, for orientation ----------------------------------------------------------------------


@cache
def tables() -> dict[str, Any]:
    """data/published.json: what papers print, each table with its source."""
    return json.loads(PUBLISHED.read_text(encoding="utf-8"))


def published(
    method: str, trained: str, tested: str, shots: int, measured: Sequence[str]
) -> dict[str, dict[str, float]]:
    """{table: {part: figure}} that papers print for the same method, data, shots and parts; on their
    backbones, so not to be compared with ours.
    """
    found = {}
    for name, table in tables()["tables"].items():
        figures = table["methods"].get(method, {}).get("figures", {})
        place = place_in(table, trained, tested)
        if place is not None and shots in (0, table["shots"]) and figures.keys() <= set(measured) and figures:
            values = {part: column[place] for part, column in figures.items()}
            found[name] = values | (
                {"H": harmonic_mean(values["base"], values["new"])} if "new" in values else {}
            )
    return found


def place_in(table: Mapping[str, Any], trained: str, tested: str) -> int | None:
    """Which column of a table is about this data, by the name of its folder."""
    own, name = table.get("trained_on"), dataset_of(tested)
    fits = trained != tested and dataset_of(trained) == own if own else trained == tested
    return table["datasets"].index(name) if fits and name in table["datasets"] else None


def dataset_of(data: str) -> str | None:
    """The field's name of a dataset, from a path or a hub name; None where it is none of the field's."""
    folder = re.sub(r"[^a-z0-9]", "", Path(data.removeprefix("hf:")).stem.lower())
    return next((name for name, folders in tables()["folders"].items() if folder in folders), None)


def orientation(tables_used: Sequence[str]) -> list[str]:
    """One line for each table that figures were shown of: what it is, and from where."""
    return [
        f"{tables()['tables'][name]['says']} ({tables()['tables'][name]['source']})"
        for name in dict.fromkeys(tables_used)
    ]
