"""Panels: one run in detail (is it as sure as it is right, which classes are worst, what is confused with
what, which errors it was surest of), and two runs image by image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from markupsafe import Markup

from wordsight.config import WordsightError
from wordsight.report import plots
from wordsight.report.classes import Pair, class_table, confused_pairs, examples_of
from wordsight.report.images import SMALL, Card, Galleries, Gallery, Group, Said, confident_errors
from wordsight.report.layout import Folded, Panel, Section, confusion_matrix
from wordsight.report.reading import ALL_LABELS, NO_LABELS, PARTS, Measured, Prediction
from wordsight.report.reliability import Reliability, from_predictions
from wordsight.report.rows import ABSENT, Row, Value
from wordsight.report.tables import Table, last_of
from wordsight.report.two_runs import KINDS, NAMES, Beside, Both, TwoRuns, beside_table, changed_classes

WORST = 12  # classes that are shown; the others are folded away
ANSWERS = 8  # images of each kind, of two runs
ERRORS = "The wrong predictions of the highest probability."
LINKED = "A name leads to the image file."
EXPLAINED = "The sentence is the one closest to the prompt of this image, with its cosine."
SURE = (
    "Test images in bins by the confidence of their prediction. The dark line of a bin is its accuracy, "
    "which on the dashed line equals its mean confidence. Below: the share of the images that are so sure."
)
SCORES = (
    "precision: of the images that were predicted as this class, the share that are; recall: of the images "
    "of this class, the share that was found; F1: their harmonic mean."
)
SUREST = "Those that the wrong answer was surest of come first."
MEANT = (
    "The same test images under both runs. A − B: the difference in points with its interval, paired by "
    "image; it holds where the interval leaves out 0."
)


def caption(run: Measured) -> str:
    settings = run.settings
    known = {NO_LABELS: "no labels", ALL_LABELS: "all labelled images"}
    shots = known.get(run.shots, f"{run.shots} shot{'s' * (run.shots != 1)}")
    return f"{settings.method}, {shots}, {settings.classes} classes, seed {settings.seed}"


def predicted(run: Measured) -> tuple[list[Prediction], str]:
    """A run's predictions of its own test images, or none and the reason."""
    try:
        return run.predictions(), ""
    except (WordsightError, OSError) as error:
        return [], str(error)


# -- calibration --


def calibration_panel(rows: Sequence[Row], run: Measured, predictions: Sequence[Prediction]) -> Panel | None:
    """The reliability diagram of a run, and the calibration error of every row."""
    found = reliability_of(run, predictions)
    if found is None:
        return None
    curves = [(found.before, f"as it is: error {found.before.error:.1f}")]
    if found.after is not None:
        curves.append((found.after, f"temperature {found.temperature:.3g}: error {found.after.error:.1f}"))
    figures = [] if plots.why_none() else [plots.reliability_plot(*one) for one in curves]
    drawn = tuple(Markup(plots.svg(figure)) for figure in figures)
    table = calibration_table(rows)
    notes = (f"{caption(run)}. {found.told}", SURE)
    return Panel("Calibration", notes, table=table, plots=drawn)


def reliability_of(run: Measured, predictions: Sequence[Prediction]) -> Reliability | None:
    """Of a run's last evaluation; from its predictions where it kept nothing else."""
    last = run.last()
    return (last.reliability if last else None) or from_predictions(predictions)


def calibration_table(rows: Sequence[Row]) -> Table | None:
    """One line a row and part of the classes, mean and spread over seeds; None where there is one line or
    none, which the sentence above says already."""
    lines = []
    for row in rows:
        for part in PARTS:
            found = [last_of(run.evaluations, row.tested, part) for run in row.runs]
            known = [one.reliability for one in found if one is not None and one.reliability is not None]
            if known:
                line = {"method": row.label, "shots": row.shots_text, "classes": part}
                lines.append(line | _calibration_cells(known))
    return Table.of(lines) if len(lines) > 1 else None


def _calibration_cells(found: Sequence[Reliability]) -> dict[str, str]:
    after = [one for one in found if one.after is not None and one.temperature is not None]
    temperatures = [one.temperature for one in after if one.temperature is not None]
    return {
        "calibration error": str(Value.of([one.before.error for one in found])),
        "temperature": f"{np.mean(temperatures):.3g}" if after else ABSENT,
        "error after": str(Value.of([one.after.error for one in after if one.after])) if after else ABSENT,
    }


# -- classes --


def classes_panel(run: Measured) -> Panel | None:
    """The worst classes, and all of them folded away."""
    last = run.last()
    table = class_table(last) if last is not None else None
    if last is None or table is None:
        return None
    shown = min(WORST, len(table.rows))
    rest = len(table.rows) > shown
    note = (
        f"{caption(run)}. The {shown} worst of {len(table.rows):,} by F1. " if rest else f"{caption(run)}. "
    )
    worst = replace(table, rows=table.rows[:shown])
    folded = Folded(f"All {len(table.rows):,} classes, the worst first", table) if rest else None
    return Panel("Worst classes" if rest else "Classes", (note + SCORES,), worst, folded=folded)


# -- confusions and errors --


def confusion_panel(run: Measured) -> Panel | None:
    last = run.last()
    if last is None or last.counts is None:
        return None
    matrix = confusion_matrix(last.names, last.counts)
    if matrix is None:
        return None
    images = "" if last.images is None else f" of {last.images:,} images"
    note = f"{caption(run)}: {last.accuracy:.1f} %{images}. A row is a true class, a column a predicted one."
    return Panel("Confusion matrix", (note,), matrix=matrix)


def confused_panel(run: Measured, predictions: Sequence[Prediction], gallery: Gallery) -> Panel | None:
    """The pairs that were confused most often, each with the images that it was surest of."""
    last = run.last()
    if last is None or last.counts is None:
        return None
    found = confused_pairs(last)
    title = "Most frequent confusions"
    if not found:
        return Panel(title, (f"{caption(run)}: no image is wrong.",))
    examples = {(pair.true, pair.predicted): examples_of(pair, predictions) for pair in found}
    names = [one.image for some in examples.values() for one in some]
    groups = tuple(pair_group(pair, examples[pair.true, pair.predicted], gallery) for pair in found)
    notes = (f"{caption(run)}. True class → predicted.", gallery.why_missing(names))
    return Panel(title, tuple(filter(None, notes)), groups=groups)


def pair_group(pair: Pair, examples: Sequence[Prediction], gallery: Gallery) -> Group:
    images = tuple(gallery.show(one.image, SMALL, f"{100 * one.probability:.0f} %") for one in examples)
    return Group(f"{pair.true} → {pair.predicted}", f"{pair.count:,} of {pair.of:,} images", images=images)


def errors_panel(run: Measured, gallery: Gallery) -> Panel:
    """The mistakes a run was surest of. Where they or their images are gone, a line says so."""
    title, who = "Confident errors", caption(run)
    predictions, gone = predicted(run)
    if gone:
        return Panel(title, (f"Left out: {gone}",))
    shown = confident_errors(predictions, gallery)
    if not shown:
        return Panel(title, (f"{who}: no image is wrong.",))
    notes = [f"{who}. {ERRORS}", gallery.why_missing([card.image.name for card in shown])]
    notes += [LINKED] if any(card.image.link for card in shown) else []
    notes += [EXPLAINED] if any(card.sentence for card in shown) else []
    return Panel(title, (" ".join(filter(None, notes)),), cards=tuple(shown))


# -- two runs --


def beside_section(two: TwoRuns, galleries: Galleries) -> Section:
    """Where they share no test image, a sentence says so."""
    table = beside_table(two.parts) if two.parts else None
    panels = [Panel(table=table, after=tuple(two.words))]
    panels += [panel for one in two.parts for panel in detail_panels(one, galleries)]
    return Section("Image by image", tuple(panels), lead=MEANT if two.parts else "")


def detail_panels(one: Beside, galleries: Galleries) -> list[Panel]:
    gallery = galleries.of(one.runs[0], one.data)
    where = f"{Path(one.data).name}, {one.part} classes"
    groups = [kind_group(one, kind, gallery) for kind in KINDS[1:]]
    groups = [group for group in groups if group.cards]
    missing = gallery.why_missing([card.image.name for group in groups for card in group.cards])
    notes = tuple(filter(None, (SUREST if groups else "The same images are right under both.", missing)))
    changed = changed_classes(one)
    shown = [Panel(f"Images: {where}", notes, groups=tuple(groups))]
    return [Panel(f"Classes that differ most: {where}", table=changed), *shown] if changed else shown


def kind_group(one: Beside, kind: str, gallery: Gallery) -> Group:
    own = [each for each in one.answers if each.kind == kind]
    shown = sorted(own, key=by_sureness)[:ANSWERS]
    count = f"{len(own):,} image{'s' * (len(own) != 1)}"
    note = f"{count}, {len(shown)} shown" if len(shown) < len(own) else count
    return Group(
        f"{kind[0].upper()}{kind[1:]}", note, cards=tuple(answer_card(each, gallery) for each in shown)
    )


def by_sureness(one: Both) -> float:
    return -one.sureness


def answer_card(one: Both, gallery: Gallery) -> Card:
    said = (Said(name, each.predicted, each.probability) for name, each in zip(NAMES, one.said))
    return Card(gallery.show(one.image, SMALL), (Said("true", one.label), *said))
