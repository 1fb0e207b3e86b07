"""Plots: figures that are legible on a phone. One plot a part of the classes, so that they stand below one
another where there is no room beside; the page writes the legend.
"""

from __future__ import annotations

import io
import math
import re
import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from wordsight.extras import is_there, missing
from wordsight.metrics import Confusion, Curve, harmonic_mean
from wordsight.report.comparison import by_place
from wordsight.report.reading import ALL_LABELS, NO_LABELS
from wordsight.report.rows import Row

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Okabe and Ito: told apart by colour-blind readers
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#555555")
TOO_SURE, UNSURE = "#eba06b", "#9fd0ec"
MARKERS = "os^D"  # where there are more lines than colours
TITLES = {"all": "all classes", "H": "H of base and new classes", "base": "base classes"}
LEGEND_LETTERS = 110  # of a name in the legend of a plot that stands alone
MATRIX_LINES = 400  # of a drawn confusion matrix
INCHES = (4.7, 3.3)
LEAST_SPAN = 2.0  # percent that an axis shows at least, so that a hair does not look like a gap


class Key(NamedTuple):
    """A line of the legend."""

    label: str
    colour: str
    marker: str  # as matplotlib calls it; empty for a dashed level


Drawn = dict[str, tuple[Key, Any]]  # by label: its line of the legend, and matplotlib's handle


def why_none() -> str:
    """Why nothing can be drawn; empty where it can."""
    return "" if is_there("matplotlib") else missing("report", "drawing", "matplotlib")


def blank(size: tuple[float, float]) -> Figure:
    """A figure to draw into."""
    from matplotlib.figure import Figure

    return Figure(figsize=size, layout="constrained")


def lettered(size: float) -> Any:
    """What is drawn inside has letters of this size."""
    from matplotlib import rc_context

    return rc_context({"font.size": size})


def halves_alone(rows: Sequence[Row]) -> bool:
    """Whether base and new classes are plotted against each other: where nothing else varies."""
    shots = {row.shots for row in rows} - {NO_LABELS}
    return plotted_parts(rows) == ["H"] and len(shots) == 1


def plotted_parts(rows: Sequence[Row]) -> list[str]:
    return [part for part in ("all", "H") if any(part in row.figures for row in rows)] or ["base"]


def title_of(rows: Sequence[Row]) -> str:
    return "Base and new classes" if halves_alone(rows) else "Accuracy against labelled images per class"


def accuracy_plots(rows: Sequence[Row]) -> tuple[list[Figure], list[Key]]:
    """One figure a part, and the legend of all."""
    figures: list[Figure] = []
    keys: Drawn = {}
    for part in plotted_parts(rows):
        with lettered(11):
            figure = blank(INCHES)
            keys |= draw(figure.subplots(), rows, part)
        figures.append(figure)
    return figures, [key for key, _ in keys.values()]


def accuracy_plot(rows: Sequence[Row]) -> tuple[str, Figure]:
    """The same in one figure with its legend, for a document of its own, and its title."""
    parts, labels = plotted_parts(rows), labels_of(rows)
    width = 4.9 * len(parts) + 0.2
    inches = 0.6 + 0.085 * max(map(len, labels))  # of a line of the legend, about
    columns = max(1, int(width / inches))
    with lettered(10):
        height = 3.4 + 0.22 * math.ceil(len(labels) / columns)
        figure = blank((width, height))
        drawn: Drawn = {}
        for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts):
            drawn |= draw(axes, rows, part)
        handles = [handle for _, handle in drawn.values()]
        texts = map(legend_text, drawn)
        figure.legend(handles, texts, loc="outside lower center", ncols=columns, frameon=False)
    return title_of(rows), figure


def labels_of(rows: Sequence[Row]) -> list[str]:
    return list(dict.fromkeys(row.label for row in sorted(rows, key=by_place)))


def draw(axes: Any, rows: Sequence[Row], part: str) -> Drawn:
    """One part into `axes`."""
    drawn = draw_halves(axes, rows) if halves_alone(rows) else draw_part(axes, rows, part)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    return drawn


def style_of(index: int) -> dict[str, Any]:
    marker = MARKERS[index // len(COLOURS) % len(MARKERS)]
    return {"color": COLOURS[index % len(COLOURS)], "marker": marker, "capsize": 3}


def draw_halves(axes: Any, rows: Sequence[Row]) -> Drawn:
    """A point a method with its spreads, over lines of equal H."""
    labels = labels_of(rows)
    drawn: Drawn = {}
    for row in sorted(rows, key=by_place):
        if "H" in row.figures:
            base, new = row.figures["base"], row.figures["new"]
            style = style_of(labels.index(row.label)) | {"linestyle": "none", "markersize": 6}
            handle = axes.errorbar(base.mean, new.mean, new.spread, base.spread, **style)
            drawn[row.label] = Key(row.label, style["color"], style["marker"]), handle
    draw_equal_h(axes)
    axes.set_xlabel("base classes: accuracy, %")
    axes.set_ylabel("new classes: accuracy, %")
    return drawn


def draw_equal_h(axes: Any) -> None:
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    points = np.linspace(max(left, 0.1), right), np.linspace(max(low, 0.1), high)
    equal = np.vectorize(harmonic_mean)(*np.meshgrid(*points))
    lines = axes.contour(*points, equal, levels=6, colors="#c9d0d9", linewidths=0.8, zorder=0)
    axes.clabel(lines, fmt="H %.0f", fontsize=8)


def draw_part(axes: Any, rows: Sequence[Row], part: str) -> Drawn:
    """One line a method with its spread; a method without labels is a dashed level."""
    measured = [row for row in rows if part in row.figures]
    shots = sorted({row.shots for row in rows} - {NO_LABELS})
    lined = labels_of([row for row in measured if row.shots != NO_LABELS])
    drawn: Drawn = {}
    for index, label in enumerate(labels_of(rows)):
        mine, style = [row for row in measured if row.label == label], style_of(index)
        levels = [row.figures[part].mean for row in mine if row.shots == NO_LABELS]
        if levels:
            dashes = (0, (5, 2 + index % 3))
            handle = axes.axhline(levels[0], color=style["color"], linestyle=dashes, linewidth=1.5)
            drawn[label] = Key(label, style["color"], ""), handle
        points = [(shots.index(row.shots), row.figures[part]) for row in mine if row.shots != NO_LABELS]
        if points:
            aside = apart(lined.index(label), len(lined))
            x, y, spread = zip(*((place + aside, value.mean, value.spread) for place, value in points))
            handle = axes.errorbar(x, y, spread, **style, markersize=5, linewidth=1.8)
            drawn[label] = Key(label, style["color"], style["marker"]), handle
    label_axes(axes, part, shots)
    return drawn


def label_axes(axes: Any, part: str, shots: Sequence[int]) -> None:
    axes.set_xticks(range(len(shots)), ["all" if number == ALL_LABELS else str(number) for number in shots])
    axes.set_xlim(-0.4, max(len(shots) - 0.6, 0.4))
    axes.set_xlabel("labelled images per class")
    axes.set_title(TITLES[part], fontsize=11)
    axes.set_ylabel("accuracy, %" if part != "H" else "H, %")
    low, high = axes.get_ylim()
    spare = max(0.0, LEAST_SPAN - (high - low)) / 2
    axes.set_ylim(low - spare, high + spare)
    axes.grid(axis="y", color="#e3e7ec", linewidth=0.8)


def apart(place: int, count: int) -> float:
    """How far aside a line is drawn, so that bars of equal height stay apart."""
    return min(0.06, 0.4 / count) * (place - (count - 1) / 2)


def confusion_plot(counts: Confusion) -> Figure:
    """Shares of each true class, for more classes than a table can name; of groups of neighbouring classes
    where there are more than the picture has lines.
    """
    lines = counts.lines(MATRIX_LINES)
    shares = lines / np.maximum(lines.sum(1, keepdims=True), 1)
    with lettered(11):
        figure = blank((4.7, 4.1))
        axes = figure.subplots()
        edges = (0, counts.classes, counts.classes, 0)
        drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="none", extent=edges)
        axes.set_xlabel("predicted class")
        axes.set_ylabel("true class")
        figure.colorbar(drawn, label="share of the true class", shrink=0.8)
    return figure


def reliability_plot(curve: Curve, title: str) -> Figure:
    """How often answers are right, by how sure they are, over the share of images that are so sure. The part
    of a bar in another colour is how far a bin is off; its accuracy is the dark line.
    """
    bins = len(curve.images)
    width = 100 / bins
    middles = (np.arange(bins) + 0.5) * width
    filled = curve.images > 0
    middles, sure, right = middles[filled], curve.confidence[filled], curve.accuracy[filled]
    with lettered(11):
        figure = blank((4.7, 4.7))
        axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        level = np.minimum(sure, right)
        axes.bar(middles, level, width, color=COLOURS[0])
        gaps = (("too sure", TOO_SURE, sure - right), ("not sure enough", UNSURE, right - sure))
        for name, colour, gap in gaps:
            axes.bar(middles, np.maximum(gap, 0), width, bottom=level, color=colour, label=name)
        ends = middles - width / 2, middles + width / 2
        axes.hlines(right, *ends, color="#1d2430", linewidth=1.6, label="accuracy")
        axes.plot((0, 100), (0, 100), color="#555555", linestyle=(0, (5, 3)), linewidth=1.2)
        axes.set(ylim=(0, 100), ylabel="accuracy, %")
        axes.set_title(title, fontsize=11)
        figure.legend(loc="outside lower center", ncols=3, frameon=False, fontsize=10)
        below.bar(middles, 100 * curve.images[filled] / curve.images.sum(), width, color="#8a94a2")
        below.set(xlim=(0, 100), xlabel="confidence, %", ylabel="images, %")
        for one in (axes, below):
            one.spines[["top", "right"]].set_visible(False)
        figure.align_ylabels()
    return figure


# -- for the page --


def svg(figure: Figure) -> str:
    """A figure as SVG that can stand in a page; a character without a glyph becomes a box, which is no reason
    to warn.
    """
    from matplotlib import rc_context

    out = io.StringIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "wordsight"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    text = out.getvalue()
    tag, _, rest = text[text.index("<svg") :].partition(">")
    tag = re.sub(r' (width|height)="[^"]*"', "", tag)  # the page decides
    return re.sub(r"<metadata>.*?</metadata>", "", f"{tag}>{rest}", flags=re.DOTALL)


def legend_text(text: str) -> str:
    """Text that matplotlib does not read as mathematics, short enough for a legend; a leading underscore
    would hide it.
    """
    text = text if len(text) <= LEGEND_LETTERS else text[: LEGEND_LETTERS - 1] + "…"
    return text.replace("$", r"\$").removeprefix("_")
