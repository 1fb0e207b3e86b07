"""Classes: precision, recall and F1 of each, the worst first, and which are confused with which."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from wordsight.metrics import class_scores
from wordsight.report.reading import PARTS, Evaluation, Prediction, by_probability
from wordsight.report.rows import ABSENT, Row
from wordsight.report.tables import Table, last_of, shots_record

CONFUSED_PAIRS = 8
EXAMPLES = 4  # images of each such pair
TEXT = frozenset(("class",))


class Pair(NamedTuple):
    """Two classes of which one was taken for the other."""

    true: str
    predicted: str
    count: int
    of: int  # images of the true class


def class_table(one: Evaluation) -> Table | None:
    """Precision, recall and F1 of each class, the worst first; None where there is no confusion matrix."""
    if one.counts is None:
        return None
    scores = class_scores(one.counts)
    totals, guessed = one.counts.totals.tolist(), one.counts.guessed.tolist()
    lines = []
    for place in worst_first(scores.f1, scores.recall):
        line = {"class": one.names[place], "images": f"{totals[place]:,}"}
        line |= {"predicted": f"{guessed[place]:,}"}
        shares = {"precision": scores.precision, "recall": scores.recall, "F1": scores.f1}
        lines.append(line | {name: share(values[place]) for name, values in shares.items()})
    return Table.of(lines, words=TEXT, dense=True) if lines else None


def class_records(rows: Sequence[Row]) -> Table:
    """The same of every run and part of the classes, in full precision; None where there is none."""
    lines = []
    for row in rows:
        known = {"data": row.data, "backbone": row.backbone, "method": row.method, "name": row.name}
        known |= {"settings": row.differs, "shots": shots_record(row.shots)}
        for run in row.runs:
            for part in PARTS:
                one = last_of(run.evaluations, row.tested, part)
                if one is not None and one.counts is not None:
                    lines += [known | {"seed": run.settings.seed} | line for line in _records(one)]
    return Table.of(lines) if lines else Table((), ())


def _records(one: Evaluation) -> list[dict[str, Any]]:
    assert one.counts is not None
    scores = class_scores(one.counts)
    columns = {"images": one.counts.totals.tolist(), "predicted": one.counts.guessed.tolist()}
    columns |= {name: [_or_none(value) for value in values] for name, values in scores._asdict().items()}
    return [
        {"classes": one.part, "class": one.names[place]}
        | {name: values[place] for name, values in columns.items()}
        for place in worst_first(scores.f1, scores.recall)
    ]


def _or_none(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def worst_first(f1: Float[np.ndarray, " C"], recall: Float[np.ndarray, " C"]) -> list[int]:
    """Classes by F1, then by recall; those without any at the end."""
    return np.lexsort((recall, f1)).tolist()


def share(value: float) -> str:
    return ABSENT if np.isnan(value) else f"{value:.1f}"


def confused_pairs(one: Evaluation) -> list[Pair]:
    """The pairs of classes that were confused most often."""
    counts, names = one.counts, one.names
    assert counts is not None
    wrong = np.flatnonzero((counts.true != counts.predicted) & (counts.images > 0))
    order = wrong[np.argsort(-counts.images[wrong], kind="stable")][:CONFUSED_PAIRS]
    totals = counts.totals
    return [
        Pair(names[true], names[guess], int(counts.images[place]), int(totals[true]))
        for place, true, guess in zip(order, counts.true[order], counts.predicted[order])
    ]


def examples_of(pair: Pair, predictions: Sequence[Prediction]) -> list[Prediction]:
    own = [one for one in predictions if (one.label, one.predicted) == (pair.true, pair.predicted)]
    return sorted(own, key=by_probability)[:EXAMPLES]
