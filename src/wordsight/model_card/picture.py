"""Picture: the figures of a run as bars with their intervals, and beside them how often its answers are right
by how sure they are. Drawn from figures alone: no image of the data is shown to whom it is passed on."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from wordsight.extras import is_there, missing
from wordsight.model_card.results import Figure
from wordsight.runs import Run

FILE = "figures.png"
MOST = 12  # bars
NAMES = {"zero_shot": "zero-shot", "linear_probe": "linear probe"}
OWN, OTHERS, POINTS = "#8cc4ea", "#c5ccd3", "#0072b2"

log = logging.getLogger("wordsight")


def draw(run: Run, found: Sequence[Figure], path: Path) -> bool:
    """Whether there was something to draw, and something to draw with."""
    if not found:
        return False
    if not is_there("matplotlib"):
        log.info("the model card has no picture: %s", missing("report", "drawing", "matplotlib"))
        return False
    from matplotlib.figure import Figure as Drawing

    curve = _curve(run)
    bars = _bars(found)[:MOST]
    size = (4.8 * (1 + (curve is not None)), 0.9 + 0.42 * max(len(bars), 5 if curve else 0))
    drawing = Drawing(figsize=size, layout="constrained", dpi=120)
    axes = drawing.subplots(1, 1 + (curve is not None), squeeze=False)[0]
    _draw_bars(axes[0], bars)
    if curve is not None:
        _draw_curve(axes[1], curve)
    drawing.savefig(path, metadata={"Software": None})
    return True


def _bars(found: Sequence[Figure]) -> list[tuple[str, float, tuple[float, float] | None, str]]:
    """Label, value, interval and colour of each."""
    bars = []
    for one in found:
        where = f"{one.name}, {one.data}" + (f" ({one.part})" if one.part not in ("", "all") else "")
        bars.append((where, one.value, one.interval, OWN))
        bars += [
            (NAMES[kind], value, None, OTHERS) for kind, value in one.references.items() if kind in NAMES
        ]
    return bars


def _draw_bars(axes: Any, bars: Sequence[tuple[str, float, tuple[float, float] | None, str]]) -> None:
    for place, (label, value, interval, colour) in enumerate(bars):
        spread = None if interval is None else [[value - interval[0]], [interval[1] - value]]
        axes.barh(place, value, color=colour, xerr=spread, capsize=3)
        axes.text(1, place, f"{label.replace('$', '')}: {value:.1f}", va="center", fontsize=8)
    axes.set(yticks=[], xlim=(0, max(100.0, *(value for _, value, _, _ in bars))), xlabel="percent")
    axes.invert_yaxis()
    axes.spines[["top", "right", "left"]].set_visible(False)


def _curve(run: Run) -> list[tuple[float, float, int]] | None:
    """Confidence, accuracy and images of the bins that hold some, of the last evaluation that kept them."""
    for event in reversed(run.events("eval")):
        kept = (event.get("calibration") or {}).get("curve")
        if kept:
            rows = zip(kept["confidence"], kept["accuracy"], kept["images"])
            return [row for row in rows if row[2]] or None
    return None


def _draw_curve(axes: Any, curve: Sequence[tuple[float, float, int]]) -> None:
    """A dot a bin, as large as it has images."""
    sure, right, images = zip(*curve)
    axes.plot((0, 100), (0, 100), color="#555555", linestyle=(0, (5, 3)), linewidth=1)
    sizes = [12 + 300 * count / sum(images) for count in images]
    axes.scatter(sure, right, sizes, color=POINTS, alpha=0.8, clip_on=False)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel="confidence, %", ylabel="accuracy, %")
    axes.spines[["top", "right"]].set_visible(False)
