"""The tables and plots of benchmarks/suites/README.md, of what benchmarks/suites/run.sh has run: `python
benchmarks/suites/tables.py [runs/benchmarks]` prints the tables and draws the plots beside this file."""

import sys
from pathlib import Path

from wordsight.report import ABSENT, Row
from wordsight.report.plots import accuracy_plot
from wordsight.report.reading import NO_LABELS
from wordsight.report.rows import make_rows, open_runs, run_folders
from wordsight.report.tables import notes

HERE = Path(__file__).parent


def finished(folder: Path) -> list[Row]:
    """The rows of a folder's finished runs; what is not finished is told and passed over."""
    runs, left_out = open_runs(run_folders([folder]))
    for why in left_out.values():
        print(f"left out: {why}", file=sys.stderr)
    return make_rows(runs) if runs else []


def line(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"


def table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join([line(head), "|---" * len(head) + "|", *map(line, rows)])


def labels(rows: list[Row]) -> list[str]:
    """Every method, in the order of the report."""
    return list(dict.fromkeys(row.label for row in sorted(rows, key=lambda row: row.place)))


def halves(row: Row | None) -> str:
    """`base / new / H`, and whether it is of one seed where there could be more."""
    if row is None:
        return ABSENT
    base, new, h = (row.figures.get(part) for part in ("base", "new", "H"))
    shown = f"{base} / {new or ABSENT} / **{f'{h.mean:.1f}' if h else ABSENT}**"
    return shown + (" (1 seed)" if row.seeds == 1 and row.shots != NO_LABELS else "")


def base_to_new(sets: dict[str, list[Row]]) -> str:
    found = {name: {row.label: row for row in rows} for name, rows in sets.items()}
    methods = labels([row for rows in sets.values() for row in rows])
    rows = [[label, *(halves(of.get(label)) for of in found.values())] for label in methods]
    return table(["base / new / **H**", *sets], rows)


def few_shot(name: str, rows: list[Row]) -> str:
    shots = sorted({row.shots for row in rows} - {NO_LABELS})
    found = {(row.label, row.shots): row for row in rows}
    lines = []
    for label in labels(rows):
        free = found.get((label, NO_LABELS))
        if free is not None:
            lines.append([f"{label} (no labels)", str(free.figures["all"]), *"″" * (len(shots) - 1)])
        else:
            of = [found.get((label, number)) for number in shots]
            lines.append([label, *(str(row.figures["all"]) if row else ABSENT for row in of)])
    return table([f"{name}, all classes", *map(str, shots)], lines)


def cross(name: str, rows: list[Row]) -> str:
    """On the source, and on each target."""
    places = sorted({row.data for row in rows}, key=lambda data: (" → " in data, data))
    found = {(row.label, row.data): row for row in rows}
    heads = [" → ".join(Path(one).stem for one in place.split(" → ")) for place in places]
    lines = []
    for label in labels(rows):
        of = [found.get((label, place)) for place in places]
        lines.append([label, *(str(row.figures["all"]) if row else ABSENT for row in of)])
    return table([name, *heads], lines)


def main(runs: str = "runs/benchmarks") -> None:
    out = Path(runs)
    for suite in ("base-to-new", "few-shot"):
        folders = sorted((out / suite).iterdir()) if (out / suite).is_dir() else []
        sets = {folder.name: rows for folder in folders if (rows := finished(folder))}
        for name, rows in sets.items():
            accuracy_plot(rows)[1].savefig(HERE / f"{suite}-{name}.png", dpi=110)
        parts = [base_to_new(sets)] if suite == "base-to-new" else [few_shot(*one) for one in sets.items()]
        print(f"## {suite}", *parts, *{notes(rows) for rows in sets.values()}, sep="\n\n", end="\n\n")
    for folder in sorted(out.glob("cross-*")):
        rows = finished(folder)
        print(f"## {folder.name}", cross(folder.name, rows), notes(rows), sep="\n\n", end="\n\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
