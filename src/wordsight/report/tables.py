"""Tables: one structure that every writer takes, and what the tables of a report hold."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from wordsight.metrics import LEVEL, margin
from wordsight.report.comparison import Comparison
from wordsight.report.differences import Difference
from wordsight.report.published import orientation
from wordsight.report.reading import ALL_LABELS, NO_LABELS, ROLES, Evaluation, Measured
from wordsight.report.rows import (
    ABSENT,
    FIGURES,
    Row,
    Value,
    short_data,
    short_names,
)

WORDS = frozenset(
    ("data", "backbone", "words", "method", "true class", "predicted")
)  # columns of text, set to the left
SUFFIXES = ("", "_spread")  # of the two columns of a figure in full precision
LEGEND = (
    "Accuracy in percent, mean ± standard deviation over seeds. all: trained and tested on all classes. "
    "base, new: trained on the base half of the classes, tested on each half by itself. H: harmonic mean of "
    "the seed-averaged base and new; its spread is that of H per seed. –: not measured, or not possible for "
    "the method. The best of equal data and shots, beside what takes no labels, is bold."
)
COMPARED = (
    "Means over the datasets that a method was measured on, to be compared where their number is equal; H is "
    "of these means. rank: mean over the datasets, 1 is best. Differences are paired by dataset, seed and "
    "test image, and averaged over the datasets, which are taken as they are; in brackets their interval. A "
    "difference holds where it leaves out 0. Each is tested by itself: of twenty that are nothing, one may "
    "seem to hold."
)
BESIDE = (
    "Zero-shot and a linear probe of the same labels on the same test images. −: the accuracy minus theirs; "
    f"in brackets its interval: of one seed over these test images alone, at {LEVEL} %; of several over "
    f"images and seeds together, to be called {LEVEL} % from five seeds on. higher, lower: it leaves out 0, "
    "and the difference holds; open: it does not."
)
WORDS_SAME = "Every method that scores by class vectors has the same: "
MEANT = {
    "names": ", the vectors of class names",
    "sentences": ", the means of each class's sentences",
    "calibrated": ", names and sentences mixed, with the images' centre and the scale, by labelled images",
}
WORDS_APART = (
    "Not all methods that score by class vectors have the same words; each row says which, and rows of other "
    "words differ in more than the method."
)
RATES = (
    "rate: the learning rate that validation images chose among several, of all seeds; (first): there are "
    "none, and the first was taken, the authors'."
)
UNCOMPARED = (
    "Published figures are for orientation: other towers, other images, so not to be compared with ours. "
)


@dataclass(frozen=True)
class Table:
    """Rows of cells under columns. A cell is a text as it is shown, or a number in full precision."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Any, ...], ...]
    best: frozenset[tuple[int, str]] = frozenset()  # (row, column) of what is set in bold
    begins: frozenset[int] = frozenset()  # rows that begin another group
    words: frozenset[str] = WORDS
    dense: bool = False  # of cells so short that it stays a table on a phone

    @classmethod
    def of(cls, lines: Sequence[Mapping[str, Any]], **rest: Any) -> Table:
        """From one mapping a row, all of the same columns. Errors: ValueError without a row."""
        if not lines:
            raise ValueError("a table needs a row")
        columns = tuple(lines[0])
        return cls(columns, tuple(tuple(line[column] for column in columns) for line in lines), **rest)


# -- figures --


def figures_table(rows: Sequence[Row], varied: Sequence[str] = ()) -> Table:
    """What is shown of every row, `varied` columns first, beside what papers print of the same."""
    names = {"data": short_data(rows), "backbone": short_names(row.backbone for row in rows)}
    names["words"] = {row.words: row.words for row in rows}
    measured = [part for part in FIGURES if any(part in row.figures for row in rows)] or FIGURES[:1]
    absent = set(FIGURES) - set(measured)
    lines = [
        {name: names[name][getattr(row, name)] for name in varied}
        | {column: text for column, text in cells(row).items() if column not in absent}
        for row in rows
    ]
    if any(row.rates for row in rows):
        for line, row in zip(lines, rows):
            line["rate"] = row.rates or ABSENT
    if any(row.published for row in rows):
        for line, row in zip(lines, rows):
            printed = [slashed(table.values(), 1) for table in row.published.values()]
            line["published"] = "; ".join(printed) or ABSENT
    begins = {index for index in range(1, len(rows)) if rows[index].group != rows[index - 1].group}
    return Table.of(lines, best=best_cells(rows), begins=frozenset(begins))


def slashed(values: Iterable[float], decimals: int) -> str:
    return " / ".join(f"{value:.{decimals}f}" for value in values)


def cells(row: Row) -> dict[str, str]:
    """What a table shows of a row, by column."""
    return {
        "method": row.label,
        "shots": row.shots_text,
        "seeds": str(row.seeds),
        **{part: str(row.figures.get(part, ABSENT)) for part in FIGURES},
        "fit s": ABSENT if row.seconds is None else f"{row.seconds:.2f}",
        "parameters": ABSENT if row.parameters is None else f"{row.parameters:,}",
    }


def best_cells(rows: Sequence[Row]) -> frozenset[tuple[int, str]]:
    """(row, part) of the highest figure, as shown, among rows of equal data, backbone and shots, and those
    that take no labels; none where nothing is compared.
    """
    best = set()
    for data, backbone, shots in {row.group for row in rows}:
        beside = {(data, backbone, number) for number in (shots, NO_LABELS)}
        for part in FIGURES:
            shown = {
                index: round(row.figures[part].mean, 1)
                for index, row in enumerate(rows)
                if row.group in beside and part in row.figures
            }
            highest = [index for index, value in shown.items() if value == max(shown.values())]
            if len(shown) > 1:
                best |= {(index, part) for index in highest if rows[index].shots == shots}
    return frozenset(best)


def varying(rows: Sequence[Row]) -> list[str]:
    """The columns beside the method that tell rows apart."""
    names = [name for name in ("data", "backbone") if len({getattr(row, name) for row in rows}) > 1]
    return names + ["words"] * (len({row.words for row in rows if row.shares_words}) > 1)


def notes(rows: Sequence[Row]) -> str:
    """Which words all have, or that they differ, whose are their own, and what the rates are."""
    kinds = list(dict.fromkeys(row.words for row in rows if row.shares_words))
    said = [WORDS_APART] if len(kinds) > 1 else [f"{WORDS_SAME}words={kind}{MEANT[kind]}." for kind in kinds]
    others: dict[str, list[str]] = {}
    for row in rows if len(kinds) == 1 else ():
        if not row.shares_words and row.name not in others.setdefault(row.words, []):
            others[row.words].append(row.name)
    if others:
        listed = (f"{', '.join(names)} ({kind})" for kind, names in others.items())
        said.append(f"Otherwise: {'; '.join(listed)}.")
    return " ".join(said + ([RATES] if any(row.rates for row in rows) else []))


def sources(rows: Sequence[Row]) -> str:
    """Where the published figures are from; nothing where none is shown."""
    used = orientation([table for row in rows for table in row.published])
    return UNCOMPARED + "; ".join(used) + "." if used else ""


def figures_records(rows: Sequence[Row]) -> Table:
    """Every figure with its spread, in full precision; None where there is none."""
    lines = []
    for row in rows:
        known = {part: row.figures[part][:2] if part in row.figures else (None, None) for part in FIGURES}
        figures = {part + suffix: known[part][at] for part in FIGURES for at, suffix in enumerate(SUFFIXES)}
        printed = [f"{name}: {slashed(values.values(), 2)}" for name, values in row.published.items()]
        lines.append(
            {
                **{name: getattr(row, name) for name in ("data", "backbone", "method", "name")},
                "settings": row.differs,
                "shots": shots_record(row.shots),
                "seeds": row.seeds,
                **figures,
                "fit_seconds": row.seconds,
                "parameters": row.parameters,
                "rates": row.rates or None,
                "words": row.words,
                "published": "; ".join(printed),
            }
        )
    return Table.of(lines)


def shots_record(shots: int) -> int | str | None:
    return {NO_LABELS: None, ALL_LABELS: "all"}.get(shots, shots)


# -- beside zero-shot and a linear probe --


def references_table(rows: Sequence[Row], varied: Sequence[str] = ()) -> Table | None:
    """One line for each row and part of the classes that has a reference; None where none has."""
    data, backbone = short_data(rows), short_names(row.backbone for row in rows)
    lines = []
    for row in rows:
        names = {"data": data[row.data], "backbone": backbone[row.backbone], "words": row.words}
        for part in FIGURES:
            measured = [found for run in row.runs if (found := last_of(run.evaluations, row.tested, part))]
            measured = [one for one in measured if one.references]
            if measured:
                line = {name: names[name] for name in varied}
                line |= {"method": row.label, "shots": row.shots_text, "classes": part}
                line |= {"accuracy": str(Value.of([one.accuracy for one in measured]))}
                lines.append(line | beside_cells(measured))
    return Table.of(lines) if lines else None


def beside_cells(measured: Sequence[Evaluation]) -> dict[str, str]:
    """The accuracy of each reference, and the difference from it."""
    line = {}
    for name in ROLES:
        found = [one.references[name] for one in measured if name in one.references]
        gaps = [reference.difference for reference in found if reference.difference]
        line[name] = str(Value.of([reference.accuracy for reference in found])) if found else ABSENT
        whole = bool(gaps) and len(gaps) == len(measured)
        line[f"− {name}"] = beside_text(over_seeds(gaps)) if whole else ABSENT
    return line


def last_of(evaluations: Sequence[Evaluation], data: str, part: str) -> Evaluation | None:
    mine = [one for one in evaluations if (one.data, one.part) == (data, part)]
    return mine[-1] if mine else None


def over_seeds(gaps: Sequence[tuple[float, float, float]]) -> Difference:
    """One of those of several seeds, each with its interval over images. They are taken to be as wide
    together as one by one, as where the same images are right and wrong at every seed: never too narrow.
    """
    mean, low, high = np.array(gaps).mean(0)
    seeds = margin([np.array(gaps)[:, 0]])
    low, high = mean - np.hypot(seeds, mean - low), mean + np.hypot(seeds, high - mean)
    return Difference(float(mean), max(-100.0, low), min(100.0, high), (len(gaps),), images=0)


def beside_text(difference: Difference) -> str:
    return f"{difference} {difference.verdict}"


def facts(rows: Sequence[Row]) -> str:
    """How many test images there were and what a guess would score, so that a figure can be judged."""
    found: dict[str, Evaluation] = {}
    for row in rows:
        for run in row.runs:
            found |= {one.part: one for one in run.evaluations if one.data == row.tested}
    lines = [f"{part}: {fact(found[part])}" for part in FIGURES if part in found]
    return "; ".join(line for line in lines if not line.endswith(": "))


def fact(one: Evaluation) -> str:
    """`120 test images, chance 33.3`."""
    images = None if one.images is None else f"{one.images:,} test images"
    if images and one.folds:
        images = f"{one.images:,} images in a cross-validation of {one.folds} folds"
    return ", ".join(filter(None, (images, None if one.chance is None else f"chance {one.chance:.1f}")))


# -- retrieval --


def retrieval_table(rows: Sequence[Row]) -> Table | None:
    """Recall both ways, mean and spread over seeds, of the runs that were measured so; None without any."""
    return _by_data(rows, lambda run: run.retrievals)


def captions_table(rows: Sequence[Row]) -> Table | None:
    """The same of the captions that runs wrote: CIDEr-D and its like, times 100."""
    return _by_data(rows, lambda run: run.captionings)


def _by_data(
    rows: Sequence[Row], figures_of: Callable[[Measured], Mapping[str, dict[str, float]]]
) -> Table | None:
    found: dict[tuple[str, str], list[dict[str, float]]] = {}
    for row in rows:
        for run in {run.folder: run for run in row.runs}.values():
            for data, figures in figures_of(run).items():
                found.setdefault((data, row.label), []).append(figures)
    short = short_names(data for data, _ in found)
    columns = list(dict.fromkeys(column for runs in found.values() for figures in runs for column in figures))
    lines = []
    for (data, label), runs in found.items():
        values = {column: [figures[column] for figures in runs if column in figures] for column in columns}
        shown = {column: str(Value.of(values[column])) if values[column] else ABSENT for column in columns}
        lines.append({"data": short[data], "method": label, "seeds": str(len(runs))} | shown)
    return Table.of(lines) if lines else None


# -- against one another --


def standings_table(comparison: Comparison) -> Table:
    """What is shown of each method: means, ranks and differences from the reference."""
    standings = comparison.standings
    measured = [part for part in FIGURES if any(part in one.means for one in standings)]
    lines = []
    for one in standings:
        line = {"method": one.label}
        if len(set(comparison.given.values())) > 1:
            line["words"] = comparison.given.get(one.label, ABSENT)
        line["datasets"] = str(one.datasets)
        line |= {part: shown(one.means.get(part)) for part in measured}
        line |= {f"rank {part}": shown(one.ranks.get(part)) for part in comparison.parts}
        gaps = {part: str(one.differences.get(part, ABSENT)) for part in comparison.parts}
        lines.append(line | {f"{part} − {comparison.reference}": gap for part, gap in gaps.items()})
    return Table.of(lines)


def shown(value: float | None) -> str:
    return ABSENT if value is None else f"{value:.1f}"


def standings_records(compared: Sequence[Comparison]) -> Table:
    """Every mean, rank and difference in full precision, one line a method and part; None where there is
    none.
    """
    lines = []
    for one in compared:
        for standing in one.standings:
            for part, mean in standing.means.items():
                gap = standing.differences.get(part)
                lines.append(
                    {
                        "backbone": one.backbone,
                        "shots": shots_record(one.shots),
                        "other_data": one.elsewhere,
                        "method": standing.label,
                        "words": one.given.get(standing.label),
                        "datasets": standing.datasets,
                        "part": part,
                        "mean": mean,
                        "rank": standing.ranks.get(part),
                        "reference": one.reference,
                        **gap_record(gap),
                    }
                )
    return Table.of(lines)


def gap_record(gap: Difference | None) -> dict[str, float | str | None]:
    names = ("mean", "low", "high", "level", "verdict", "images", "pairs")
    values = {name: None if gap is None else getattr(gap, name) for name in names}
    return {"difference": values.pop("mean")} | values
