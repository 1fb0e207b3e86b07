"""By data: the field's layout of a table, a method a row, a dataset a column, and their average last."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean

from wordsight.metrics import harmonic_mean
from wordsight.report.comparison import by_place
from wordsight.report.reading import NO_LABELS
from wordsight.report.rows import FIGURES, Row, short_names, split_by
from wordsight.report.tables import Table, shots_record, shown
from wordsight.report.zero_shot import judged

BY_DATA = (
    "Accuracy in percent, mean over seeds. Average: over all these datasets, for what was measured on each "
    "of them; of H, the harmonic mean of the averaged base and new. The best of equal shots, beside what "
    "takes no labels, is bold."
)
PARTS = {
    "all": "all classes",
    "base": "base classes",
    "new": "new classes",
    "H": "H of base and new classes",
}
AVERAGE = "average"


@dataclass(frozen=True)
class Line:
    """A method over the datasets."""

    backbone: str
    label: str
    shots: int
    shots_text: str
    by_data: Mapping[str, Row]

    def mean(self, data: str, part: str) -> float | None:
        row = self.by_data.get(data)
        return row.figures[part].mean if row is not None and part in row.figures else None

    def average(self, datasets: Sequence[str], part: str) -> float | None:
        """None unless it was measured on each of them."""
        if part == "H":
            base, new = (self.average(datasets, half) for half in ("base", "new"))
            return None if base is None or new is None else harmonic_mean(base, new)
        values = [self.mean(data, part) for data in datasets]
        known = [value for value in values if value is not None]
        return fmean(known) if known and len(known) == len(values) else None


@dataclass(frozen=True)
class DataTable:
    """One part of the classes; of runs that were tested on other data, those of one source."""

    part: str
    trained: str  # the short name of the one dataset that all were trained on; empty: each on its own
    datasets: tuple[str, ...]  # short names, in the order of the columns
    lines: tuple[Line, ...]
    figures: tuple[tuple[float | None, ...], ...]  # of each line, the average last

    @property
    def title(self) -> str:
        elsewhere = f", trained on {self.trained}, which is not averaged" if self.trained else ""
        return f"{PARTS[self.part][0].upper()}{PARTS[self.part][1:]}{elsewhere}"

    @property
    def table(self) -> Table:
        """As it is shown."""
        several = len({line.backbone for line in self.lines}) > 1
        names = short_names(line.backbone for line in self.lines)
        columns = ("method", *(("backbone",) if several else ()), "shots", *self.datasets, AVERAGE)
        rows = [
            (line.label, *((names[line.backbone],) if several else ()), line.shots_text, *map(shown, figures))
            for line, figures in zip(self.lines, self.figures)
        ]
        begins = {
            at for at in range(1, len(rows)) if group_of(self.lines[at]) != group_of(self.lines[at - 1])
        }
        return Table(columns, tuple(rows), best=self._best(), begins=frozenset(begins))

    def _best(self) -> frozenset[tuple[int, str]]:
        """The highest of each column, as shown, among lines of equal backbone and shots and those that take
        no labels; none where nothing is compared."""
        best = set()
        for backbone, shots in {group_of(line) for line in self.lines}:
            beside = [
                at
                for at, line in enumerate(self.lines)
                if line.backbone == backbone and line.shots in (shots, NO_LABELS)
            ]
            for place, column in enumerate((*self.datasets, AVERAGE)):
                values = {at: value for at in beside if (value := self.figures[at][place]) is not None}
                highest = max((round(value, 1) for value in values.values()), default=None)
                if len(values) > 1:
                    best |= {
                        (at, column)
                        for at, value in values.items()
                        if round(value, 1) == highest and self.lines[at].shots == shots
                    }
        return frozenset(best)


def group_of(line: Line) -> tuple[str, int]:
    return line.backbone, line.shots


def by_data(rows: Sequence[Row]) -> list[DataTable]:
    """One for each part of the classes, where there are two datasets or more. What was measured by words
    alone has a table of its own (zero_shot.py).
    """
    apart = {id(one.row) for one in judged(rows)}
    own = [row for row in rows if row.trained == row.tested and id(row) not in apart]
    found = tables_of(own, "")
    for group in split_by([row for row in rows if row.trained != row.tested], trained_on):
        trained = group[0].trained
        found += tables_of([row for row in own if row.tested == trained] + group, trained)
    return found


def trained_on(row: Row) -> str:
    return row.trained


def tables_of(rows: Sequence[Row], trained: str) -> list[DataTable]:
    """Of rows that all were trained on one dataset, or each on its own."""
    short = short_names(row.tested for row in rows)
    tables = []
    for part in FIGURES:
        measured = [row for row in rows if part in row.figures]
        datasets = list(dict.fromkeys(row.tested for row in measured))
        if len(datasets) < 2:
            continue
        averaged = [data for data in datasets if data != trained]
        lines = lines_of(measured)
        figures = tuple(
            (*(line.mean(data, part) for data in datasets), line.average(averaged, part)) for line in lines
        )
        names = tuple(short[data] for data in datasets)
        tables.append(DataTable(part, short.get(trained, trained), names, tuple(lines), figures))
    return tables


def lines_of(rows: Sequence[Row]) -> list[Line]:
    """A line for each method, in the order of `wordsight list`, by backbone and shots."""
    lines = []
    for group in split_by(sorted(rows, key=in_order), same_line):
        first = group[0]
        mine = {row.tested: row for row in group}
        lines.append(Line(first.backbone, first.label, first.shots, first.shots_text, mine))
    return lines


def in_order(row: Row) -> tuple[str, int, tuple[int, str, str]]:
    return row.backbone, row.shots, by_place(row)


def same_line(row: Row) -> tuple[str, int, str]:
    return row.backbone, row.shots, row.label


def data_records(tables: Sequence[DataTable]) -> Table:
    """All of them in full precision, one line a method and part; None where there is no figure."""
    datasets = list(dict.fromkeys(name for one in tables for name in one.datasets))
    columns = ("classes", "trained_on", "backbone", "method", "shots", *datasets, AVERAGE)
    rows = []
    for one in tables:
        for line, figures in zip(one.lines, one.figures):
            known = dict(zip(one.datasets, figures))
            cells = (one.part, one.trained or None, line.backbone, line.label, shots_record(line.shots))
            rows.append((*cells, *(known.get(name) for name in datasets), figures[-1]))
    return Table(columns, tuple(rows))
