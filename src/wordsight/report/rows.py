"""Rows: runs that differ in their seed, and in which classes they were fitted to, are one line of a table."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, NamedTuple, TypeVar

from wordsight.config import METHODS, AskedSettings, WordsightError, model_of, resolve
from wordsight.metrics import harmonic_mean
from wordsight.reader import to_dict
from wordsight.report.published import published
from wordsight.report.reading import ALL_LABELS, NO_LABELS, PARTS, Measured
from wordsight.runs import Run
from wordsight.tables import method_entry

ABSENT = "–"
ELSEWHERE = " → "  # between the data of training and other data of a test
FIGURES = (*PARTS, "H")
ALSO_COMPARED = (
    "words",
    "unlabelled",
    "teacher",
    "sentences",
    "aliases",
    "template",
    "views",
    "flip",
    "dtype",
)  # settings outside the method's own that decide a result

Item = TypeVar("Item")
log = logging.getLogger("wordsight")


class Value(NamedTuple):
    """A figure over seeds."""

    mean: float
    spread: float
    count: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Value:
        return cls(fmean(values), pstdev(values), len(values))

    def __str__(self) -> str:
        return f"{self.mean:.1f} ± {self.spread:.1f}" if self.count > 1 else f"{self.mean:.1f}"


@dataclass(frozen=True)
class Row:
    """Runs that are equal but for seed and classes."""

    data: str
    backbone: str
    method: str
    name: str  # the run's own, or the method
    differs: str  # the settings in which it differs from other rows of its name
    shots: int
    seeds: int
    figures: Mapping[str, Value]  # by part, H among them; a part that is absent was not measured
    seconds: float | None
    parameters: int | None
    runs: tuple[Measured, ...]

    @property
    def label(self) -> str:
        return f"{self.name} {self.differs}".strip()

    @property
    def words(self) -> str:
        return words_of(self.runs[0].settings)

    @property
    def shares_words(self) -> bool:
        return method_entry(self.method).shares_words

    @property
    def rates(self) -> str:
        """The learning rates that were taken of several; nothing where there was no choice."""
        found = [run.rate for run in self.runs if run.rate is not None]
        text = ", ".join(f"{rate:g}" for rate in sorted({rate for rate, _ in found}))
        return text if any(chosen for _, chosen in found) or not found else f"{text} (first)"

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
        """Where it stands in its group: in the order of `wordsight list`, methods from outside at the end."""
        known = list(METHODS)
        return known.index(self.method) if self.method in known else len(known), self.name, self.differs


# -- from folders to rows --


def run_folders(folders: Sequence[str | Path]) -> dict[Path, bool]:
    """The folders that these stand for, and whether each was given itself: a folder that is no run stands for
    all runs below it, finished or not; hf:org/name is fetched.
    """
    found: dict[Path, bool] = {}
    for given in folders:
        folder = Path(given).expanduser()
        if str(given).startswith("hf:"):
            from wordsight.backbones.hub import run_folder

            folder = run_folder(given)
        below = [] if (folder / "config.yaml").is_file() else folder.rglob("config.yaml")
        found |= dict.fromkeys(sorted(path.parent for path in below), False) or {folder: True}
    return {path: found[path] for path in {path.resolve(): path for path in found}.values()}


def open_runs(folders: Iterable[Path]) -> tuple[list[Measured], dict[Path, str]]:
    """The runs that can be read, and why others cannot. Equal data is one, under the first path that it
    has.
    """
    runs: list[Measured] = []
    left_out: dict[Path, str] = {}
    for folder in folders:
        try:
            runs.append(opened(folder))
        except (WordsightError, OSError) as error:
            left_out[folder] = str(error)
    first = one_name(runs)
    called = [(one, first[one.settings.data]) for one in runs]
    return [one if one.settings.data == data else Measured(one.run, data) for one, data in called], left_out


def one_name(runs: Sequence[Measured]) -> dict[str, str]:
    """{data: data}: of several paths to the same images, the first. They are the same where the test images
    are, and the labelled images of equal draws; where there are no such draws nobody knows."""
    tested: dict[str, set[str]] = {}
    drawn: dict[str, dict[Any, str]] = {}
    for one in runs:
        settings, facts = one.settings, one.run.facts
        tested.setdefault(settings.data, set()).add(facts.test)
        draws = drawn.setdefault(settings.data, {})
        if facts.images:
            draws[settings.shots, settings.seed, settings.classes] = facts.images

    def are_one(data: str, other: str) -> bool:
        both = drawn[data].keys() & drawn[other].keys()
        alike = all(drawn[data][draw] == drawn[other][draw] for draw in both)
        return bool(both) and alike and tested[data] == tested[other]

    names: dict[str, str] = {}
    for data in tested:
        names[data] = next((other for other in names.values() if are_one(data, other)), data)
    return names


def opened(folder: Path) -> Measured:
    """A run whose settings and figures can be read. Errors: WordsightError where they cannot."""
    run = Measured(Run.open(folder))
    settings_in_full(run.settings)
    accuracies_of(run)
    return run


def read_rows(folders: Sequence[str | Path]) -> list[Row]:
    """The rows of these run folders. Errors: WordsightError where there is none, or one cannot be read."""
    runs, left_out = open_runs(run_folders(folders))
    if left_out:
        raise WordsightError(next(iter(left_out.values())))
    return make_rows(runs)


def make_rows(runs: Sequence[Measured]) -> list[Row]:
    """By data, backbone and shots, then as `wordsight list` has them. Runs of equal settings and seed are
    one: the first counts, and the others are told. Errors: WordsightError without runs.
    """
    if not runs:
        raise WordsightError("a report needs at least one run folder")
    groups: dict[tuple[Any, ...], dict[tuple[Any, ...], tuple[Measured, dict[str, float]]]] = {}
    for run, differs in zip(runs, differences([run.settings for run in runs])):
        settings = run.settings
        name = settings.name or settings.method
        if settings.unlabelled == "test":  # such figures are not to be compared with others unmarked
            name += " (transductive)"
        for data, accuracies in accuracies_of(run).items():
            key = (data, model_of(settings), settings.method, name, differs, run.shots)
            once = (settings.seed, settings.classes, settings.shots)
            first, _ = groups.setdefault(key, {}).setdefault(once, (run, accuracies))
            if first.folder != run.folder:
                log.warning("%s is not counted: %s has the same settings and seed", run.folder, first.folder)
    rows = [make_row(key, _averaged(list(members.values()))) for key, members in groups.items()]
    return sorted(rows, key=in_order)


def _averaged(members: list[tuple[Measured, dict[str, float]]]) -> list[tuple[Measured, dict[str, float]]]:
    """Those that have figures, where others of the row have none: these would count as seeds of its mean."""
    measured = [one for one in members if one[1]]
    for run, figures in members if measured else []:
        if not figures:
            log.warning("%s is not counted: it has no figures; `wordsight eval` measures it", run.folder)
    return measured or members


def in_order(row: Row) -> tuple[Any, ...]:
    return (*row.group, *row.place)


def accuracies_of(run: Measured) -> dict[str, dict[str, float]]:
    """{data: {part: accuracy}}: the last figure of each part that the run was made for, and of other data it
    was tested on.
    """
    own = run.settings.data
    parts = ("all",) if run.settings.classes == "all" else ("base", "new")
    found: dict[str, dict[str, float]] = {own: {}}
    for one in run.evaluations:
        if one.data != own or one.part in parts:
            data = own if one.data == own else f"{own}{ELSEWHERE}{one.data}"
            found.setdefault(data, {})[one.part] = one.accuracy
    if not found[own] and len(found) > 1:
        del found[own]  # a two_tower is measured on other data than it was trained on
    return found


def make_row(key: tuple[Any, ...], members: Sequence[tuple[Measured, Mapping[str, float]]]) -> Row:
    runs = tuple(run for run, _ in members)
    whole = [run for run in runs if run.settings.classes == "all"] or runs
    seconds = [run.seconds for run in whole if run.seconds is not None]
    counts = [run.parameters for run in whole if run.parameters is not None]
    return Row(
        *key,
        seeds=len({run.settings.seed for run in runs}),
        figures=figures_of([found for _, found in members]),
        seconds=fmean(seconds) if seconds else None,
        parameters=counts[0] if counts else None,
        runs=runs,
    )


def figures_of(accuracies: Sequence[Mapping[str, float]]) -> dict[str, Value]:
    """Each part over seeds, and H of the averaged base and new, whose spread is that of H per seed. Where one
    seed lacks one of them, H is that of the others.
    """
    by_part = {part: [found[part] for found in accuracies if part in found] for part in PARTS}
    figures = {part: Value.of(values) for part, values in by_part.items() if values}
    if {"base", "new"} <= figures.keys():
        both = [found for found in accuracies if {"base", "new"} <= found.keys()]
        by_seed = [harmonic_mean(found["base"], found["new"]) for found in both]
        base, new = ([found[part] for found in both] or by_part[part] for part in ("base", "new"))
        mean = harmonic_mean(fmean(base), fmean(new))
        figures["H"] = Value(mean, pstdev(by_seed) if by_seed else 0.0, len(by_seed))
    return figures


# -- in what rows differ --


def differences(runs: Sequence[AskedSettings]) -> list[str]:
    """For each run the settings, as `name=value`, that are not the same in all runs of its data, method and
    name.
    """
    described = [settings_in_full(settings) for settings in runs]
    groups = split_by(list(zip(runs, described)), same_kind)
    varied: dict[tuple[str, str, str | None], set[str]] = {}
    for group in groups:
        # a form that trains nothing has no train.*, which then differs among the others alone
        found = [(name, value) for _, values in group for name, value in values.items()]
        first = dict(reversed(found))
        varied[same_kind(group[0])] = {name for name, value in found if value != first[name]}
    return [
        " ".join(
            f"{name}={as_typed(values[name])}" for name in values if name in varied[same_kind((run, values))]
        )
        for run, values in zip(runs, described)
    ]


# -- words --


def words_of(settings: AskedSettings) -> str:
    """The words that a run was given, or what it has in their place."""
    kind = method_entry(settings.method).words
    return {"tokens": "learned tokens", "none": "none"}.get(kind, settings.words)


def same_kind(described: tuple[AskedSettings, Any]) -> tuple[str, str, str | None]:
    settings, _ = described
    return settings.data, settings.method, settings.name


def as_typed(value: Any) -> str:
    """A setting as the command line takes it."""
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def settings_in_full(settings: AskedSettings) -> dict[str, Any]:
    """Everything that decides a result beside data, backbone, method, shots, classes and seed; defaults
    written out. A file of each dataset, named after its folder, is one setting.
    """
    folder, own, training = Path(settings.data).name, to_dict(settings.settings), {}
    if settings.train:  # the method's class, which imports torch, says what its own epochs are
        training = {f"train.{name}": value for name, value in to_dict(settings.train).items()}
        kind = resolve(METHODS, settings.method, "method")
        default = kind.training(settings.shots, settings.settings)
        by_shots = getattr(kind, "epochs_by_shots", ())
        if by_shots and default is not None and training["train.epochs"] == default.epochs:
            training["train.epochs"] = "by shots"  # one method, whose epochs follow the shots
    also = {name: getattr(settings, name) for name in ALSO_COMPARED}
    for name in ("sentences", "aliases"):
        if also[name] and "/" in also[name]:
            also[name] = also[name].replace(folder, "{data}")
    return own | training | also


def split_by(items: Iterable[Item], key: Callable[[Item], Any]) -> list[list[Item]]:
    """Items in groups of equal key, in the order in which the keys come."""
    groups: dict[Any, list[Item]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return list(groups.values())


# -- names that are short enough for a table --


def short_names(places: Iterable[str]) -> dict[str, str]:
    """Absolute paths by as many of their last parts as tell them apart; any other name is itself. Several
    sources are joined by `::`.
    """
    kept = list(dict.fromkeys(places))
    sources = {Path(source) for place in kept for source in place.split("::")}
    paths = {path.parts for path in sources if path.is_absolute()}
    return {place: "::".join(short_name(source, paths) for source in place.split("::")) for place in kept}


def short_name(source: str, paths: Iterable[tuple[str, ...]]) -> str:
    own = Path(source).parts
    for count in range(1, len(own)):
        if own in paths and sum(other[-count:] == own[-count:] for other in paths) == 1:
            return "/".join(own[-count:])
    return source


def short_data(rows: Sequence[Row]) -> dict[str, str]:
    """{row.data: what a table shows of it}."""
    short = short_names(place for row in rows for place in (row.trained, row.tested))
    return {
        row.data: ELSEWHERE.join(dict.fromkeys((short[row.trained], short[row.tested])))
        if row.trained != row.tested
        else short[row.trained]
        for row in rows
    }
