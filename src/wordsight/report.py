"""Report: many finished runs as Markdown, CSV, LaTeX, and one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
import csv
import html
import io
import math
import re
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from PIL import Image

from wordsight import __version__
from wordsight.backbones import Backbone
from wordsight.comparison import (
    ANY_SEED,
    PARTS,
    Scores,
    Standing,
    compare,
    orientation,
    published,
)
from wordsight.config import METHODS, RunSettings, WordsightError, build, nearest, resolve
from wordsight.data import Picture, open_dataset
from wordsight.data.features import image_features
from wordsight.data.images import read_image
from wordsight.data.splits import prepare
from wordsight.estimator import load
from wordsight.files import write_file
from wordsight.methods import Learner
from wordsight.metrics import LEVEL, RESAMPLES, harmonic_mean
from wordsight.runs import Run, read_tensors, train_settings

ABSENT = "–"
NO_LABELS = 0  # the shots of a method that takes none
ALL_LABELS = 10**9  # shots=null, sorted after every number
ELSEWHERE = " → "  # between the data of training and other data of a test
HARD_IMAGES = 12
MARKERS = "os^D"  # where there are more lines than colours
TABLE_CLASSES = 20  # a confusion matrix of more classes is drawn, without names
COLOURS = (
    "#0072b2",
    "#d55e00",
    "#009e73",
    "#cc79a7",
    "#e69f00",
    "#56b4e9",
    "#555555",
)  # Okabe and Ito: told apart by colour-blind readers
WORDS = {"data", "backbone", "method"}  # columns of text, set to the left
ALSO_COMPARED = (
    "sentences",
    "aliases",
    "template",
    "views",
    "flip",
    "dtype",
)  # settings outside the method's own that decide a result
LEGEND = (
    "Accuracy in percent, mean ± standard deviation over seeds. all: trained and tested on all classes. "
    "base, new: trained on the base half of the "
    "classes, tested on each half by itself. H: harmonic mean of the seed-averaged base and new; its "
    "spread is that of H per seed. –: not "
    "measured, or not possible for the method. The best of equal data and shots, beside what takes no "
    "labels, is bold."
)
COMPARED = (
    f"Means over the datasets that a method was measured on, to be compared where their number is equal; H "
    f"is of these means. rank: mean over the datasets, 1 is best. Differences are paired by dataset and "
    f"seed; in brackets the {LEVEL} % "
    f"interval of a bootstrap over the pairs ({RESAMPLES:,} resamples)."
)
UNCOMPARED = (
    "Published figures are for orientation: other towers, other images, so not to be compared with ours. "
)


class Value(NamedTuple):
    """A figure over seeds."""

    mean: float
    spread: float
    count: int

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.spread:.1f}" if self.count > 1 else f"{self.mean:.1f}"


@dataclass(frozen=True)
class Row:
    """Runs that differ in their seed and in which classes they were trained on."""

    data: str
    backbone: str
    method: str
    name: str  # the run's own label, or the method
    differs: str  # the settings in which it differs from other rows of its name
    shots: int
    seeds: int
    figures: dict[str, Value]  # by part; a part that is absent was not measured
    seconds: float | None
    parameters: int | None
    runs: tuple[Run, ...]

    @property
    def label(self) -> str:
        return f"{self.name} {self.differs}".strip()

    @property
    def shots_text(self) -> str:
        return {NO_LABELS: ABSENT, ALL_LABELS: "all"}.get(self.shots, str(self.shots))

    @property
    def trained(self) -> str:
        return self.data.split(ELSEWHERE)[0]

    @property
    def tested(self) -> str:
        return self.data.split(ELSEWHERE)[-1]

    @property
    def published(self) -> dict[str, dict[str, float]]:
        """What papers print of the same, by table."""
        return published(self.method, self.trained, self.tested, self.shots, tuple(self.figures))

    @property
    def group(self) -> tuple[str, str, int]:
        return self.data, self.backbone, self.shots

    @property
    def place(self) -> tuple[int, str, str]:
        """Where it stands within its group: in the order of `wordsight list`."""
        return list(METHODS).index(self.method), self.name, self.differs


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
        shots = {NO_LABELS: "no labels", ALL_LABELS: "all labelled images"}.get(
            self.shots, f"{self.shots} shot{'s' * (self.shots != 1)}"
        )
        return f"{shots}{', tested on other data' if self.elsewhere else ''}, backbone {self.backbone}"

    @property
    def parts(self) -> list[str]:
        """The parts that are compared: all and H, or base where there is neither."""
        measured = {part for standing in self.standings for part in standing.means}
        return [part for part in ("all", "H") if part in measured] or ["base"]


def report(
    folders: Sequence[str | Path],
    out: str | Path = "report.html",
    *,
    csv_file: str | Path | None = None,  # by default beside the page
    latex_file: str | Path | None = None,
    reference: str | None = None,  # whom the others are compared with; by default aape, or the first
    backbone: Backbone | None = None,
) -> dict[str, Any]:
    """Compare finished runs; returns {"html", "csv": paths, "markdown": text, "unfinished": folders that were
    left out} and, where asked for, "latex".

    A folder that is no run stands for all runs below it. Where methods can be compared, a second CSV,
    *-comparison.csv, says how they stand. `backbone` spares loading it again for the explained images.
    Errors: WordsightError for a folder that holds no finished run, a reference that is not there, or where a
    file cannot be written."""
    page = Path(out)
    if page.is_dir() or page.suffix.lower() == ".csv":
        raise WordsightError(
            f"out={str(out)!r} must name the HTML file, such as "
            f"{str(page / 'report.html' if page.is_dir() else page.with_suffix('.html'))!r}"
        )
    found, unfinished = run_folders(folders)
    rows = read_rows(found)
    compared = comparisons(rows, reference)
    table = Path(csv_file or page.with_suffix(".csv"))
    files = {table: as_csv(rows), page: as_html(rows, backbone, compared)}
    files |= {table.with_name(f"{table.stem}-comparison.csv"): comparison_csv(compared)} if compared else {}
    files |= {Path(latex_file): as_latex(rows, compared)} if latex_file else {}
    for path, content in files.items():
        write_file(path, content)
    written = {
        "html": str(page),
        "csv": str(table),
        "markdown": as_markdown(rows, compared),
        "unfinished": list(map(str, unfinished)),
    }
    return written | ({"latex": str(latex_file)} if latex_file else {})


# -- from run folders to rows --------------------------------------------------------------------------------


def run_folders(folders: Sequence[str | Path]) -> tuple[list[Path], list[Path]]:
    """The run folders that these stand for, and those below them that are not finished."""
    found, unfinished = [], []
    for folder in map(Path, folders):
        below = (
            []
            if (folder / "config.yaml").is_file()
            else sorted(path.parent for path in folder.rglob("config.yaml"))
        )
        done = [path for path in below if (path / "weights.safetensors").is_file()]
        found += done or [folder]  # one that is nothing is refused with its reason when it is opened
        unfinished += [path for path in below if path not in done] if done else []
    return found, unfinished


def read_rows(folders: Sequence[str | Path]) -> list[Row]:
    """One row for runs that are equal but for seed and classes: by data, backbone, shots, then in the order
    of `wordsight list`.
    """
    runs = [Run.open(folder) for folder in {Path(folder).resolve(): folder for folder in folders}.values()]
    if not runs:
        raise WordsightError("a report needs at least one run folder")
    groups: dict[tuple[Any, ...], list[tuple[Run, dict[str, float]]]] = {}
    for run, differs in zip(runs, differences([run.settings for run in runs])):
        settings = run.settings
        for data, accuracies in accuracies_of(run).items():
            key = (
                data,
                settings.backbone,
                settings.method,
                settings.name or settings.method,
                differs,
                shots_of(settings),
            )
            groups.setdefault(key, []).append((run, accuracies))
    return sorted(
        (make_row(key, members) for key, members in groups.items()), key=lambda row: (*row.group, *row.place)
    )


def shots_of(settings: RunSettings) -> int:
    if not resolve(METHODS, settings.method, "method").needs_labels:
        return NO_LABELS
    return ALL_LABELS if settings.shots is None else settings.shots


def accuracies_of(run: Run) -> dict[str, dict[str, float]]:
    """{data: {part: accuracy}}: the last figure of each part that the run was made for, and of other data it
    was tested on.
    """
    own = run.settings.data
    parts = ("all",) if run.settings.classes == "all" else ("base", "new")
    found: dict[str, dict[str, float]] = {own: {}}
    for event in run.events("eval"):
        if event["data"] != own or event["classes"] in parts:
            data = own if event["data"] == own else f"{own}{ELSEWHERE}{event['data']}"
            found.setdefault(data, {})[event["classes"]] = event["accuracy"]
    if not found[own] and len(found) > 1:
        del found[own]  # a two_tower is measured on other data than it was trained on
    return found


def make_row(key: tuple[Any, ...], members: Sequence[tuple[Run, dict[str, float]]]) -> Row:
    accuracies = [found for _, found in members]
    figures = {
        part: value_of([found[part] for found in accuracies if part in found])
        for part in PARTS[:3]
        if any(part in found for found in accuracies)
    }
    if {"base", "new"} <= figures.keys():
        by_seed = [
            harmonic_mean(found["base"], found["new"])
            for found in accuracies
            if {"base", "new"} <= found.keys()
        ]
        figures["H"] = Value(
            harmonic_mean(figures["base"].mean, figures["new"].mean),
            pstdev(by_seed) if by_seed else 0.0,
            len(by_seed),
        )
    whole = [run for run, _ in members if run.settings.classes == "all"] or [run for run, _ in members]
    costs = [cost for run in whole if (cost := cost_of(run))]
    seconds = fmean(cost[0] for cost in costs) if costs else None
    return Row(
        *key,
        len({run.settings.seed for run, _ in members}),
        figures,
        seconds,
        costs[0][1] if costs else None,
        tuple(run for run, _ in members),
    )


def value_of(values: Sequence[float]) -> Value:
    return Value(fmean(values), pstdev(values), len(values))


def cost_of(run: Run) -> tuple[float, int] | None:
    """Seconds of the fit alone and the count of fitted numbers; a closed form keeps its in buffers, which are
    counted in the weights.
    """
    events = run.events("fit")
    if not events:
        return None
    counted = events[-1]["parameters"] or sum(
        tensor.numel() for tensor in read_tensors(run.folder / "weights.safetensors").values()
    )
    return events[-1]["seconds"]["fit"], counted


def differences(runs: Sequence[RunSettings]) -> list[str]:
    """For each run the settings, as `name=value`, that are not the same in all runs of its data, method and
    label.
    """
    described = [settings_in_full(settings) for settings in runs]
    groups: dict[tuple[str, str, str | None], list[dict[str, Any]]] = {}
    for settings, values in zip(runs, described):
        groups.setdefault((settings.data, settings.method, settings.name), []).append(values)
    texts = []
    for settings, values in zip(runs, described):
        others = groups[settings.data, settings.method, settings.name]
        texts.append(
            " ".join(
                f"{name}={as_typed(value)}"
                for name, value in values.items()
                if any(other[name] != value for other in others)
            )
        )
    return texts


def as_typed(value: Any) -> str:
    """A setting as the command line takes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def settings_in_full(settings: RunSettings) -> dict[str, Any]:
    """Everything that decides a result beside data, backbone, method, shots, classes and seed; defaults
    written out.
    """
    own = asdict(build(resolve(METHODS, settings.method, "method").Settings, settings.settings))
    training = {f"train.{name}": value for name, value in asdict(train_settings(settings)).items()}
    kind, folder = resolve(METHODS, settings.method, "method"), Path(settings.data).name
    if issubclass(kind, Learner) and training["train.epochs"] == kind.training(settings.shots).epochs:
        training["train.epochs"] = (
            "by shots" if kind.epochs_by_shots else training["train.epochs"]
        )  # one method, whose epochs follow the shots
    also = {name: getattr(settings, name) for name in ALSO_COMPARED}
    files = {
        name: also[name].replace(folder, "{data}")
        for name in ("sentences", "aliases")
        if also[name] and "/" in also[name]
    }
    return own | training | also | files  # a file of each dataset, named after its folder, is one setting


# -- tables --------------------------------------------------------------------------------------------------


def cells(row: Row) -> dict[str, str]:
    """What a table shows of a row, by column."""
    figures = {part: str(row.figures[part]) if part in row.figures else ABSENT for part in PARTS}
    seconds = ABSENT if row.seconds is None else f"{row.seconds:.2f}"
    parameters = ABSENT if row.parameters is None else f"{row.parameters:,}"
    return {
        "method": row.label,
        "shots": row.shots_text,
        "seeds": str(row.seeds),
        **figures,
        "fit s": seconds,
        "parameters": parameters,
    }


def best_cells(rows: Sequence[Row]) -> set[tuple[int, str]]:
    """(row, part) of the highest figure, as shown, among rows of equal data, backbone and shots, and those
    that take no labels; none where nothing is compared.
    """
    best = set()
    for data, backbone, shots in {row.group for row in rows}:
        groups = [(data, backbone, number) for number in (shots, NO_LABELS)]
        for part in PARTS:
            shown = {
                index: round(row.figures[part].mean, 1)
                for index, row in enumerate(rows)
                if row.group in groups and part in row.figures
            }
            if len(shown) > 1:
                best |= {
                    (index, part)
                    for index, value in shown.items()
                    if value == max(shown.values()) and rows[index].group == groups[0]
                }
    return best


def table_cells(rows: Sequence[Row], varied: Sequence[str] = ()) -> list[dict[str, str]]:
    """The cells of every row, with what papers print of the same where they print any."""
    lines = [{name: getattr(row, name) for name in varied} | cells(row) for row in rows]
    if any(row.published for row in rows):
        for line, row in zip(lines, rows):
            figures = [
                " / ".join(f"{value:.1f}" for value in table.values()) for table in row.published.values()
            ]
            line["published"] = "; ".join(figures) or ABSENT
    return lines


def sources(rows: Sequence[Row]) -> str:
    """Where the published figures are from; nothing where none is shown."""
    used = orientation([table for row in rows for table in row.published])
    return UNCOMPARED + "; ".join(used) + "." if used else ""


def as_markdown(rows: Sequence[Row], compared: Sequence[Comparison] = ()) -> str:
    """One aligned table, data and backbone columns where they vary; then how methods stand against one
    another.
    """
    parts = [markdown_table(table_cells(rows, varying(rows)), best_cells(rows)), sources(rows)]
    retrieved = retrieval_cells(rows)
    parts += ["**Retrieval**, recall@k", markdown_table(retrieved)] if retrieved else []
    for comparison in compared:
        parts += [
            f"**Against {comparison.reference}** ({comparison.title})",
            markdown_table(standing_cells(comparison)),
        ]
    return "\n\n".join(filter(None, [*parts, COMPARED if compared else ""]))


def retrieval_cells(rows: Sequence[Row]) -> list[dict[str, str]]:
    """Recall both ways of the runs that were measured on captions, mean and spread over seeds."""
    found: dict[tuple[str, str], dict[Path, dict[str, Any]]] = {}
    for row in rows:
        for run in row.runs:
            for event in run.events("retrieval"):  # the last of a run counts
                found.setdefault((event["data"], row.label), {})[run.folder] = event
    ways = (("image_to_text", "i→t"), ("text_to_image", "t→i"))
    return [
        {"data": data, "method": label, "seeds": str(len(events))}
        | {
            f"{arrow} {k.removeprefix('recall')}": str(value_of([event[way][k] for event in events.values()]))
            for way, arrow in ways
            for k in next(iter(events.values()))[way]
        }
        for (data, label), events in found.items()
    ]


def varying(rows: Sequence[Row]) -> list[str]:
    return [name for name in ("data", "backbone") if len({getattr(row, name) for row in rows}) > 1]


def markdown_table(lines: Sequence[dict[str, str]], best: Iterable[tuple[int, str]] = ()) -> str:
    texts = [
        {
            column: f"**{text}**" if (index, column) in best else text.replace("|", "\\|")
            for column, text in line.items()
        }
        for index, line in enumerate(lines)
    ]
    columns = list(texts[0])
    widths = {column: max(3, len(column), *(len(line[column]) for line in texts)) for column in columns}
    rule = [
        ":" + "-" * (widths[column] - 1) if column in WORDS else "-" * (widths[column] - 1) + ":"
        for column in columns
    ]
    rows = [
        [
            line[column].ljust(widths[column]) if column in WORDS else line[column].rjust(widths[column])
            for column in columns
        ]
        for line in texts
    ]
    head = [
        column.ljust(widths[column]) if column in WORDS else column.rjust(widths[column])
        for column in columns
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in (head, rule, *rows))


def as_latex(rows: Sequence[Row], compared: Sequence[Comparison] = ()) -> str:
    """The same tables for a paper; they need \\usepackage{booktabs}."""
    parts = [latex_table(table_cells(rows, varying(rows)), best_cells(rows), LEGEND + " " + sources(rows))]
    parts += [
        latex_table(standing_cells(one), (), f"Against {one.reference} ({one.title}). {COMPARED}")
        for one in compared
    ]
    return "% \\usepackage{booktabs}\n" + "\n".join(parts)


def latex_table(lines: Sequence[dict[str, str]], best: Iterable[tuple[int, str]], caption: str) -> str:
    def cell(index: int, column: str, text: str) -> str:
        return f"\\textbf{{{latex(text)}}}" if (index, column) in best else latex(text)

    columns = "".join("l" if column in WORDS else "r" for column in lines[0])
    body = [
        " & ".join(cell(index, column, text) for column, text in line.items()) + r" \\"
        for index, line in enumerate(lines)
    ]
    head = " & ".join(map(latex, lines[0])) + r" \\"
    begin = (r"\begin{table}", r"\centering", f"\\begin{{tabular}}{{{columns}}}", r"\toprule")
    end = (r"\bottomrule", r"\end{tabular}", f"\\caption{{{latex(caption.strip())}}}", r"\end{table}", "")
    return "\n".join([*begin, head, r"\midrule", *body, *end])


def latex(text: str) -> str:
    """Text as LaTeX takes it."""
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
        sign: "\\" + sign for sign in "&%$#_{}"
    }
    ours = {"±": r"$\pm$", "–": "--", "−": "$-$", "→": r"$\rightarrow$"}
    return "".join((special | ours).get(sign, sign) for sign in text)


def as_csv(rows: Sequence[Row]) -> str:
    """Every figure with its spread, in full precision; an empty cell where there is none."""
    out = io.StringIO()
    table = csv.writer(out)
    spread = [name for part in PARTS for name in (part, f"{part}_spread")]
    table.writerow(
        [
            "data",
            "backbone",
            "method",
            "name",
            "settings",
            "shots",
            "seeds",
            *spread,
            "fit_seconds",
            "parameters",
            "published",
        ]
    )
    for row in rows:
        figures = [
            number
            for part in PARTS
            for number in (row.figures[part][:2] if part in row.figures else ("", ""))
        ]
        shots = {NO_LABELS: "", ALL_LABELS: "all"}.get(row.shots, row.shots)
        printed = "; ".join(
            f"{name}: {' / '.join(f'{value:.2f}' for value in values.values())}"
            for name, values in row.published.items()
        )
        table.writerow(
            [
                row.data,
                row.backbone,
                row.method,
                row.name,
                row.differs,
                shots,
                row.seeds,
                *figures,
                row.seconds,
                row.parameters,
                printed,
            ]
        )
    return out.getvalue()


# -- against one another -------------------------------------------------------------------------------------


def comparisons(rows: Sequence[Row], reference: str | None = None) -> list[Comparison]:
    """One for each backbone, shots and kind of data where there are two methods or more; what takes no labels
    stands beside all shots.

    Errors: WordsightError where a reference is given and is in none of them.
    """
    made = []
    for backbone, elsewhere in dict.fromkeys((row.backbone, row.trained != row.tested) for row in rows):
        mine = [
            row
            for row in rows
            if row.backbone == backbone and (row.trained != row.tested) == elsewhere and row.figures
        ]
        for shots in sorted({row.shots for row in mine} - {NO_LABELS}) or [NO_LABELS]:
            methods = scores_by_method([row for row in mine if row.shots in (shots, NO_LABELS)], shots)
            chosen = (
                reference
                if reference in methods
                else "aape"
                if "aape" in methods
                else next(iter(methods), "")
            )
            if len(methods) > 1:
                made.append(Comparison(backbone, shots, elsewhere, chosen, tuple(compare(methods, chosen))))
    if reference is not None and not any(comparison.reference == reference for comparison in made):
        labels = list(dict.fromkeys(row.label for row in rows))
        raise WordsightError(
            f"reference {reference!r} is not among what can be compared{nearest(reference, labels)}: "
            f"{', '.join(labels)}"
        )
    return made


def scores_by_method(rows: Sequence[Row], shots: int) -> dict[str, Scores]:
    """{method: {(data, seed): figures}}, in the order of `wordsight list`."""
    found: dict[str, dict[tuple[str, int | None], dict[str, float]]] = {}
    for row in sorted(rows, key=lambda row: row.place):
        exact = [
            run for run in row.runs if (run.settings.shots or ALL_LABELS) == shots
        ] or row.runs  # of label-free runs for several shots
        seedless = row.shots == NO_LABELS and row.seeds == 1
        for run in exact:
            key = (row.data, ANY_SEED if seedless else run.settings.seed)
            found.setdefault(row.label, {}).setdefault(key, {}).update(accuracies_of(run)[row.data])
    return found


def standing_cells(comparison: Comparison) -> list[dict[str, str]]:
    """What a table shows of each method."""
    measured = [part for part in PARTS if any(part in standing.means for standing in comparison.standings)]
    lines = []
    for standing in comparison.standings:
        means = {
            part: f"{standing.means[part]:.1f}" if part in standing.means else ABSENT for part in measured
        }
        ranks = {
            f"rank {part}": f"{standing.ranks[part]:.1f}" if part in standing.ranks else ABSENT
            for part in comparison.parts
        }
        gaps = {
            f"{part} − {comparison.reference}": str(standing.differences.get(part, ABSENT))
            for part in comparison.parts
        }
        lines.append({"method": standing.label, "datasets": str(standing.datasets)} | means | ranks | gaps)
    return lines


def comparison_csv(compared: Sequence[Comparison]) -> str:
    """Every mean, rank and difference in full precision; an empty cell where there is none."""
    out = io.StringIO()
    table = csv.writer(out)
    table.writerow(
        [
            "backbone",
            "shots",
            "other_data",
            "method",
            "datasets",
            "part",
            "mean",
            "rank",
            "reference",
            "difference",
            "low",
            "high",
            "pairs",
        ]
    )
    for one in compared:
        for standing in one.standings:
            for part, mean in standing.means.items():
                gap = standing.differences.get(part, ("",) * 4)
                shots = {NO_LABELS: "", ALL_LABELS: "all"}.get(one.shots, one.shots)
                first = [
                    one.backbone,
                    shots,
                    one.elsewhere,
                    standing.label,
                    standing.datasets,
                    part,
                    mean,
                    standing.ranks.get(part),
                ]
                table.writerow([*first, one.reference, *gap])
    return out.getvalue()


# -- the page ------------------------------------------------------------------------------------------------

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif; color: #1d2430; background: #f6f7f9; margin: 0; }
main { max-width: 1000px; margin: 0 auto; padding: 28px 20px 60px; }
h1 { font-size: 25px; margin: 0 0 4px; } h2 { font-size: 19px; margin: 34px 0 8px; overflow-wrap: anywhere; } h3 { font-size: 16px; margin: 0 0 8px; }
p { margin: 6px 0; } .note { color: #5b6675; font-size: 13.5px; }
.panel { background: #fff; border: 1px solid #e1e5ea; border-radius: 8px; padding: 16px 18px; margin: 14px 0; overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
table.figures { width: 100%; }
.figures th, .figures td { padding: 5px 9px; border-bottom: 1px solid #eceff3; white-space: nowrap; }
.figures th { color: #5b6675; font-weight: 600; font-size: 13px; border-bottom: 2px solid #c9d0d9; }
.figures tr.first td { border-top: 2px solid #c9d0d9; }
td.n, th.n { text-align: right; } td.m { text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 130px; } th.m { text-align: left; }
svg { min-width: 560px; } svg, img.plot { max-width: 100%; height: auto; display: block; margin: 0 auto; }
.pair { display: flex; flex-wrap: wrap; gap: 26px; align-items: flex-start; } .pair > * { min-width: 0; } .pair > .side { flex: 1 1 260px; }
.confusion td { width: 33px; height: 29px; text-align: center; font-size: 13px; border: 1px solid #fff; padding: 0 3px; }
.confusion th { font-weight: 500; font-size: 13px; padding: 2px 7px; text-align: right; max-width: 190px; overflow-wrap: anywhere; }
.confusion thead th { text-align: left; vertical-align: bottom; padding: 4px 2px; } .confusion thead span { writing-mode: vertical-rl; transform: rotate(180deg); max-height: 130px; overflow: hidden; white-space: nowrap; text-overflow: ellipsis; }
.hard { display: grid; grid-template-columns: repeat(auto-fill, minmax(285px, 1fr)); gap: 14px; }
.card { border: 1px solid #e1e5ea; border-radius: 8px; padding: 11px; overflow-wrap: anywhere; }
.card .top { display: flex; gap: 12px; } .card img { width: 84px; height: 84px; object-fit: contain; background: #eceff3; border-radius: 4px; flex: none; }
.card dl { margin: 0; display: grid; grid-template-columns: auto 1fr; gap: 2px 9px; align-content: center; } .card dt { color: #5b6675; } .card dd { margin: 0; font-weight: 600; }
.card ul { margin: 9px 0 0; padding: 0; list-style: none; font-size: 13px; line-height: 1.4; } .card li { margin: 4px 0; } .card li b { font-weight: 600; } .card li span { color: #5b6675; }
details { margin-top: 28px; } code { font-size: 13px; }
"""


def as_html(
    rows: Sequence[Row], backbone: Backbone | None = None, compared: Sequence[Comparison] = ()
) -> str:
    sections = "".join(
        section(part, backbone) for part in split_by(rows, lambda row: (row.data, row.backbone))
    )
    folders = sorted({str(run.folder) for row in rows for run in row.runs})
    listed = "".join(f"<li><code>{escape(folder)}</code></li>" for folder in folders)
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><meta name="viewport" '
        f'content="width=device-width, initial-scale=1">'
        f"<title>Wordsight report</title><style>{STYLE}</style></head><body><main>\n<h1>Wordsight "
        f"report</h1>\n"
        f'<p class="note">{len(folders)} runs, wordsight {escape(__version__)}. '
        f"{escape(LEGEND)}</p>\n{comparison_section(compared)}{retrieval_section(rows)}{sections}"
        f"<details><summary>The run folders</summary><ul>{listed}</ul></details>\n</main></body></html>\n"
    )


def comparison_section(compared: Sequence[Comparison]) -> str:
    """How methods stand against one another, each comparison a panel."""
    panels = "".join(
        f'<div class="panel"><h3>{escape(one.title)}</h3>{html_table(standing_cells(one))}</div>\n'
        for one in compared
    )
    return f'<h2>Against one another</h2><p class="note">{escape(COMPARED)}</p>\n{panels}' if compared else ""


def retrieval_section(rows: Sequence[Row]) -> str:
    cells = retrieval_cells(rows)
    return (
        f'<h2>Retrieval</h2><div class="panel"><h3>Recall@k, image to text and text to '
        f"image</h3>{html_table(cells)}</div>\n"
        if cells
        else ""
    )


def html_table(lines: Sequence[dict[str, str]]) -> str:
    kinds = {column: "m" if column in WORDS else "n" for column in lines[0]}
    head = "".join(f'<th class="{kinds[column]}">{escape(column)}</th>' for column in lines[0])
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kinds[column]}">{escape(text)}</td>' for column, text in line.items())
        + "</tr>"
        for line in lines
    )
    return f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'


def section(rows: Sequence[Row], backbone: Backbone | None) -> str:
    """All there is to say of one dataset on one backbone."""
    panels = [figures_table(rows)]
    if any(row.shots != NO_LABELS and row.figures for row in rows):
        title, figure = accuracy_plot(rows)
        panels.append(f"<h3>{title}</h3>{svg(figure)}")
    run = best_run(rows)
    if run is not None:
        worded = best_run([row for row in rows if resolve(METHODS, row.method, "method").needs_sentences])
        panels += [confusion_panel(run), hard_panel(worded or run, backbone)]
    body = "".join(f'<div class="panel">{panel}</div>\n' for panel in panels)
    return (
        f'<h2>{escape(rows[0].data)} <span class="note">on backbone '
        f"{escape(rows[0].backbone)}</span></h2>\n{body}"
    )


def figures_table(rows: Sequence[Row]) -> str:
    best, table, lines = best_cells(rows), table_cells(rows), []
    head = "".join(
        f'<th class="{"m" if column == "method" else "n"}">{escape(column)}</th>' for column in table[0]
    )
    for index, row in enumerate(rows):
        first = ' class="first"' if index and row.group != rows[index - 1].group else ""
        texts = [
            (column, f"<b>{escape(text)}</b>" if (index, column) in best else escape(text))
            for column, text in table[index].items()
        ]
        texts[0] = ("method", f'{escape(row.name)} <span class="note">{escape(row.differs)}</span>')
        lines.append(
            f"<tr{first}>"
            + "".join(
                f'<td class="{"m" if column == "method" else "n"}">{text}</td>' for column, text in texts
            )
            + "</tr>"
        )
    notes = f'<p class="note">{escape(sources(rows))}</p>' if sources(rows) else ""
    return f'<table class="figures"><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table>{test_facts(rows)}{notes}'


def test_facts(rows: Sequence[Row]) -> str:
    """How many test images there were and what a guess would score, so that a figure can be judged."""
    events = [
        event
        for row in rows
        for run in row.runs
        for event in run.events("eval")
        if event["data"] == row.tested
    ]
    facts = {event["classes"]: (event["images"], event["chance"]) for event in events}
    texts = [
        f"{part}: {facts[part][0]:,} test images, chance {facts[part][1]:.1f}"
        for part in PARTS
        if part in facts
    ]
    return f'<p class="note">{escape("; ".join(texts))}</p>' if texts else ""


def accuracy_plot(rows: Sequence[Row]) -> tuple[str, Figure]:
    """Accuracy against labelled images per class; for one number of them, and base and new classes, the one
    against the other.
    """
    parts = [part for part in ("all", "H") if any(part in row.figures for row in rows)] or ["base"]
    shots = sorted({row.shots for row in rows if row.shots != NO_LABELS})
    halves = parts == ["H"] and len(shots) == 1
    labels = list(dict.fromkeys(row.label for row in sorted(rows, key=lambda row: row.place)))
    with rc_context({"font.size": 10}):
        width = 4.9 * len(parts) + 0.2
        columns = max(
            1, int(width / (0.6 + 0.085 * max(map(len, labels))))
        )  # inches of a line of the legend, about
        figure = Figure(figsize=(width, 3.4 + 0.22 * math.ceil(len(labels) / columns)), layout="constrained")
        handles: dict[str, Any] = {}
        for axes, part in zip(figure.subplots(1, len(parts), squeeze=False)[0], parts):
            draw_halves(axes, rows, labels, handles) if halves else draw_part(
                axes, rows, part, shots, labels, handles
            )
            axes.set_axisbelow(True)
            axes.spines[["top", "right"]].set_visible(False)
        figure.legend(handles.values(), handles, loc="outside lower center", ncols=columns, frameon=False)
    return "Base and new classes" if halves else "Accuracy against labelled images per class", figure


def style_of(index: int) -> dict[str, Any]:
    return {
        "color": COLOURS[index % len(COLOURS)],
        "marker": MARKERS[index // len(COLOURS) % len(MARKERS)],
        "capsize": 3,
    }


def draw_halves(axes: Any, rows: Sequence[Row], labels: Sequence[str], handles: dict[str, Any]) -> None:
    """A point a method with its spreads, over lines of equal H."""
    for row in sorted(rows, key=lambda row: row.place):
        if "H" in row.figures:
            base, new = row.figures["base"], row.figures["new"]
            style = style_of(labels.index(row.label)) | {"linestyle": "none", "markersize": 6}
            handles[plain(row.label)] = axes.errorbar(base.mean, new.mean, new.spread, base.spread, **style)
    (left, right), (low, high) = axes.get_xlim(), axes.get_ylim()
    points = np.linspace(max(left, 0.1), right), np.linspace(max(low, 0.1), high)
    equal = np.vectorize(harmonic_mean)(*np.meshgrid(*points))
    lines = axes.contour(*points, equal, levels=6, colors="#c9d0d9", linewidths=0.8, zorder=0)
    axes.clabel(lines, fmt="H %.0f", fontsize=8)
    axes.set_xlabel("base classes: accuracy, %")
    axes.set_ylabel("new classes: accuracy, %")


def draw_part(
    axes: Any,
    rows: Sequence[Row],
    part: str,
    shots: Sequence[int],
    labels: Sequence[str],
    handles: dict[str, Any],
) -> None:
    """One line a method with its spread; a method without labels is a dashed level."""
    lined = [
        label
        for label in labels
        if any(row.label == label and row.shots != NO_LABELS and part in row.figures for row in rows)
    ]
    for index, label in enumerate(labels):
        mine = [row for row in rows if row.label == label and part in row.figures]
        style, text = style_of(index), plain(label)
        levels = [row.figures[part] for row in mine if row.shots == NO_LABELS]
        if levels:
            handles[text] = axes.axhline(
                levels[0].mean, color=style["color"], linestyle=(0, (5, 2 + index % 3)), linewidth=1.5
            )
        points = [(shots.index(row.shots), row.figures[part]) for row in mine if row.shots != NO_LABELS]
        if points:
            aside = min(0.06, 0.4 / len(lined)) * (
                lined.index(label) - (len(lined) - 1) / 2
            )  # bars of equal height stay apart
            x, y, spread = zip(*((place + aside, value.mean, value.spread) for place, value in points))
            handles[text] = axes.errorbar(x, y, spread, **style, markersize=5, linewidth=1.8)
    axes.set_xticks(range(len(shots)), ["all" if number == ALL_LABELS else str(number) for number in shots])
    axes.set_xlim(-0.4, max(len(shots) - 0.6, 0.4))
    axes.set_xlabel("labelled images per class")
    axes.set_title(
        {"all": "all classes", "H": "H of base and new classes", "base": "base classes"}[part], fontsize=11
    )
    axes.set_ylabel("accuracy, %" if part != "H" else "H, %")
    axes.grid(axis="y", color="#e3e7ec", linewidth=0.8)


def svg(figure: Figure) -> str:
    """A figure as SVG that can stand in a page; a character without a glyph becomes a box, which is no reason
    to warn.
    """
    out = io.StringIO()
    with warnings.catch_warnings(), rc_context({"svg.hashsalt": "wordsight"}):
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        figure.savefig(out, format="svg", metadata={"Date": None}, transparent=True)
    text = out.getvalue()
    return re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)


def best_run(rows: Iterable[Row]) -> Run | None:
    """The most accurate run of the largest shots, trained on all classes where there is one."""
    candidates = []
    for row in rows:
        for run in row.runs:
            event = last_eval(run)
            if event is not None and event["data"] == row.data:
                candidates.append(
                    ((event["classes"] == "all", row.shots, event["accuracy"]), len(candidates), run)
                )
    return max(candidates)[2] if candidates else None


def last_eval(run: Run) -> dict[str, Any] | None:
    """The run's last figures on its own classes."""
    part = "all" if run.settings.classes == "all" else "base"
    events = [
        event
        for event in run.events("eval")
        if event["data"] == run.settings.data and event["classes"] == part
    ]
    return events[-1] if events else None


def confusion_panel(run: Run) -> str:
    event = last_eval(run)
    names, counts = list(event["class_recall"]), event["confusion"]
    drawn = confusion_table(names, counts) if len(names) <= TABLE_CLASSES else confusion_plot(counts)
    wrong = sorted(
        (
            (counts[i][j], i, j)
            for i in range(len(names))
            for j in range(len(names))
            if i != j and counts[i][j]
        ),
        key=lambda item: (-item[0], *item[1:]),
    )
    listed = "".join(
        f'<tr><td class="m">{escape(names[i])}</td><td class="m">{escape(names[j])}</td><td '
        f'class="n">{count}</td></tr>'
        for count, i, j in wrong[:8]
    )
    pairs = (
        f'<table class="figures"><thead><tr><th class="m">is</th><th class="m">was called</th><th '
        f'class="n">images</th></tr></thead><tbody>{listed}</tbody></table>'
    )
    return (
        f"<h3>What is taken for what</h3><p class='note'>{escape(caption(run))}: {event['accuracy']:.1f} % "
        f"of {event['images']:,} test images. "
        f"A row is the true class, a column the predicted one.</p>"
        f"<div class='pair'><div>{drawn}</div><div "
        f"class='side'>{pairs if wrong else '<p>No image is wrong.</p>'}</div></div>"
    )


def confusion_table(names: Sequence[str], counts: Sequence[Sequence[int]]) -> str:
    head = "".join(f'<th title="{escape(name)}"><span>{escape(name)}</span></th>' for name in names)
    body = "".join(
        f"<tr><th>{escape(name)}</th>"
        + "".join(confusion_cell(count, sum(line), right=i == j) for j, count in enumerate(line))
        + "</tr>"
        for i, (name, line) in enumerate(zip(names, counts))
    )
    return f'<table class="confusion"><thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table>'


def confusion_cell(count: int, total: int, right: bool) -> str:
    """Blue where right, red where wrong; a small share of mistakes is still seen."""
    share = count / total if total else 0.0
    tint = (
        f"rgba(0,114,178,{0.12 + 0.68 * share:.2f})"
        if right
        else f"rgba(213,94,0,{0.15 + 0.85 * share**0.5:.2f})"
    )
    colour = "#fff" if right and share > 0.6 else "#1d2430"
    return f'<td style="background:{tint if count else "#f3f5f7"};color:{colour}">{count or ""}</td>'


def confusion_plot(counts: Sequence[Sequence[int]]) -> str:
    """Shares of each true class as grey levels, for more classes than a table can name."""
    shares = [[count / max(sum(line), 1) for count in line] for line in counts]
    figure = Figure(figsize=(5.2, 4.6), layout="constrained")
    axes = figure.subplots()
    shown = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    axes.set_xlabel("predicted class")
    axes.set_ylabel("true class")
    figure.colorbar(shown, label="share of the true class", shrink=0.8)
    out = io.BytesIO()
    figure.savefig(out, format="png", dpi=160)
    return (
        f'<img class="plot" style="width:520px" alt="confusion matrix" src="{data_address(out.getvalue())}">'
    )


# -- hard images ---------------------------------------------------------------------------------------------


def hard_panel(run: Run, backbone: Backbone | None) -> str:
    """The mistakes a run was surest of, each with what the method saw in it. Where data or backbone are gone,
    a line says so.
    """
    title = "<h3>Hard images: wrong, and sure of it</h3>"
    try:
        mistakes = surest_mistakes(run)
        if not mistakes:
            return f"{title}<p class='note'>{escape(caption(run))} has no wrong prediction to show.</p>"
        shown = explained(run, mistakes, backbone)
    except (WordsightError, OSError) as error:
        return f"{title}<p class='note'>Left out: {escape(str(error))}</p>"
    cards = "".join(card(*entry) for entry in shown)
    return (
        f"{title}<p class='note'>{escape(caption(run))}. Below each image, the sentences closest to what "
        f"the method says about it.</p><div class='hard'>{cards}</div>"
    )


def surest_mistakes(run: Run) -> list[dict[str, str]]:
    """Rows of the run's predictions that are wrong, the most probable first."""
    path = run.folder / f"predictions-{'all' if run.settings.classes == 'all' else 'base'}.csv"
    if not path.is_file():
        raise WordsightError(f"{path} is not there; `wordsight eval {run.folder}` writes it")
    wrong = [
        row
        for row in csv.DictReader(io.StringIO(path.read_text(encoding="utf-8")))
        if row["label"] != row["predicted"]
    ]
    return sorted(wrong, key=lambda row: -float(row["probability"]))[:HARD_IMAGES]


def explained(
    run: Run, mistakes: Sequence[dict[str, str]], backbone: Backbone | None
) -> list[tuple[dict[str, str], Picture, list[tuple[str, str, float]]]]:
    """Each mistake with its picture, found again by name, and the sentences the method matched."""
    settings = run.settings
    test = prepare(open_dataset(settings.data), settings.shots, settings.seed, settings.classes).test
    by_name = {picture.name: picture for picture in test.pictures}
    found = [(row, by_name[row["image"]]) for row in mistakes if row["image"] in by_name]
    if not found:
        raise WordsightError(f"the images named in {run.folder} are no longer in {settings.data!r}")
    same = (
        backbone is not None
        and backbone.image_fingerprint == run.facts.image_fingerprint
        and backbone.text_fingerprint == run.facts.text_fingerprint
    )
    classifier = load(run.folder, backbone=backbone if same else None)
    features = image_features(classifier.backbone_, [picture for _, picture in found])
    sentences = classifier.explain(features.vectors[:, 0].numpy())
    return [(*found[index], lines) for index, lines in zip(features.kept, sentences)]


def card(row: dict[str, str], picture: Picture, sentences: Sequence[tuple[str, str, float]]) -> str:
    lines = "".join(
        f"<li><span>{cosine:.2f}</span> <b>{escape(name)}</b>: {escape(sentence)}</li>"
        for name, sentence, cosine in sentences
    )
    return (
        f'<div class="card" title="{escape(row["image"])}"><div class="top"><img alt="" '
        f'src="{thumbnail(picture)}">'
        f"<dl><dt>is</dt><dd>{escape(row['label'])}</dd><dt>called</dt><dd>{escape(row['predicted'])} "
        f"{float(row['probability']):.0%}</dd></dl></div>"
        f"<ul>{lines}</ul></div>"
    )


def thumbnail(picture: Picture, side: int = 168) -> str:
    """The image as a PNG in the page; a tiny one is enlarged in whole pixels, so that it is not a blur."""
    image = read_image(picture.load())
    larger = side // max(image.size)
    image = (
        image.resize((image.width * larger, image.height * larger), Image.Resampling.NEAREST)
        if larger > 1
        else image
    )
    image.thumbnail((side, side))
    out = io.BytesIO()
    image.save(out, "PNG")
    return data_address(out.getvalue())


def caption(run: Run) -> str:
    settings = run.settings
    shots = (
        "no labels"
        if shots_of(settings) == NO_LABELS
        else "all labelled images"
        if settings.shots is None
        else f"{settings.shots} shots"
    )
    return f"{settings.method}, {shots}, {settings.classes} classes, seed {settings.seed}"


def data_address(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode()


def escape(text: str) -> str:
    return html.escape(str(text), quote=True)


def plain(text: str) -> str:
    """Text that matplotlib does not read as mathematics, short enough for a legend; a leading underscore
    would hide it.
    """
    text = text if len(text) <= 110 else text[:109] + "…"
    return text.replace("$", r"\$").removeprefix("_")


def split_by(rows: Sequence[Row], key: Any) -> list[list[Row]]:
    groups: dict[Any, list[Row]] = {}
    for row in rows:
        groups.setdefault(key(row), []).append(row)
    return list(groups.values())
