"""Suites: the evaluations behind the field's tables, as data, and one function that runs any of them over
methods, datasets and seeds.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from wordsight.backbones import Backbone
from wordsight.cells import Cell, Outcome, featurise_all, outcomes, run_cell, said_once, source, tower_of
from wordsight.cluster import Where
from wordsight.config import AUTO, METHODS, RunSettings, WordsightError, absolute, resolve
from wordsight.data import Dataset
from wordsight.data.splits import Which
from wordsight.files import nfc, plain_name
from wordsight.methods import Classifier
from wordsight.reader import CONFIGS, build, nearest, read, read_yaml
from wordsight.workers import progress

# run settings that a suite passes on to every run
GENERAL = ("template", "views", "flip", "dtype", "label", "max_pixels", "unlabelled")
ZERO_SHOT = "zero_shot"
HERE = "{data}"  # in sentences= and aliases=, the dataset's folder name
YAML = (".yaml", ".yml")
# the least that a number may be, and what would be right
NUMBERS = {
    "seeds": (0, "numbers from 0 on, such as seeds=1,2,3"),
    "shots": (1, "numbers from 1 on, such as shots=1,2,4"),
    "sizes": (1, "numbers from 1 on, such as sizes=10,100"),
    "jobs": (1, "a number from 1 on, such as jobs=2"),
}

log = logging.getLogger("wordsight")


@dataclass(frozen=True)
class Suite:
    """What is fitted on which classes with how many labels, and what it is tested on."""

    summary: str
    shots: tuple[int, ...] = (16,)
    classes: Which = "all"
    targets: bool = False  # fitted on the first dataset alone, and tested on the others too
    same_names: bool = False  # whose classes must be among the first's
    measured: bool = False  # not accuracy but what it costs (cost.py); needs no data


SUITES: dict[str, Suite] = {
    "few-shot": Suite("accuracy against labelled images per class", shots=(1, 2, 4, 8, 16)),
    "base-to-new": Suite(
        "fitted on the base half of the classes, tested on each half by itself", classes="base"
    ),
    "cross-dataset": Suite(
        "fitted on the first dataset, tested on the others with their own classes", targets=True
    ),
    "domain-shift": Suite(
        "the same, where the others show the first one's classes in another way",
        targets=True,
        same_names=True,
    ),
    "cost": Suite("parameters, time, memory and FLOPs of every method, in one process", measured=True),
}


@dataclass(frozen=True)
class SuiteSettings(Where):
    """Which suite over what. What is not given here is the method's own, or its YAML's."""

    suite: str  # few-shot, base-to-new, cross-dataset, domain-shift or cost
    # names of methods or of shipped settings, package.module:Class, or YAML files; none: every classifier
    methods: tuple[str, ...] = ()
    # as in `fit`, several by commas; cross-dataset and domain-shift fit on the first
    data: tuple[str, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)  # of which each is a run
    backbone: str = AUTO  # as in `fit`; the same for every run
    shots: tuple[int, ...] | None = None  # in place of the suite's
    sentences: str | None = None  # for methods whose YAML names none; {data} is the dataset's folder name
    aliases: str | None = None  # the same; with {data}, a dataset without such a file needs none
    # the words that every method which scores by class vectors is given, so that all are compared at equal
    # ones; auto: each method's own
    words: Literal["auto", "names", "sentences", "calibrated"] = "calibrated"
    # as in `fit`, for all methods; {data} is the dataset's folder name
    unlabelled: str | None = None
    template: str | None = None  # for all methods, in place of theirs; likewise the next three
    views: int | None = None  # image views in the feature cache: the centre crop, and augmented ones
    flip: bool | None = None  # whether augmented views may be mirrored
    dtype: Literal["float32", "bfloat16"] | None = None  # in which the towers compute
    label: str | None = None  # the column of labels, where data= are tables that have several
    max_pixels: int | None = None  # the largest image that is decoded, in pixels
    device: str = "auto"  # auto: CUDA where there is one; or cpu, cuda, cuda:1, mps
    train: dict[str, Any] = field(default_factory=dict)  # for every method that trains
    out: str | None = None  # by default runs/<suite>
    jobs: int | None = None  # processes; by default one a core
    sizes: tuple[int, ...] = (10, 100, 1000)  # cost: how many classes

    @property
    def folder(self) -> Path:
        return Path(self.out or Path("runs") / self.suite).expanduser()


def run_suite(settings: SuiteSettings, *, backbone: Backbone | None = None) -> dict[str, Any]:
    """Run what is missing of a suite. The same call goes on after any interruption; a finished run is looked
    at and not repeated.

    Returns {"suite", "out", "runs", "fitted": how many were fitted now, "failed": [{"run", "says"}],
    "markdown"}; for cost what `cost.measure` returns. A run that cannot be is listed in "failed", and the
    rest goes on. `backbone` spares loading it, and keeps everything in this process. Errors: WordsightError
    for settings that cannot be, and where nothing could run; KeyboardInterrupt where it was stopped."""
    suite = suite_of(settings)
    if suite.measured:
        return measured(settings, backbone)
    source.cache_clear()  # files may have changed since another suite in this process
    settings = replace(settings, data=tuple(absolute(data) or data for data in settings.data))
    done: list[Outcome] = []
    with said_once(), settings.on():
        cells = plan(settings, suite, open_all(settings, suite))
        todo = [cell for cell in cells if not cell.finished]
        featurise_all(todo, backbone)
        try:
            done += [run_cell(cell, backbone) for cell in cells if cell.finished]
            with contextlib.closing(outcomes(todo, settings.jobs, backbone)) as rest:
                watch(rest, done, len(cells))
        except KeyboardInterrupt as stop:
            said = f"stopped with {len(done)} of {len(cells)} runs of the suite done"
            raise KeyboardInterrupt(said) from stop
    return summary(settings, cells, done, fitted=len(todo))


def watch(rest: Iterator[Outcome], done: list[Outcome], total: int) -> None:
    """Add the outcomes to `done` as they come, each with a line for the user."""
    with progress("runs", total, len(done)) as advance:
        for outcome in rest:
            done.append(outcome)
            advance()
            log.info("[%*d/%d]  %s", len(str(total)), len(done), total, outcome)


def measured(settings: SuiteSettings, backbone: Backbone | None) -> dict[str, Any]:
    """The suite `cost`."""
    from wordsight import cost  # what it measures with is of no use to the workers

    entries = {
        label: read(RunSettings, {"data": "none", "shots": cost.SHOTS}, entry)
        for label, entry in method_entries(settings).items()
    }
    dtype = settings.dtype or "float32"
    whose = RunSettings("none", backbone=settings.backbone, device=settings.device, dtype=dtype)
    backbone = backbone or tower_of(whose)
    return cost.measure(entries, backbone, settings.sizes, settings.folder)


# -- from settings to cells ----------------------------------------------------------------------------------


def suite_of(settings: SuiteSettings) -> Suite:
    """The suite named, once the settings make sense with it."""
    if settings.suite not in SUITES:
        raise WordsightError(
            f"suite {settings.suite!r} is not known{nearest(settings.suite, SUITES)}; the choices are "
            f"{', '.join(SUITES)}"
        )
    suite = SUITES[settings.suite]
    for name in NUMBERS:
        check_numbers(name, getattr(settings, name))
    if suite.targets and len(settings.data) < 2:
        raise WordsightError(f"{settings.suite} needs the dataset to fit on and those to test on: data=A,B")
    if not suite.measured and not settings.data:
        raise WordsightError(f"{settings.suite} needs one or more datasets: data=A or data=A,B")
    return suite


def check_numbers(name: str, value: int | tuple[int, ...] | None) -> None:
    least, right = NUMBERS[name]
    values = (value,) if isinstance(value, int) else value
    if values is None:
        return
    if not values or min(values) < least:
        raise WordsightError(f"{name}={value} is not possible; give {right}")
    if len(set(values)) < len(values):
        raise WordsightError(
            f"{name}={','.join(map(str, values))} names one twice; its runs would lie in one folder"
        )


def open_all(settings: SuiteSettings, suite: Suite) -> dict[str, Dataset]:
    """Every dataset, by its name. Errors: WordsightError for two of one folder name, and for other classes
    where they must be the same.
    """
    check_apart("data", [(plain_name(data), data) for data in settings.data])
    opened = {data: source(data, settings.label) for data in settings.data}
    first = next(iter(opened.values()))
    for data, dataset in opened.items():
        for note in dataset.notes:
            log.info("%s: %s", data, note)
        others = [name for name in dataset.class_names if name not in first.class_names]
        if suite.same_names and others:
            raise WordsightError(
                f"{settings.suite}: {len(others)} of {len(dataset.class_names)} classes of {data} are not "
                f"among those of {settings.data[0]}: "
                f"{', '.join(map(repr, others[:10]))}; cross-dataset is the suite for other classes"
            )
    return opened


def check_apart(setting: str, named: Sequence[tuple[str, str]]) -> None:
    """Errors: WordsightError where two words give runs the same folder, on any file system."""
    folders: dict[str, str] = {}
    for folder, word in named:
        key = nfc(folder).casefold()
        if key in folders:
            raise WordsightError(
                f"{setting}={folders[key]} and {setting}={word} have the same folder name, {folder!r}, "
                f"after which runs are called; rename one, or name it once"
            )
        folders[key] = word


def plan(settings: SuiteSettings, suite: Suite, opened: Mapping[str, Dataset]) -> list[Cell]:
    """Every run of the suite, its settings checked. A method without labels or training is there once for a
    dataset with a test part.
    """
    entries = beside_zero_shot(settings, method_entries(settings))
    numbers = settings.shots or suite.shots
    cells = []
    for data in settings.data[:1] if suite.targets else settings.data:
        for label, entry in entries.items():
            shots, seeds = numbers, settings.seeds
            needs = method_of(entry).told_labels(words_of(settings, entry))
            if not needs and opened[data].test is not None:
                shots, seeds = numbers[:1], seeds if trains(entry) else seeds[:1]
            for number, seed in itertools.product(shots, seeds):
                try:
                    one = settings_of(settings, suite, label, entry, data, number, seed)
                except WordsightError as error:
                    raise WordsightError(f"methods={label}: {error}") from error
                cells.append(Cell(label, one, settings.data[1:] if suite.targets else ()))
    return cells


def method_entries(settings: SuiteSettings) -> dict[str, dict[str, Any]]:
    """{label: what the user gave for it}: a name, or what a YAML holds."""
    words = settings.methods or [
        name for name in classifiers() if settings.unlabelled or not method_of({"method": name}).needs_pool
    ]
    labels = [Path(word).stem if word.endswith(YAML) else word for word in words]
    shipped = {path.stem for path in CONFIGS.glob("*.yaml")} - METHODS.keys()
    check_apart("methods", [(run_name(label), word) for label, word in zip(labels, words)])
    entries = {}
    for label, word in zip(labels, words):
        is_yaml = word.endswith(YAML) or word in shipped
        entries[label] = read_yaml(word) if is_yaml else {"method": word}
        if not issubclass(method_of(entries[label]), Classifier):
            name = entries[label].get("method", RunSettings.method)
            raise WordsightError(
                f"methods={word}: {name} learns from image-text pairs and becomes a backbone; a suite "
                f"compares {', '.join(classifiers())}"
            )
    return entries


def method_of(entry: Mapping[str, Any]) -> Any:
    return resolve(METHODS, entry.get("method", RunSettings.method), "method")


def words_of(settings: SuiteSettings, entry: Mapping[str, Any]) -> str:
    """The words that a method of the suite is given: its own where its YAML says so, or where it learns the
    tokens of its class texts, uses none, or is nothing but its words.
    """
    kind = method_of(entry)
    given = settings.words if kind.shares_words() else "auto"
    given = entry.get("words", given)
    own = build(kind.Settings, entry.get("settings") or {}, "settings.")
    return kind.own_words(own) if given == "auto" else given


def beside_zero_shot(
    settings: SuiteSettings, entries: Mapping[str, Mapping[str, Any]]
) -> dict[str, Mapping[str, Any]]:
    """The same with zero-shot at every kind of words that a method is given, where it was not named."""
    vectors = [entry for entry in entries.values() if method_of(entry).shares_words()]
    kinds = dict.fromkeys(words_of(settings, entry) for entry in vectors)
    there = {words_of(settings, entry) for entry in vectors if entry.get("method") == ZERO_SHOT}
    added = {}
    for kind in (kind for kind in kinds if kind not in there):
        taken = {*entries, *added}
        label = ZERO_SHOT if ZERO_SHOT not in taken else f"{ZERO_SHOT}-{kind}"
        added |= {label: {"method": ZERO_SHOT, "words": kind}} if label not in taken else {}
    return {**entries, **added}


def trains(entry: Mapping[str, Any]) -> bool:
    """Whether what a user gave for a method is trained."""
    kind = method_of(entry)
    return kind.training(None, build(kind.Settings, entry.get("settings") or {}, "settings.")) is not None


def classifiers() -> list[str]:
    return [name for name in METHODS if issubclass(resolve(METHODS, name, "method"), Classifier)]


def run_name(label: str) -> str:
    """A method's label as a part of a folder's name."""
    return plain_name(label.replace(":", "-").replace("/", "-"))


def settings_of(
    settings: SuiteSettings,
    suite: Suite,
    label: str,
    entry: Mapping[str, Any],
    data: str,
    shots: int,
    seed: int,
) -> RunSettings:
    """A run's settings: the YAML's, then the suite's for all, then what the suite decides. Sentences are for
    a YAML that names none.
    """
    given = {name: value for name in GENERAL if (value := getattr(settings, name)) is not None}
    trained = {"train": settings.train} if trains(entry) else {}
    texts = {"sentences": sentence_file(settings, data), "aliases": alias_file(settings, data)}
    folder = settings.folder / plain_name(data) / f"{run_name(label)}-{shots}shot-seed{seed}"
    given["words"] = words_of(settings, entry)
    if settings.unlabelled is not None:
        given["unlabelled"] = settings.unlabelled.replace(HERE, own_name(data))
    decided = {"data": data, "backbone": settings.backbone, "device": settings.device, "seed": seed}
    decided |= {"shots": shots, "classes": suite.classes, "name": label, "out": str(folder)}
    return read(RunSettings, entry, given, trained, {} if "sentences" in entry else texts, decided)


def own_name(data: str) -> str:
    """The name of a dataset's folder, or the last part of its name, as it is written."""
    return Path(data).resolve().name if os.path.exists(data) else Path(data.removeprefix("hf:")).name


def sentence_file(settings: SuiteSettings, data: str) -> str | None:
    if settings.sentences is None or HERE not in settings.sentences:
        return settings.sentences
    path = settings.sentences.replace(HERE, own_name(data))
    if not Path(path).is_file():
        raise WordsightError(
            f"sentences={settings.sentences!r} asks for {path!r}, for data={data}; it does not exist"
        )
    return path


def alias_file(settings: SuiteSettings, data: str) -> str | None:
    """Class names that find no sentence without such a file are named when the sentences are read."""
    if settings.aliases is None or HERE not in settings.aliases:
        return settings.aliases
    path = settings.aliases.replace(HERE, own_name(data))
    return path if Path(path).is_file() else None


# -- the end -------------------------------------------------------------------------------------------------


def summary(
    settings: SuiteSettings, cells: Sequence[Cell], outcomes: Sequence[Outcome], fitted: int
) -> dict[str, Any]:
    """What came of a suite. Errors: WordsightError where nothing did."""
    from wordsight.report import as_markdown, comparisons, read_rows  # it draws, and no worker needs that

    failed = [outcome for outcome in outcomes if outcome.error]
    if len(failed) == len(outcomes):
        raise WordsightError(
            f"none of {len(cells)} runs could be; the first, {failed[0].cell.name}: {failed[0].error}"
        )
    rows = read_rows([outcome.cell.folder for outcome in outcomes if not outcome.error])
    said = [
        {"run": outcome.cell.name, "says": text}
        for outcome in outcomes
        for text in ((outcome.error,) if outcome.error else outcome.lacks)
    ]
    return {
        "suite": settings.suite,
        "out": str(settings.folder),
        "runs": len(cells),
        "fitted": fitted - sum(not outcome.cell.finished for outcome in failed),
        "failed": said,
        "markdown": as_markdown(rows, comparisons(rows)),
    }
