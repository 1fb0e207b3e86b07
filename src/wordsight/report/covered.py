"""Covered: a run's accuracy on the classes that training captions name, and on those that they do not, as in
CLAMP's Table 2, where whole datasets are split so."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float, Int

from wordsight.config import WordsightError
from wordsight.data.account import few
from wordsight.files import nfc, read_json
from wordsight.report.reading import PARTS, Evaluation
from wordsight.report.rows import ABSENT, Row, Value, short_data, short_names
from wordsight.report.tables import Table, last_of
from wordsight.report.values import whole

REFERENCE = "zero_shot"  # whose recall a gain is over
SPLIT = (
    "Accuracy over the test images of classes that more than {cut_off} captions of {file} name, and of the "
    "other classes. ρ: rank correlation (Spearman), over the classes, of how often they are named with their "
    f"recall, and with what their recall gains over {REFERENCE} on the same data; mean over seeds."
)


@dataclass(frozen=True)
class Coverage:
    """What `wordsight coverage --json` wrote."""

    file: str
    counts: Mapping[str, int]  # by class name as `spoken` has it
    cut_off: int

    def of(self, names: Sequence[str]) -> Int[np.ndarray, " C"]:
        """The count of each class; -1 where the file has none."""
        return np.array([self.counts.get(spoken(name), -1) for name in names], np.int64)


class Split(NamedTuple):
    """Accuracy by covered and uncovered classes."""

    table: Table
    note: str


def spoken(name: str) -> str:
    return " ".join(nfc(name).replace("_", " ").lower().split())


def read_coverage(file: str | Path) -> Coverage:
    """Errors: WordsightError where it is not there, or not what `wordsight coverage --json` writes."""
    loaded = read_json(Path(file).expanduser(), "coverage")
    found: Mapping[str, Any] = loaded if isinstance(loaded, dict) else {}
    counts, cut_off = found.get("counts"), whole(found.get("cut_off"))
    if not isinstance(counts, dict) or not counts or cut_off is None or None in map(whole, counts.values()):
        raise WordsightError(
            f"coverage {str(file)!r} has no counts and cut_off; `wordsight coverage CAPTIONS --classes FILE "
            f"--json` writes them"
        )
    return Coverage(str(file), {spoken(name): count for name, count in counts.items()}, cut_off)


def coverage_split(rows: Sequence[Row], coverage: Coverage) -> Split:
    """One line for each row and part of the classes that has a confusion matrix of classes in the file.

    Errors: WordsightError where none has."""
    data, backbone = short_data(rows), short_names(row.backbone for row in rows)
    lines = []
    for row in rows:
        for part in PARTS:
            measured = [one for one in _measured(row, part) if (coverage.of(one.names) >= 0).any()]
            if measured:
                line = {"data": data[row.data], "backbone": backbone[row.backbone], "method": row.label}
                line |= {"shots": row.shots_text, "classes": part}
                lines.append(line | _cells(measured, _reference(rows, row, part), coverage))
    if not lines:
        raise WordsightError(
            f"coverage {coverage.file!r} counts {few(list(coverage.counts))}, and none of the classes that "
            f"these runs were tested on"
        )
    return Split(Table.of(lines), SPLIT.format(cut_off=coverage.cut_off, file=coverage.file))


def _measured(row: Row, part: str) -> list[Evaluation]:
    found = [last_of(run.evaluations, row.tested, part) for run in row.runs]
    return [one for one in found if one is not None and one.counts is not None]


def _reference(rows: Sequence[Row], row: Row, part: str) -> Evaluation | None:
    """Of zero-shot on the same data and backbone, which has no seeds."""
    place = (row.data, row.backbone)
    same = [one for one in rows if one.method == REFERENCE and (one.data, one.backbone) == place]
    return next((one for other in same if other is not row for one in _measured(other, part)), None)


def _cells(
    measured: Sequence[Evaluation], reference: Evaluation | None, coverage: Coverage
) -> dict[str, str]:
    named = coverage.of(measured[0].names)
    covered = named > coverage.cut_off
    groups = {"covered": covered, "uncovered": (named >= 0) & ~covered}
    line = {}
    for group, classes in groups.items():
        line[f"{group} classes"] = str(int(classes.sum()))
        figures = [figure for one in measured if (figure := _accuracy(one, classes)) is not None]
        line[group] = str(Value.of(figures)) if figures else ABSENT
    line["ρ recall"] = _mean([_rank(named, _recall(one)) for one in measured])
    same = reference is not None and reference.names == measured[0].names
    base = _recall(reference) if reference is not None and same else None
    line["ρ gain"] = (
        ABSENT if base is None else _mean([_rank(named, _recall(one) - base) for one in measured])
    )
    return line


def _accuracy(one: Evaluation, classes: Any) -> float | None:
    assert one.counts is not None
    images = int(one.counts.totals[classes].sum())
    return 100 * int(one.counts.right[classes].sum()) / images if images else None


def _recall(one: Evaluation) -> Float[np.ndarray, " C"]:
    """NaN for a class without images."""
    assert one.counts is not None
    totals = one.counts.totals.astype(float)
    return np.divide(one.counts.right, totals, out=np.full(len(totals), np.nan), where=totals > 0)


def _rank(named: Int[np.ndarray, " C"], values: Float[np.ndarray, " C"]) -> float | None:
    """None where either is the same for all."""
    from scipy.stats import spearmanr  # a second to import, which most reports do not need

    known = (named >= 0) & np.isfinite(values)
    counts, values = named[known], values[known]
    if len(np.unique(counts)) < 2 or len(np.unique(values)) < 2:
        return None
    found: Any = spearmanr(counts, values)
    return float(found.statistic)


def _mean(values: Sequence[float | None]) -> str:
    known = [value for value in values if value is not None]
    return f"{np.mean(known):+.2f}" if known else ABSENT
